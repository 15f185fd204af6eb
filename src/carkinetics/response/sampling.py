"""The posterior of a response model: its modes, draws and evidence.

Few parameters and a smooth density: draws come from a mixture of multivariate t distributions, one at each mode,
learnt in a few rounds, and are weighted by what they leave (importance sampling, Pareto-smoothed). They are
independent, the evidence comes with them, and the same seed gives the same. Where the weights' tail is too heavy, wider
components join the mixture; where that is not enough, NUTS draws in the place of it.

References
----------
Cappe O et al., Stat Comput 2008;18:447-459, doi:10.1007/s11222-008-9059-x: learning the mixture.
Vehtari A et al., J Mach Learn Res 2024;25(72): smoothing the weights, and k.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats
from scipy.special import logsumexp

from carkinetics.errors import FitError
from carkinetics.inference.gates import convergence
from carkinetics.response.carrying import Carried
from carkinetics.response.terms import AbstractTerms

DRAWS = 4000
FEWEST_DRAWS = 1000
_MORE = 8  # times as many points of the mixture, where the first do not carry enough
_ENOUGH = 0.5  # effective share of the draws
K_MAX = 0.7  # shape of the weights' tail beyond which they are not reliable
CHAINS, WARMUP = 4, 1000  # of NUTS
_BLOCK = 2**10  # points evaluated at once: one size, so that it compiles once
_LEARNING = _BLOCK  # points of a round
_ROUNDS = 3
_WIDER = 3.0  # SDs of a second component, where one is not enough
_LEARNT = 0.7  # effective share of the points above which a mixture needs no further round
_FREEDOM = 5
_STEPS = 200  # of Newton's method, at most
_LOST = 1e-8  # curvature, of that at the start of the search: below it there is no maximum
_BATCH = 64
_FAR = 1e4  # standardised: nothing estimated lies there


class Arrays(NamedTuple):
    """What the likelihood reads: exposure as :class:`~carkinetics.response.carrying.Carried`, covariates, outcome."""

    base: Array
    log_weight: Array
    loadings: Array
    z: Array
    s: Array
    y: Mapping[str, Array]


def read_by_likelihood(part: Carried, z: np.ndarray, s: float, y: Mapping[str, np.ndarray]) -> Arrays:
    """Exposure, covariates, SD of ln exposure and outcome, in double precision."""
    with jax.enable_x64(True):
        base, log_weight, loadings = map(jnp.asarray, part)
        return Arrays(base, log_weight, loadings, jnp.asarray(z), jnp.asarray(s), jax.tree.map(jnp.asarray, dict(y)))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the parameters, and how they were made.

    Attributes
    ----------
    draws : array of shape (draw, parameter)
        Of the terms' ``names``; factors of ``joint`` are in ``factors``.
    log_evidence : float
        Log marginal likelihood of all outcomes; NaN of NUTS and of flat priors.
    method : {"importance", "nuts"}
    numbers : dict
        ``k``, ``ess`` of the weights; or ``rhat``, ``ess_bulk``, ``ess_tail``, ``divergences``.
    """

    draws: Float[np.ndarray, "draw parameter"]
    factors: Float[np.ndarray, "draw factor"]
    log_evidence: float
    method: str
    numbers: dict[str, float]


def subject_log_lik(terms: AbstractTerms, x: Float[Array, " x"], a: Arrays) -> Float[Array, " subject"]:
    """Log likelihood of every patient at ``x``, the parameters and then the factors."""
    n = len(terms.names)
    u = a.base + x[n:] @ a.loadings if a.loadings.shape[0] else a.base
    return jax.nn.logsumexp(a.log_weight + terms.log_lik(x[:n], u, a.z, a.s, a.y), axis=0)


def log_posterior(terms: AbstractTerms, x: Float[Array, " x"], a: Arrays) -> Float[Array, ""]:
    """Log of likelihood times prior."""
    f = x[len(terms.names) :]
    prior = terms.log_prior(x[: len(terms.names)]) - 0.5 * (f @ f) - 0.5 * f.size * np.log(2 * np.pi)
    return subject_log_lik(terms, x, a).sum() + prior


