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
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Bool, Float

from carkinetics.density import ln_pred, log_joint, row_information
from carkinetics.inference.laplace import RESIDUAL_INFORMATION, Start
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import Population, population
from carkinetics.priors import prior_precision

_REACH = 4.0  # of a bend, in conditional SDs: two do little, eight harm


class Point(NamedTuple):
    """A place in the sampler's coordinates: whitened population, whitened patients."""

    u: Float[Array, " phi"]
    v: Float[Array, "random subject"]


class Bend(eqx.Module):
    """A patient's banana made straight: ``x = y + sum_ab curve_ab t_a t_b``, ``t = reach tanh((y - middle) / reach)``.

    Only parameters that the samples say more about are moved, by those that they say less about: a triangular map,
    which keeps volumes. Its terms are bounded, so that far away it is a shift.

    Attributes
    ----------
    middle, reach : Float["random subject"]
    curve : Float["random pair subject"]
        One entry for each pair ``a <= b``.
    """

    middle: Float[Array, "random subject"]
    reach: Float[Array, "random subject"]
    curve: Float[Array, "random pair subject"]

    def __call__(self, y: Float[Array, "random subject"]) -> Float[Array, "random subject"]:
        """Individual parameters (transformed scale) from straight ones."""
        t = self.reach * jnp.tanh((y - self.middle) / self.reach)
        first, second = pairs(len(t))
        return y + jnp.einsum("kqs,qs->ks", self.curve, t[first] * t[second])

    def inverse(self, x: Float[Array, "random subject"]) -> Float[Array, "random subject"]:
        """Straight parameters from individual ones: each round settles one more of a triangular map's rows."""
        return jax.lax.fori_loop(0, len(x), lambda _, y: x - (self(y) - y), x)


