"""Coordinates in which population and patients are nearly independent and nearly round.

Each patient's random effects are whitened by their conditional Gaussian given the population parameters, as
the samples' information says; the population parameters by their own approximate covariance. Were the
likelihood Gaussian in the individual parameters, the result would be a standard normal vector: no funnel,
and no choice between centred and non-centred to make. Patients without information come out non-centred,
patients with much of it centred. The map is exact and its Jacobian is counted, so the posterior is the
model's whatever the start was; with no information at all it is plain non-centring.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float

from carkinetics.inference.laplace import Start
from carkinetics.model import Model
from carkinetics.population import Layout, Observations, log_joint, log_prior_phi, make_layout, split_phi


class Point(NamedTuple):
    """A place in the sampler's coordinates: whitened population, whitened patients."""

    u: Float[Array, " phi"]
    v: Float[Array, "random subject"]


class Transport(eqx.Module):
    """The map from ``(u, v)`` to ``(phi, z)``.

    Attributes
    ----------
    centre : Float[" phi"]
    scale : Float["phi phi"]
        Lower triangular; ``phi = centre + scale u``.
    information : Float["assay random parameter subject"]
        Of each patient's samples, at the start's sigmas.
    shift : Float["assay random subject"]
        ``information`` times the individual parameters plus the score, so that a patient's conditional mean
        follows from any population.
    """

    centre: Float[Array, " phi"]
    scale: Float[Array, "phi phi"]
    information: Float[Array, "assay random parameter subject"]
    shift: Float[Array, "assay random subject"]

    def __call__(
        self, layout: Layout, point: Point
    ) -> tuple[Float[Array, " phi"], Float[Array, "random subject"], Float[Array, ""]]:
        """``phi``, ``z``, and the log of the determinant of the map (up to a constant)."""
        phi = self.centre + self.scale @ point.u
        precision, pull = self._conditional(layout, phi)
        factor, k = cholesky(precision), len(precision)
        z = solve_upper(factor, solve_lower(factor, pull) + point.v)
        return phi, z, -jnp.sum(jnp.log(jnp.stack([factor[j][j] for j in range(k)])))

    def _conditional(self, layout: Layout, phi: Float[Array, " phi"]):
        """Every patient's conditional precision of ``z`` given ``phi``, and its linear term."""
        theta, omega, sigma = split_phi(layout, phi)
        _, _, sigma_start = split_phi(layout, self.centre)
        # Information of log-normal residuals grows as sigma^-2.
        weight = (sigma_start / sigma) ** 2
        information = jnp.einsum("a,akps->kps", weight, self.information)
        shift = jnp.einsum("a,aks->ks", weight, self.shift)
        among = information[:, jnp.array(layout.random)]
        precision = omega[:, None, None] * among * omega[None, :, None] + jnp.eye(len(omega))[:, :, None]
        pull = omega[:, None] * (shift - jnp.einsum("kps,p->ks", information, theta))
        return precision, pull

    def gaussians(
        self, layout: Layout, phi: Float[Array, " phi"]
    ) -> tuple[Float[Array, "random subject"], Float[Array, "random random subject"]]:
        """Centre and precision of every patient's conditional Gaussian of ``z`` given ``phi``."""
        precision, pull = self._conditional(layout, phi)
        factor = cholesky(precision)
        return solve_upper(factor, solve_lower(factor, pull)), precision

    def inverse(self, layout: Layout, phi: Float[Array, " phi"], z: Float[Array, "random subject"]) -> Point:
        """The point that the map sends to ``(phi, z)``."""
        u = jax.scipy.linalg.solve_triangular(self.scale, phi - self.centre, lower=True)
        precision, pull = self._conditional(layout, phi)
        factor, k = cholesky(precision), len(precision)
        whitened = jnp.stack([sum(factor[i][j] * z[i] for i in range(j, k)) for j in range(k)])
        return Point(u, whitened - solve_lower(factor, pull))


def log_density(model: Model, obs: Observations, map_: Transport, point: Point) -> Float[Array, ""]:
    """Log of the joint density in the sampler's coordinates: the model's own, with the map's Jacobian."""
    phi, z, log_det = map_(make_layout(model), point)
    return log_joint(model, obs, phi, z) + log_det


