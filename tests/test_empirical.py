"""Empirical structures: each paper's equations, written down again and solved by SciPy, and limits by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import wrightomega

from carkinetics import solvers
from carkinetics.model_checks import typical_curve
from carkinetics.model_files import load_model
from carkinetics.structure import inputs
from carkinetics.structures import STRUCTURES
from one_patient import by_scipy, drawn, solved, typical
from tiers import tiered

TIMES = np.array([0.0, 0.5, 1, 2, 3, 5, 7, 9, 11, 14, 17, 21, 28, 42, 60, 90, 180, 365])
EC = ("foldx", "tmax", "cmax", "alpha", "fb", "beta")
STEIN = {"foldx": 3900.0, "tmax": 9.3, "cmax": 24000.0, "alpha": 0.16, "fb": 0.0079, "beta": 0.0032}
ROUNDING = 1e-9


def bi_exponential(y, alpha, fb, beta):
    """Stein's decline, in his states."""
    return [-alpha * y[0], fb * (alpha - beta) * y[0] - beta * y[1]]


# Ogasawara 2021: lag, doubling, decline.


def ogasawara(times, tlag, tdouble, tmax, cmax, alpha, fb, beta, toci=(np.inf, 1.0)):
    """The paper's phases as a differential equation of C, from C0 on."""
    c0 = cmax / 2 ** (max(tmax - tlag, 0.0) / tdouble)

    def rate(t, y, phase):
        if phase < min(tlag, tmax):
            return [0.0, 0.0]
        if phase < tmax:
            return [np.log(2) / tdouble * (toci[1] if phase > toci[0] else 1.0) * y[0], 0.0]
        return bi_exponential(y, alpha, fb, beta)

    return np.log(by_scipy(rate, [c0, 0.0], (tlag, tmax, toci[0]), times).sum(1))


def test_a_lag_is_the_published_one():
    """If it fails, the abstract's numbers give another curve here than by the paper's equations."""
    model = load_model("ogasawara_2021_lisocabtagene").with_values({"cmax": 20000.0, "fb": 0.01})
    wanted = ogasawara(TIMES, 3.27, 0.755, 9.29, 20000.0, np.log(2) / 5.00, 0.01, np.log(2) / 352)
    # The file's rates are rounded to four digits.
    np.testing.assert_allclose(typical_curve(model, TIMES), wanted, rtol=0, atol=1e-3)
    early = np.exp(typical_curve(model, np.array([0.0, 2.0, 3.27, 9.29])))
    np.testing.assert_allclose(early[:3], early[0], rtol=1e-12)
    assert early[3] / early[0] == pytest.approx(251, rel=0.005)  # 7.97 doublings in 6.02 days
    assert np.log2(early[3] / early[0]) == pytest.approx(7.97, abs=0.005)


def test_a_lag_is_the_published_one_for_every_patient():
    """If it fails, the equations agree at the typical values only."""
    for values in drawn("lag_expansion_contraction", 30, seed=1):
        values["fb"] = min(values["fb"], 0.9)
        np.testing.assert_allclose(
            solved("lag_expansion_contraction", TIMES, values), ogasawara(TIMES, **values), rtol=0, atol=1e-7
        )


