"""Levels that change with time in the hazard: closed forms, quadrature, and a landmark that is not needed."""

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad

import carkinetics as ck
from carkinetics.response.followed import Followed
from responses import names


def course(ln, days):
    n = np.shape(ln)[-1]
    return ck.Course("level", "copies/ug", tuple(names(n)), np.asarray(days, float), np.asarray(ln, float))


def outcomes(time, event):
    return pd.DataFrame({"OS_TIME": time, "OS_EVENT": event}, index=names(len(time)))


@pytest.fixture(scope="module")
def made():
    """Events of a hazard that depends on a level which falls from a peak of each patient's own."""
    rng = np.random.default_rng(1)
    days, n = np.linspace(0, 400, 81), 150
    peak, fall = rng.normal(0, 1.2, n), rng.uniform(0.002, 0.02, n)
    ln = peak - fall * days[:, None]
    fine = np.linspace(0, 400, 8001)
    level = peak - fall * fine[:, None]
    hazard = np.exp(-4.5 - 0.7 * level)
    total = np.concatenate([np.zeros((1, n)), np.cumsum((hazard[1:] + hazard[:-1]) / 2 * 0.05, axis=0)])
    wait = rng.exponential(size=n)
    time = np.array([np.interp(w, total[:, i], fine, right=400.0) for i, w in enumerate(wait)])
    event = (time < 400).astype(int)
    return ln, days, np.maximum(time, 0.01), event


@pytest.mark.thorough
def test_the_cumulative_hazard_is_the_integral_of_the_hazard(made):
    """If it fails, time at risk with a changing level is misweighed."""
    ln, days, time, event = made
    result = ck.tte_course(
        course(ln[None], days), outcomes(time, event), seed=1, options=ck.ResponseOptions(cuts=(60.0,))
    )
    import jax
    import jax.numpy as jnp

    theta = np.array([0.2, -0.4, -0.8])
    a = result.arrays
    with jax.enable_x64(True):
        got = np.asarray(
            result.terms.log_lik(
                *(jnp.asarray(v) for v in (theta, a.base, a.z, a.s)), {k: jnp.asarray(v) for k, v in a.y.items()}
            )
        )
    p, unit = result.patients, result.clock.unit
    for i in (0, 7, 33):

        def hazard(t, i=i):
            u = (np.interp(t, days, ln[:, i]) - p.centre) / p.scale
            return np.exp(theta[0 if t <= 60 else 1] + theta[2] * u) / unit

        points = [d for d in (*days, 60.0) if d < time[i]]
        total = sum(quad(hazard, a, b)[0] for a, b in zip(points, [*points[1:], time[i]], strict=True))
        want = (np.log(hazard(time[i]) * unit) if event[i] else 0.0) - total
        assert got[0, i] == pytest.approx(want, abs=1e-9)


@pytest.mark.thorough
def test_a_level_that_stays_where_it_is_gives_the_model_without_time(made):
    """If it fails, tte_course and tte disagree about the same hazard."""
    ln, days, time, event = made
    flat = np.repeat(ln[:1], len(days), axis=0)
    options = ck.ResponseOptions(cuts=(60.0, 150.0))
    moving = ck.tte_course(course(flat[None], days), outcomes(time, event), seed=1, options=options)
    metric = pd.Series(np.exp(ln[0]), names(len(time)), name="level")
    still = ck.tte(metric, outcomes(time, event), seed=1, landmark=None, distribution="piecewise", options=options)
    np.testing.assert_allclose(moving.mode(flat=True), still.mode(flat=True), atol=1e-7)
    np.testing.assert_allclose(
        moving.predict([0.5, 2.0], at=100.0).mean(axis=0), still.predict([0.5, 2.0], at=100.0).mean(axis=0), atol=0.005
    )


@pytest.mark.thorough
def test_the_slope_of_the_level_is_recovered(made):
    """If it fails, the effect of a level that changes is not that of the level of the day."""
    ln, days, time, event = made
    result = ck.tte_course(course(ln[None], days), outcomes(time, event), seed=1)
    slope = result.draws["slope"] / result.patients.scale
    assert slope.quantile(0.005) < -0.7 < slope.quantile(0.995)
    assert slope.std() < 0.15
    assert isinstance(result.terms, Followed)


def test_a_course_that_ends_too_early_names_the_patient(made):
    """If it fails, a level is extrapolated in silence."""
    ln, days, time, event = made
    who = names(len(time))[int(np.argmax(time))]
    with pytest.raises(ck.DataError, match="do not cover"):
        ck.tte_course(course(ln[None, :40], days[:40]), outcomes(time, event), seed=1)
    assert who