def transport(model: Model, obs: Observations, start: Start) -> Transport:
    """Coordinates from a start.

    The population's scale is the approximate posterior covariance at the start.
    """
    layout = make_layout(model)
    theta, omega, _ = split_phi(layout, start.phi)
    random = jnp.array(layout.random)
    n_assays, _, _, n_subjects = start.information.shape
    mode = jnp.broadcast_to(theta[:, None], (len(theta), n_subjects)).at[random].add(omega[:, None] * start.z)
    shift = jnp.einsum("akps,ps->aks", start.information, mode) + start.score
    # At a mode the score balances the prior's pull z / omega. Where the mode was not found the imbalance
    # would throw the centre far away: spread what is missing, so that the centre is where the start stands.
    missing = start.z / omega[:, None] - start.score.sum(0)[random]
    shift = shift[:, random] + missing / n_assays
    return Transport(
        centre=start.phi,
        scale=_population_scale(model, layout, obs, start),
        information=start.information[:, random],
        shift=shift,
    )


def no_transport(model: Model, obs: Observations, phi: Float[Array, " phi"]) -> Transport:
    """Plain non-centred coordinates: what is used where the start fails."""
    layout = make_layout(model)
    k, p, a, n = len(layout.random), len(layout.parameters), len(layout.assays), obs.n_subjects
    return Transport(
        centre=phi,
        scale=jnp.diag(prior_precision(model, phi) ** -0.5),
        information=jnp.zeros((a, k, p, n)),
        shift=jnp.zeros((a, k, n)),
    )


def _population_scale(model: Model, layout: Layout, obs: Observations, start: Start) -> Float[Array, "phi phi"]:
    """Cholesky factor of the population's approximate posterior covariance at the start."""
    _, omega, _ = split_phi(layout, start.phi)
    random, estimated = jnp.array(layout.random), jnp.array(layout.estimated)
    information = jnp.moveaxis(start.information.sum(0), -1, 0)  # (subject, parameter, parameter)
    among = information[:, random[:, None], random[None, :]]
    conditional = jnp.linalg.inv(among + jnp.diag(omega**-2.0))  # of individual parameters
    # Marginal information about the typical values, the patients' random effects integrated out.
    cross = information[:, :, random]
    marginal = information - cross @ conditional @ jnp.swapaxes(cross, 1, 2)
    of_theta = marginal.sum(0)[estimated[:, None], estimated[None, :]]
    # S = I - Var(z | samples): how much the samples say about each standardised effect.
    informed = jnp.eye(len(random)) - conditional / (omega[:, None] * omega[None, :])
    of_omega = 2 * jnp.sum(informed * jnp.swapaxes(informed, 1, 2), axis=0)
    # A log residual SD has two units of information per quantified sample.
    quantified = obs.assay[: obs.rows.quantified]
    of_sigma = 2.0 * jnp.zeros(len(layout.assays)).at[quantified].add(1.0)
    precision = block_diag(of_theta, of_omega, jnp.diag(of_sigma)) + jnp.diag(prior_precision(model, start.phi))
    return jnp.linalg.cholesky(jnp.linalg.inv(precision))


def prior_precision(model: Model, phi: Float[Array, " phi"]) -> Float[Array, " phi"]:
    """Curvature of the log prior in every component of ``phi``."""
    slope = jax.grad(lambda x: log_prior_phi(model, x).sum())
    return jnp.maximum(-jax.jvp(slope, (phi,), (jnp.ones_like(phi),))[1], 1e-2)


def cholesky(matrix: Float[Array, "k k subject"]) -> list[list[Float[Array, " subject"]]]:
    """Lower triangular factor, unrolled so that every operation runs over all patients at once."""
    k = matrix.shape[0]
    factor: list[list] = [[None] * k for _ in range(k)]
    for j in range(k):
        factor[j][j] = jnp.sqrt(matrix[j, j] - sum(factor[j][m] ** 2 for m in range(j)))
        for i in range(j + 1, k):
            below = matrix[i, j] - sum(factor[i][m] * factor[j][m] for m in range(j))
            factor[i][j] = below / factor[j][j]
    return factor


def solve_lower(factor, rhs: Float[Array, "k subject"]) -> Float[Array, "k subject"]:
    """``C^-1 rhs`` for the factor of :func:`cholesky`."""
    x: list = []
    for i in range(len(factor)):
        x.append((rhs[i] - sum(factor[i][m] * x[m] for m in range(i))) / factor[i][i])
    return jnp.stack(x)


def solve_upper(factor, rhs: Float[Array, "k subject"]) -> Float[Array, "k subject"]:
    """``C^-T rhs`` for the factor of :func:`cholesky`."""
    k = len(factor)
    x: list = [None] * k
    for i in reversed(range(k)):
        x[i] = (rhs[i] - sum(factor[m][i] * x[m] for m in range(i + 1, k))) / factor[i][i]
    return jnp.stack(x)
