"""Areas, maxima, crossings and slopes of whole curves, against an adaptive solver, SciPy and closed forms."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.model_parts import Assay, Conversion, Prior
from carkinetics.structure import Course, inputs
from carkinetics.structures import STRUCTURES
from carkinetics.structures.occasions import Occasions
from carkinetics.trajectories import Question, answered
from populations import HORIZON, POPULATIONS, SECOND_INFUSION

WINDOWS = ((0.0, 28.0), (0.0, 90.0), (10.5, 61.0))
# The stepped ones in the fast tier; each population is in the slow one.
QUICK = {
    "effector_memory",
    "saturable_growth",
    "stein_2019_tisagenlecleucel with infusion phase",
    "stein_2019_tisagenlecleucel with infusion phase with occasions",
}
AREA, PEAK, DAY = 5e-5, 2e-5, 0.05  # relative, of ln level, day; most areas are right to 1e-8
FILLED = 4096


def assay(output="level", **changed):
    return Assay("qpcr", output, "PB", "copies/ug", "lognormal", 0.5, Prior("lognormal", 0.0, 1.0), **changed)


def question(horizon=365.0, *, windows=WINDOWS, days=(), limit=50.0, peak=(0.0, 90.0), n=1):
    own = np.repeat(np.array(days, float)[:, None], n, axis=1) if len(days) else np.zeros((0, n))
    ln_limit = math.log(limit) if limit else -math.inf
    return Question(tuple(w for w in windows if w[1] <= horizon), own, peak, horizon, ln_limit)


def reference(population, x):
    """ln level of any patient at increasing days: the closed form, or an adaptive solver at 1e-10."""
    one, output = jax.tree.map(lambda a: a[..., 0], x), population.structure.outputs[0]

    @jax.jit
    def solved(days, values):
        p, given = as_arguments(population.structure, values, one)
        if population.structure.closed_form:
            return population.structure.curve(days, p, given)[output]
        return solvers.reference_curve(population.structure, days, p, given)[output]

    def curve(days, values):
        # Filled up, so that it is compiled once.
        more = days[-1] + 1e-3 * np.arange(1, FILLED - len(days) + 1)
        return np.asarray(solved(jnp.asarray(np.append(days, more)), jnp.asarray(values)))[: len(days)]

    return curve


def stops_of(population, values, x):
    """Days at which this patient's curve may have a kink or a jump."""
    p, one = as_arguments(population.structure, jnp.asarray(values), jax.tree.map(lambda a: a[..., 0], x))
    return [float(b) for b in population.structure.breakpoints(p, one)] + [float(d) for d in one.later_day]


def areas(curve, stops, windows, horizon):
    """Gauss' quadrature between every stop and every quarter of a day; and the largest level."""
    fine = [np.linspace(day, day + 2, 41) for day in (0.0, SECOND_INFUSION)]
    edges = np.unique([*np.concatenate(fine), *np.arange(0, horizon, 0.5), *stops, *np.ravel(windows), horizon])
    edges = edges[(edges >= 0) & (edges <= horizon)]
    x, w = np.polynomial.legendre.leggauss(6)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    at = middle[:, None] + half[:, None] * x
    days = np.unique(np.concatenate([at.ravel(), edges]))
    ln = curve(days)
    each = (np.exp(ln[np.searchsorted(days, at)]) * w * half[:, None]).sum(axis=1)
    found = [each[(middle > a) & (middle < b)].sum() for a, b in windows]
    top = float(days[np.argmax(ln)])
    near = np.unique(np.clip(np.append(np.linspace(top - 0.5, top + 0.5, 801), [0.0, top]), 0.0, horizon))
    again = curve(near)
    return found, float(again.max()), float(near[np.argmax(again)])


def cases():
    for population in POPULATIONS:
        marks = () if population.label in QUICK else (pytest.mark.slow,)
        yield pytest.param(population, id=population.label, marks=marks)


@pytest.mark.parametrize("population", list(cases()))
def test_areas_and_peaks_of_every_structure(population):
    """The typical patient and two others, against quadrature of the adaptive solver's curve between all its kinks.

    If it fails, exposure depends on a grid.
    """
    horizon = HORIZON.get(population.label, 90.0)
    windows = [w for w in WINDOWS if w[1] <= horizon] or [(0.0, horizon)]
    values = population.values()
    if population.label not in QUICK or population.structure.closed_form:
        values = np.concatenate([values, population.values(2, seed=7)], axis=1)
    with jax.enable_x64(True):
        x = population.twice() if isinstance(population.structure, Occasions) else population.inputs()
        asked = question(horizon, windows=windows, peak=(0.0, horizon))
        found = answered(population.structure, assay(population.structure.outputs[0]), values[:, :, None], x, asked)
        exact = reference(population, x)
        for k, own in enumerate(values.T):
            expected, top, day = areas(lambda t, own=own: exact(t, own), stops_of(population, own, x), windows, horizon)
            np.testing.assert_allclose(np.exp(found.ln_area[:, k, 0]), expected, rtol=AREA)
            assert found.ln_peak[k, 0] == pytest.approx(top, abs=PEAK)
            assert found.peak_day[k, 0] == pytest.approx(day, abs=DAY)


