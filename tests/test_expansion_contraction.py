"""Expansion and contraction: the closed form against two ODE solvers, finite differences and limits by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from carkinetics.model_files import load_model
from carkinetics.solvers import reference_curve
from carkinetics.structure import inputs
from carkinetics.structures.expansion_contraction import ExpansionContraction, Parameters, States

STRUCTURE = ExpansionContraction()
TYPICAL = {"foldx": 3900.0, "tmax": 9.3, "cmax": 24000.0, "alpha": 0.16, "fb": 0.0079, "beta": 0.0032}
TIMES = np.array([0.0, 1, 3, 5, 7, 9, 11, 14, 17, 21, 28, 42, 60, 90, 180, 365])
PENN = [1, 3, 7, 10, 14, 21, 28, 60, 90, 120, 150, 180, 270, 365]
KARMMA = [3, 5, 8, 10, 12, 15, 18, 22, 30, 60, 90, 120, 210, 300]


def drawn(n, seed):
    """Individual parameters of ``n`` patients of the published population, as (n, parameter)."""
    model = load_model("stein_2019_tisagenlecleucel")
    theta = np.log([p.value for p in model.parameters])
    omega = np.array([p.iiv for p in model.parameters])
    values = np.exp(theta + omega * np.random.default_rng(seed).standard_normal((n, len(theta))))
    return np.column_stack([values[:, :4], np.minimum(values[:, 4], 0.999), values[:, 5]])


def closed(t, values):
    with jax.enable_x64(True):
        p = Parameters(*(jnp.asarray(float(v)) for v in values))
        return np.asarray(STRUCTURE.curve(jnp.asarray(t, float), p, inputs())["level"])


def gradient(t, values):
    """d ln level / d parameter at one time, by automatic differentiation."""
    with jax.enable_x64(True):

        def at(x, t=t):
            return STRUCTURE.curve(jnp.asarray(float(t)), Parameters(*x), inputs())["level"]

        return np.asarray(jax.grad(at)(jnp.asarray(values, float)))


def by_hand(t, values):
    """Stein's equations as printed, in long double, with a branch at the peak."""
    foldx, tmax, cmax, alpha, fb, beta = (np.longdouble(v) for v in values)
    t = np.longdouble(t)
    if t < tmax:
        return np.log(cmax / foldx) + np.log(foldx) / tmax * t
    s = t - tmax
    return np.log((1 - fb) * cmax * np.exp(-alpha * s) + fb * cmax * np.exp(-beta * s))


def integrated(times, values):
    """Stein's differential equations by SciPy, in units of the peak, restarted at the peak."""
    foldx, tmax, cmax, alpha, fb, beta = values
    k, rho = fb * (alpha - beta), np.log(foldx) / tmax
    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-18}

    def decline(t, y):
        return [-alpha * y[0], k * y[0] - beta * y[1]]

    total = np.empty(len(times))
    early = times < tmax
    rise = solve_ivp(lambda t, y: [rho * y[0]], (0, tmax), [1 / foldx], t_eval=times[early], **options)
    total[early] = rise.y[0]
    fall = solve_ivp(decline, (tmax, max(times[-1], tmax + 1)), [1.0, 0.0], t_eval=times[~early], **options)
    total[~early] = fall.y.sum(0) if (~early).any() else []
    return np.log(total) + np.log(cmax)


def test_closed_form_equals_the_ode_by_scipy():
    """If it fails, the equations in the closed form are not the published differential equations."""
    for values in drawn(40, seed=1):
        times = np.sort(np.append(TIMES, values[1]))
        np.testing.assert_allclose(closed(times, values), integrated(times, values), rtol=0, atol=1e-6)


def test_closed_form_equals_the_ode_by_the_reference_solver():
    """If it fails, the structure's ODE and its closed form are two different models."""
    with jax.enable_x64(True):
        solve = jax.jit(lambda t, p: reference_curve(STRUCTURE, t, p, inputs())["level"])
        for values in drawn(15, seed=2):
            found = solve(jnp.asarray(TIMES), Parameters(*(jnp.asarray(v) for v in values)))
            np.testing.assert_allclose(closed(TIMES, values), found, rtol=0, atol=1e-6)