@partial(jax.jit, static_argnums=0)
def _expansion(terms: AbstractTerms, x: Array, a: Arrays):
    def density(x):
        return log_posterior(terms, x, a)

    return density(x), jax.grad(density)(x), jax.hessian(density)(x)


@partial(jax.jit, static_argnums=0)
def _log_posteriors(terms: AbstractTerms, x: Array, a: Arrays):
    return jax.lax.map(lambda each: log_posterior(terms, each, a), x, batch_size=_BATCH)


@partial(jax.jit, static_argnums=0)
def _log_liks(terms: AbstractTerms, x: Array, a: Arrays):
    return jax.lax.map(lambda each: subject_log_lik(terms, each, a), x, batch_size=_BATCH)


def find_mode(
    terms: AbstractTerms, a: Arrays, start: Float[np.ndarray, " p"]
) -> tuple[Float[np.ndarray, " x"], float, Float[np.ndarray, "x x"]]:
    """A maximum of the posterior, its log density and minus its Hessian, by damped Newton steps.

    Raises
    ------
    FitError
        There is none: with flat priors, separated outcomes or empty grades push an estimate to infinity.
    """
    with jax.enable_x64(True):
        a = jax.tree.map(jnp.asarray, a)
        x = np.concatenate([start, np.zeros(a.loadings.shape[0])])
        value, slope, hessian = (np.asarray(v, float) for v in _expansion(terms, jnp.asarray(x), a))
        first = -hessian
        for _ in range(_STEPS):
            size = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-12 * np.abs(hessian).max()))
            values, vectors = np.linalg.eigh(-hessian * size * size[:, None])  # each parameter on a scale of its own
            along = vectors.T @ (size * slope)
            curvature = np.maximum(np.abs(values), 1e-6 * np.abs(values).max())
            step, gain = size * (vectors @ (along / curvature)), float((along**2 / curvature).sum())
            if gain < 1e-20 * max(1.0, abs(float(value))):
                return x, float(value), _certain(terms, -hessian, first, x)
            step *= min(1.0, 5.0 / np.abs(step).max())
            for _ in range(40):
                trial = tuple(np.asarray(v, float) for v in _expansion(terms, jnp.asarray(x + step), a))
                if np.isfinite(trial[0]) and np.isfinite(trial[2]).all() and trial[0] >= value - 1e-12 * abs(value):
                    break
                step = step / 2
            else:
                return x, float(value), _certain(terms, -hessian, first, x)  # rounding allows no better
            x = x + step
            value, slope, hessian = trial
    raise FitError(_no_mode(terms))


def _certain(terms: AbstractTerms, curvature, first, x: Float[np.ndarray, " x"]) -> Float[np.ndarray, "x x"]:
    """The curvature at a mode, unless it is lost in some direction beside what it was where the search began."""
    values, vectors = np.linalg.eigh(first)
    root = vectors / np.sqrt(np.maximum(np.abs(values), 1e-12 * np.abs(values).max()))
    if np.linalg.eigvalsh(root.T @ curvature @ root)[0] < _LOST or np.abs(x).max(initial=0) > _FAR:
        raise FitError(_no_mode(terms))
    return curvature


def _no_mode(terms: AbstractTerms) -> str:
    return (
        f"the posterior of {', '.join(terms.names)} has no maximum that can be found. With flat priors that is so "
        "where outcomes are separated by exposure or covariates, or a grade is empty: use the default priors."
    )


def sample(terms: AbstractTerms, a: Arrays, *, seed: int, draws: int = DRAWS, method: str = "auto") -> Posterior:
    """Draws of the posterior.

    Parameters
    ----------
    method : {"auto", "importance", "nuts"}
        ``auto``: importance sampling, unless its weights are not reliable.
    """
    with jax.enable_x64(True):
        a = jax.tree.map(jnp.asarray, a)
        centres, covariances, shares = _modes(terms, a)
        proposal = _Mixture(centres, covariances, shares)

        target = partial(_target, terms, a)
        proposal = _taught(proposal, target, seed=seed)
        if method != "nuts":
            first = 2 ** math.ceil(math.log2(draws))
            for n in (first, _MORE * first):
                if n > first:
                    proposal = _taught(proposal.with_wider_ones(), target, seed=seed)
                x, log_ratio = proposal.points(n, seed + _ROUNDS, target)
                found = _weighted(terms, x, log_ratio, seed=seed, draws=draws)
                if found.numbers["k"] <= K_MAX and found.numbers["ess"] >= _ENOUGH * draws:
                    return found
            if method == "importance" or found.numbers["k"] <= K_MAX:
                return found
        return _nuts(terms, a, proposal, seed=seed, draws=draws)


