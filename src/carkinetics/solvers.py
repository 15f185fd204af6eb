"""How a structure's curves are computed, for a batch with the patient axis last.

``make_grid`` lays out, once and outside JAX, where every patient's solver steps end; ``curves`` then solves.
A structure with a closed form is evaluated; an ODE is solved by Runge-Kutta steps of fixed length on a grid
that is fine while cells expand and coarse later, each patient's steps ending on its own samples; a stiff
structure by an implicit adaptive solver. The gradient of the fixed grid is the exact gradient of the
discretised density, so the sampler stays valid whatever the grid; how far the grid is from the ODE is checked
after a fit against ``reference_curve``.
"""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from carkinetics.structure import AbstractStructure

# Longest step (day) up to a day: fine where cells double within a day.
GRADES = ((14.0, 1.0), (28.0, 1.5), (60.0, 3.0), (math.inf, 7.0))
# A step's ends are looked at from just inside it: a rate that jumps there belongs to one side only.
_INSIDE = 1e-9
_STIFF_TOLERANCE = 1e-6
MAX_STEPS = 20_000


class Grid(eqx.Module):
    """Times of the curves, and where the solver's steps end.

    Attributes
    ----------
    time : Float["time subject"]
        When curves are wanted (day); increasing per patient, the last repeated to fill the column.
    ends : Float["step subject"] or None
        End of every step; a repeated end is a step of no length. None where nothing is stepped.
    at : Int["time subject"] or None
        The step whose end is each time.
    """

    time: Float[Array, "time subject"]
    ends: Float[Array, "step subject"] | None
    at: Int[Array, "time subject"] | None


def make_grid(structure: AbstractStructure, time: Float[np.ndarray, "time subject"], *, refine: int = 1) -> Grid:
    """The grid on which a structure's curves at these times are solved.

    Parameters
    ----------
    time : array
        Days since infusion, from 0 on, not decreasing down each column.
    refine : int
        Divides every step by this: 2 halves them.
    """
    with jax.enable_x64(True):
        if structure.closed_form or structure.stiff:
            return Grid(jnp.asarray(time, float), None, None)
        columns = [_ends(np.unique(column), refine) for column in np.asarray(time, float).T]
        depth = max(len(c) for c in columns)
        ends = np.stack([np.pad(c, (0, depth - len(c)), mode="edge") for c in columns], axis=1)
        at = np.stack([np.searchsorted(c, t) for c, t in zip(columns, np.asarray(time, float).T, strict=True)], axis=1)
        return Grid(jnp.asarray(time, float), jnp.asarray(ends), jnp.asarray(at))


def _ends(times: Float[np.ndarray, " distinct"], refine: int) -> Float[np.ndarray, " step"]:
    """Ends of one patient's steps: its times, and between them equal steps no longer than the grade allows."""
    ends, here = [], 0.0
    for t in times:
        while here < t:
            until, longest = next(g for g in GRADES if here < g[0])
            stop = min(t, until)
            n = max(1, math.ceil((stop - here) * refine / longest - 1e-9))
            ends.append(np.append(here + (stop - here) * np.arange(1, n) / n, stop))  # the last one exactly
            here = stop
    # A first step of no length: a sample on day 0 is the end of it.
    return np.concatenate([np.zeros(1), *ends])


def curves(
    structure: AbstractStructure, grid: Grid, dose: Float[Array, " subject"], p: tuple
) -> dict[str, Float[Array, "time subject"]]:
    """Natural log of every output at each patient's times.

    Parameters
    ----------
    dose : array
        Viable CAR+ cells; NaN where it is not known.
    p : NamedTuple
        The structure's parameters, natural scale, each of shape ``(subject,)``.
    """
    if structure.closed_form:
        return structure.curve(grid.time, dose, p)
    if structure.stiff:
        return _implicit(structure, grid.time, dose, p)
    return _runge_kutta(structure, grid, dose, p)


