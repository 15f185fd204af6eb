"""Curves of many patients in one piece each: their areas, maxima, slopes and crossings, exactly enough.

A curve is cut where it may have a kink or a jump: at the solver's steps, at what is known to happen to the patient, and
at breakpoints, which every set of parameters has for itself. Within each segment the natural log of the level is
smooth; it is solved at four Lobatto points and becomes a cubic there, which is exact for exponentials, whatever their
rate. Areas are integrals of its exponential, maxima are those of the cubic, not of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.inputs import ln_offset
from carkinetics.model_parts import Assay
from carkinetics.solvers import Grid
from carkinetics.structure import AbstractStructure, Inputs

LANES = 512  # curves that are solved at once: their nodes stay below some ten MB
REFINE = 2  # divides the segments: an infused cell dose, gone within a day, bends the log of a level
_JUST = 1e-6  # day; a level jumps right after an infusion, or where a measured course does
# Days after a further infusion at which segments end: its cells go within a day, and expand within weeks.
_AFTERWARDS = (*np.arange(1, 10) / 5, *range(2, 15))
_NODES = np.array([0.0, 0.5 - np.sqrt(0.05), 0.5 + np.sqrt(0.05), 1.0])  # Lobatto's, of a segment of length 1
_TO_CUBIC = np.linalg.inv(np.vander(_NODES, 4, increasing=True))
_GAUSS, _WEIGHT = (0.5 * (x + s) for x, s in zip(np.polynomial.legendre.leggauss(8), (1.0, 0.0), strict=True))
_PARTS = 8  # of a segment, in each of which a limit is crossed once at most
_BISECTIONS = 40
_FLOOR = -600.0  # ln of a level that is as good as none, and whose exponential is still a number


@dataclass(frozen=True)
class Question:
    """What is wanted of the curves; days since the infusion.

    Attributes
    ----------
    areas : sequence of (float, float)
        Windows.
    days : array of shape (day, subject)
        Days at which levels are wanted, each patient's own; NaN for none.
    peak : (float, float)
        Days within which the maximum is looked for.
    horizon : float
        End of the curves.
    ln_limit : float
        ln of the level whose last crossing is wanted; -inf for none.
    further : bool
        Whether slopes, the lowest level and crossings are wanted too; without, they are NaN, and not computed.
    """

    areas: Sequence[tuple[float, float]]
    days: Float[np.ndarray, "day subject"]
    peak: tuple[float, float]
    horizon: float
    ln_limit: float
    further: bool = True


class Answer(eqx.Module):
    """Of every curve: logs of areas and levels, the peak, slopes of ln level (per day), crossings (day).

    ``steepest_rise`` is the largest slope before the peak, ``steepest_fall`` the largest slope downward after it,
    ``late_slope`` the mean slope over the second half of the horizon, ``last_slope`` that at its end; ``ln_lowest`` is
    the lowest level before the peak; ``last_above`` is the last day at the limit or above (0 if there is none),
    ``above`` the time there; ``ln_end`` the level at the horizon.
    """

    ln_area: Float[Array, "area *lane"]
    ln_level: Float[Array, "day *lane"]
    ln_peak: Float[Array, " *lane"]
    peak_day: Float[Array, " *lane"]
    ln_lowest: Float[Array, " *lane"]
    steepest_rise: Float[Array, " *lane"]
    steepest_fall: Float[Array, " *lane"]
    late_slope: Float[Array, " *lane"]
    last_slope: Float[Array, " *lane"]
    ln_end: Float[Array, " *lane"]
    ln_total: Float[Array, " *lane"]
    last_above: Float[Array, " *lane"]
    above: Float[Array, " *lane"]

    def doubling_time(self) -> np.ndarray:
        """ln 2 over the steepest rise, days; NaN where the curve does not rise before its peak."""
        rise = np.asarray(self.steepest_rise)
        return np.log(2.0) / np.where(rise > 0, rise, np.nan)

    def fold_expansion(self) -> np.ndarray:
        """The peak over the lowest level before it; NaN where the peak is at the beginning."""
        lowest = np.asarray(self.ln_lowest)
        return np.exp(np.asarray(self.ln_peak) - np.where(np.isfinite(lowest), lowest, np.nan))


def answered(
    structure: AbstractStructure,
    assay: Assay,
    values: Float[np.ndarray, "parameter draw subject"],
    x: Inputs,
    question: Question,
    *,
    ratio: int = -1,
    refine: int = REFINE,
) -> Answer:
    """Answers for every draw and patient, arrays of shape ``(..., draw, subject)``.

    Parameters
    ----------
    values : array
        Individual parameters, natural scale, of every draw.
    x : Inputs
        Of every patient, subject axis last.
    ratio : int
        The row of ``values`` that multiplies the output in the assay's matrix; -1 for none.
    refine : int
        Divides the segments.
    """
    n, subjects = values.shape[1] * values.shape[2], values.shape[2]
    whose = np.tile(np.arange(subjects), values.shape[1])
    flat = np.asarray(values, float).reshape(len(values), n)
    with jax.enable_x64(True):
        x = jax.tree.map(np.asarray, x)
        edges = _edges(structure, x, question, refine)
        areas, peak = np.reshape(np.array(question.areas, float), (-1, 2)), np.array(question.peak)
        fixed = areas, peak, question.horizon, question.ln_limit
        found = []
        for begin in range(0, n, min(LANES, n)):
            here = np.minimum(np.arange(begin, begin + min(LANES, n)), n - 1)  # the last ones fill their program up
            of = jax.tree.map(lambda a, i=whose[here]: a[..., i], x)
            cuts, nodes, ln = _solved(structure, assay.output, edges[:, whose[here]], flat[:, here], of)
            ln = ln + np.asarray(ln_offset(assay, of, np.asarray(nodes)))
            ln = ln if ratio < 0 else ln + np.log(flat[ratio, here])
            found.append(_answer(question.further, cuts, ln, question.days[:, whose[here]], *fixed))
        whole = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1)[..., :n], *found)
    return jax.tree.map(lambda a: a.reshape(*a.shape[:-1], values.shape[1], subjects), whole)


def _edges(structure: AbstractStructure, x: Inputs, question: Question, refine: int) -> Float[np.ndarray, "edge n"]:
    """Where every patient's curve is cut, whatever its parameters; days that are asked for are among them."""
    known = [np.asarray(t, float) for t in (x.later_day, *(c.time for c in x.course.values()))]
    around = [t + s for t in known for s in (-_JUST, _JUST)] + [x.later_day + s for s in _AFTERWARDS]
    n, horizon = question.days.shape[1], question.horizon
    asked = [0.0, horizon, horizon / 2, *question.peak, *(d for window in question.areas for d in window)]
    shared = np.repeat(np.array(asked)[:, None], n, axis=1)
    time = np.concatenate([shared, np.nan_to_num(question.days), *around])
    time = np.sort(np.clip(time, 0.0, horizon), axis=0)
    return solvers.segments(structure, time, x, refine=refine)


