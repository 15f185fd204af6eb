"""How a structure's curves are computed, for a batch with the patient axis last.

``make_grid`` lays out, once and outside JAX, where every patient's solver steps end; ``curves`` then solves.
A structure with a closed form is evaluated; an ODE is solved by steps of fixed length on a grid that is fine
while cells expand and coarse later, each patient's steps ending on its own samples: Runge-Kutta steps, or, of a
stiff structure, linearly implicit ones. The gradient of the fixed grid is the exact gradient of the discretised
density, so the sampler stays valid whatever the grid; how far the grid is from the ODE is checked after a fit
against ``reference_curve``.
"""

import math
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from carkinetics.structure import AbstractStructure, Inputs

# Longest step (day) up to a day: fine where cells double within a day.
GRADES = ((14.0, 0.8), (28.0, 1.25), (60.0, 2.5), (math.inf, 6.0))
# Of stiff structures, up to a day after each infusion: what it disturbs relaxes within minutes to hours.
STIFF_GRADES = ((0.01, 0.0025), (0.04, 0.0075), (0.13, 0.03), (0.4, 0.09), (1.0, 0.2))
# A step's ends are looked at from just inside it: a rate that jumps there belongs to one side only.
_INSIDE = 1e-9
# Tsitouras' method without its last stage, which serves the estimate of an error that nobody asks for here.
_TSIT5: Any = diffrax.Tsit5.tableau
_LAST = tuple(map(float, _TSIT5.b_sol[:-1]))
_NODES = (0.0, *map(float, _TSIT5.c[:-1]))
_WEIGHTS = ((), *(tuple(map(float, row)) for row in _TSIT5.a_lower[:-1]))
# Rodas5P (Steinebach G, BIT Numer Math 2023;63:27, doi:10.1007/s10543-023-00967-x), in the form that needs no
# product with the Jacobian: linearly implicit, of order five also on stiff problems, L-stable. Every stage after
# the fifth adds the one before it to the state; the last is added to the result.
_GAMMA = 0.21193756319429014
_ROSENBROCK_NODES = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)
_SLOPES = (_GAMMA, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069, 0.0, 0.0, 0.0)
_STATES = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
)
_FIFTH = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)
_STATES = (*_STATES, _FIFTH, (*_FIFTH, 1.0), (*_FIFTH, 1.0, 1.0))
_RATES = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623,
     -28.087943162872662),
    (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002,
     -54.66780262877968, -9.48861652309627),
)  # fmt: skip
MAX_STEPS = 20_000
# Divides the steps where curves must be right to 1e-5; the standard grid is right to 2e-3 at published values.
ACCURATE = 3


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
    added : Float["step subject"] or None
        Viable CAR+ cells infused at the end of every step. None where nobody has a further infusion.
    """

    time: Float[Array, "time subject"]
    ends: Float[Array, "step subject"] | None = None
    at: Int[Array, "time subject"] | None = None
    added: Float[Array, "step subject"] | None = None


def make_grid(
    structure: AbstractStructure, time: Float[np.ndarray, "time subject"], x: Inputs, *, refine: int = 1
) -> Grid:
    """The grid on which a structure's curves at these times are solved.

    Parameters
    ----------
    time : array
        Days since infusion, from 0 on, not decreasing down each column.
    x : Inputs
        Of every patient, subject axis last: infusions, treatments and measured courses end steps too.
    refine : int
        Divides every step by this: 2 halves them.
    """
    with jax.enable_x64(True):
        if structure.closed_form:
            return Grid(jnp.asarray(time, float))
        ends, at = _laid_out(structure, time, x, refine)
        added = _added(ends, x) if structure.repeatable and len(x.later_day) else None
        return Grid(jnp.asarray(time), jnp.asarray(ends), jnp.asarray(at), added)


def filled_up(grid: Grid, least: int = 64) -> Grid:
    """The same curves, the last times and ends repeated up to a power of two: few programs serve all schedules.

    The curves' first rows are those of the times asked for; steps of no length change nothing.
    """

    def filled(a: Array, **how: Any) -> Array:
        rows = max(least, 1 << (len(a) - 1).bit_length()) - len(a)
        return jnp.pad(a, ((0, rows), (0, 0)), **how)

    return Grid(
        filled(grid.time, mode="edge"),
        None if grid.ends is None else filled(grid.ends, mode="edge"),
        None if grid.at is None else filled(grid.at, mode="edge"),
        None if grid.added is None else filled(grid.added),
    )


def segments(
    structure: AbstractStructure, time: Float[np.ndarray, "time subject"], x: Inputs, *, refine: int = 1
) -> Float[np.ndarray, "edge subject"]:
    """Edges, from day 0 on, between which curves through these times are smooth and short of any quick change.

    They are the ends of the solver's steps, and those that it would have for a closed form; only breakpoints, which
    move with the parameters, are not among them.
    """
    return _laid_out(structure, time, x, refine)[0]


def _laid_out(
    structure: AbstractStructure, time: Float[np.ndarray, "time subject"], x: Inputs, refine: int
) -> tuple[Float[np.ndarray, "step subject"], Int[np.ndarray, "time subject"]]:
    """Ends of every patient's steps, and the step whose end is each time."""
    time = np.asarray(time, float)
    known = np.concatenate([np.asarray(known, float) for known in _known_times(x)])
    # Most patients of a study share their schedule: each schedule is laid out once.
    stops = np.concatenate([time, known])
    if (stops == stops[:, :1]).all():
        schedules, whose = stops[:, :1], np.zeros(stops.shape[1], int)
    else:
        schedules, whose = np.unique(stops, axis=1, return_inverse=True)
    finer, n, infusions = refine * structure.refine, len(time), len(x.later_day)
    columns = [
        _ends(c[:n], c[n:], np.append(0.0, c[n : n + infusions]) if structure.stiff else None, finer)
        for c in schedules.T
    ]
    depth = max(len(c) for c in columns)
    ends = np.stack([np.pad(c, (0, depth - len(c)), mode="edge") for c in columns], axis=1)
    at = np.stack([np.searchsorted(c, t) for c, t in zip(columns, schedules[:n].T, strict=True)], axis=1)
    return ends[:, whose], at[:, whose]