def test_without_a_lag_it_is_expansion_contraction():
    """If it fails, the lag's structure is not the one that it extends."""
    for tdouble in (0.4, 0.78, 2.0):
        values = typical("lag_expansion_contraction", tlag=1e-12, tdouble=tdouble)
        plain = {k: values[k] for k in EC[1:]} | {"foldx": 2 ** (values["tmax"] / tdouble)}
        ours = solved("lag_expansion_contraction", TIMES, values)
        np.testing.assert_allclose(ours, solved("expansion_contraction", TIMES, plain), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("tlag", tiered([5.0, 9.0, 400.0], thorough={5.0, 400.0}))
def test_a_peak_within_the_lag_means_no_growth(tlag, tmax=5.0):
    """If it fails, a patient whose lag is drawn longer than the time to the peak shrinks backwards from it."""
    values = typical("lag_expansion_contraction", tlag=tlag, tmax=tmax, fb=1e-9, alpha=0.2)
    found = np.exp(solved("lag_expansion_contraction", np.array([0.0, 2.0, 5.0, 10.0]), values))
    np.testing.assert_allclose(found / values["cmax"], [1, 1, 1, np.exp(-1)], rtol=1e-6)
    # Nothing grows, so that there is nothing to treat: before, at and after the peak, and in the lag that is left.
    for day in (1.0, 5.0, 7.0, 20.0):
        treated = solved("lag_expansion_contraction", np.array([0.0, 2.0, 5.0, 10.0]), values, given=[(day, 3.0)])
        np.testing.assert_allclose(np.exp(treated), found, rtol=1e-12)
    with jax.enable_x64(True):
        p = STRUCTURES["lag_expansion_contraction"].parameters(**{k: jnp.asarray(v) for k, v in values.items()})
        ode = solvers.reference_curve(STRUCTURES["lag_expansion_contraction"], jnp.array([0.0, 10.0]), p, inputs())
    np.testing.assert_allclose(np.exp(ode["level"]), found[[0, 3]], rtol=1e-6)


def test_a_treatment_in_the_lag_waits_for_growth():
    """If it fails, tocilizumab on day 1 changes cells that do not grow, or is forgotten when they do."""
    values = typical("lag_expansion_contraction")
    for day in (1.0, 6.0, 12.0):
        found = solved("lag_expansion_contraction", TIMES, values, given=[(day, 0.6)])
        wanted = ogasawara(TIMES, **values, toci=(day, 0.6))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7)


# Liu 2021: four phases.


def liu(times, c0, tdist, rho, tmax, cmax, alpha, fb, beta):
    """Distribution at a constant rate down to Cmin, proliferation up to Cmax, then the decline; tdist < tmax."""
    cmin = cmax / np.exp(rho * (tmax - tdist))
    k_dist = np.log(c0 / cmin) / tdist

    def rate(t, y, phase):
        if phase < tmax:
            return [(-k_dist if phase < tdist else rho) * y[0], 0.0]
        return bi_exponential(y, alpha, fb, beta)

    return np.log(by_scipy(rate, [c0, 0.0], (tdist, tmax), times).sum(1))


def test_four_phases_are_the_published_ones():
    """If it fails, one of the four phases is not what the paper says that it is."""
    patients = [typical("four_phases"), *drawn("four_phases", 30, seed=2)]
    patients = [p | {"fb": min(p["fb"], 0.9)} for p in patients if p["tdist"] < p["tmax"]]
    assert len(patients) > 25
    for values in patients:
        np.testing.assert_allclose(solved("four_phases", TIMES, values), liu(TIMES, **values), rtol=0, atol=1e-7)


def test_four_phases_have_their_minimum_and_their_peak_where_they_say():
    """If it fails, tdist is not the day of the minimum, or the infused level and the peak are not c0 and cmax."""
    values, days = typical("four_phases"), np.linspace(0, 20, 2001)
    found = solved("four_phases", days, values)
    assert days[np.argmin(np.where(days < values["tmax"], found, np.inf))] == pytest.approx(values["tdist"])
    assert days[np.argmax(found)] == pytest.approx(values["tmax"])
    assert np.exp(found[0]) == pytest.approx(values["c0"], rel=1e-12)
    assert np.exp(found.max()) == pytest.approx(values["cmax"], rel=1e-9)


def test_four_phases_without_a_fall_are_three_phases_and_a_lag():
    """If it fails, the phases after the minimum are not those of the model with a lag."""
    lag = typical("lag_expansion_contraction")
    cmin = lag["cmax"] * 2 ** (-(lag["tmax"] - lag["tlag"]) / lag["tdouble"])
    four = {k: lag[k] for k in EC[1:]} | {"c0": cmin, "tdist": lag["tlag"], "rho": np.log(2) / lag["tdouble"]}
    ours = solved("four_phases", TIMES, four)
    np.testing.assert_allclose(ours, solved("lag_expansion_contraction", TIMES, lag), rtol=0, atol=ROUNDING)