@partial(jax.jit, static_argnums=(0, 1))
def _solved(structure: AbstractStructure, output: str, edges, values, x: Inputs):
    """Cuts of every curve, the nodes of its segments, and ln of the output there."""
    p, x = as_arguments(structure, values, x)
    cuts = edges
    breakpoints = structure.breakpoints(p, x)
    if breakpoints:
        moving = jnp.stack([jnp.broadcast_to(b, edges.shape[1:]) for b in breakpoints])
        cuts = jnp.sort(jnp.concatenate([edges, jnp.clip(moving, 0.0, edges[-1])]), axis=0)
    begin, length = cuts[:-1], jnp.diff(cuts, axis=0)
    inner = begin[:, None] + _NODES[:3, None] * length[:, None]
    nodes = jnp.concatenate([inner.reshape(-1, cuts.shape[1]), cuts[-1:]])
    return cuts, nodes, solvers.curves(structure, _grid(structure, nodes, x), p, x)[output]


def _grid(structure: AbstractStructure, nodes: Float[Array, "node lane"], x: Inputs) -> Grid:
    """A grid whose steps end at the nodes of every curve."""
    if structure.closed_form:
        return Grid(nodes)
    at = jnp.broadcast_to(jnp.arange(len(nodes))[:, None], nodes.shape)
    if not (structure.repeatable and len(x.later_day)):
        return Grid(nodes, nodes, at)
    added = jnp.zeros(nodes.shape)
    for day, dose in zip(x.later_day, x.later_dose, strict=True):
        first = jnp.argmax(nodes >= day, axis=0)
        seen = jnp.where(day <= nodes[-1], dose, 0.0)
        added = added.at[first, jnp.arange(nodes.shape[1])].add(seen)
    return Grid(nodes, nodes, at, added)