def stein(t, foldx=2000.0, tmax=9.3, cmax=24000.0, alpha=0.16, fb=0.01, beta=0.003):
    """Stein's level as printed."""
    if t < tmax:
        return cmax * math.exp(math.log(foldx) / tmax * (t - tmax))
    return cmax * ((1 - fb) * math.exp(-alpha * (t - tmax)) + fb * math.exp(-beta * (t - tmax)))


STEIN = np.array([2000.0, 9.3, 24000.0, 0.16, 0.01, 0.003])


def of_stein(asked, x=None, **changed):
    with jax.enable_x64(True):
        x = inputs(jnp.array([jnp.nan])) if x is None else x
        structure = STRUCTURES["expansion_contraction"]
        found = answered(structure, assay(**changed), STEIN[:, None, None], x, asked)
    return jax.tree.map(lambda a: a[..., 0, 0], found)


def test_everything_about_a_curve_with_a_kink():
    """By scipy's quad and brentq on the printed equations. If it fails, a metric is not what its name says."""
    found = of_stein(question(days=(5.0, 28.0, 170.0), limit=100.0))
    for k, (a, b) in enumerate(WINDOWS):
        expected = quad(stein, a, b, points=[9.3], epsabs=0, epsrel=1e-12, limit=200)[0]
        assert math.exp(found.ln_area[k]) == pytest.approx(expected, rel=1e-9)
    assert np.exp(found.ln_level) == pytest.approx([stein(t) for t in (5.0, 28.0, 170.0)], rel=1e-9)
    assert (math.exp(found.ln_peak), found.peak_day) == (pytest.approx(24000, rel=1e-12), pytest.approx(9.3, abs=1e-12))
    assert math.exp(found.ln_peak - found.ln_lowest) == pytest.approx(2000, rel=1e-9)
    assert found.steepest_rise == pytest.approx(math.log(2000) / 9.3, rel=1e-6)
    assert found.steepest_fall == pytest.approx(0.99 * 0.16 + 0.01 * 0.003, rel=1e-5)
    late = math.log(stein(365) / stein(182.5)) / 182.5
    assert found.late_slope == pytest.approx(late, rel=1e-9)
    assert found.last_slope == pytest.approx(-0.003, rel=1e-6)
    last = brentq(lambda t: stein(t) - 100, 9.3, 400, xtol=1e-12)
    first = brentq(lambda t: stein(t) - 100, 0, 9.3, xtol=1e-12)
    assert found.last_above == pytest.approx(last, abs=1e-4)
    assert found.above == pytest.approx(last - first, abs=1e-3)
    assert math.exp(found.ln_total) == pytest.approx(quad(stein, 0, 365, points=[9.3], limit=200)[0], rel=1e-9)


def test_a_limit_that_is_never_reached_and_one_that_is_never_left():
    """If it fails, nobody's cells count as persisting, or those of day 0 do."""
    never, always = of_stein(question(limit=1e9)), of_stein(question(limit=1e-3))
    assert never.last_above == never.above == 0
    assert (always.last_above, always.above) == (365, pytest.approx(365, rel=1e-12))


def test_the_peak_within_other_days():
    """If it fails, the infused cells are the peak although they are left out."""
    late, early = of_stein(question(peak=(20.0, 90.0))), of_stein(question(peak=(0.0, 5.0)))
    assert math.exp(late.ln_peak) == pytest.approx(stein(20), rel=1e-9)
    assert late.peak_day == 20
    assert math.exp(early.ln_peak) == pytest.approx(stein(5), rel=1e-9)


def test_a_treatment_bends_the_rise():
    """A drug from day 6.4 halves growth. If it fails, a kink that is known beforehand is integrated over."""
    with jax.enable_x64(True):
        structure = STRUCTURES["expansion_contraction"]
        x = inputs(jnp.array([jnp.nan]), since=jnp.array([[6.4]]), factor=jnp.ones((1, 1)))
        values = np.append(STEIN, 0.5)[:, None, None]
        found = answered(structure, assay(), values, x, question())
    rate = math.log(2000) / 9.3

    def level(t):
        grown = min(t, 6.4) + 0.5 * max(min(t, 9.3) - 6.4, 0)
        return stein(max(t, 9.3)) * math.exp(rate * (grown - 9.3))

    expected = quad(level, 0, 28, points=[6.4, 9.3], epsabs=0, epsrel=1e-12)[0]
    assert math.exp(found.ln_area[0, 0, 0]) == pytest.approx(expected, rel=1e-9)
    assert math.exp(found.ln_peak[0, 0]) == pytest.approx(level(9.3), rel=1e-9)