def one_schedule(x: Inputs) -> bool:
    """Whether one grid serves all patients with the same sampling days: nothing else happens at times of their own."""
    return not len(x.later_day) and all((t == t[:, :1]).all() for t in map(np.asarray, _known_times(x)))


def _known_times(x: Inputs) -> list[Float[Any, "_ *n"]]:
    """Times (day) at which something happens to a patient that is not a matter of parameters."""
    return [x.later_day, x.since, *(course.time for course in x.course.values())]


def _added(ends: Float[np.ndarray, "step subject"], x: Inputs) -> Float[Array, "step subject"]:
    """Cells infused at the end of every step; infusions after the last sample are seen by nobody."""
    added, who = np.zeros(ends.shape), np.arange(ends.shape[1])
    for day, dose in zip(np.asarray(x.later_day), np.asarray(x.later_dose), strict=True):
        np.add.at(added, (np.argmax(ends >= day, axis=0), who), np.where(day <= ends[-1], dose, 0.0))
    return jnp.asarray(added)


def _ends(
    times: Float[np.ndarray, " time"],
    known: Float[np.ndarray, " known"],
    infused: Float[np.ndarray, " infusion"] | None,
    refine: int,
) -> Float[np.ndarray, " step"]:
    """Ends of one patient's steps: its times, and between them equal steps no longer than the grade allows.

    ``infused`` are the days of infusions after which steps must be short; None where no step need be.
    """
    ends, here = [], 0.0
    for t in np.unique(np.append(times, known[(known > 0) & (known < times[-1])])):
        while here < t:
            until, longest = _grade(here, infused)
            stop = min(t, until)
            n = max(1, math.ceil((stop - here) * refine / longest - 1e-9))
            ends.append(np.append(here + (stop - here) * np.arange(1, n) / n, stop))  # the last one exactly
            here = stop
    # A first step of no length: a sample on day 0 is the end of it.
    return np.concatenate([np.zeros(1), *ends])


def _grade(here: float, infused: Float[np.ndarray, " infusion"] | None) -> tuple[float, float]:
    """Until which day (day) a step from ``here`` may go, and how long it may be at most."""
    until, longest = next(g for g in GRADES if here < g[0])
    if infused is None:
        return until, longest
    last = infused[infused <= here].max()
    for after, length in STIFF_GRADES:
        if here < last + after:
            return min(until, last + after), min(longest, length)
    return until, longest