@partial(jax.jit, static_argnums=0)
def _answer(further: bool, cuts, ln, days, areas, peak, horizon, ln_limit) -> Answer:
    """Answers of some curves, from ln of their levels at the nodes."""
    ln = jnp.maximum(ln, _FLOOR)
    begin, length = cuts[:-1], jnp.diff(cuts, axis=0)
    c, middle, long = _cubics(ln, length), begin + length / 2, length > 10 * _JUST
    ln_pieces = _ln_integral(c) + jnp.log(jnp.maximum(length, 1e-300))

    def ln_sum(inside):
        return jax.scipy.special.logsumexp(jnp.where(inside & (length > 0), ln_pieces, -jnp.inf), axis=0)

    windows = [ln_sum((middle > a) & (middle < b)) for a, b in areas]
    each_day = [_level_at(c, cuts, length, day) for day in days]
    none = jnp.zeros((0, cuts.shape[1]))
    ln_peak, peak_day = _maximum(c, begin, length, (middle > peak[0]) & (middle < peak[1]))
    ln_lowest = rise = fall = last_slope = last_above = above = jnp.full_like(ln_peak, jnp.nan)
    if further:
        ln_lowest, rise, fall, last_slope = _around_peak(c, begin, length, (middle > peak[0]) & long, long, peak_day)
        last_above, above = _crossing(c, begin, length, ln_limit)
    return Answer(
        ln_area=jnp.stack(windows) if windows else none,
        ln_level=jnp.stack(each_day) if each_day else none,
        ln_peak=ln_peak,
        peak_day=peak_day,
        ln_lowest=ln_lowest,
        steepest_rise=rise,
        steepest_fall=fall,
        late_slope=(ln[-1] - _level_at(c, cuts, length, jnp.asarray(horizon) / 2)) / (horizon / 2),
        last_slope=last_slope,
        ln_end=ln[-1],
        ln_total=ln_sum(middle > 0),
        last_above=last_above,
        above=above,
    )


def _cubics(ln, length):
    """Coefficients of every segment's cubic, in its share of the segment: ``(power, segment, lane)``."""
    segment = jnp.stack([ln[k : len(ln) - 3 + k : 3] for k in range(4)])
    # A jump has a segment of its own, too short for anything but a straight line.
    straight = segment[0] + (segment[3] - segment[0]) * _NODES[:, None, None]
    return jnp.einsum("kn,nsl->ksl", _TO_CUBIC, jnp.where(length > 10 * _JUST, segment, straight))


def _around_peak(c, begin, length, searched, long, peak_day):
    """Lowest level and steepest rise before the peak, steepest fall after it, and the slope at the end."""
    points = jnp.concatenate([jnp.zeros(1), jnp.asarray(_GAUSS), jnp.ones(1)])[:, None, None]
    middle = begin + length / 2
    slope = (c[1] + points * (2 * c[2] + points * 3 * c[3])) / jnp.maximum(length, _JUST)
    before = (begin + points * length <= peak_day) & (middle < peak_day) & searched
    after = (middle > peak_day) & long
    lowest = jnp.where(before, _cubic(c, points), jnp.inf).min(axis=(0, 1))
    rise = jnp.where(before, slope, -jnp.inf).max(axis=(0, 1))
    fall = -jnp.where(after, slope, jnp.inf).min(axis=(0, 1))
    last = len(long) - 1 - jnp.argmax(long[::-1], axis=0)  # the last segment that is no jump
    return lowest, rise, fall, jnp.take_along_axis(slope[-1], last[None], axis=0)[0]