def test_a_treatment_leaves_the_distribution_alone():
    """If it fails, a drug on growth changes how cells leave the blood in the first hours."""
    values, days = typical("four_phases"), np.array([0.0, 0.5, 1.0, 2.0, 6.0])
    ratio = solved("four_phases", days, values, given=[(0.0, 0.5)]) - solved("four_phases", days, values)
    np.testing.assert_allclose(ratio[:4], 0, atol=ROUNDING)
    assert ratio[4] == pytest.approx(-0.5 * values["rho"] * (6.0 - values["tdist"]), rel=1e-9)


@pytest.mark.parametrize("infused", [300.0, 90000.0])
def test_the_infusion_is_not_taken_for_the_peak(infused):
    """If it fails, a patient whose first sample is the largest starts with a peak on day 0."""
    times = np.array([0.01, 1.0, 4, 7, 11, 14, 21, 28, 60, 120])
    values = typical("four_phases", c0=infused)
    found = STRUCTURES["four_phases"].guess(times, solved("four_phases", times, values))
    assert found["tmax"] == 11.0
    for name in ("c0", "cmax", "alpha"):
        assert 1 / 3 < found[name] / values[name] < 3, name
    assert set(STRUCTURES["four_phases"].guess(times[:2], np.array([5.0, 4.0]))) == {"c0"}


# Wu 2025: growth that saturates.


def wu(times, E0, Tlag, Tmax, Vmax, Km, r, deltaE, deltaM, toci=(np.inf, 1.0)):
    """The paper's two states; ln(E + M)."""

    def rate(t, y, phase):
        E, M = y
        dE = 0.0
        if Tlag <= phase < Tmax:
            dE = Vmax * (toci[1] if phase > toci[0] else 1.0) * E / (Km + E)
        elif phase >= Tmax:
            dE = -(deltaE + r) * E
        return [dE, r * E - deltaM * M]

    return np.log(by_scipy(rate, [E0, 0.0], (Tlag, Tmax, toci[0]), times).sum(1))


def test_saturable_growth_is_the_published_one():
    """If it fails, the model of ide-cel, given its missing numbers, is not the paper's two equations."""
    values = typical("saturable_growth")
    missing = {k: values[k] for k in ("e0", "tlag", "tmax", "vmax", "km", "delta_e")}
    model = load_model("wu_2025_idecabtagene").with_values(missing)
    wanted = wu(TIMES, *values.values())
    np.testing.assert_allclose(typical_curve(model, TIMES), wanted, rtol=0, atol=2e-3)  # the fast grid's promise
    np.testing.assert_allclose(solved("saturable_growth", TIMES, values), wanted, rtol=0, atol=1e-5)
    assert np.log(2) / model["delta_m"].value == pytest.approx(125, rel=0.002)


@pytest.mark.thorough
def test_saturable_growth_is_the_published_one_for_most_patients():
    """If it fails, the equations, or the solver's steps, agree at the typical values only."""
    for values in drawn("saturable_growth", 25, seed=3):
        found = solved("saturable_growth", TIMES, values, refine=6)
        np.testing.assert_allclose(found, wu(TIMES, *values.values()), rtol=0, atol=1e-4)


def test_growth_that_saturates_has_a_closed_form():
    """If it fails, effectors do not follow km ln E + E = km ln E0 + E0 + vmax (t - tlag)."""
    values = typical("saturable_growth", r=1e-14)
    days = np.array([0.0, 2.0, 3.0, 5.0, 8.0, 11.0])
    grown = np.maximum(days - values["tlag"], 0)
    e0, km = values["e0"], values["km"]
    exact = km * wrightomega(np.log(e0 / km) + (e0 + values["vmax"] * grown) / km).real
    np.testing.assert_allclose(np.exp(solved("saturable_growth", days, values)), exact, rtol=1e-5)


