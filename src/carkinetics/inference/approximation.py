"""The Gaussian nearest to the posterior: a population with its covariance, patients given the population, draws.

The slope of the population's marginal posterior follows from Fisher's identity: it is the expectation, over every
patient's Gaussian, of the joint density's slope. When the population moves, every patient is taken along to where
its Gaussian then lies, so that a step is one of the marginal posterior and not one of an EM, which creeps where
the samples say little. As in :func:`carkinetics.inference.laplace.widen`, slope and curvature are averaged over the
Gaussian's own width: along the ridge of a weakly informed parameter the curvature at a mode says too little.

Where the likelihood is Gaussian in the individual parameters the slope is exact. Elsewhere all of this is an
approximation, and says so wherever it is shown.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import polygamma

from carkinetics.density import log_joint
from carkinetics.errors import FitError
from carkinetics.inference.chains import Block
from carkinetics.inference.coordinates import Point, Transport, transport
from carkinetics.inference.laplace import OMEGA_BOUNDS, Start, widen
from carkinetics.layout import Component, Layout, make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import Population, population
from carkinetics.priors import log_prior

ROUNDS = 40
CLOSE = 0.02  # the last move, in posterior SDs, at which the search ends
DRAWS = 1000
_PATIENT_ROUNDS = 8  # each halves a patient's distance from its Gaussian, which is small after a move
_LONGEST = 1.0  # step, in posterior SDs
_FASTEST = 3.0  # shares of a Newton step
_BATCH = 100  # draws whose density is computed at once


class Approximation(NamedTuple):
    """The Gaussian, and how its search went.

    Attributes
    ----------
    map_ : Transport
        Sends a standard normal vector to a draw.
    decrement : Float[" subject"]
        As in :class:`carkinetics.inference.laplace.Start`.
    last_move : float
        Of the population in the last round, in posterior SDs; of an SD, as a share of itself.
    at_bound : list of str
        Omegas that stand at one of ``OMEGA_BOUNDS``.
    uninformed : list of str
        Population parameters whose variance was cut to the prior's.
    """

    map_: Transport
    decrement: Float[np.ndarray, " subject"]
    last_move: float
    at_bound: list[str]
    uninformed: list[str]


class Place(NamedTuple):
    """A population, with its patients' Gaussians and the slope of the log marginal posterior in ``phi``."""

    map_: Transport
    slope: Float[Array, "*node phi"]
    decrement: Float[Array, "*node subject"]


def approximate(model: Model, obs: Observations, start: Start) -> Approximation:
    """The Gaussian nearest to the posterior, from a start.

    Raises
    ------
    FitError
        The density is not finite around the start.
    """
    layout, first = make_layout(model), _first(model, obs, start)
    n = layout.n_phi
    nodes = axes(n, n)
    map_, centre, covariance = first, np.asarray(first.centre), np.asarray(first.scale @ first.scale.T)
    pace, last = 0.5, np.zeros(n)
    for _ in range(ROUNDS):
        scale = factor_of(covariance)
        found = _visit(model, obs, map_, jnp.asarray(centre + nodes @ scale.T))
        map_ = jax.tree.map(_at_centre, found.map_)
        slope, information = averages(nodes, scale, np.asarray(found.slope))
        # Half steps, as for the patients: full ones oscillate.
        information, uninformed = at_least_the_priors(model, 0.5 * (np.linalg.inv(covariance) + information))
        before, covariance = covariance, np.linalg.inv(information)
        step, length = newton_step(layout, centre, slope, information)
        # Likewise half of a step, but more where the steps go on in one direction, along a ridge.
        turn = step @ information @ last
        pace = min(1.5 * pace, _FASTEST) if turn > 0 else 0.5 if turn == 0 else max(0.5 * pace, 0.25)
        last = step
        centre = bounded(layout, centre + step * min(pace, _LONGEST / max(length, 1e-12)))
        widened = 0.5 * float(np.abs(np.log(np.diag(covariance) / np.diag(before))).max())
        if max(length, widened) < CLOSE:
            break
    # Once more where the centre is now; in all places at once, since that program is compiled.
    found = jax.tree.map(_at_centre, _visit(model, obs, map_, jnp.asarray(np.broadcast_to(centre, nodes.shape))))
    map_ = eqx.tree_at(lambda m: m.scale, found.map_, jnp.asarray(np.linalg.cholesky(covariance)))
    last_move = max(length, widened)
    return Approximation(map_, np.asarray(found.decrement), last_move, at_bound(layout, centre), uninformed)