def curves(structure: AbstractStructure, grid: Grid, p: tuple, x: Inputs) -> dict[str, Float[Array, "time subject"]]:
    """Natural log of every output at each patient's times.

    Parameters
    ----------
    p : NamedTuple
        The structure's parameters, natural scale, each of shape ``(subject,)``.
    x : Inputs
        Of every patient, subject axis last; those that the grid was made for.
    """
    if structure.closed_form:
        return structure.curve(grid.time, p, x)
    return _stepped(structure, grid, p, x)


def _stepped(structure: AbstractStructure, grid: Grid, p, x: Inputs) -> dict[str, Float[Array, "time subject"]]:
    """One scan over the steps of all patients."""
    assert grid.ends is not None
    assert grid.at is not None
    ends, at, added = grid.ends, grid.at, grid.added
    breakpoints = structure.breakpoints(p, x)
    if breakpoints:
        # Breakpoints move with the parameters: they join the sorted ends, and later samples move back.
        jumps = jnp.clip(jnp.stack([jnp.broadcast_to(b, ends.shape[1:]) for b in breakpoints]), 0.0, ends[-1])
        at = at + jnp.sum(jumps[:, None, :] < grid.time[None], axis=0)
        ends = jnp.concatenate([ends, jumps])
        if added is None:
            ends = jnp.sort(ends, axis=0)
        else:  # infusions move back as well
            order = jnp.argsort(ends, axis=0)
            ends = jnp.take_along_axis(ends, order, axis=0)
            added = jnp.take_along_axis(jnp.concatenate([added, jnp.zeros_like(jumps)]), order, axis=0)
    rate, advanced = _rate(structure, p, x), _rosenbrock if structure.stiff else _runge_kutta

    def infused(u, dose):
        more = structure.to_coordinates(structure.infuse(structure.from_coordinates(u, p), dose, p), p)
        return jax.tree.map(lambda before, after: jnp.where(dose > 0, after, before), u, more)

    @jax.checkpoint
    def step(state, at_end):
        end, dose = at_end
        t, u = state
        u = advanced(rate, t, end, u)
        return (end, u if dose is None else infused(u, dose)), u  # a sample at an infusion's time is drawn before it

    start = structure.to_coordinates(structure.initial(p, x), p)
    start = jax.tree.map(lambda y: jnp.broadcast_to(y, ends.shape[1:]), start)
    _, path = jax.lax.scan(step, (jnp.zeros(ends.shape[1]), start), (ends, added))
    wanted = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=0), path)
    return structure.output(structure.from_coordinates(wanted, p), p)


def _inside(t, end, node: float):
    """The time of a stage, which sees only the step's own side of a jump at either end."""
    h = end - t
    return jnp.clip(t + node * h, t + _INSIDE * h, end - _INSIDE * h)


def _runge_kutta(rate, t, end, u):
    """``u`` after a step from ``t`` to ``end``, by Tsitouras' method of order five."""
    h, k = end - t, []
    for node, weights in zip(_NODES, _WEIGHTS, strict=True):
        # Without the barrier XLA computes earlier stages again in later ones: gradients take 1.5 to 1.8 times as long.
        there = jax.lax.optimization_barrier(_moved(u, h, weights, k))
        k.append(rate(_inside(t, end, node), there))
    return _moved(u, h, _LAST, k)


def _rosenbrock(rate, t, end, u):
    """``u`` after a step from ``t`` to ``end``, by Rodas5P: eight linear solves with one matrix.

    The derivative of a solve is a solve, so forward and reverse derivatives of any order go through it, which an
    iteration to convergence does not give.
    """
    h, (y, tree) = end - t, jax.tree.flatten(u)
    y = jnp.stack(y)  # (state, subject)

    def slope(t, y):
        return jnp.stack(jax.tree.leaves(rate(t, jax.tree.unflatten(tree, list(y)))))

    start, unit = _inside(t, end, 0.0), jnp.eye(len(y), dtype=y.dtype)
    jacobian = jax.vmap(lambda v: jax.jvp(lambda y: slope(start, y), (y,), (v,))[1])(
        jnp.broadcast_to(unit[:, :, None], (*unit.shape, *h.shape))
    )  # (by state, state, subject)
    by_time = jax.jvp(lambda t: slope(t, y), (start,), (jnp.ones_like(start),))[1]
    inverse = jnp.linalg.inv(unit / _GAMMA - jnp.moveaxis(h * jacobian, (0, 1), (-1, -2)))  # (subject, state, state)
    k = []
    for node, states, rates, by in zip(_ROSENBROCK_NODES, _STATES, _RATES, _SLOPES, strict=True):
        wanted = h * slope(_inside(t, end, node), _moved(y, 1.0, states, k)) + h**2 * by * by_time
        k.append(jnp.einsum("sij,js->is", inverse, _moved(wanted, 1.0, rates, k)))
    return jax.tree.unflatten(tree, list(_moved(y, 1.0, (*_STATES[-1], 1.0), k)))


