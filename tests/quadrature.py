"""The exact posterior of a small problem with two random effects, in NumPy and SciPy alone.

Every patient's random effects are integrated out by adaptive Gauss-Hermite quadrature; the population parameters
that are left, five of them, by importance sampling from a multivariate t at scrambled Sobol points. ``phi`` is, as in
the library, two typical values (natural log), two ln omega and ln sigma, here with any number of points in front.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from arviz_stats.base.array import array_stats
from scipy import stats
from scipy.optimize import minimize
from scipy.special import log_ndtr, logsumexp

NODES = (16, 32)  # of cmax, in which ln level is linear, and of the other random effect
REPLICATES = 16  # independent scrambles: their scatter is the Monte Carlo error
_CHUNK = 256  # points of phi at once
_NEWTON = 12  # damped steps to a patient's mode; the nodes need not stand exactly there
_TINY = 1e-30  # of an omega whose logarithm is taken


def ln_shape(day, p):
    """Natural log of level / cmax in Stein's model, as printed; ``p`` holds its other five parameters."""
    rise = np.log(p["foldx"]) / p["tmax"] * np.minimum(day - p["tmax"], 0.0)
    since = np.maximum(day - p["tmax"], 0.0)
    return rise + np.log((1 - p["fb"]) * np.exp(-p["alpha"] * since) + p["fb"] * np.exp(-p["beta"] * since))


class Patient(NamedTuple):
    """Quantified and censored samples: days, natural logs of values, of the limit."""

    day: np.ndarray
    ln_dv: np.ndarray
    day_below: np.ndarray
    ln_lloq: np.ndarray


