"""Uncertain exposure: the average over draws, what patients share, and a slope that is not attenuated."""

import numpy as np
import pytest
from scipy.special import expit, logit, logsumexp

import carkinetics as ck
from carkinetics.errors import FitError
from carkinetics.response.binary import Binary
from carkinetics.response.carrying import carried, common, gauss
from carkinetics.response.sampling import Arrays, find_mode
from responses import drawn, modes_only, names, observed, responders, series

__all__ = ["modes_only"]
LN10 = float(np.log(10))


def test_nodes_have_the_moments_of_the_draws():
    """If it fails, exposure is carried with another spread than its draws have, or patients' draws are mixed up."""
    rng = np.random.default_rng(1)
    draws = np.stack([rng.gamma(2.0, size=500), rng.normal(-3, 0.1, 500), rng.choice([1.0, 2.0], 500)], axis=1)
    draws = np.concatenate([draws, np.full((500, 1), 3.0)], axis=1)
    x, w = gauss(draws, 6)
    for k in range(12):
        np.testing.assert_allclose((w * x**k).sum(axis=0), (draws**k).mean(axis=0), rtol=1e-9)
    assert sorted(x[w[:, 2] > 1e-6, 2]) == pytest.approx([1.0, 2.0])
    assert w[:, 3] @ x[:, 3] == pytest.approx(3.0)
    np.testing.assert_allclose(w.sum(axis=0), 1.0)
    few, weight = gauss(np.array([[1.0], [2.0], [2.0]]), 5)
    assert sorted(few[weight > 1e-6]) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("slope", [0.5, 3.0, 8.0])
def test_the_likelihood_is_the_average_over_all_draws(slope):
    """If it fails, the quadrature cannot follow a steep curve."""
    rng = np.random.default_rng(2)
    u = np.concatenate([rng.normal(-0.5, 0.4, 1500), rng.normal(1.5, 0.6, 500)])[:, None] * np.ones(1)
    part = carried(u, "propagate")
    got = (np.exp(part.log_weight) * expit(slope * part.base)).sum()
    assert got == pytest.approx(expit(slope * u).mean(), abs=2e-3)


def test_what_patients_share_is_found_and_what_they_do_not_share_is_not():
    """If it fails, joint is propagate, or noise becomes feedback."""
    rng = np.random.default_rng(3)
    apart = rng.normal(size=(2000, 30))
    assert len(common(apart)) == 0
    shared = apart + 0.8 * rng.normal(size=(2000, 1))
    loadings = common(shared)
    assert len(loadings) == 1
    np.testing.assert_allclose(np.abs(loadings[0]), 0.8, atol=0.15)
    part = carried(shared, "joint")
    var = (np.exp(part.log_weight) * part.base**2).sum(0) - (np.exp(part.log_weight) * part.base).sum(0) ** 2
    np.testing.assert_allclose(var + part.loadings[0] ** 2, shared.var(axis=0), rtol=0.02)


def test_joint_agrees_with_propagate_where_nothing_is_shared():
    """If it fails, joint changes what there is no feedback to change."""
    x, y = responders(60, 1.2, 4)
    u = np.log(x) + 0.5 * np.random.default_rng(4).normal(size=(1500, 60))
    two = [ck.logistic(drawn(np.exp(u)), series(y, "ORR"), seed=1, two_stage=k) for k in ("propagate", "joint")]
    np.testing.assert_array_equal(two[0].posterior.draws, two[1].posterior.draws)


def test_joint_is_the_integral_over_what_is_shared():
    """Against the average over all draws of the product over patients: exact, and feasible for four patients.

    If it fails, the joint likelihood is not that of the draws.
    """
    rng = np.random.default_rng(6)
    u = np.array([-1.0, 0.0, 0.5, 1.0]) + 0.4 * rng.normal(size=(20000, 4)) + 0.9 * rng.normal(size=(20000, 1))
    sign = np.array([-1.0, 1.0, -1.0, 1.0])
    part = carried(u, "joint")
    assert len(part.loadings) == 1
    f, w = np.polynomial.hermite_e.hermegauss(40)
    w = w / w.sum()
    for slope in (0.7, 2.0):
        want = np.exp(np.log(expit(sign * slope * u)).sum(axis=1)).mean()
        each = [
            (np.exp(part.log_weight) * expit(sign * slope * (part.base + k * part.loadings[0]))).sum(0).prod()
            for k in f
        ]
        assert w @ each == pytest.approx(want, rel=0.03)
        apart = np.prod([expit(s * slope * x).mean() for s, x in zip(sign, u.T, strict=True)])
        assert abs(apart - want) > 2 * abs(w @ each - want)


def test_point_says_what_it_does():
    """If it fails, exposures are taken as known and nobody is told."""
    x, y = responders(40, 1.2, 4)
    u = np.log(x) + 0.5 * np.random.default_rng(4).normal(size=(500, 40))
    with pytest.warns(ck.FitWarning, match="attenuated"):
        result = ck.logistic(drawn(np.exp(u)), series(y, "ORR"), seed=1, two_stage="point")
    assert any(r.startswith("point:") for r in result.check().reasons)


def test_the_outcome_moves_what_is_known_of_an_exposure():
    """If it fails, feedback() has the wrong sign, or sees shifts of exposures that are known."""
    x, y = responders(60, 2.0, 5)
    u = np.log(x) + 0.8 * np.random.default_rng(5).normal(size=(1000, 60))
    shift = ck.logistic(drawn(np.exp(u)), series(y, "ORR"), seed=1).feedback()["SHIFT"].to_numpy()
    assert (shift[y == 1] > 0).all() and (shift[y == 0] < 0).all() and np.abs(shift).max() < 1.5