def _moved(u, h, weights, rates):
    """``u`` after a step along these rates."""

    def one(u, *rates):
        return u + h * sum(w * r for w, r in zip(weights, rates, strict=True)) if rates else u

    return jax.tree.map(one, u, *rates)


def _rate(structure: AbstractStructure, p, x: Inputs):
    """Rate of change in the structure's coordinates: the chain rule, once for all structures."""

    def rate(t, u):
        y = structure.from_coordinates(u, p)
        return jax.jvp(lambda y: structure.to_coordinates(y, p), (y,), (structure.rhs(t, y, p, x),))[1]

    return rate


def reference_curve(
    structure: AbstractStructure, time: Float[Array, " time"], p: tuple, x: Inputs, *, tol: float = 1e-10
) -> dict[str, Float[Array, " time"]]:
    """One patient's curve from the structure's ODE by an adaptive solver: slow, and the standard to check against.

    ``time`` (day) must be increasing and start at 0 or later. Every breakpoint is stepped onto.
    """
    return reference_solve(structure, time, p, x, tol=tol)[0]


def reference_solve(
    structure: AbstractStructure,
    time: Float[Array, " time"],
    p: tuple,
    x: Inputs,
    *,
    tol: float = 1e-10,
    max_steps: int = MAX_STEPS,
) -> tuple[dict[str, Float[Array, " time"]], Int[Array, ""]]:
    """:func:`reference_curve` and the steps that it took; NaN where ``max_steps`` were not enough."""
    solver = diffrax.Kvaerno5() if structure.stiff else diffrax.Dopri8()
    return _adaptive(structure, time, p, x, solver=solver, tol=tol, max_steps=max_steps)


def _adaptive(structure: AbstractStructure, time, p, x: Inputs, *, solver: Any, tol: float, max_steps: int = MAX_STEPS):
    """One patient by an adaptive solver, from infusion to infusion."""
    jumps = [*structure.breakpoints(p, x), *jnp.concatenate(_known_times(x))]
    controller = diffrax.PIDController(rtol=tol, atol=tol * 1e-3)
    if jumps:
        within = jnp.clip(jnp.stack(jumps), -1.0, time[-1] + 1.0)
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.sort(within))
    rate = _rate(structure, p, x)

    def stretch(u, begin, end):
        """From ``u`` at ``begin`` to ``end``: where it is at every time (outside: at the nearer end) and at the end."""
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, u, args: rate(jnp.asarray(t), u)),
            solver,
            t0=begin,
            # A stretch may have no length, and a solver needs somewhere to go.
            t1=jnp.maximum(end, begin + 1e-6),
            dt0=None,
            y0=u,
            saveat=diffrax.SaveAt(ts=jnp.append(jnp.clip(time, begin, end), end)),
            stepsize_controller=controller,
            max_steps=max_steps,
            throw=False,
        )
        failed = solution.result != diffrax.RESULTS.successful
        return solution.ys, failed, jnp.asarray(solution.stats["num_steps"])

    last = time[-1]
    order = jnp.argsort(x.later_day)
    days, doses = jnp.minimum(x.later_day[order], last), jnp.where(x.later_day <= last, x.later_dose, 0.0)[order]
    u = structure.to_coordinates(structure.initial(p, x), p)
    begin, found, failed, steps = jnp.zeros_like(last), None, jnp.array(False), jnp.array(0)
    further = zip([*days, last], [*doses, None], strict=True) if structure.repeatable else [(last, None)]
    for end, dose in further:
        ys, lost, taken = stretch(u, begin, end)
        failed, steps = failed | lost, steps + taken
        now, reached = jax.tree.map(lambda y: y[:-1], ys), time > begin
        found = now if found is None else jax.tree.map(partial(jnp.where, reached), now, found)
        u = jax.tree.map(lambda y: y[-1], ys)
        if dose is not None:
            u = structure.to_coordinates(structure.infuse(structure.from_coordinates(u, p), dose, p), p)
        begin = end
    ln = jax.vmap(lambda u: structure.output(structure.from_coordinates(u, p), p))(found)
    return jax.tree.map(lambda y: jnp.where(failed, jnp.nan, y), ln), steps