def _cubic(c, u):
    return c[0] + u * (c[1] + u * (c[2] + u * c[3]))


def _ln_integral(c):
    """ln of the integral of exp(cubic) over a segment of length 1."""
    return jax.scipy.special.logsumexp(
        jnp.stack([_cubic(c, u) + jnp.log(w) for u, w in zip(_GAUSS, _WEIGHT, strict=True)]), axis=0
    )


def _maximum(c, begin, length, searched):
    """The largest value of the cubics in the searched segments, and its day."""
    a, b, d = 3 * c[3], 2 * c[2], c[1]
    root = jnp.sqrt(jnp.maximum(b * b - 4 * a * d, 0.0))
    q = -0.5 * (b + jnp.where(b >= 0, root, -root))
    safe = [jnp.where(below == 0, 0.0, above / jnp.where(below == 0, 1.0, below)) for above, below in ((q, a), (d, q))]
    u = jnp.stack([jnp.zeros_like(d), jnp.ones_like(d), *(jnp.clip(s, 0.0, 1.0) for s in safe)])
    value = jnp.where(searched, _cubic(c, u), -jnp.inf)
    day = begin + u * length
    flat, days = value.reshape(-1, value.shape[-1]), day.reshape(-1, day.shape[-1])
    top = flat.max(axis=0)
    # Two segments share the peak at their common end: the first of equal days.
    return top, jnp.where(flat >= top, days, jnp.inf).min(axis=0)


def _level_at(c, cuts, length, day):
    """The cubic at one day of every curve."""
    k = jnp.clip(jnp.sum(cuts < day, axis=0) - 1, 0, len(length) - 1)[None]
    here = [jnp.take_along_axis(a, k, axis=0)[0] for a in (*c, cuts[:-1], length)]
    u = jnp.clip((day - here[4]) / jnp.where(here[5] > 0, here[5], 1.0), 0.0, 1.0)
    return _cubic(here[:4], u)


def _crossing(c, begin, length, ln_limit):
    """The last day at the limit or above, and the time spent there."""
    u = jnp.linspace(0.0, 1.0, _PARTS + 1)[:, None, None]
    over = _cubic(c, u) - ln_limit  # (point, segment, lane)
    first, last = over[:-1], over[1:]
    gap = jnp.abs(first) + jnp.abs(last)
    share = jnp.where((first >= 0) & (last >= 0), 1.0, jnp.maximum(first, last) / jnp.where(gap > 0, gap, 1.0))
    share = jnp.where((first < 0) & (last < 0), 0.0, share)
    above = jnp.sum(share * length / _PARTS, axis=(0, 1))
    # The last part that begins at the limit or above, or ends there.
    reached = ((first >= 0) | (last >= 0)) & (length > 0)
    order = jnp.swapaxes(reached, 0, 1).reshape(-1, reached.shape[-1])
    k = len(order) - 1 - jnp.argmax(order[::-1], axis=0)
    segment, part = k // _PARTS, k % _PARTS
    here = [jnp.take_along_axis(a, segment[None], axis=0)[0] for a in (*c, begin, length)]
    low, high = part / _PARTS, (part + 1) / _PARTS
    ends_above = _cubic(here[:4], high) >= ln_limit

    def halved(_, ends):
        low, high = ends
        mid = (low + high) / 2
        on = _cubic(here[:4], mid) >= ln_limit
        return jnp.where(on, mid, low), jnp.where(on, high, mid)

    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halved, (low, high))
    day = here[4] + jnp.where(ends_above, high, low) * here[5]
    last = jnp.where(order.any(axis=0), day, 0.0)
    return last, jnp.minimum(above, last)