def axes(n: int, square: float) -> Float[np.ndarray, "node n"]:
    """The centre and both ends of every axis, at this squared distance.

    At ``n`` they are the nodes of the spherical cubature rule, and the centre has no weight.
    """
    return np.sqrt(square) * np.concatenate([np.zeros((1, n)), np.eye(n), -np.eye(n)])


def factor_of(covariance: Float[np.ndarray, "phi phi"]) -> Float[np.ndarray, "phi phi"]:
    """Cholesky factor; :class:`FitError` where there is none."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise FitError(
            "no Gaussian approximation: its covariance is none. The samples do not tell some parameters apart, "
            "or the density is not finite nearby. Fix parameters (model.fix), narrow the priors (model.with_priors), "
            "or use method='importance'."
        ) from None


def _at_centre(x: Array) -> Array:
    return jnp.asarray(np.asarray(x)[0])


@partial(jax.jit, static_argnums=0)
def _first(model: Model, obs: Observations, start: Start) -> Transport:
    return transport(model, obs, start, straighten=False)


@partial(jax.jit, static_argnums=0)
def _visit(model: Model, obs: Observations, near: Transport, phis: Float[Array, "node phi"]) -> Place:
    return jax.lax.map(lambda phi: place(model, obs, near, phi), phis)


def place(
    model: Model,
    obs: Observations,
    near: Transport,
    phi: Float[Array, " phi"],
    *,
    rounds: int = _PATIENT_ROUNDS,
    ahead: bool = False,
) -> Place:
    """The patients' Gaussians at a population, from the map of one near it, and the slope there.

    ``ahead``: the slope is that of where patients would go next; steps themselves stay halves, which settle.
    """
    layout = make_layout(model)
    z, precision = near.gaussians(layout, phi)
    start = widen(model, obs, phi, z, jnp.array(False), precision=precision, rounds=rounds)
    there = start._replace(z=start.z + start.step) if ahead else start
    return Place(transport(model, obs, start, straighten=False), marginal_slope(model, obs, there), start.decrement)


def marginal_slope(model: Model, obs: Observations, start: Start) -> Float[Array, " phi"]:
    """Slope of the log marginal posterior in ``phi``, by Fisher's identity.

    References
    ----------
    Louis TA, J R Stat Soc B 1982;44:226-233, doi:10.1111/j.2517-6161.1982.tb01203.x.
    """
    layout = make_layout(model)
    of, random = population(layout, start.phi, obs.design), jnp.array(layout.random)
    among = start.information.sum(0)[random[:, None], random[None, :]]
    precision = of.quadratic(among) + jnp.eye(len(random))[:, :, None]
    variance = jnp.linalg.inv(jnp.moveaxis(precision, -1, 0)).sum(0)
    x, variance = of.varying(start.z), of.spread(of.spread(variance).T)
    # A parameter without between-patient variability is in the likelihood itself, the others are behind x.
    constant = jnp.array([i for i in range(len(layout.parameters)) if i not in layout.random], int)

    def expected(phi):
        there = population(layout, phi, obs.design)
        shape = (len(layout.parameters), obs.n_subjects)
        likelihood = jnp.sum(start.score.sum(0)[constant] * jnp.broadcast_to(there.typical, shape)[constant])
        return likelihood + _expected_log_density(there, x, variance) + log_prior(model, phi)

    slope = jax.grad(expected)(start.phi)
    at = jnp.array(layout.residuals).T
    return slope.at[layout.scales].add(start.slope_residual.sum(-1)[at[0], at[1]])


def _expected_log_density(of: Population, x, variance) -> Float[Array, ""]:
    """Of all patients' random parameters, normal about ``x`` with covariances of which ``variance`` is the sum.

    In a mixture every patient's two classes have one expectation each: patients lie between classes seldom.
    """
    z = of.whitened(x)
    spread = of.standardised(of.standardised(variance).T)
    return of.log_density_z(z).sum() - x.shape[1] * of.log_volume - 0.5 * jnp.trace(spread)


def averages(
    nodes: Float[np.ndarray, "node phi"], scale: Float[np.ndarray, "phi phi"], slopes: Float[np.ndarray, "node phi"]
) -> tuple[Float[np.ndarray, " phi"], Float[np.ndarray, "phi phi"]]:
    """Slope and information (minus the curvature) averaged over the Gaussian, from the slopes at its nodes.

    Exact for slopes that are quadratic in the nodes' coordinates, whatever the nodes' distance; at a squared distance
    of 3 also for their cubic terms along every axis.

    References
    ----------
    Julier SJ, Uhlmann JK, Proc IEEE 2004;92:401-422, doi:10.1109/JPROC.2003.823141.
    """
    n, square = nodes.shape[1], float(nodes[1] @ nodes[1])
    ends = slopes[1:].reshape(2, n, n)  # either end of every axis of the Gaussian
    both = np.isfinite(ends).all((0, 2))
    if not both.any():
        raise FitError(
            "no Gaussian approximation: the density is not finite around the start. Look at the data for values far "
            "outside what the priors allow, narrow the priors (model.with_priors), or use method='nuts'."
        )
    slope = ends[:, both].mean((0, 1))
    if square != n:  # the centre, which may be not finite, has no weight at n
        slope = slopes[0] + n / square * (slope - slopes[0])
    # Stein's lemma: E[u slope'] = scale' E[curvature]. An axis that leads out of the finite informs of nothing.
    moment = np.where(both[:, None], (ends[1] - ends[0]) / (2 * np.sqrt(square)), 0.0)
    information = np.linalg.solve(scale.T, moment)
    return slope, 0.5 * (information + information.T)


def at_least_the_priors(
    model: Model, information: Float[np.ndarray, "phi phi"]
) -> tuple[Float[np.ndarray, "phi phi"], list[str]]:
    """The information with no direction below the prior's, and the parameters that were."""
    layout = make_layout(model)
    sd = np.array([_prior_sd(component) for component in layout.components])
    relative, axes = np.linalg.eigh(sd[:, None] * information * sd)
    less = relative < 1 - 1e-6
    names = sorted({layout.phi_names[int(np.abs(axes[:, k]).argmax())] for k in np.flatnonzero(less)})
    return (axes * np.maximum(relative, 1.0)) @ axes.T / sd[:, None] / sd, names