def test_growth_far_below_saturation_is_exponential():
    """If it fails, with a large km the structure is not the one with a lag and a constant rate."""
    values = typical("saturable_growth", km=1e12, vmax=0.9e12, r=1e-14)
    lag = {k: values[k] for k in ("tlag", "tmax")} | {"tdouble": np.log(2) / 0.9, "alpha": 0.15, "fb": 1e-13}
    lag |= {"beta": 5.55e-3, "cmax": values["e0"] * np.exp(0.9 * (values["tmax"] - values["tlag"]))}
    days = TIMES[TIMES < 150]  # later, what the two call persisting cells is all that is left
    ours = solved("saturable_growth", days, values)
    np.testing.assert_allclose(ours, solved("lag_expansion_contraction", days, lag), rtol=0, atol=2e-5)


def test_growth_far_above_saturation_is_a_straight_line():
    """If it fails, vmax is not what the level gains in a day when growth is saturated."""
    values = typical("saturable_growth", km=1e-6, e0=1e5, vmax=3e4, r=1e-14)
    days = np.array([0.0, 2.0, 4.0, 11.0])
    found = np.exp(solved("saturable_growth", days, values))
    np.testing.assert_allclose(found, [1e5, 1e5, 1.6e5, 3.7e5], rtol=1e-5)


def test_without_losses_conversion_keeps_the_number_of_cells():
    """If it fails, cells appear or vanish when effectors become memory after the peak."""
    values = typical("saturable_growth", r=0.05, delta_e=1e-14, delta_m=1e-14)
    after = solved("saturable_growth", np.array([11.0, 14.0, 30.0, 100.0, 365.0]), values)
    np.testing.assert_allclose(after, after[0], rtol=0, atol=1e-6)


def test_a_treatment_multiplies_the_largest_growth():
    """If it fails, a drug acts on something else than vmax."""
    values = typical("saturable_growth")
    found = solved("saturable_growth", TIMES, values, given=[(6.0, 0.4)])
    np.testing.assert_allclose(found, wu(TIMES, *values.values(), toci=(6.0, 0.4)), rtol=0, atol=1e-5)


# Li and Cheng 2026: smooth gates.


def gated(times, foldx, tmax, cmax, alpha, fb, beta, width, toci=(np.inf, 1.0)):
    """The two states with a hyperbolic tangent for the gate, from a start without any memory."""
    rho = np.log(foldx) / tmax

    def rate(t, y, phase):
        open_ = (1 + np.tanh((t - tmax) / (2 * width))) / 2
        growth = (1 - open_) * rho * (toci[1] if phase > toci[0] else 1.0)
        decline = bi_exponential(y, alpha, fb, beta)
        return [growth * y[0] + open_ * decline[0], growth * y[1] + open_ * decline[1]]

    # At the infusion the gate is open by exp(-tmax / width): nothing, at these widths.
    return np.log(by_scipy(rate, [cmax / foldx, 0.0], (tmax, toci[0]), times).sum(1))


@pytest.mark.parametrize("width", [0.1, 0.3, 0.6])
def test_smooth_gates_have_a_closed_form(width):
    """If it fails, the closed form is not the solution of the gated equations."""
    values = STEIN | {"width": width}
    found = solved("smooth_gates", TIMES, values)
    np.testing.assert_allclose(found, gated(TIMES, **values), rtol=0, atol=1e-6)
    for day in (4.0, 9.0, 9.9):  # also while the gates are half open
        found = solved("smooth_gates", TIMES, values, given=[(day, 0.5)])
        np.testing.assert_allclose(found, gated(TIMES, **values, toci=(day, 0.5)), rtol=0, atol=1e-6)