def test_effectors_and_memory_add_up_to_the_bi_exponential():
    """If it fails, the conversion rate is not FB (alpha - beta), and E + M is no longer the printed curve."""
    for foldx, tmax, cmax, alpha, fb, beta in drawn(50, seed=3):
        s = np.array([0.0, 0.5, 3, 12, 50, 300])
        # The solution of E' = -alpha E, M' = k E - beta M with E = Cmax, M = 0 at the peak.
        effector = cmax * np.exp(-alpha * s)
        memory = fb * cmax * (np.exp(-beta * s) - np.exp(-alpha * s))
        values = (foldx, tmax, cmax, alpha, fb, beta)
        np.testing.assert_allclose(closed(tmax + s, values), np.log(effector + memory), rtol=0, atol=1e-10)
        with jax.enable_x64(True):
            p = Parameters(*(jnp.asarray(v) for v in values))
            for t, e, m in zip(tmax + s[1:], effector[1:], memory[1:], strict=True):
                rate = STRUCTURE.rhs(jnp.asarray(t), States(jnp.asarray(e), jnp.asarray(m)), p, inputs())
                np.testing.assert_allclose(rate.effector, -alpha * e, rtol=1e-13)
                np.testing.assert_allclose(rate.memory, fb * (alpha - beta) * e - beta * m, rtol=1e-10, atol=1e-9 * m)


def test_it_starts_at_the_peak_over_the_fold_expansion():
    """If it fails, the first cells are not Cmax / foldx, or the ODE starts elsewhere than the curve."""
    assert closed(0.0, TYPICAL.values()) == pytest.approx(np.log(24000 / 3900), abs=1e-12)
    with jax.enable_x64(True):
        start = STRUCTURE.initial(Parameters(*(jnp.asarray(v) for v in TYPICAL.values())), inputs())
        assert float(start.effector) == pytest.approx(24000 / 3900, rel=1e-14)
        assert float(start.memory) == 0


@pytest.mark.thorough
def test_gradients_equal_finite_differences():
    """If it fails, the sampler moves along a wrong gradient in at least one of the six parameters."""
    for values in drawn(25, seed=4):
        for t in TIMES[np.abs(TIMES - values[1]) > 0.01]:
            wanted = []
            for k in range(6):
                h = np.longdouble(values[k]) * 1e-5
                up, down = (np.array(values, np.longdouble) for _ in range(2))
                up[k] += h
                down[k] -= h
                # d / d ln parameter, so that all six are of one size
                wanted.append((by_hand(t, up) - by_hand(t, down)) / (2 * h) * values[k])
            np.testing.assert_allclose(gradient(t, values) * values, np.array(wanted, float), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "t"),
    [
        ({}, 9.3),
        ({}, 0.0),
        ({}, 3000.0),
        ({"alpha": 0.0032}, 30.0),
        ({"alpha": 0.001}, 300.0),
        ({"fb": 1 - 1e-9}, 30.0),
        ({"fb": 1 - 1e-15}, 30.0),
        ({"fb": 1.0}, 30.0),
        ({"fb": 1.7}, 30.0),
        ({"fb": 1.7}, 9.3),
        ({"fb": 1e-12}, 3000.0),
        ({"foldx": 1.0}, 3.0),
        ({"alpha": 20.0, "beta": 2.0}, 3000.0),
    ],
)
def test_value_and_gradient_are_finite_at_the_edges(change, t):
    """If it fails, one patient at the edge of the parameter space stops the sampler."""
    values = [*(TYPICAL | change).values()]
    assert np.isfinite(closed(t, values))
    assert np.isfinite(gradient(t, values)).all()


def test_equal_rates_give_one_exponential():
    """If it fails, alpha = beta is a singularity, which the bi-exponential does not have."""
    values = [*(TYPICAL | {"alpha": 0.05, "beta": 0.05, "fb": 0.3}).values()]
    np.testing.assert_allclose(
        closed([10.3, 39.3, 309.3], values), np.log(24000) - 0.05 * np.array([1, 30, 300]), atol=1e-12
    )


@pytest.mark.parametrize("fb", [1.0, 1.0000001, 1.7, 30.0])
def test_a_fraction_above_one_means_that_all_cells_persist(fb):
    """If it fails, a log-normal fb above 1 gives cells that come from nowhere, or no number at all."""
    values = [*(TYPICAL | {"fb": fb}).values()]
    s = np.array([0.0, 1, 30, 300])
    np.testing.assert_allclose(closed(9.3 + s, values), np.log(24000) - 0.0032 * s, rtol=0, atol=1e-9)
    slope = gradient(39.3, values)
    assert slope[4] == 0
    assert slope[5] == pytest.approx(-30, rel=1e-9)


