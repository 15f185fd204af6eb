"""The joint density of a population in NumPy, SciPy and mpmath, one patient and one row after another.

It reads a model's description and the table, and nothing that the library computes of them.
"""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro.distributions as dist
from scipy import stats
from scipy.special import expit, logit

from test_residuals import exact

PARAMS = {"lognormal": 1, "student_t": 2, "combined": 2, "negative_binomial": 1}
FORWARD = {"log": np.log, "logit": logit, "identity": lambda x: x}
INVERSE = {"log": np.exp, "logit": expit, "identity": lambda x: x}


def forward(p, natural):
    """Transformed scale; the bounds of a logit parameter are the ends of its interval."""
    return float(FORWARD[p.transform]((natural - p.low) / (p.high - p.low) if p.transform == "logit" else natural))


def inverse(p, x):
    natural = INVERSE[p.transform](x)
    return p.low + (p.high - p.low) * natural if p.transform == "logit" else natural


def of_scale(prior, x):
    """Log density of ln x, where x is an omega or a residual parameter."""
    if prior.family == "lognormal":
        return stats.lognorm.logpdf(x, s=prior.scale, scale=np.exp(prior.loc)) + np.log(x)
    return stats.halfnorm.logpdf(x, scale=prior.scale) + np.log(x)


def designs(c, people):
    """What every effect of a covariate is multiplied by, one number a patient; nothing where a value is missing."""
    x = people[c.column]
    if c.form == "categorical":
        known = x[x.notna() & (x != "")].astype(str)
        reference = c.reference or known.value_counts().sort_index().idxmax()
        levels = c.levels or sorted(set(known) - {reference})
        return [np.array([float(str(v) == level) for v in x]) for level in levels]
    x = x.astype(float)
    center = {"median": x.median(), "mean": x.mean()}.get(c.center, c.center)
    return [np.where(x.isna(), 0.0, np.log(x / center) if c.form == "power" else x - center)]


def effects(model, people, take):
    """What covariates add to every parameter's transformed typical value; and the log prior of their effects."""
    parts, total = [], 0.0
    for c in model.covariates:
        every = designs(c, people)
        for d, value in zip(every, c.values or (c.value,) * len(every), strict=True):
            known = people[c.column].notna() if c.form != "categorical" else [True] * len(d)
            sd = c.prior_sd or (0.7 if c.form == "categorical" else 0.7 / np.std(d[np.asarray(known)]))
            parts.append([c, d, value if c.fixed else take(), value, sd])
    free = [part for part in parts if not part[0].fixed]
    if model.shrinkage is None:
        total += sum(stats.norm.logpdf(beta, value, sd) for _, _, beta, value, sd in free)
    else:
        expected, slab = model.shrinkage.expected, model.shrinkage.slab
        scale = model.shrinkage.scale or expected / max(len(free) - expected, 1.0) / math.sqrt(len(people))
        tau, local = np.exp(take()), [np.exp(take()) for _ in free]
        total += stats.halfcauchy.logpdf(tau, scale=scale) + np.log(tau)
        for part, lam in zip(free, local, strict=True):
            total += stats.halfcauchy.logpdf(lam) + np.log(lam) + stats.norm.logpdf(part[2])
            # Piironen and Vehtari's lambda tilde, for one SD of the covariate
            part[2] *= tau * np.sqrt(slab**2 * lam**2 / (slab**2 + tau**2 * lam**2)) * part[4] / 0.7
    shift = {p.name: np.zeros(len(people)) for p in model.parameters}
    transforms = {p.name: p.transform for p in model.parameters}
    for c, d, beta, *_ in parts:
        factor = c.form == "linear" and transforms[c.on] == "log"
        shift[c.on] = shift[c.on] + (np.log(1 + beta * d) if factor else beta * d)
    return shift, total


def correlation_of(partial, k):
    """The matrix of which these are the partial correlations: of i and j < i, given all before j."""
    r, it = np.eye(k), iter(partial)
    for i in range(1, k):
        for j in range(i):
            before = r[:j, :j]
            a, b = r[i, :j], r[j, :j]
            left = (1 - a @ np.linalg.solve(before, a)) * (1 - b @ np.linalg.solve(before, b))
            r[i, j] = r[j, i] = next(it) * np.sqrt(left) + a @ np.linalg.solve(before, b)
    return r


