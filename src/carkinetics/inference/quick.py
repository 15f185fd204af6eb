"""The same Gaussian in a tenth of the time, for trials that are simulated and fitted by the thousand.

First the mode of the population's marginal posterior, by a quasi-Newton search whose slope is Fisher's at one place;
then slopes are looked at all around it, once, for the covariance and for where the average slope is zero.
:func:`~carkinetics.inference.approximation.approximate` looks around in 10 to 40 rounds, and further away. How far both
are apart, and are from the exact posterior, is measured by ``benchmarks/bench_trials.py against`` (docs/trials.md).

References
----------
Nocedal J, Wright SJ. Numerical Optimization, 2nd ed., 2006, doi:10.1007/978-0-387-40065-5: BFGS, equation 6.17.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.errors import FitError
from carkinetics.inference.approximation import (
    Approximation,
    Place,
    at_bound,
    at_least_the_priors,
    averages,
    axes,
    bounded,
    factor_of,
    newton_step,
    place,
)
from carkinetics.inference.coordinates import Transport, transport
from carkinetics.inference.laplace import Start
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations

NEAR = 0.1  # step, in posterior SDs, at which the search for the mode ends
LEFT = 0.4  # what may be left to the zero of the average slope; beyond it there is another look around
_STEPS, _LOOKS = 40, 5  # at most
START_ROUNDS = (20, 10)  # of EM and of widening: the search for the mode goes on from there
# Of the nodes around the mode. Nearer ones than those of the spherical rule: patients are taken along a shorter way.
_SQUARE = 3.0
# Each halves a patient's distance from its Gaussian; slopes look a step ahead of that. On the way to the mode what is
# left of one move is in the way of the next; around the mode nothing goes on from where a look was.
_ON_THE_WAY, _AROUND = 3, 1
_LONGEST = 1.0  # step, in posterior SDs
_STEEPEST, _STEEPER = 1e100, 10.0  # slopes beyond which a step went over an edge of what can be: any, and growth in SDs
_CURVED = 1e-8  # cosine of step and change of slope, below which that change tells nothing


@partial(jax.jit, static_argnums=0)
def _first(model: Model, obs: Observations, start: Start) -> Transport:
    return transport(model, obs, start, straighten=False)


@partial(jax.jit, static_argnums=0)
def _at(model: Model, obs: Observations, near: Transport, phi: Float[Array, " phi"]) -> Place:
    return place(model, obs, near, phi, rounds=_ON_THE_WAY, ahead=True)


@partial(jax.jit, static_argnums=0)
def _slopes(
    model: Model, obs: Observations, near: Transport, phis: Float[Array, "node phi"]
) -> Float[Array, "node phi"]:
    return jax.lax.map(lambda phi: place(model, obs, near, phi, rounds=_AROUND, ahead=True).slope, phis)


def approximate_quickly(model: Model, obs: Observations, start: Start) -> Approximation:
    """The Gaussian nearest to the posterior, from a start; ``last_move`` is what is left of its way.

    Raises
    ------
    FitError
        The density is not finite around the start.
    """
    layout = make_layout(model)
    first = _first(model, obs, start)
    centre, covariance, at = _mode(model, obs, first)
    nodes = axes(layout.n_phi, _SQUARE)
    left, pace, uninformed = np.inf, 1.0, []
    for _ in range(_LOOKS):
        scale = factor_of(covariance)
        slopes = _slopes(model, obs, at.map_, jnp.asarray(centre + nodes @ scale.T))
        slope, information = averages(nodes, scale, np.asarray(slopes))
        information, uninformed = at_least_the_priors(model, information)
        covariance = np.linalg.inv(information)
        step, length = newton_step(layout, centre, slope, information)
        # How the average slope differs from the slope in the middle hardly changes on the way.
        apart = slope - np.asarray(at.slope)
        there = bounded(layout, centre + step * pace * min(1.0, _LONGEST / max(length, 1e-12)))
        found = _at(model, obs, at.map_, jnp.asarray(there))
        _, left = newton_step(layout, there, np.asarray(found.slope) + apart, information)
        if left < length:
            centre, at = there, found
        else:  # over what was looked for: stay, and go less far
            left, pace = length, pace / 2
        if left < LEFT:
            break
    map_ = eqx.tree_at(lambda m: m.scale, at.map_, jnp.asarray(factor_of(covariance)))
    return Approximation(map_, np.asarray(at.decrement), left, at_bound(layout, centre), uninformed)


def _mode(
    model: Model, obs: Observations, near: Transport
) -> tuple[Float[np.ndarray, " phi"], Float[np.ndarray, "phi phi"], Place]:
    """Where the slope is zero, the inverse of the curvature on the way there, and the patients there."""
    layout = make_layout(model)
    phi, inverse = np.asarray(near.centre), np.asarray(near.scale @ near.scale.T)
    at = _at(model, obs, near, jnp.asarray(phi))
    if not np.isfinite(at.slope).all():
        raise FitError("no Gaussian approximation: the density is not finite at the start. Narrow the priors.")
    shrink = 1.0
    for _ in range(_STEPS):
        step, length = _step(layout, phi, np.asarray(at.slope), inverse)
        if length < NEAR:
            break
        there = bounded(layout, phi + step * shrink * min(1.0, _LONGEST / length))
        found = _at(model, obs, at.map_, jnp.asarray(there))
        if not _near(np.asarray(found.slope), inverse, length):  # over an edge: less of the step
            shrink /= 4
            continue
        shrink = 1.0
        inverse = _updated(inverse, there - phi, np.asarray(at.slope) - np.asarray(found.slope))
        phi, at = there, found
    return phi, inverse, at


def _near(slope: Float[np.ndarray, " phi"], inverse: Float[np.ndarray, "p p"], length: float) -> bool:
    """Whether a slope is finite and not far steeper than it was."""
    if not (np.isfinite(slope).all() and np.abs(slope).max() < _STEEPEST):
        return False
    return bool(slope @ inverse @ slope < (_STEEPER * max(length, 1.0)) ** 2)


def _step(
    layout: Layout, phi: Float[np.ndarray, " phi"], slope: Float[np.ndarray, " phi"], inverse: Float[np.ndarray, "p p"]
) -> tuple[Float[np.ndarray, " phi"], float]:
    """A quasi-Newton step and its length in posterior SDs; an omega stays at a bound that the slope leads beyond."""
    free = bounded(layout, phi + 1e-9 * np.sign(slope)) != phi
    step = np.zeros_like(phi)
    step[free] = inverse[np.ix_(free, free)] @ slope[free]
    return step, float(np.sqrt(max(step @ slope, 0.0)))


def _updated(
    inverse: Float[np.ndarray, "p p"], step: Float[np.ndarray, " p"], change: Float[np.ndarray, " p"]
) -> Float[np.ndarray, "p p"]:
    """The inverse of the curvature after a step over which the slope fell by ``change``; it stays positive."""
    along = float(step @ change)
    if along <= _CURVED * float(np.linalg.norm(step) * np.linalg.norm(change)):
        return inverse
    left = np.eye(len(step)) - np.outer(step, change) / along
    return left @ inverse @ left.T + np.outer(step, step) / along