def test_draws_of_measured_values_are_those_of_the_normal_model():
    """Shrunk by the reliability, with the variances of a normal model. If it fails, with_error() invents precision."""
    rng = np.random.default_rng(1)
    true = rng.normal(2.0, 1.0, 400)
    seen = true + rng.normal(0, 0.8, 400)
    ln = np.log(ck.with_error(observed(np.exp(seen)), 0.8, seed=1).draws)
    shrunk = ln.mean(axis=0)
    slope = np.polyfit(seen, shrunk, 1)[0]
    reliability = 1 - 0.64 / seen.var()
    assert slope == pytest.approx(reliability, abs=0.01)
    assert ln.var(axis=0).mean() == pytest.approx(0.64 * reliability, rel=0.05)
    assert np.mean((true - shrunk) ** 2) == pytest.approx(0.64 * reliability, rel=0.15)
    inside = np.mean((true > np.quantile(ln, 0.05, axis=0)) & (true < np.quantile(ln, 0.95, axis=0)))
    assert inside == pytest.approx(0.9, abs=0.04)


def test_measured_values_that_have_draws_are_refused():
    """If it fails, an uncertainty is counted twice."""
    with pytest.raises(ck.DataError, match="in them already"):
        ck.with_error(drawn(np.ones((5, 4))), 0.5, seed=1)
    with pytest.raises(ck.DataError, match="SD"):
        ck.with_error(observed([1.0, 2.0, 3.0]), -0.5, seed=1)


def slopes(trial, patients, true):
    """Maximum likelihood slopes per log10 in one trial: of true values, measured ones, medians and draws.

    With so uncertain an exposure the likelihood of a few trials rises for ever: their slope is infinite.
    """
    rng = np.random.default_rng(1000 + trial)
    x = rng.normal(0, 1, patients)
    sign = np.where(rng.random(patients) < expit(true * x), 1.0, -1.0)
    seen = x + rng.normal(0, 0.8, patients)  # log10
    metric = observed(10**seen)
    ln = np.log(ck.with_error(metric, 0.8 * LN10, seed=trial, draws=1000).draws) / LN10
    found, terms = {}, Binary("linear").flat()
    for name, u, way in (
        ("known", x[None], "point"), ("measured", seen[None], "point"), ("point", ln, "point"),
        ("propagate", ln, "propagate"), ("joint", ln, "joint"),
    ):  # fmt: skip
        part = carried(u, way)
        arrays = Arrays(*part, np.zeros((0, patients)), np.array(1.0), {"sign": sign})
        try:
            found[name] = find_mode(terms, arrays, terms.start)[0][1]
        except FitError:
            found[name] = np.inf
    return found


@pytest.mark.slow
def test_propagate_recovers_the_slope_that_measured_values_attenuate():
    """200 trials of 150 patients, slope 1.4 per log10, exposure known to within an SD of 0.8 log10.

    If it fails, an uncertain exposure makes effects look smaller than they are.
    """
    true, trials = 1.4, 200
    all_of_them = [slopes(k, 150, true) for k in range(trials)]
    middle = {name: np.median([s[name] for s in all_of_them]) for name in all_of_them[0]}
    # Of a median, by quartiles, since an infinite slope has no SD.
    quartiles = {name: np.quantile([s[name] for s in all_of_them], (0.25, 0.75)) for name in all_of_them[0]}
    spread = {name: 1.25 / 1.349 * (high - low) / np.sqrt(trials) for name, (low, high) in quartiles.items()}
    endless = {name: np.mean([np.isinf(s[name]) for s in all_of_them]) for name in all_of_them[0]}
    print(middle, spread, endless)
    assert endless["known"] == endless["measured"] == endless["point"] == 0
    assert max(endless.values()) < 0.05
    assert middle["known"] == pytest.approx(true, abs=3 * spread["known"])
    assert middle["measured"] < 0.6 * true
    assert middle["point"] < 0.93 * true
    assert middle["propagate"] == pytest.approx(true, abs=3 * spread["propagate"])
    assert middle["joint"] == pytest.approx(middle["propagate"], abs=0.05)


def test_a_tie_of_exposure_and_response_is_no_more_certain_than_the_exposure():
    """If it fails, uncertain exposures give as narrow an interval as known ones."""
    x, y = responders(80, 1.2, 8)
    u = np.log(x) + 0.8 * np.random.default_rng(8).normal(size=(1000, 80))
    known = ck.logistic(observed(x), series(y, "ORR"), seed=1).draws["slope"].std()
    vague = ck.logistic(drawn(np.exp(u)), series(y, "ORR"), seed=1).draws["slope"].std()
    assert vague > 1.1 * known


def test_log_odds_of_an_average_are_not_averages_of_log_odds():
    """The identity that makes a point attenuate; if it fails, the nodes do not integrate."""
    u = np.random.default_rng(9).normal(1.0, 1.0, (4000, 1))
    part = carried(u, "propagate")
    log_p = float(logsumexp(part.log_weight + np.log(expit(2 * part.base))))
    assert logit(np.exp(log_p)) < 2 * u.mean() - 0.3
    assert names(1) == ["P000"]
