"""Logistic models: maximum likelihood, quadrature, published responses, separation, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from mpmath import mp, mpf, quad
from scipy.optimize import minimize
from scipy.special import digamma, expit, log_expit, polygamma
from scipy.stats import norm

import carkinetics as ck
from responses import drawn, modes_only, names, observed, responders, series

__all__ = ["modes_only"]


@pytest.fixture(scope="module")
def burdened():
    """Sixty patients with a burden, and a product."""
    rng = np.random.default_rng(4)
    x, y = responders(60, 1.0, 3)
    z = pd.DataFrame({"BURDEN": rng.normal(3, 2, 60), "PRODUCT": rng.choice(["A", "B"], 60)}, index=names(60))
    return x, y, z


def test_the_maximum_of_the_likelihood_is_that_of_statsmodels(burdened, modes_only):
    """If it fails, the likelihood, the covariates' coding or the search is wrong."""
    x, y, z = burdened
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1, covariates=z)
    reference = z["PRODUCT"].mode()[0]
    columns = [np.log(x), z["BURDEN"], (z["PRODUCT"] != reference).astype(float)]
    design = np.column_stack([np.ones(60), *columns])
    want = sm.Logit(y, design).fit(disp=0, tol=1e-12).params
    mode = fitted.mode(flat=True)
    assert mode["slope"] / np.log(x).std() == pytest.approx(want[1], abs=1e-7)
    assert mode["BURDEN"] / z["BURDEN"].std(ddof=0) == pytest.approx(want[2], abs=1e-7)
    other = ({"A", "B"} - {reference}).pop()
    assert mode[f"PRODUCT={other}"] == pytest.approx(want[3], abs=1e-7)
    centre = mode["intercept"] - mode["slope"] * np.log(x).mean() / np.log(x).std()
    assert centre - mode["BURDEN"] * z["BURDEN"].mean() / z["BURDEN"].std(ddof=0) == pytest.approx(want[0], abs=1e-6)


def emax_by_hand(theta, u, s, y, hill):
    e0, emax, ec50 = theta[:3]
    power = (theta[3] if hill else 0.0) + np.log(s)
    return log_expit((2 * y - 1) * (e0 + emax * expit(np.exp(power) * (u - ec50)))).sum()


@pytest.mark.parametrize("hill", [False, True])
def test_emax_models_have_the_maximum_that_scipy_finds(hill, modes_only):
    """If it fails, the curve is not Emax in the exposure, or a local maximum is taken for the best."""
    rng = np.random.default_rng(8)
    x = np.exp(rng.normal(0, 1.5, 400))
    y = (rng.random(400) < expit(-2 + 4 * x**1.5 / (x**1.5 + 1))).astype(int)
    form = "sigmoid_emax" if hill else "emax"
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1, form=form, prior="flat")
    u, s = fitted.patients.point, fitted.patients.scale
    starts = [[-1, 3, c] + [0.0] * hill for c in (-1, 0, 1)]
    best = min(
        (
            minimize(lambda t: -emax_by_hand(t, u, s, y, hill), t0, method="BFGS", options={"gtol": 1e-9})
            for t0 in starts
        ),
        key=lambda r: r.fun,
    )
    mode = fitted.mode(flat=True).to_numpy()
    assert emax_by_hand(mode, u, s, y, hill) == pytest.approx(-best.fun, abs=1e-8)
    np.testing.assert_allclose(mode, best.x, atol=1e-4)


def grid_posterior(u, y, slope_sd=2.5):
    """Intercept and slope on a grid: (a, b, weights, log evidence), by the rule of Riemann."""
    a, b = np.linspace(-6, 6, 601), np.linspace(-5, 8, 651)
    log_p = norm.logpdf(a, 0, 5)[:, None] + norm.logpdf(b, 0, slope_sd)
    for ui, yi in zip(u, y, strict=True):
        log_p = log_p + log_expit((2 * yi - 1) * (a[:, None] + b * ui))
    top = log_p.max()
    p = np.exp(log_p - top)
    return a, b, p / p.sum(), top + np.log(p.sum() * (a[1] - a[0]) * (b[1] - b[0]))