def test_at_the_kink_the_value_is_the_peak_and_the_slope_lies_between_the_sides():
    """If it fails, a sample taken exactly at tmax pushes tmax in a direction that neither side has."""
    for foldx, tmax, cmax, alpha, fb, beta in drawn(50, seed=5):
        values = (foldx, tmax, cmax, alpha, fb, beta)
        assert closed(tmax, values) == pytest.approx(np.log(cmax), abs=1e-12)
        rising, falling = -np.log(foldx) / tmax, (1 - fb) * alpha + fb * beta
        assert min(rising, falling) - 1e-12 <= gradient(tmax, values)[1] <= max(rising, falling) + 1e-12


def test_the_curve_is_continuous_through_the_peak():
    """If it fails, the two pieces do not meet, and the likelihood jumps as tmax passes a sample."""
    for values in drawn(20, seed=6):
        sides = closed(values[1] + np.array([-1e-9, 0, 1e-9]), values)
        np.testing.assert_allclose(sides, np.log(values[2]), atol=1e-7)


def test_long_after_the_peak_only_the_slow_phase_is_left():
    """If it fails, the logarithm of the sum underflows when the fast phase is gone."""
    s = 3000 - TYPICAL["tmax"]
    wanted = np.log(24000 * 0.0079) - 0.0032 * s
    assert closed(3000.0, TYPICAL.values()) == pytest.approx(wanted, abs=1e-12)
    fast = [*(TYPICAL | {"alpha": 50.0, "beta": 5.0}).values()]  # exp(-15,000) is zero in floating point
    assert closed(3000.0, fast) == pytest.approx(np.log(24000 * 0.0079) - 5 * s, rel=1e-13)


def test_arrays_of_times_give_what_single_times_give():
    """If it fails, a batch of samples is not the same as its samples one by one."""
    values = drawn(1, seed=7)[0]
    np.testing.assert_array_equal(closed(TIMES, values), [closed(t, values) for t in TIMES])


def test_it_says_that_it_has_a_closed_form_and_a_break_at_the_peak():
    """If it fails, the library solves an ODE where it need not, or steps over the peak."""
    assert STRUCTURE.closed_form
    assert STRUCTURE.breakpoints(Parameters(*TYPICAL.values()), inputs()) == (9.3,)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [PENN, KARMMA])
def test_guess_is_near_a_noise_free_typical_patient(schedule):
    """If it fails, the sampler starts further than a factor of 3 from a patient whose curve is plain to see."""
    times = np.array(schedule, float)
    found = STRUCTURE.guess(times, closed(times, TYPICAL.values()))
    assert set(found) == {"cmax", "tmax", "alpha", "fb"}
    for name, value in found.items():
        assert 1 / 3 < value / TYPICAL[name] < 3, name


def test_guess_is_near_most_patients_of_the_population():
    """If it fails, the start is good for the typical patient only."""
    times, ratios = np.array(PENN, float), []
    for values in drawn(200, seed=8):
        found = STRUCTURE.guess(times, closed(times, values))
        ratios.append([found.get(name, np.nan) / v for name, v in zip(TYPICAL, values, strict=True)])
    near = dict(zip(TYPICAL, np.nanmean(np.abs(np.log(np.array(ratios)[:, :5])) < np.log(3), axis=0), strict=False))
    assert near["cmax"] > 0.9
    assert near["tmax"] > 0.9
    assert near["alpha"] > 0.75


@pytest.mark.parametrize(("t", "level"), [([7.0], [3.0]), ([0.0], [3.0]), ([1.0, 7.0], [2.0, 2.0])])
def test_guess_leaves_out_what_few_samples_do_not_show(t, level):
    """If it fails, a patient with one or two samples gets parameters that nothing in them shows, or an error."""
    found = STRUCTURE.guess(np.array(t), np.array(level))
    assert found["cmax"] == pytest.approx(np.exp(level[0]))
    assert found["tmax"] == max(t[0], 1.0)  # a peak at the infusion itself would be no parameter
    assert set(found) <= {"cmax", "tmax", "alpha"}
    assert all(np.isfinite(v) and v > 0 for v in found.values())
