"""What each patient's parameters might be: the distributions that importance samples are drawn from."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.inference.coordinates import solve_lower

AnyArray = Array | np.ndarray

FREEDOM = 4  # of the t distributions: tails that are heavier than any patient's posterior
BROAD_SHARE = 0.15  # of proposals that are drawn from the population, widened: no part of it is ever out of reach
COMPONENTS = 4  # of a patient's own
_BROAD = 1.5  # SDs of the widened population, in omegas
_INFLATION = 1.2  # of a component's covariance
_ROUNDS = 5  # of expectation and maximisation
_TRUST = 20  # draws that a covariance known before counts for


class Proposals(eqx.Module):
    """For every patient a mixture of multivariate t distributions: its own, and the population's, widened.

    A patient's own are several, since samples can have more than one explanation, and one is seldom a Gaussian.

    Attributes
    ----------
    share : Float["component subject"]
        Of a patient's own proposals.
    mean : Float["component random subject"]
    factor : Float["component random random subject"]
        Lower triangular; ``factor factor'`` is the scale matrix.
    broad_mean : Float["random n"]
        Of every patient, or of all.
    broad_scale : Float[" random"]
    """

    share: Float[Array, "component subject"]
    mean: Float[Array, "component random subject"]
    factor: Float[Array, "component random random subject"]
    broad_mean: Float[Array, "random n"]
    broad_scale: Float[Array, " random"]

    def sample(self, key, n: int) -> Float[Array, "random n subject"]:
        """``n`` parameter sets (transformed scale) per patient."""
        for_step, for_component = jax.random.split(key)
        components, k, n_subjects = self.mean.shape
        step = standard_t(for_step, k, n, n_subjects)
        sets = self.broad_mean[:, None] + self.broad_scale[:, None, None] * step
        # A number in [0, 1): the broad one's share comes first, then those of the patient's own.
        number = jax.random.uniform(for_component, (n, n_subjects), jnp.float32)
        begin = BROAD_SHARE + (1 - BROAD_SHARE) * (jnp.cumsum(self.share, axis=0) - self.share)
        for c in range(components):
            own = self.mean[c][:, None] + jnp.einsum("kls,lns->kns", self.factor[c], step)
            sets = jnp.where(number >= begin[c], own, sets)
        return sets

    def log_density(self, x: Float[Array, "random n subject"]) -> Float[Array, "n subject"]:
        """Log density, up to a constant that all patients and parameter sets share."""
        components, k, _ = self.mean.shape
        broad = (x - self.broad_mean[:, None]) / self.broad_scale[:, None, None]
        parts = [log_standard_t(broad) - jnp.log(self.broad_scale).sum() + np.log(BROAD_SHARE)]
        for c in range(components):
            rows = [[self.factor[c, i, j] for j in range(i + 1)] for i in range(k)]
            volume = sum(jnp.log(rows[i][i]) for i in range(k))
            own = log_standard_t(solve_lower(rows, x - self.mean[c][:, None]))
            parts.append(own - volume + jnp.log(self.share[c]) + np.log1p(-BROAD_SHARE))
        return jax.scipy.special.logsumexp(jnp.stack(parts), axis=0)


def standard_t(key, k: int, n: int, n_subjects: int) -> Float[Array, "k n subject"]:
    """Draws of a standard multivariate t distribution of ``k`` dimensions.

    In single precision, which halves the cost: where the sets lie is random anyway, and their density is computed
    where they do lie.
    """
    for_normal, for_tail = jax.random.split(key)
    # A chi-square of four degrees of freedom is twice a sum of two exponentials.
    tail = jax.random.exponential(for_tail, (2, n, n_subjects), jnp.float32).sum(0) * 2 / FREEDOM
    return (jax.random.normal(for_normal, (k, n, n_subjects), jnp.float32) / jnp.sqrt(tail)).astype(float)


def log_standard_t(x: Float[Array, "k n subject"]) -> Float[Array, "n subject"]:
    """Log density of a standard multivariate t distribution, up to a constant."""
    return -0.5 * (FREEDOM + len(x)) * jnp.log1p(jnp.sum(x**2, axis=0) / FREEDOM)


class Mixture(NamedTuple):
    """For every patient a mixture of Gaussians."""

    share: Float[np.ndarray, "component subject"]
    mean: Float[np.ndarray, "component random subject"]
    covariance: Float[np.ndarray, "component subject random random"]


def make_proposals(own: Mixture, theta: Float[AnyArray, "random n"], omega: Float[AnyArray, " random"]) -> Proposals:
    """Proposals around each patient's Gaussians, and around a population."""
    factor = np.linalg.cholesky(_INFLATION * own.covariance)
    parts = own.share, own.mean, np.moveaxis(factor, 1, -1), theta, _BROAD * np.asarray(omega)
    return Proposals(*(jnp.asarray(x) for x in parts))


def around(
    mean: Float[np.ndarray, "random subject"], covariance: Float[np.ndarray, "subject random random"]
) -> Mixture:
    """One Gaussian per patient as a mixture; as it may be wrong, from half to four times as wide."""
    wide = np.geomspace(0.5, 4.0, COMPONENTS)[:, None, None, None]
    share = np.full((COMPONENTS, len(covariance)), 1 / COMPONENTS)
    return Mixture(share, np.broadcast_to(mean, (COMPONENTS, *mean.shape)), wide * covariance)


def mixture(
    x: Float[np.ndarray, "draw random subject"],
    weights: Float[np.ndarray, "draw subject"],
    known: Float[np.ndarray, "subject random random"],
) -> Mixture:
    """The mixture of Gaussians that fits weighed draws, by a few rounds of EM for all patients at once.

    It begins with groups along the direction in which a patient's draws spread most. Weights are of sum one; ``known``
    is a covariance that stands in where few draws carry the weight.
    """
    x, weights = np.ascontiguousarray(np.transpose(x, (2, 1, 0))), np.ascontiguousarray(weights.T)
    size = 1 / (weights**2).sum(1)  # effective number of draws
    off = x - (x * weights[:, None]).sum(-1, keepdims=True)
    pooled = _shrunk(off, weights, size, known)
    along = (np.linalg.eigh(pooled)[1][..., None, :, -1] @ off)[:, 0]
    order, below = along.argsort(1), np.empty_like(weights)
    np.put_along_axis(below, order, np.cumsum(np.take_along_axis(weights, order, 1), 1), 1)
    group = np.minimum((below * COMPONENTS).astype(int), COMPONENTS - 1)
    member = weights * (group == np.arange(COMPONENTS)[:, None, None])  # (component, subject, draw)
    for _ in range(_ROUNDS):
        share = member.sum(-1) + 1e-12
        mean = (x @ member[..., None])[..., 0] / share[..., None]
        off = x - mean[..., None]
        covariance = _shrunk(off, member, size, pooled)
        factor = np.linalg.cholesky(covariance)
        volume = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
        log = -0.5 * np.square(np.linalg.inv(factor) @ off).sum(-2) + (np.log(share) - volume)[..., None]
        dense = np.exp(log - log.max(0))
        member = weights * dense / dense.sum(0)
    share = share * size + _TRUST
    return Mixture(share / share.sum(0), np.swapaxes(mean, 1, 2), covariance)


def _shrunk(off, member, size, known):
    """Covariances of weighed draws, or something between them and what was known while few draws carry the weight."""
    count = (member.sum(-1) * size)[..., None, None]
    spread = size[:, None, None] * ((off * member[..., None, :]) @ np.swapaxes(off, -1, -2))
    return (spread + _TRUST * known) / (count + _TRUST)