def test_the_posterior_of_two_parameters_is_that_of_quadrature():
    """If it fails, draws, the evidence or the prior of a logistic model is not what is said."""
    x, y = responders(25, 1.2, 5)
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1)
    a, b, p, evidence = grid_posterior(fitted.patients.point, y)
    of_b, of_a = p.sum(0), p.sum(1)
    mean = (of_b @ b, of_a @ a)
    sd = np.sqrt([of_b @ (b - mean[0]) ** 2, of_a @ (a - mean[1]) ** 2])
    draws = fitted.draws
    error = 4 / np.sqrt(fitted.posterior.numbers["ess"])
    assert draws["slope"].mean() == pytest.approx(mean[0], abs=error * sd[0])
    assert draws["intercept"].mean() == pytest.approx(mean[1], abs=error * sd[1])
    assert draws["slope"].std() == pytest.approx(sd[0], rel=0.05)
    assert fitted.posterior.log_evidence == pytest.approx(evidence, abs=0.02)
    quantiles = np.interp([0.025, 0.5, 0.975], np.cumsum(of_b), b)
    np.testing.assert_allclose(fitted.draws["slope"].quantile([0.025, 0.5, 0.975]), quantiles, atol=0.1 * sd[0])


def test_the_posterior_of_one_parameter_is_that_of_quadrature():
    """If it fails, the null model, against which all others are weighed, is wrong."""
    x, y = responders(20, 0.0, 6, intercept=-1.0)
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1, form="flat")
    k, n = int(y.sum()), len(y)
    mp.dps = 50

    def density(a):
        p = 1 / (1 + mp.exp(-a))
        return p**k * (1 - p) ** (n - k) * mp.npdf(a, 0, 5)

    total = quad(density, [-20, -5, 0, 5, 20])
    mean = quad(lambda a: a * density(a), [-20, -5, 0, 5, 20]) / total
    assert fitted.posterior.log_evidence == pytest.approx(float(mp.log(total)), abs=0.01)
    sd = fitted.draws["intercept"].std()
    assert fitted.draws["intercept"].mean() == pytest.approx(float(mean), abs=4 * sd / np.sqrt(2000))
    assert mpf(fitted.effects().shape[0]) == 0


def test_responses_of_four_doses_have_a_positive_slope():
    """1/3, 6/8, 18/19 and 3/3 at 50, 150, 450 and 800 million cells (CRB-401): the dose slope is positive.

    If it fails, a published dose-response is not seen.
    """
    dose = np.repeat([50e6, 150e6, 450e6, 800e6], [3, 8, 19, 3])
    y = np.concatenate([[1, 0, 0], [1] * 6 + [0] * 2, [1] * 18 + [0], [1] * 3])
    fitted = ck.logistic(series(dose, "dose"), series(y, "ORR"), seed=1)
    row = fitted.table().loc["slope"]
    assert row["LOW"] > 0 and row["POSITIVE"] > 0.99
    want = sm.Logit(y, sm.add_constant(np.log10(dose))).fit(disp=0, tol=1e-12).params[1]
    assert fitted.mode(flat=True)["slope"] * np.log(10) / fitted.patients.scale == pytest.approx(want, abs=1e-6)
    low, high = fitted.predict([50e6, 800e6]).mean(axis=0)
    assert low < 0.6 < 0.9 < high


def test_separated_outcomes_have_a_finite_slope_and_are_named():
    """If it fails, the slope of separated patients is that of a search that gave up, and nobody is told."""
    x = np.exp(np.linspace(-2, 2, 12))
    y = (x > 1).astype(int)
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1)
    assert 1 < fitted.draws["slope"].median() < 10
    assert any(r.startswith("separation:") for r in fitted.check().reasons)
    assert fitted.check().status == "warning"
    with pytest.raises(ck.FitError, match="separated"):
        fitted.mode(flat=True)
    with pytest.raises(ck.FitError, match="default priors"):
        ck.logistic(observed(x), series(y, "ORR"), seed=1, prior="flat")


@pytest.mark.parametrize("all_of_them", [0, 1])
def test_one_outcome_of_all_is_survived(all_of_them):
    """If it fails, a cohort without a single responder cannot be looked at."""
    x, _ = responders(15, 0.0, 1)
    fitted = ck.logistic(observed(x), series([all_of_them] * 15, "ORR"), seed=1)
    assert np.isfinite(fitted.posterior.draws).all()
    assert any(r.startswith("few events:") for r in fitted.check().reasons)
    assert abs(fitted.predict(1.0).mean() - all_of_them) < 0.2