def correlations(model, take):
    """Correlations of all random effects, and the log prior of what they are made of."""
    names = [p.name for p in model.parameters if p.iiv]
    whole, given = np.eye(len(names)), model.correlation
    if given is None:
        return whole, 0.0
    k = len(given.parameters)
    x = np.array([take() for _ in range(k * (k - 1) // 2)])
    at = [names.index(n) for n in given.parameters]
    whole[np.ix_(at, at)] = correlation_of(np.tanh(x), k)
    if given.prior_sd:
        known = np.array(given.matrix)
        middle = []
        for i in range(1, k):  # partial correlations of the known matrix, by inverting parts of it
            for j in range(i):
                some = [*range(j), j, i]
                precision = np.linalg.inv(known[np.ix_(some, some)])
                middle.append(-precision[-1, -2] / np.sqrt(precision[-1, -1] * precision[-2, -2]))
        return whole, stats.norm.logpdf(x, np.arctanh(middle), given.prior_sd).sum()
    return whole, lkj(x, k, given.eta)


def lkj(x, k, eta):
    """NumPyro's LKJ density of a Cholesky factor, with the Jacobian of its own transformation."""
    with jax.enable_x64(True):
        to_factor = dist.transforms.CorrCholeskyTransform()
        factor = to_factor(jnp.asarray(x))
        return float(dist.LKJCholesky(k, eta).log_prob(factor) + to_factor.log_abs_det_jacobian(x, factor))


def log_level(t, p):
    """Stein's curve as printed."""
    if t < p["tmax"]:
        return np.log(p["cmax"] / p["foldx"]) + np.log(p["foldx"]) / p["tmax"] * t
    s = t - p["tmax"]
    return np.log(p["cmax"]) + np.log((1 - p["fb"]) * np.exp(-p["alpha"] * s) + p["fb"] * np.exp(-p["beta"] * s))


def of_row(row, assay, f, parameters):
    """Log likelihood of one sample, by mpmath."""
    if np.isnan(row.LIMIT):
        kind, ends = {0: "quantified", 1: "below", -1: "above"}[row.CENS], [row.DV]
    else:
        kind, ends = "between", sorted([row.DV, row.LIMIT])
    with mp.workdps(30):
        ends = [mp.log(mp.mpf(float(x))) for x in ends]
        parameters = [mp.mpf(float(x)) for x in parameters[: PARAMS[assay.error]]]
        return float(exact(assay.error, kind, ends, mp.mpf(float(f)), *parameters))


def by_hand(model, frame, phi, z):
    """The whole joint density; ``frame`` has a column for every covariate, the same in all rows of a patient."""
    values = [float(x) for x in phi]

    def take():
        return values.pop(0)

    people = frame.groupby("ID").first()
    theta = {p.name: forward(p, p.value) if p.fixed else take() for p in model.parameters}
    total = sum(stats.norm.logpdf(theta[p.name], p.prior.loc, p.prior.scale) for p in model.parameters if not p.fixed)
    shift, of_effects = effects(model, people, take)
    random = [p for p in model.parameters if p.iiv]
    step, share = np.zeros(len(random)), 0.0
    if model.mixture is not None:
        at = [p.name for p in random].index(model.mixture.on)
        away = forward(random[at], model.mixture.value) - forward(random[at], random[at].value)
        ln_step, odds = take(), take()
        total += stats.norm.logpdf(ln_step, np.log(abs(away)), model.mixture.prior_step)
        total += stats.norm.logpdf(odds, logit(model.mixture.probability), model.mixture.prior_odds)
        step[at], share = np.sign(away) * np.exp(ln_step), expit(odds)
    omega = {p.name: np.exp(take()) for p in random if not p.omega_of}
    total += sum(of_scale(p.prior_omega, omega[p.name]) for p in random if not p.omega_of)
    matrix, of_correlation = correlations(model, take)
    residual = np.full((len(model.assays), 2), np.nan)
    for k in range(2):
        for a, assay in enumerate(model.assays):
            prior, known = ((assay.prior, assay.sigma), (assay.prior_second, assay.second))[k]
            residual[a, k] = known if prior is None else np.exp(take())
            total += 0.0 if prior is None else of_scale(prior, residual[a, k])
    assert not values
    sd = np.diag([omega[p.omega_of or p.name] for p in random])
    spread, factor = sd @ matrix @ sd, sd @ np.linalg.cholesky(matrix)
    centre = np.array([theta[p.name] + shift[p.name] for p in random])
    x = centre + factor @ z
    for i in range(len(people)):
        of_class = [stats.multivariate_normal(centre[:, i] + k * step, spread).logpdf(x[:, i]) for k in (0, 1)]
        total += np.logaddexp(np.log1p(-share) + of_class[0], np.log(share) + of_class[1]) if share else of_class[0]
        total += np.linalg.slogdet(factor)[1]  # the density is one of z
    by_name = {a.name: (k, a) for k, a in enumerate(model.assays)}
    for i, subject in enumerate(people.index):
        individual = {p.name: theta[p.name] + shift[p.name][i] for p in model.parameters}
        individual |= {p.name: x[k, i] for k, p in enumerate(random)}
        natural = {p.name: inverse(p, individual[p.name]) for p in model.parameters}
        for row in frame[frame["ID"] == subject].itertuples():
            k, assay = by_name[row.DVID]
            f = log_level(row.TIME, natural)
            f += np.log(natural[assay.ratio.name]) if assay.ratio is not None else 0.0
            total += of_row(row, assay, f, residual[k])
    return total + of_effects + of_correlation