@pytest.mark.parametrize("interpolation", ["locf", "linear"])
def test_a_white_count_between_output_and_assay(interpolation):
    """Copies per ug from cells per uL with counts that change. If it fails, a jump of the count is smeared out."""
    days, counts = [0.0, 7.0, 15.5, 40.0], [3000.0, 200.0, 900.0, 5000.0]
    conversion = Conversion("wbc", 2.0, 6.3)
    with jax.enable_x64(True):
        course = Course(jnp.array(days)[:, None], jnp.array(counts)[:, None], interpolation)
        found = of_stein(question(), inputs(jnp.array([jnp.nan]), course={"wbc": course}), conversion=conversion)

    def level(t):
        before = np.searchsorted(days, t, side="right") - 1
        wbc = counts[before] if interpolation == "locf" else np.interp(t, days, counts)
        return stein(t) * 2.0 / (6.3e-6 * wbc)

    expected = quad(level, 0, 28, points=[7, 9.3, 15.5], epsabs=0, epsrel=1e-12, limit=200)[0]
    assert math.exp(found.ln_area[0]) == pytest.approx(expected, rel=1e-5)
    assert math.exp(found.ln_peak) == pytest.approx(max(level(9.3), level(7.0)), rel=1e-4)


def test_a_smooth_peak_is_found_between_grid_points():
    """By scipy's bounded minimiser. If it fails, the peak is that of a grid."""
    population = next(p for p in POPULATIONS if p.label == "smooth_gates")
    with jax.enable_x64(True):
        values, x = population.values(), population.inputs()
        found = answered(population.structure, assay(), values[:, :, None], x, question())
        p, one = as_arguments(population.structure, jnp.asarray(values[:, 0]), jax.tree.map(lambda a: a[..., 0], x))
        ln = jax.jit(lambda t: population.structure.curve(t, p, one)["level"])
        day = float(found.peak_day[0, 0])
        best = minimize_scalar(
            lambda t: -float(ln(t)), bounds=(day - 2, day + 2), method="bounded", options={"xatol": 1e-9}
        )
    assert found.ln_peak[0, 0] == pytest.approx(-best.fun, abs=2e-5)
    assert day == pytest.approx(best.x, abs=0.02)


@pytest.mark.thorough
def test_many_curves_are_those_of_each():
    """More than are solved together, of patients with infusions and days of their own, one by one the same.

    If it fails, a patient gets another one's exposure.
    """
    population = next(p for p in POPULATIONS if isinstance(p.structure, Occasions) and p.structure.closed_form)
    n, draws = 3, 200
    values = population.values(n * draws).reshape(-1, draws, n)
    with jax.enable_x64(True):
        later = jnp.array([[SECOND_INFUSION, jnp.inf, 55.0]])
        x = inputs(
            jnp.full(n, population.dose),
            later_day=later,
            later_dose=jnp.where(jnp.isfinite(later), population.dose, 0.0),
        )
        days = np.array([[3.0, 80.0, 41.0]])
        asked = Question(((0.0, 90.0),), days, (0.0, 90.0), 120.0, math.log(50.0))
        together = answered(population.structure, assay(), values, x, asked)
        for i, k in ((0, 0), (1, 150), (2, 199)):
            alone = Question(((0.0, 90.0),), days[:, [i]], (0.0, 90.0), 120.0, math.log(50.0))
            of = jax.tree.map(lambda a, i=i: a[..., [i]], x)
            found = answered(population.structure, assay(), values[:, k : k + 1, [i]], of, alone)
            jax.tree.map(
                lambda a, b, i=i, k=k: np.testing.assert_allclose(a[..., k, i], b[..., 0, 0], rtol=1e-7),
                together,
                found,
            )


def test_what_is_not_asked_for_is_not_computed_and_changes_nothing():
    """If it fails, an area depends on who asked for slopes, or a slope that nobody computed is a number."""
    asked = question(limit=None, days=(3.0, 28.0))
    full, plain = of_stein(asked), of_stein(replace(asked, further=False))
    for name in ("ln_area", "ln_level", "ln_peak", "peak_day", "ln_end", "ln_total", "late_slope"):
        np.testing.assert_allclose(getattr(plain, name), getattr(full, name), rtol=1e-14)
    for name in ("ln_lowest", "steepest_rise", "steepest_fall", "last_slope", "last_above", "above"):
        assert np.isnan(getattr(plain, name)) and np.isfinite(getattr(full, name))