def test_odds_ratios_per_doubling_and_tenfold_agree():
    """If it fails, a ratio is given for another step than its name says."""
    x, y = responders(80, 1.0, 2)
    effects = ck.logistic(observed(x), series(y, "ORR"), seed=1).effects()
    double, ten = effects["MEDIAN"]
    assert np.log(double) / np.log(2) == pytest.approx(np.log(ten) / np.log(10), rel=1e-4)
    p = ck.logistic(observed(x), series(y, "ORR"), seed=1).predict([1.0, 10.0])
    odds = p / (1 - p)
    assert np.median(odds[:, 1] / odds[:, 0]) == pytest.approx(ten, rel=1e-4)


def test_a_probability_of_everybody_is_the_average_over_their_covariates(burdened):
    """If it fails, the marginal curve is that of a patient who does not exist."""
    x, y, z = burdened
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1, covariates=z)
    by_hand = np.median(fitted.predict(np.full(60, 2.0), covariates=z).mean(axis=1))
    assert fitted.marginal([2.0])["MEDIAN"][0] == pytest.approx(by_hand, abs=1e-12)
    once = fitted.marginal(factors=[1.0])["MEDIAN"][0]
    assert once == pytest.approx(np.median(fitted.predict(x, covariates=z).mean(axis=1)), abs=0.02)
    assert once == pytest.approx(y.mean(), abs=0.03)


def test_the_same_seed_gives_the_same_draws_and_row_order_does_not_matter(burdened):
    """If it fails, a report cannot be made again."""
    x, y, z = burdened
    first = ck.logistic(observed(x), series(y, "ORR"), seed=1, covariates=z)
    again = ck.logistic(observed(x), series(y, "ORR")[::-1], seed=1, covariates=z.sample(frac=1, random_state=1))
    np.testing.assert_array_equal(first.posterior.draws, again.posterior.draws)
    other = ck.logistic(observed(x), series(y, "ORR"), seed=2, covariates=z)
    assert not np.array_equal(first.posterior.draws, other.posterior.draws)


def test_units_of_exposure_change_nothing():
    """If it fails, copies per ug and per mL give different answers."""
    x, y = responders(40, 1.0, 9)
    one, other = (ck.logistic(observed(x * f), series(y, "ORR"), seed=1) for f in (1.0, 1e6))
    np.testing.assert_allclose(one.posterior.draws, other.posterior.draws, atol=1e-9)
    np.testing.assert_allclose(one.predict([1.0, 3.0]), other.predict([1e6, 3e6]), atol=1e-9)


