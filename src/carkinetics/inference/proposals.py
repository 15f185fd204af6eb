"""What each patient's parameters might be: the distributions that importance samples are drawn from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.inference.coordinates import solve_lower

AnyArray = Array | np.ndarray

FREEDOM = 4  # of the t distributions: tails that are heavier than any patient's posterior
BROAD_SHARE = 0.15  # of proposals that are drawn from the population, widened: no part of it is ever out of reach
_BROAD = 1.5  # its SDs, in omegas
_INFLATION = 1.2  # of a patient's covariance
COMPONENTS = 4
_MOST = 1000
_ROUNDS = 5
_TRUST = 20  # draws that the covariance known before counts for


class Proposals(eqx.Module):
    """For every patient a mixture of multivariate t distributions: its own, and the population's, widened.

    A patient's own are as many as there were chains: where samples have two explanations, chains of a pilot stay
    with one each, and every chain is then offered those of the others.

    Attributes
    ----------
    mean : Float["component random subject"]
    factor : Float["component random random subject"]
        Lower triangular; ``factor factor'`` is the scale matrix.
    broad_mean, broad_scale : Float[" random"]
    """

    share: Float[Array, "component subject"]
    mean: Float[Array, "component random subject"]
    factor: Float[Array, "component random random subject"]
    broad_mean: Float[Array, " random"]
    broad_scale: Float[Array, " random"]

    def sample(self, key, n: int) -> Float[Array, "random n subject"]:
        """``n`` parameter sets (transformed scale) per patient."""
        for_step, for_component = jax.random.split(key)
        components, k, n_subjects = self.mean.shape
        step = standard_t(for_step, k, n, n_subjects)
        every = self.mean[:, :, None] + jnp.einsum("ckls,lns->ckns", self.factor, step)
        which = jax.random.uniform(for_component, (n, n_subjects), jnp.float32)
        own = every[0]
        above = BROAD_SHARE + (1 - BROAD_SHARE) * jnp.cumsum(self.share, axis=0)
        for c in range(1, components):
            own = jnp.where(which > above[c - 1], every[c], own)
        broad = self.broad_mean[:, None, None] + self.broad_scale[:, None, None] * step
        return jnp.where(which < BROAD_SHARE, broad, own)

    def log_density(self, x: Float[Array, "random n subject"]) -> Float[Array, "n subject"]:
        """Log density, up to a constant that all patients and parameter sets share."""
        components, k, _ = self.mean.shape
        parts = []
        for c in range(components):
            rows = [[self.factor[c, i, j] for j in range(i + 1)] for i in range(k)]
            own = solve_lower(rows, x - self.mean[c, :, None])
            parts.append(log_standard_t(own, jnp.stack([rows[i][i] for i in range(k)])[:, None]))
        of_own = jax.scipy.special.logsumexp(jnp.stack(parts) + jnp.log(self.share)[:, None], axis=0)
        broad = (x - self.broad_mean[:, None, None]) / self.broad_scale[:, None, None]
        of_broad = log_standard_t(broad, self.broad_scale[:, None, None])
        return jnp.logaddexp(of_own + np.log1p(-BROAD_SHARE), of_broad + np.log(BROAD_SHARE))


def standard_t(key, k: int, n: int, n_subjects: int) -> Float[Array, "k n subject"]:
    """Draws of a standard multivariate t distribution of ``k`` dimensions.

    In single precision, which halves the cost: where the sets lie is random anyway, and their density is computed
    where they do lie.
    """
    for_normal, for_tail = jax.random.split(key)
    # A chi-square of four degrees of freedom is twice a sum of two exponentials.
    tail = jax.random.exponential(for_tail, (2, n, n_subjects), jnp.float32).sum(0) * 2 / FREEDOM
    return (jax.random.normal(for_normal, (k, n, n_subjects), jnp.float32) / jnp.sqrt(tail)).astype(float)


def log_standard_t(x: Float[Array, "k n subject"], scale: Float[Array, " k *n"]) -> Float[Array, "n subject"]:
    """Log density of ``scale x``, up to a constant, if ``x`` is standard."""
    k = len(x)
    return -0.5 * (FREEDOM + k) * jnp.log1p(jnp.sum(x**2, axis=0) / FREEDOM) - jnp.sum(jnp.log(scale), axis=0)


def make_proposals(
    share: Float[AnyArray, "component subject"],
    mean: Float[AnyArray, "component random subject"],
    covariance: Float[AnyArray, "component random random subject"],
    theta: Float[AnyArray, " random"],
    omega: Float[AnyArray, " random"],
) -> Proposals:
    """Proposals around each patient's means, and around a population's."""
    factor = np.linalg.cholesky(_INFLATION * np.moveaxis(np.asarray(covariance), -1, 1))
    parts = share, mean, np.moveaxis(factor, 1, -1), theta, _BROAD * np.asarray(omega)
    return Proposals(*(jnp.asarray(x) for x in parts))


def around(
    mean: Float[AnyArray, "random subject"],
    covariance: Float[AnyArray, "random random subject"],
    theta: Float[AnyArray, " random"],
    omega: Float[AnyArray, " random"],
) -> Proposals:
    """Proposals from one Gaussian per patient; as it may be wrong, from half to four times as wide."""
    means = np.broadcast_to(mean, (COMPONENTS, *mean.shape))
    covariances = np.geomspace(0.5, 4.0, COMPONENTS)[:, None, None, None] * np.asarray(covariance)
    return make_proposals(np.full((COMPONENTS, mean.shape[-1]), 1 / COMPONENTS), means, covariances, theta, omega)


def from_draws(
    x: Float[np.ndarray, "draw random subject"],
    known: Float[AnyArray, "random random subject"],
    theta: Float[AnyArray, " random"],
    omega: Float[AnyArray, " random"],
) -> Proposals:
    """Proposals fitted to a pilot's draws; ``known`` is a covariance that stands in while they are few."""
    x = x[:: -(-len(x) // _MOST)]
    return make_proposals(*mixture(x, known, np.full((len(x), x.shape[2]), 1 / len(x))), theta, omega)


def mixture(
    x: Float[np.ndarray, "draw random subject"],
    known: Float[AnyArray, "random random subject"],
    weights: Float[np.ndarray, "draw subject"],
):
    """Shares, means and covariances of a mixture of Gaussians, by a few rounds of EM for all patients at once.

    It begins with groups along the direction in which a patient's draws spread most. Weights are of sum one.
    """
    size = 1 / (weights**2).sum(0)  # effective
    off = x - (weights[:, None] * x).sum(0)
    spread = np.einsum("ds,dks,dls->skl", weights, off, off, optimize=True)
    pooled = (size[:, None, None] * spread + _TRUST * np.moveaxis(np.asarray(known), -1, 0)) / (size + _TRUST)[:, None, None]
    along = np.einsum("dks,sk->ds", off, np.linalg.eigh(pooled)[1][..., -1])
    order = along.argsort(0)
    below = np.empty_like(weights)
    np.put_along_axis(below, order, np.cumsum(np.take_along_axis(weights, order, 0), 0), 0)
    group = np.minimum((below * COMPONENTS).astype(int), COMPONENTS - 1)
    member = weights * (group == np.arange(COMPONENTS)[:, None, None])
    for _ in range(_ROUNDS):
        share = member.sum(1) + 1e-12
        mean = np.einsum("cds,dks->cks", member, x, optimize=True) / share[:, None]
        off = x - mean[:, None]
        spread = np.einsum("cds,cdks,cdls->cskl", member, off, off, optimize=True)
        count = share * size
        covariance = (size[:, None, None] * spread + _TRUST * pooled) / (count + _TRUST)[:, :, None, None]
        factor = np.linalg.cholesky(covariance)
        standard = np.linalg.solve(factor, np.moveaxis(off, 1, -1).swapaxes(1, 2))
        log = -0.5 * (standard**2).sum(2) - np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)[..., None]
        log = np.swapaxes(log, 1, 2) + np.log(share)[:, None]
        member = weights * np.exp(log - np.logaddexp.reduce(log, axis=0))
    share = (count + _TRUST) / (count + _TRUST).sum(0)
    return share, mean, np.moveaxis(covariance, 1, -1)