def pairs(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Both members of every pair ``a <= b`` of ``k`` parameters."""
    return np.triu_indices(k)


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
    sigma : Float[" assay"]
        First residual parameters at the start.
    second : Float[" subject"]
        Of a mixture: how far a patient was taken for one of the second class.
    design : Float["effect subject"]
    bend : Bend or None
        None where the structure is taken as it is.
    held : Bool[" subject"]
        Patients whose individual parameters stand still as the population moves, since no Gaussian describes them.
    """

    centre: Float[Array, " phi"]
    scale: Float[Array, "phi phi"]
    information: Float[Array, "assay random parameter subject"]
    shift: Float[Array, "assay random subject"]
    sigma: Float[Array, " assay"]
    second: Float[Array, " subject"]
    design: Float[Array, "effect subject"]
    bend: Bend | None
    held: Bool[Array, " subject"]

    def __call__(
        self, layout: Layout, point: Point
    ) -> tuple[Float[Array, " phi"], Float[Array, "random subject"], Float[Array, ""]]:
        """``phi``, ``z``, and the log of the determinant of the map (up to a constant)."""
        phi = self.centre + self.scale @ point.u
        z, log_det = self.patients(layout, self.population(layout, phi), point.v)
        return phi, z, log_det.sum()

    def population(self, layout: Layout, phi: Float[Array, " phi"], omega=None) -> Population:
        """The population of ``phi`` for these patients' covariates."""
        return population(layout, phi, self.design, omega=omega)

    def patients(
        self, layout: Layout, of: Population, v: Float[Array, "random subject"]
    ) -> tuple[Float[Array, "random subject"], Float[Array, " subject"]]:
        """``z`` from whitened patients, given a population, and log determinants; an omega may be negative."""
        precision, pull = self.conditional(layout, of)
        factor = cholesky(precision)
        z = solve_upper(factor, solve_lower(factor, pull) + v)
        if self.bend is not None:
            z = of.whitened(self.bend(of.varying(z)))
        log_det = -jnp.log(jnp.stack([factor[j][j] for j in range(len(factor))])).sum(0)
        z = jnp.where(self.held, of.whitened(v), z)
        return z, jnp.where(self.held, -of.log_volume, log_det)

    def whitened(
        self, layout: Layout, of: Population, z: Float[Array, "random subject"]
    ) -> Float[Array, "random subject"]:
        """The inverse of :meth:`patients`."""
        precision, pull = self.conditional(layout, of)
        factor, k = cholesky(precision), len(precision)
        x = of.varying(z)
        if self.bend is not None:
            z = of.whitened(self.bend.inverse(x))
        v = jnp.stack([sum(factor[i][j] * z[i] for i in range(j, k)) for j in range(k)]) - solve_lower(factor, pull)
        return jnp.where(self.held, x, v)

    def conditional(self, layout: Layout, of: Population):
        """Every patient's conditional precision of ``z`` given a population, and its linear term."""
        # Information of residuals on the log scale grows as sigma^-2; of others it stays the start's.
        on_log = np.array([a.error in ("lognormal", "student_t") for a in layout.assays])
        weight = jnp.where(on_log, (self.sigma / of.residual[0]) ** 2, 1.0)
        information = jnp.einsum("a,akps->kps", weight, self.information)
        shift = jnp.einsum("a,aks->ks", weight, self.shift)
        among = information[:, jnp.array(layout.random)]
        precision = of.quadratic(among) + jnp.eye(len(layout.random))[:, :, None]
        if of.typical.shape[1] == 1:
            expected = jnp.einsum("kps,p->ks", information, of.typical[:, 0])
        else:
            expected = jnp.einsum("kps,ps->ks", information, of.typical)
        pull = of.linear(shift - expected)
        return precision, pull if of.step is None else pull + self.second * of.away[:, None]

    def gaussians(
        self, layout: Layout, phi: Float[Array, " phi"]
    ) -> tuple[Float[Array, "random subject"], Float[Array, "random random subject"]]:
        """Centre and precision of every patient's conditional Gaussian of ``z`` given ``phi``."""
        precision, pull = self.conditional(layout, self.population(layout, phi))
        factor = cholesky(precision)
        return solve_upper(factor, solve_lower(factor, pull)), precision

    def inverse(self, layout: Layout, phi: Float[Array, " phi"], z: Float[Array, "random subject"]) -> Point:
        """The point that the map sends to ``(phi, z)``."""
        u = jax.scipy.linalg.solve_triangular(self.scale, phi - self.centre, lower=True)
        return Point(u, self.whitened(layout, self.population(layout, phi), z))


def log_density(model: Model, obs: Observations, map_: Transport, point: Point) -> Float[Array, ""]:
    """Log of the joint density in the sampler's coordinates: the model's own, with the map's Jacobian."""
    phi, z, log_det = map_(make_layout(model), point)
    return log_joint(model, obs, phi, z) + log_det


def scattered(key, layout: Layout, map_: Transport, phi, z, jitter: Float[Array, ""]) -> Point:
    """The point of ``(phi, z)``, and ``jitter`` times a standard normal draw from there."""
    at = map_.inverse(layout, phi, z)
    for_u, for_v = jax.random.split(key)
    return Point(
        u=at.u + jitter * jax.random.normal(for_u, at.u.shape),
        v=at.v + jitter * jax.random.normal(for_v, at.v.shape),
    )


def transport(model: Model, obs: Observations, start: Start, *, straighten: bool = True) -> Transport:
    """Coordinates from a start.

    The population's scale is the approximate posterior covariance at the start. Patients are straightened where the
    structure is solved, unless ``straighten`` is False; a closed form is piecewise and bends little between kinks.
    """
    layout = make_layout(model)
    of, random = population(layout, start.phi, obs.design), jnp.array(layout.random)
    n_assays, _, _, n_subjects = start.information.shape
    shift = jnp.einsum("akps,ps->aks", start.information, of.individual(start.z)) + start.score
    second = jnp.zeros(n_subjects) if of.step is None else of.second_class(start.z)
    prior = start.z if of.step is None else start.z - second * of.away[:, None]
    # At a mode the score balances the prior's pull. Where the mode was not found the imbalance would throw the centre
    # far away: spread what is missing, so that the centre is where the start stands.
    missing = of.linear_inverse(prior) - start.score.sum(0)[random]
    shift = shift[:, random] + missing / n_assays
    return Transport(
        centre=start.phi,
        scale=_population_scale(model, layout, obs, start),
        information=start.information[:, random],
        shift=shift,
        sigma=of.residual[0],
        second=second,
        design=obs.design,
        bend=straightened(model, obs, start) if straighten and not model.structure.closed_form else None,
        held=jnp.zeros(n_subjects, bool),
    )


def straightened(model: Model, obs: Observations, start: Start) -> Bend:
    """The bend that cancels, as far as it can, the second derivatives of every patient's curve.

    A step ``d`` of the less known parameters bends the predicted levels by ``H d d / 2``; the better known ones are
    moved by what takes most of that back, in the samples' own weights.
    """
    layout = make_layout(model)
    of = population(layout, start.phi, obs.design)
    omega, k, n = of.omega, len(layout.random), obs.n_subjects
    middle = of.varying(start.z)

    def level(x):
        return ln_pred(layout, of.parameters(x), obs)

    unit = jnp.broadcast_to(jnp.eye(k)[:, :, None], (k, k, n))
    first, second = pairs(k)
    jacobian = jax.vmap(lambda a: jax.jvp(level, (middle,), (a,))[1])(unit)  # (random, obs)

    def twice(a, b):
        return jax.jvp(lambda x: jax.jvp(level, (x,), (a,))[1], (middle,), (b,))[1]

    hessian = jax.lax.map(lambda ab: twice(*ab), (unit[first], unit[second]))  # (pair, obs)
    hessian = jnp.where((first == second)[:, None], 0.5, 1.0) * hessian  # of d_a d_b in the Taylor sum
    _, weight = row_information(level(middle), of.residual, obs)

    def total(per_row):  # (obs, ...) -> (subject, ...)
        return jax.ops.segment_sum(per_row, obs.subject, n)

    among = total(jnp.einsum("o,ko,lo->okl", weight, jacobian, jacobian))
    between = total(jnp.einsum("o,ko,qo->okq", weight, jacobian, hessian))
    known = jnp.einsum("skk->sk", among) * omega**2  # what the samples say, against the population's spread
    spread = jnp.sqrt(jnp.einsum("skk->sk", jnp.linalg.inv(among + jnp.diag(omega**-2.0))))
    # A parameter may be moved by a pair only if both are less known than itself.
    may = known[:, :, None] > jnp.maximum(known[:, first], known[:, second])[:, None, :]
    # Per pair, least squares over the parameters that may move.
    both = may[:, :, None, :] & may[:, None, :, :]
    ridge = jnp.eye(k)[None, :, :, None] * jnp.where(may, omega[None, :, None] ** -2.0, 1.0)[:, :, None, :]
    system = jnp.where(both, among[:, :, :, None], 0.0) + ridge
    moved = jnp.linalg.solve(jnp.moveaxis(system, 3, 1), jnp.moveaxis(jnp.where(may, between, 0.0), 2, 1)[..., None])
    curve = -jnp.where(may, jnp.moveaxis(moved[..., 0], 1, 2), 0.0)
    reach = _REACH * spread
    # No more than one SD of the moved parameter at one SD of the moving ones.
    most = spread[:, :, None] / (spread[:, first] * spread[:, second])[:, None, :]
    curve = jnp.clip(jnp.where(jnp.isfinite(curve), curve, 0.0), -most, most)
    return Bend(middle, reach.T, jnp.moveaxis(curve, 0, 2))


def no_transport(model: Model, obs: Observations, phi: Float[Array, " phi"]) -> Transport:
    """Plain non-centred coordinates: what is used where the start fails."""
    layout = make_layout(model)
    k, p, a, n = len(layout.random), len(layout.parameters), len(layout.assays), obs.n_subjects
    straight = Bend(jnp.zeros((k, n)), jnp.ones((k, n)), jnp.zeros((k, len(pairs(k)[0]), n)))
    return Transport(
        centre=phi,
        scale=jnp.diag(prior_precision(model, phi) ** -0.5),
        information=jnp.zeros((a, k, p, n)),
        shift=jnp.zeros((a, k, n)),
        sigma=population(layout, phi, obs.design).residual[0],
        second=jnp.zeros(n),
        design=obs.design,
        bend=None if model.structure.closed_form else straight,
        held=jnp.zeros(n, bool),
    )


def _population_scale(model: Model, layout: Layout, obs: Observations, start: Start) -> Float[Array, "phi phi"]:
    """Cholesky factor of the population's approximate posterior covariance at the start."""
    of = population(layout, start.phi, obs.design)
    random = jnp.array(layout.random)
    information = jnp.moveaxis(start.information.sum(0), -1, 0)  # (subject, parameter, parameter)
    among = information[:, random[:, None], random[None, :]]
    precision = of.quadratic(jnp.moveaxis(among, 0, -1)) + jnp.eye(len(random))[:, :, None]
    of_z = jnp.linalg.inv(jnp.moveaxis(precision, -1, 0))
    conditional = jax.vmap(lambda c: of.spread(of.spread(c).T))(of_z)  # of individual parameters
    # Marginal information about typical values, the patients' random effects integrated out, and by the chain rule
    # about everything that moves them.
    cross = information[:, :, random]
    marginal = information - cross @ conditional @ jnp.swapaxes(cross, 1, 2)
    second = jnp.zeros(obs.n_subjects) if of.step is None else of.second_class(start.z)

    def typical(locations):
        there = population(layout, start.phi.at[layout.locations].set(locations), obs.design)
        step = jnp.zeros(len(random)) if there.step is None else there.step
        shape = (len(layout.parameters), obs.n_subjects)
        return jnp.broadcast_to(there.typical, shape).at[random].add(step[:, None] * second)

    slopes = jax.jacfwd(typical)(start.phi[layout.locations])  # (parameter, subject, location)
    of_locations = jnp.einsum("psl,spq,qsm->lm", slopes, marginal, slopes)
    if of.log_odds is not None:
        share, odds = jax.nn.sigmoid(of.log_odds), layout.classes.start + 1
        of_locations = of_locations.at[odds, odds].add(obs.n_subjects * share * (1 - share))
    # S = I - Var(z | samples): how much the samples say about each standardised effect.
    informed = jnp.eye(len(random)) - of_z
    of_omegas = 2 * jnp.sum(informed * jnp.swapaxes(informed, 1, 2), axis=0)
    own = jnp.array(layout.omega_of)
    n_omega = layout.omegas.stop - layout.omegas.start
    of_omegas = jnp.zeros((n_omega, n_omega)).at[own[:, None], own[None, :]].add(of_omegas)
    # About the inverse hyperbolic tangent of a correlation, as far as both effects are known.
    rows, columns = np.tril_indices(len(layout.correlated), -1)
    at = np.array(layout.correlated, int)
    known = jnp.diagonal(informed, axis1=1, axis2=2)
    of_correlations = jnp.sum(known[:, at[rows]] * known[:, at[columns]], axis=0)
    quantified = obs.by_assay_and_subject(1.0 * (jnp.arange(obs.n_obs) < obs.n_quantified), len(layout.assays)).sum(1)
    place = np.array(layout.residuals).T
    of_residuals = quantified[place[1]] * np.array(RESIDUAL_INFORMATION)[place[0]]
    blocks = block_diag(of_locations, of_omegas, jnp.diag(of_correlations), jnp.diag(of_residuals))
    return jnp.linalg.cholesky(jnp.linalg.inv(blocks + jnp.diag(prior_precision(model, start.phi))))


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


def solve_lower(factor, rhs: Float[Array, "k *n"]) -> Float[Array, "k *n"]:
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