def _runge_kutta(structure: AbstractStructure, grid: Grid, dose, p) -> dict[str, Float[Array, "time subject"]]:
    """Classical Runge-Kutta of order four, one scan over the steps of all patients."""
    assert grid.ends is not None
    assert grid.at is not None
    ends, at = grid.ends, grid.at
    breakpoints = structure.breakpoints(p)
    if breakpoints:
        # Breakpoints move with the parameters: they join the sorted ends, and later samples move back.
        jumps = jnp.clip(jnp.stack([jnp.broadcast_to(b, ends.shape[1:]) for b in breakpoints]), 0.0, ends[-1])
        at = at + jnp.sum(jumps[:, None, :] < grid.time[None], axis=0)
        ends = jnp.sort(jnp.concatenate([ends, jumps]), axis=0)
    rate = _rate(structure, p)

    @jax.checkpoint
    def step(state, end):
        t, u = state
        h = end - t
        inside = _INSIDE * h
        k1 = rate(t + inside, u)
        k2 = rate(t + 0.5 * h, _moved(u, 0.5 * h, k1))
        k3 = rate(t + 0.5 * h, _moved(u, 0.5 * h, k2))
        k4 = rate(end - inside, _moved(u, h, k3))
        u = jax.tree.map(lambda x, a, b, c, d: x + h / 6 * (a + 2 * b + 2 * c + d), u, k1, k2, k3, k4)
        return (end, u), u

    start = structure.to_coordinates(structure.initial(dose, p), p)
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, ends.shape[1:]), start)
    _, path = jax.lax.scan(step, (jnp.zeros(ends.shape[1]), start), ends)
    wanted = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=0), path)
    return structure.output(structure.from_coordinates(wanted, p), p)


def _moved(u, h, k):
    return jax.tree.map(lambda x, v: x + h * v, u, k)


def _rate(structure: AbstractStructure, p):
    """Rate of change in the structure's coordinates: the chain rule, once for all structures."""

    def rate(t, u):
        y = structure.from_coordinates(u, p)
        return jax.jvp(lambda y: structure.to_coordinates(y, p), (y,), (structure.rhs(t, y, p),))[1]

    return rate


def _implicit(structure: AbstractStructure, time, dose, p) -> dict[str, Float[Array, "time subject"]]:
    """An implicit adaptive solver, patient by patient; a failed solve is not finite, and so rejected."""

    def one(time, dose, p):
        return _adaptive(structure, time, dose, p, solver=diffrax.Kvaerno5(), tol=_STIFF_TOLERANCE)[0]

    return jax.vmap(one, in_axes=(1, 0, 0), out_axes=1)(time, dose, p)


def reference_curve(
    structure: AbstractStructure, time: Float[Array, " time"], dose: Float[Array, ""], p: tuple, *, tol: float = 1e-10
) -> dict[str, Float[Array, " time"]]:
    """One patient's curve from the structure's ODE by an adaptive solver: slow, and the standard to check against.

    ``time`` (day) must be increasing and start at 0 or later. Every breakpoint is stepped onto.
    """
    return reference_solve(structure, time, dose, p, tol=tol)[0]


def reference_solve(
    structure: AbstractStructure,
    time: Float[Array, " time"],
    dose: Float[Array, ""],
    p: tuple,
    *,
    tol: float = 1e-10,
    max_steps: int = MAX_STEPS,
) -> tuple[dict[str, Float[Array, " time"]], Int[Array, ""]]:
    """:func:`reference_curve` and the steps that it took; NaN where ``max_steps`` were not enough."""
    solver = diffrax.Kvaerno5() if structure.stiff else diffrax.Dopri8()
    return _adaptive(structure, time, dose, p, solver=solver, tol=tol, max_steps=max_steps)


def _adaptive(structure: AbstractStructure, time, dose, p, *, solver: Any, tol: float, max_steps: int = MAX_STEPS):
    breakpoints = structure.breakpoints(p)
    controller = diffrax.PIDController(rtol=tol, atol=tol * 1e-3)
    if breakpoints:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.sort(jnp.stack(breakpoints)))
    rate = _rate(structure, p)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, u, args: rate(jnp.asarray(t), u)),
        solver,
        t0=0.0,
        # The last time may be day 0, and a solver needs somewhere to go.
        t1=jnp.maximum(time[-1], 1e-6),
        dt0=None,
        y0=structure.to_coordinates(structure.initial(dose, p), p),
        saveat=diffrax.SaveAt(ts=time),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    failed = solution.result != diffrax.RESULTS.successful
    ln = jax.vmap(lambda u: structure.output(structure.from_coordinates(u, p), p))(solution.ys)
    return jax.tree.map(lambda x: jnp.where(failed, jnp.nan, x), ln), jnp.asarray(solution.stats["num_steps"])
