"""Grades: maximum likelihood, far tails, empty grades, proportional odds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf
from statsmodels.miscmodels.ordinal_model import OrderedModel

import carkinetics as ck
from carkinetics.response.grades import Graded
from responses import modes_only, observed, series

__all__ = ["modes_only"]


def graded(n, slope, seed, cuts=(-0.5, 0.5, 2.0)):
    """Exposures and grades from 0 to 3."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return np.exp(x), np.digitize(slope * x + rng.logistic(size=n), cuts)


def test_the_maximum_is_that_of_statsmodels(modes_only):
    """If it fails, thresholds or slope of proportional odds are wrong."""
    x, grade = graded(90, 1.0, 2)
    result = ck.ordinal(observed(x), series(grade, "CRS"), seed=1)
    mode = result.mode(flat=True)
    theirs = OrderedModel(grade, result.patients.point[:, None], distr="logit")
    start = np.array([mode["slope"], mode["threshold_1"], mode["ln_gap_2"], mode["ln_gap_3"]])
    want = theirs.fit(start_params=start + 0.01, method="newton", disp=0, tol=1e-12).params
    np.testing.assert_allclose(start, want, atol=1e-6)


def test_the_table_says_which_priors_thresholds_have(modes_only):
    """If it fails, a reader takes thresholds with the prior of uniform shares for ones without any."""
    x, grade = graded(60, 1.0, 3)
    for prior, want in ((None, "uniform over the grades' probabilities"), ("flat", "flat")):
        said = ck.ordinal(observed(x), series(grade, "CRS"), seed=1, prior=prior).table()["PRIOR"]
        assert said["threshold_1"] == said["ln_gap_2"] == want
        assert said["slope"] == ("Normal(0, 2.5)" if prior is None else "flat")


@pytest.mark.parametrize("eta", [-800.0, -60.0, 0.3, 60.0, 800.0])
def test_probabilities_of_grades_keep_digits_and_slope_far_out(eta):
    """If it fails, one patient far from the thresholds gives minus infinity, or a slope of zero that stops a search."""
    mp.dps = 50
    terms, theta = Graded("linear", grades=4), jnp.array([-0.5, 0.0, 0.4, 1.0])

    def cdf(a):
        return 1 / (1 + mp.exp(-a))

    with jax.enable_x64(True):
        theta = jnp.array([-0.5, 0.0, 0.4, 1.0])
        z, s = jnp.zeros((0, 1)), jnp.array(1.0)
        cuts = [mpf(float(c)) for c in terms.thresholds(theta)]
        for grade in range(4):

            def log_lik(u, grade=grade):
                return terms.log_lik(theta, u.reshape(1, 1), z, s, {"grade": jnp.array([grade])})[0, 0]

            above = [mpf(1), *(cdf(mpf(eta) - c) for c in cuts), mpf(0)]
            p = above[grade] - above[grade + 1]
            if grade < 3 and eta > 700:  # cancels even at 50 digits: the tail's own form
                p = mp.exp(-(mpf(eta) - cuts[grade])) * (
                    1 - (0 if grade == 0 else mp.exp(cuts[grade - 1] - cuts[grade]))
                )
            if grade > 0 and eta < -700:
                p = mp.exp(mpf(eta) - cuts[grade - 1]) * (
                    1 - (0 if grade == 3 else mp.exp(cuts[grade - 1] - cuts[grade]))
                )
            value, slope = jax.value_and_grad(log_lik)(jnp.array(eta))
            assert float(value) == pytest.approx(float(mp.log(p)), rel=1e-12, abs=1e-15)
            assert np.isfinite(float(slope))
            if (grade < 3 and eta > 700) or (grade > 0 and eta < -700):
                assert abs(float(slope)) == pytest.approx(1.0)


def test_an_empty_grade_has_a_small_probability():
    """If it fails, a grade that nobody had is impossible, or stops the fit."""
    x, grade = graded(40, 1.0, 3)
    grade = np.where(grade == 2, 1, grade)
    result = ck.ordinal(observed(x), series(grade, "CRS"), seed=1)
    assert any(r.startswith("empty grade: nobody has CRS 2") for r in result.check().reasons)
    two = result.predict(1.0, at=2) - result.predict(1.0, at=3)
    assert 0 < two.mean() < 0.06
    assert np.isfinite(result.posterior.log_evidence)


def test_probabilities_of_higher_grades_are_smaller():
    """If it fails, grades are counted from another place than they are called."""
    x, grade = graded(60, 1.0, 4)
    result = ck.ordinal(observed(x), series(grade, "CRS"), seed=1)
    at = np.stack([result.predict([0.3, 3.0], at=k) for k in range(4)])
    assert (at[0] == 1).all() and (np.diff(at, axis=0) < 0).all()
    seen = [(grade >= k).mean() for k in range(1, 4)]
    mean = [result.marginal(factors=[1.0], at=k)["MEDIAN"][0] for k in range(1, 4)]
    np.testing.assert_allclose(mean, seen, atol=0.05)
    with pytest.raises(ck.ModelError, match="one of the grades"):
        result.predict(1.0, at=4)


@pytest.mark.thorough
def test_departures_from_proportional_odds_are_found_where_they_are():
    """If it fails, the test of proportionality never speaks, or always."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=400)
    first = rng.random(400) < 1 / (1 + np.exp(-x * 1.5))
    later = rng.random(400) < 0.4  # whether it is severe has nothing to do with exposure
    broken = np.where(first, 1 + later, 0)
    bad = ck.ordinal(observed(np.exp(x)), series(broken, "CRS"), seed=1).proportionality()
    assert bad["P"][1] < 0.01 and bad["DEPARTURE"][1] < -0.3 and bad.attrs["ln_bayes_factor"] > 2
    even = np.digitize(1.0 * x + rng.logistic(size=400), (0.0, 1.5))
    good = ck.ordinal(observed(np.exp(x)), series(even, "CRS"), seed=1).proportionality()
    assert good["P"][1] > 0.01 and good.attrs["ln_bayes_factor"] < 1


@pytest.mark.parametrize(("grade", "said"), [(6, "P001 .6"), (2.5, "P001 .2.5"), ("3*", r"P001 .3\*")])
def test_grades_that_are_none_name_the_patient(grade, said):
    """If it fails, a grade of 2.5 is rounded, or "3*" is missing in silence."""
    outcome = series([0, 1, 2, 1], "CRS").astype(object)
    outcome["P001"] = grade
    with pytest.raises(ck.DataError, match=said):
        ck.ordinal(observed([1.0, 2.0, 3.0, 4.0]), outcome, seed=1)