def test_priors_are_those_that_are_asked_for():
    """If it fails, prior= is ignored or lands on another parameter."""
    x, y = responders(40, 1.5, 9)
    tight = ck.logistic(observed(x), series(y, "ORR"), seed=1, prior={"slope": ck.Prior("normal", -1.0, 0.01)})
    assert tight.draws["slope"].mean() == pytest.approx(-1.0, abs=0.02)
    assert tight.table().loc["slope", "PRIOR"] == "Normal(-1, 0.01)"
    with pytest.raises(ck.ModelError, match="slope"):
        ck.logistic(observed(x), series(y, "ORR"), seed=1, prior={"slop": ck.Prior("normal", 0.0, 1.0)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcome": series([0, 1, 2, 1], "ORR")}, "give 1 of a responder"),
        ({"outcome": series([0, 1, np.nan, 1], "ORR")}, "P002"),
        ({"metric": observed([1.0, 2.0, 0.0, 3.0])}, "not above 0"),
        ({"metric": observed([1.0, 2.0, np.nan, 3.0])}, "no exposure .P002"),
        ({"metric": observed([2.0, 2.0, 2.0, 2.0])}, "no relation"),
        ({"form": "quadratic"}, "quadratic"),
        ({"two_stage": "cut"}, "cut"),
        ({"seed": -1}, "seed"),
        ({"outcome": pd.Series([0, 1, 1, 1], ["P000", "P001", "P002", "X"], name="ORR")}, "X"),
        ({"covariates": pd.DataFrame({"B": [1.0, 1.0, 1.0, 1.0]}, index=names(4))}, "covariate B"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(change, said):
    """If it fails, a wrong table gives a number in the place of an error."""
    given = {"metric": observed([1.0, 2.0, 3.0, 4.0]), "outcome": series([0, 1, 0, 1], "ORR"), "seed": 1} | change
    with pytest.raises(ck.CarkineticsError, match=said):
        ck.logistic(given.pop("metric"), given.pop("outcome"), **given)


def test_fewer_draws_are_of_the_same_posterior():
    """If it fails, the responses of simulated trials are others than those of a real one."""
    x, y = responders(60, 1.5, 4)
    few, many = (
        ck.logistic(observed(x), series(y, "ORR"), seed=1, options=ck.ResponseOptions(draws=n)) for n in (1000, 4000)
    )
    assert len(few.draws) == 1000 and few.check().numbers["ess"] > 500
    sd = many.draws.std()
    assert (np.abs(few.draws.mean() - many.draws.mean()) / sd).max() < 0.1
    assert np.abs(np.log(few.draws.std() / sd)).max() < 0.1
    with pytest.raises(ck.ModelError, match="draws"):
        ck.ResponseOptions(draws=100)


def test_patients_that_are_left_out_are_counted():
    """If it fails, a missing outcome changes the denominator and nobody knows."""
    x, y = responders(30, 1.0, 1)
    outcome = series(y.astype(float), "ORR")
    outcome.iloc[3] = np.nan
    fitted = ck.logistic(observed(x), outcome, seed=1, options=ck.ResponseOptions(missing="drop"))
    assert len(fitted.patients.ids) == 29 and "P003" not in fitted.patients.ids
    assert any("1 patients have no outcome (P003)" in n for n in fitted.check().notes)


def test_draws_of_exposure_that_are_missing_name_the_patient():
    """If it fails, NaN draws of one patient are averaged away."""
    x, y = responders(10, 1.0, 1)
    draws = np.tile(x, (50, 1))
    draws[7, 2] = np.nan
    with pytest.raises(ck.DataError, match="P002"):
        ck.logistic(drawn(draws), series(y, "ORR"), seed=1)


@pytest.mark.thorough
def test_nuts_and_importance_draws_agree():
    """If it fails, one of the two samplers is wrong."""
    from carkinetics.response.sampling import sample

    x, y = responders(40, 1.2, 7)
    fitted = ck.logistic(observed(x), series(y, "ORR"), seed=1)
    chains = sample(fitted.terms, fitted.arrays, seed=1, method="nuts")
    assert chains.numbers["rhat"] < 1.02 and chains.numbers["divergences"] == 0
    sd = fitted.posterior.draws.std(axis=0)
    np.testing.assert_allclose(chains.draws.mean(0), fitted.posterior.draws.mean(0), atol=0.1 * sd.max())
    np.testing.assert_allclose(chains.draws.std(0), sd, rtol=0.1)


@pytest.mark.slow
def test_a_flat_truth_is_called_an_effect_as_often_as_its_level_says():
    """If it fails, chance is called an effect."""
    wrong = []
    for k in range(400):
        x, y = responders(40, 0.0, 500 + k, intercept=-0.5)
        row = ck.logistic(observed(x), series(y, "ORR"), seed=k).table().loc["slope"]
        wrong.append(row["LOW"] > 0 or row["HIGH"] < 0)
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_a_mixture_with_wider_ones_learns_a_long_tail():
    """If it fails, outcomes with a rare grade have no draws: logs of gamma variates, whose moments are known.

    The density falls slowly to the left and fast to the right, as that of a threshold next to an empty grade.
    """
    from carkinetics.response import sampling

    a, d = 0.1, 3

    def target(x):
        return (a * x - np.exp(x)).sum(axis=1)

    plain = sampling._Mixture(np.full((1, d), np.log(a)), np.eye(d)[None] / a, np.ones(1))  # at the mode
    alone = sampling._taught(plain, target, seed=1)
    both = sampling._taught(alone.with_wider_ones(), target, seed=1)
    effective = []
    for mixture in (alone, both):
        x, log_ratio = mixture.points(2**14, 5, target)
        weight = np.exp(log_ratio - log_ratio.max())
        weight /= weight.sum()
        effective.append(1 / np.square(weight).sum())
    sd = np.sqrt(polygamma(1, a))
    np.testing.assert_allclose((weight @ x - digamma(a)) / sd, 0.0, atol=0.04)
    np.testing.assert_allclose(np.sqrt(weight @ np.square(x - weight @ x)) / sd, 1.0, atol=0.06)
    assert effective[1] > 10 * effective[0]  # 48 times when it was written