@dataclass(frozen=True)
class Problem:
    """Stein's model in which only cmax and ``second`` are estimated and vary.

    ``priors`` are SciPy distributions: of the two typical values (natural log), the two omegas and sigma.
    """

    second: str
    known: dict[str, float]
    priors: tuple
    patients: tuple[Patient, ...]

    def ln_shape(self, day, ln_second):
        """Natural log of level / cmax at ``day`` (..., time) for ``ln_second`` (...)."""
        second = np.exp(np.minimum(ln_second, 50.0))[..., None]  # outermost nodes overflow otherwise
        return ln_shape(day, self.known | {self.second: second})

    def phi(self, u):
        """``phi`` (n, 5) at ``u``, in which the prior is standard normal."""
        columns = []
        for i, prior in enumerate(self.priors):
            x = np.where(u[:, i] < 0, prior.ppf(stats.norm.cdf(u[:, i])), prior.isf(stats.norm.sf(u[:, i])))
            columns.append(x if i < 2 else np.log(np.maximum(x, _TINY)))
        return np.stack(columns, axis=1)

    def log_posterior(self, u, nodes=NODES):
        """Log of the posterior density of ``u`` (n, 5), not normalised."""
        return stats.norm.logpdf(u).sum(1) + self.log_likelihood(self.phi(u), nodes)

    def log_likelihood(self, phi, nodes=NODES):
        """Log marginal likelihood of all patients at ``phi`` (n, 5)."""
        pieces = np.array_split(phi, -(-len(phi) // _CHUNK))
        return np.concatenate([sum(log_marginal(self, patient, x, nodes) for patient in self.patients) for x in pieces])


def log_integrand(problem: Problem, patient: Patient, phi, z1, z2):
    """Log of likelihood times density of the standardised random effects of one patient; all (...) but phi (..., 5)."""
    sigma = np.exp(phi[..., 4])[..., None]
    ln_cmax, ln_second = phi[..., 0] + np.exp(phi[..., 2]) * z1, phi[..., 1] + np.exp(phi[..., 3]) * z2
    residual = patient.ln_dv - ln_cmax[..., None] - problem.ln_shape(patient.day, ln_second)
    limit = patient.ln_lloq - ln_cmax[..., None] - problem.ln_shape(patient.day_below, ln_second)
    quantified = stats.norm.logpdf(residual, scale=sigma) - patient.ln_dv
    below = log_ndtr(limit / sigma)
    return quantified.sum(-1) + below.sum(-1) + stats.norm.logpdf(z1) + stats.norm.logpdf(z2)


def log_marginal(problem: Problem, patient: Patient, phi, nodes=NODES):
    """Log marginal likelihood of one patient at ``phi`` (n, 5), by adaptive Gauss-Hermite quadrature.

    The nodes are centred at the patient's mode and scaled by the Gauss-Newton curvature there.
    """
    centre, spread = _mode(problem, patient, phi)
    (x1, w1), (x2, w2) = (np.polynomial.hermite_e.hermegauss(k) for k in nodes)
    # The factor is lower triangular in the order (second, cmax): the curve is needed once for each node of second.
    z2 = centre[1][:, None] + spread[0][:, None] * x2
    z1 = (centre[0][:, None] + spread[1][:, None] * x2)[:, :, None] + spread[2][:, None, None] * x1
    sigma = np.exp(phi[:, 4])[:, None, None]
    ln_second = phi[:, 1, None] + np.exp(phi[:, 3, None]) * z2
    ln_cmax = phi[:, 0, None, None] + np.exp(phi[:, 2, None, None]) * z1
    residual = patient.ln_dv - problem.ln_shape(patient.day, ln_second)
    limit = patient.ln_lloq - problem.ln_shape(patient.day_below, ln_second)
    # sum (residual - ln cmax)^2, without an axis for the samples
    k, total, squares = len(patient.day), residual.sum(-1)[:, :, None], (residual**2).sum(-1)[:, :, None]
    value = -0.5 * (squares - 2 * total * ln_cmax + k * ln_cmax**2) / sigma**2
    value -= k * np.log(sigma * np.sqrt(2 * np.pi)) + patient.ln_dv.sum()
    for j in range(len(patient.day_below)):
        value += log_ndtr((limit[:, :, j, None] - ln_cmax) / sigma)
    value += np.log(w1) + np.log(w2)[:, None] + 0.5 * (x1**2 + x2[:, None] ** 2 - z1**2 - z2[:, :, None] ** 2)
    jacobian = np.log(spread[0] * spread[2]) - np.log(2 * np.pi)
    return logsumexp(value, axis=(1, 2)) + jacobian


def _mode(problem: Problem, patient: Patient, phi):
    """Mode of the standardised random effects, and a factor of their covariance: SD of second, slope, SD of cmax."""
    omega = np.exp(phi[:, 2:4])
    z = np.zeros((len(phi), 2))
    best, gradient, hessian = _expansion(problem, patient, phi, z)
    damping = np.full(len(phi), 0.1)
    for _ in range(_NEWTON):
        step = np.linalg.solve(hessian * (1 + damping[:, None, None] * np.eye(2)), gradient[..., None])[..., 0]
        trial = z + step / np.maximum(1, np.abs(step * omega).max(-1, keepdims=True))
        value, *terms = _expansion(problem, patient, phi, trial)
        better = value > best
        z, best = np.where(better[:, None], trial, z), np.where(better, value, best)
        gradient = np.where(better[:, None], terms[0], gradient)
        hessian = np.where(better[:, None, None], terms[1], hessian)
        damping = np.where(better, damping / 10, damping * 10 + 1e-3)
    a, b, d = hessian[:, 0, 0], hessian[:, 0, 1], hessian[:, 1, 1]
    sd = 1 / np.sqrt(d - b * b / a)
    return z.T, (sd, -b / a * sd, 1 / np.sqrt(a))


def _expansion(problem: Problem, patient: Patient, phi, z):
    """Log of the integrand at z (n, 2) up to a constant, its gradient in z, and minus its Gauss-Newton Hessian."""
    omega, sigma = np.exp(phi[:, 2:4]), np.exp(phi[:, 4])[:, None]
    ln_cmax, ln_second = (phi[:, :2] + omega * z).T
    day = np.concatenate([patient.day, patient.day_below])
    shape, moved = (problem.ln_shape(day, ln_second + h) for h in (0.0, 1e-5))
    scaled = (np.concatenate([patient.ln_dv, patient.ln_lloq]) - ln_cmax[:, None] - shape) / sigma
    residual, limit = np.split(scaled, [len(patient.day)], axis=1)
    below = log_ndtr(limit)
    ratio = np.exp(-0.5 * limit**2 - below) / np.sqrt(2 * np.pi)  # inverse Mills
    value = below.sum(1) - 0.5 * (residual**2).sum(1) - 0.5 * (z**2).sum(1)
    score = np.concatenate([residual, -ratio], axis=1) / sigma
    weight = np.concatenate([np.ones_like(residual), ratio * (ratio + limit)], axis=1) / sigma**2
    s1, s2 = omega[:, :1], (moved - shape) / 1e-5 * omega[:, 1:]  # slopes of ln level in z
    gradient = np.stack([(score * s1).sum(1), (score * s2).sum(1)], axis=1) - z
    among = [(weight * a * b).sum(1) for a, b in ((s1, s1), (s1, s2), (s1, s2), (s2, s2))]
    return value, gradient, np.stack(among, axis=1).reshape(-1, 2, 2) + np.eye(2)


@dataclass(frozen=True)
class Weighted:
    """Points of ``phi`` (replicate, n, 5) with weights (replicate, n) that make them draws from the posterior."""

    points: np.ndarray
    weights: np.ndarray
    khat: float

    @property
    def ess(self) -> float:
        """Number of independent draws that know as much."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())

    def facts(self, function) -> tuple[np.ndarray, np.ndarray]:
        """``function(points, weights)`` of all replicates together, and its standard error from their scatter."""
        each = np.array([function(x, w) for x, w in zip(self.points, self.weights, strict=True)])
        whole = function(self.points.reshape(-1, self.points.shape[-1]), self.weights.ravel())
        return np.asarray(whole), each.std(0, ddof=1) / np.sqrt(len(each))

    def draws(self, chains: int, n: int, seed: int) -> np.ndarray:
        """Independent draws (chain, draw, 5), with replacement."""
        probability = self.weights.ravel() / self.weights.sum()
        chosen = np.random.default_rng(seed).choice(probability.size, (chains, n), p=probability)
        return self.points.reshape(-1, self.points.shape[-1])[chosen]


def importance_sample(problem: Problem, *, n: int, nodes=NODES) -> Weighted:
    """The posterior of ``phi`` by self-normalised importance sampling, ``n`` points in each replicate."""
    target = partial(problem.log_posterior, nodes=nodes)
    mode = minimize(lambda u: -target(u[None])[0], np.zeros(5), method="BFGS", options={"gtol": 0.1})
    centre, covariance = mode.x, 2 * mode.hess_inv
    for round_ in range(4):  # learn the proposal's place and shape
        u, log_q = _student(centre, covariance, n=1024, seed=round_)
        weights = _normalised(target(u) - log_q)
        centre = weights @ u
        covariance = 1.2 * np.einsum("n,ni,nj->ij", weights, u - centre, u - centre)
    drawn = [_student(centre, covariance, n=n, seed=100 + r) for r in range(REPLICATES)]
    u, log_q = np.concatenate([x for x, _ in drawn]), np.concatenate([q for _, q in drawn])
    log_ratio = target(u) - log_q
    khat = float(array_stats.psislw(-log_ratio)[1])  # ArviZ negates: it expects log likelihoods
    return Weighted(problem.phi(u).reshape(REPLICATES, n, -1), _normalised(log_ratio).reshape(REPLICATES, n), khat)


def _normalised(log_ratio):
    weights = np.exp(log_ratio - log_ratio.max())
    return weights / weights.sum()


def _student(centre, covariance, *, n: int, seed: int, df: int = 5):
    """``n`` scrambled Sobol points of a multivariate t, and their log density."""
    d = len(centre)
    uniform = stats.qmc.Sobol(d + 1, rng=seed).random(n)
    radius = np.sqrt(df / stats.chi2.ppf(uniform[:, d], df))
    points = centre + (stats.norm.ppf(uniform[:, :d]) * radius[:, None]) @ np.linalg.cholesky(covariance).T
    return points, stats.multivariate_t.logpdf(points, centre, covariance, df)


def weighted_quantiles(x, weights, probabilities):
    """Quantiles of weighted points."""
    order = np.argsort(x)
    cumulative = np.cumsum(weights[order])
    return np.interp(probabilities, (cumulative - 0.5 * weights[order]) / cumulative[-1], x[order])