def _prior_sd(component: Component) -> float:
    """SD of a component of ``phi`` under its prior.

    The log of a half-normal's has a variance of pi^2 / 8, that of a half-Cauchy's pi^2 / 4.
    """
    prior = component.prior
    if prior.family in ("halfnormal", "halfcauchy"):
        return np.pi / np.sqrt(8 if prior.family == "halfnormal" else 4)
    if prior.family == "lkj":  # half the logit of a beta
        return float(np.sqrt(polygamma(1, prior.scale) / 2))
    return prior.scale


def bounded(layout: Layout, phi: Float[np.ndarray, " phi"]) -> Float[np.ndarray, " phi"]:
    """With omegas no further than their bounds."""
    bounded = phi.copy()
    bounded[layout.omegas] = np.clip(phi[layout.omegas], *np.log(OMEGA_BOUNDS))
    return bounded


def newton_step(
    layout: Layout,
    phi: Float[np.ndarray, " phi"],
    slope: Float[np.ndarray, " phi"],
    information: Float[np.ndarray, "phi phi"],
) -> tuple[Float[np.ndarray, " phi"], float]:
    """The step and its length in posterior SDs; an omega stays at its bound while the slope leads beyond it."""
    free = bounded(layout, phi + 1e-9 * np.sign(slope)) != phi
    step = np.zeros_like(phi)
    step[free] = np.linalg.solve(information[np.ix_(free, free)], slope[free])
    return step, float(np.sqrt(step @ slope))


def at_bound(layout: Layout, phi: Float[np.ndarray, " phi"]) -> list[str]:
    """Omegas that stand at a bound."""
    low, high = np.log(OMEGA_BOUNDS)
    return [layout.phi_names[k] for k in range(layout.n_phi)[layout.omegas] if phi[k] in (low, high)]


def draw(model: Model, obs: Observations, map_: Transport, seed: int, n: int = DRAWS, kept: int | None = None) -> Block:
    """``n`` draws; mean and covariance of ``phi`` are the Gaussian's own, without Monte Carlo error.

    With ``kept``, so many of them, from the first to the last: what takes time is their density.
    """
    layout = make_layout(model)
    random = np.random.default_rng([seed, 3])
    u = random.standard_normal((n, layout.n_phi))
    u -= u.mean(0)
    u = np.linalg.solve(np.linalg.cholesky(np.cov(u.T, bias=True)), u.T).T
    v = random.standard_normal((n, *map_.shift.shape[1:]))
    chosen = np.linspace(0, n - 1, kept or n).round().astype(int)
    points = Point(jnp.asarray(u[chosen]), jnp.asarray(v[chosen]))
    phi, z, lp = (np.asarray(x) for x in _drawn(model, obs, map_, points))
    return Block(phi, z, {"lp": lp})


@partial(jax.jit, static_argnums=0)
def _drawn(model: Model, obs: Observations, map_: Transport, points: Point):
    layout = make_layout(model)

    def one(point):
        phi, z, _ = map_(layout, point)
        return phi, z, log_joint(model, obs, phi, z)

    return jax.lax.map(one, points, batch_size=_BATCH)