def _target(terms: AbstractTerms, a: Arrays, x: Float[np.ndarray, "n x"]) -> Float[np.ndarray, " n"]:
    """Log posterior density at a whole number of blocks of points; where it is not a number there is none."""
    blocks = [np.asarray(_log_posteriors(terms, jnp.asarray(b), a)) for b in np.split(x, len(x) // _BLOCK)]
    found = np.concatenate(blocks)
    return np.where(np.isnan(found), -np.inf, found)


def _modes(terms: AbstractTerms, a: Arrays):
    """Different modes, covariances there, and their shares by Laplace's approximation."""
    found: list[tuple[np.ndarray, np.ndarray, float]] = []
    for start in terms.starts:
        try:
            x, value, curvature = find_mode(terms, a, start)
        except FitError:
            continue
        covariance = np.linalg.inv(curvature)
        away = [(x - other) @ curvature @ (x - other) for other, _, _ in found]
        if all(d > 1.0 for d in away):
            found.append((x, covariance, value + 0.5 * np.linalg.slogdet(covariance)[1]))
    if not found:
        raise FitError(_no_mode(terms))
    log_share = np.array([v for _, _, v in found])
    share = np.maximum(np.exp(log_share - logsumexp(log_share)), 0.05)
    return np.stack([x for x, _, _ in found]), np.stack([c for _, c, _ in found]), share / share.sum()


class _Mixture(NamedTuple):
    """Of multivariate t distributions."""

    centres: Float[np.ndarray, "k x"]
    shapes: Float[np.ndarray, "k x x"]
    shares: Float[np.ndarray, " k"]

    def log_densities(self, x: np.ndarray) -> Float[np.ndarray, "k n"]:
        each = [stats.multivariate_t.logpdf(x, m, c, _FREEDOM) for m, c in zip(self.centres, self.shapes, strict=True)]
        return np.stack(each).reshape(len(self.shares), -1) + np.log(self.shares)[:, None]

    def with_wider_ones(self) -> "_Mixture":
        """Beside each component another one, wider: together they learn a skewed or heavy tail."""
        centres, shapes = np.concatenate([self.centres] * 2), np.concatenate([self.shapes, _WIDER**2 * self.shapes])
        return _Mixture(centres, shapes, np.concatenate([self.shares, self.shares]) / 2)

    def points(self, n: int, seed: int, target: Callable) -> tuple[np.ndarray, np.ndarray]:
        """Scrambled Sobol points, and log of target over mixture density."""
        d = self.centres.shape[1]
        uniform = stats.qmc.Sobol(d + 2, rng=seed).random(n)
        # The sequence is evenly spread: its first point may be 0 in a coordinate, and a quantile of 0 is infinite.
        uniform = np.clip(uniform, 1e-10, 1 - 1e-10)
        which = np.minimum(np.searchsorted(np.cumsum(self.shares), uniform[:, 0]), len(self.shares) - 1)
        radius = np.sqrt(_FREEDOM / stats.chi2.ppf(uniform[:, 1], _FREEDOM))
        normal = stats.norm.ppf(uniform[:, 2:]) * radius[:, None]
        roots = np.linalg.cholesky(self.shapes)
        x = self.centres[which] + np.einsum("nij,nj->ni", roots[which], normal)
        return x, target(x) - np.asarray(logsumexp(self.log_densities(x), axis=0))


def _taught(proposal: _Mixture, target: Callable, *, seed: int) -> _Mixture:
    """The mixture after some rounds of learning."""
    for round_ in range(_ROUNDS):
        proposal, ess = _learnt(proposal, target, seed=seed + round_)
        if ess > _LEARNT * _LEARNING:
            break
    return proposal


def _learnt(proposal: _Mixture, target: Callable, *, seed: int) -> tuple[_Mixture, float]:
    """The mixture moved to where its points have weight, and how many effective points it had before."""
    x, log_ratio = proposal.points(_LEARNING, seed, target)
    weight = np.exp(log_ratio - logsumexp(log_ratio))
    log_each = proposal.log_densities(x)
    belongs = weight * np.exp(log_each - logsumexp(log_each, axis=0))
    centres, shapes, shares = (v.copy() for v in proposal)
    d = x.shape[1]
    for k, w in enumerate(belongs):
        total = w.sum()
        shares[k] = max(total, 0.02)
        if total > 0 and (w / max(total, 1e-300)).max() < 1 / (4 * (d + 1)):  # too few carry it to tell a shape
            p = w / total
            centres[k] = p @ x
            off = x - centres[k]
            shapes[k] = np.einsum("n,ni,nj->ij", p, off, off) + 1e-10 * np.diag(np.diag(shapes[k]))
    return _Mixture(centres, shapes, shares / shares.sum()), float(1 / np.square(weight).sum())


def _weighted(terms: AbstractTerms, x, log_ratio, *, seed: int, draws: int) -> Posterior:
    from arviz_stats.base.array import array_stats

    evidence = float(logsumexp(log_ratio) - np.log(len(log_ratio)))
    log_weight, k = array_stats.psislw(-log_ratio)  # it takes log likelihoods
    weight = np.exp(np.asarray(log_weight) - np.asarray(logsumexp(log_weight)))
    ess = float(1 / np.square(weight).sum())
    # Systematic resampling: as many copies as the weights say, up to one; then shuffled, as nothing orders draws.
    random = np.random.default_rng(seed)
    at = np.searchsorted(np.cumsum(weight), (np.arange(draws) + random.random()) / draws)
    chosen = x[random.permutation(np.minimum(at, len(x) - 1))]
    if any(np.isinf(sd) for _, _, sd in terms.priors):  # an improper prior has no evidence
        evidence = float("nan")
    return _posterior(terms, chosen, evidence, "importance", {"k": float(k), "ess": ess})


def _posterior(terms: AbstractTerms, x, evidence: float, method: str, numbers: dict[str, float]) -> Posterior:
    n = len(terms.names)
    return Posterior(x[:, :n], x[:, n:], evidence, method, numbers)


def log_likelihoods(terms: AbstractTerms, a: Arrays, p: Posterior) -> Float[np.ndarray, "draw subject"]:
    """Each patient's log likelihood at every draw, his exposure integrated out."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.concatenate([p.draws, p.factors], axis=1))
        return np.asarray(_log_liks(terms, x, jax.tree.map(jnp.asarray, a)))


def _nuts(terms: AbstractTerms, a: Arrays, proposal: _Mixture, *, seed: int, draws: int) -> Posterior:
    """Four chains of NumPyro's NUTS, in coordinates in which the widest component is standard."""
    from numpyro.infer import MCMC, NUTS

    best = int(proposal.shares.argmax())
    centre, root = jnp.asarray(proposal.centres[best]), jnp.asarray(np.linalg.cholesky(proposal.shapes[best]))
    x, log_ratio = proposal.points(_LEARNING, seed, partial(_target, terms, a))
    weight = np.exp(log_ratio - logsumexp(log_ratio))
    begin = np.random.default_rng(seed).choice(len(x), CHAINS, p=weight / weight.sum())
    white = np.linalg.solve(np.asarray(root), (x[begin] - np.asarray(centre)).T).T
    kernel = NUTS(potential_fn=lambda v: -log_posterior(terms, centre + root @ v, a), target_accept_prob=0.95)
    per_chain = -(-draws // CHAINS)
    run = MCMC(
        kernel, num_warmup=WARMUP, num_samples=per_chain, num_chains=CHAINS, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    run.run(jax.random.key(seed), init_params=jnp.asarray(white), extra_fields=("diverging",))
    v = np.asarray(run.get_samples(group_by_chain=True))
    found = np.asarray(centre) + v @ np.asarray(root).T
    rhat, bulk, tail = convergence(found)
    numbers = {
        "rhat": float(np.nanmax(rhat)),
        "ess_bulk": float(bulk.min()),
        "ess_tail": float(tail.min()),
        "divergences": float(np.sum(run.get_extra_fields()["diverging"])),
    }
    return _posterior(terms, found.reshape(-1, found.shape[2]), float("nan"), "nuts", numbers)