def test_narrow_gates_are_a_switch():
    """If it fails, smooth_gates is not expansion_contraction in the limit, or comes near it at another pace."""
    days = np.sort(np.append(TIMES, STEIN["tmax"]))
    sharp = solved("expansion_contraction", days, STEIN)
    for width in (1e-3, 1e-6, 1e-12):
        smooth = solved("smooth_gates", days, STEIN | {"width": width})
        # Furthest off at tmax itself: ln 2 widths of growth are missing, and as much contraction is there.
        rho, loss = np.log(3900) / 9.3, (1 - 0.0079) * 0.16 + 0.0079 * 0.0032
        assert np.max(np.abs(smooth - sharp)) == pytest.approx(np.log(2) * width * (rho + loss), rel=1e-3, abs=1e-11)
        assert np.argmax(np.abs(smooth - sharp)) == np.searchsorted(days, 9.3) or width < 1e-9


@pytest.mark.parametrize("width", [0.05, 0.25, 0.5, 1.0])
def test_the_width_moves_the_peak_by_what_the_docstring_says(width):
    """If it fails, the bias of the peak's day and height that users are told of is wrong."""
    days, rho = np.linspace(5, 15, 100001), np.log(3900) / 9.3
    found = solved("smooth_gates", days, STEIN | {"width": width, "fb": 1e-9})
    assert days[np.argmax(found)] - 9.3 == pytest.approx(width * np.log(rho / 0.16), abs=2e-4)
    at_tmax = solved("smooth_gates", np.array([9.3]), STEIN | {"width": width, "fb": 1e-9})[0]
    assert at_tmax == pytest.approx(np.log(24000) - np.log(2) * width * (rho + 0.16), abs=1e-6)


def test_smooth_gates_have_no_kink():
    """If it fails, the gradient in tmax still jumps when the peak passes a sample, which is what gates are for."""
    structure = STRUCTURES["smooth_gates"]

    def slope(t):
        with jax.enable_x64(True):
            one = {k: jnp.asarray(v) for k, v in (STEIN | {"width": 0.5}).items()}

            def at(tmax):
                p = structure.parameters(**(one | {"tmax": tmax}))
                return structure.curve(jnp.asarray(t), p, inputs())["level"]

            return float(jax.grad(at)(one["tmax"]))

    assert abs(slope(9.3 + 1e-6) - slope(9.3 - 1e-6)) < 1e-4
    assert abs(slope(12.0) - slope(6.0)) > 0.5  # on the two sides it differs


# Sites in proportion to blood.


def test_sites_follow_blood():
    """If it fails, blood is no longer Stein's, or a site is multiplied by another site's ratio."""
    values = STEIN | {"ratio_bm": 0.5, "ratio_ln": 3.0, "ratio_csf": 0.02}
    blood = solved("expansion_contraction", TIMES, STEIN, given=[(5.0, 1.2)])
    for output, ratio in (("level", 1.0), ("level_bm", 0.5), ("level_ln", 3.0), ("level_csf", 0.02)):
        found = solved("expansion_contraction_sites", TIMES, values, given=[(5.0, 1.2)], output=output)
        np.testing.assert_allclose(found - blood, np.log(ratio), rtol=0, atol=1e-12)


@pytest.mark.parametrize("output", ["level", "level_bm", "level_ln", "level_csf"])
def test_sites_of_a_loaded_model_follow_blood(output):
    """If it fails, a model file's marrow or lymph node is not what its ratio says."""
    model, stein = load_model("cd38_ball_prior"), load_model("stein_2019_tisagenlecleucel")
    ratio = {"level": 1.0, "level_bm": 0.69, "level_ln": 1.0, "level_csf": 5.0}[output]
    found = typical_curve(model.with_values({"ratio_csf": 5.0}), TIMES, output)
    np.testing.assert_allclose(found - typical_curve(stein, TIMES), np.log(ratio), rtol=0, atol=1e-12)
