"""Judging and averaging: exact intervals, ROC, Kaplan-Meier, competing risks, weights; and their figures."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import carkinetics as ck
from carkinetics import plots
from carkinetics.response.averaging import stacking
from carkinetics.response.judging import auroc, clopper_pearson, loo, patient_probabilities
from responses import names, observed, responders, series

REFERENCE = json.loads((Path(__file__).parent / "lifelines.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def orr():
    """A logistic model of 60 patients."""
    x, y = responders(60, 1.2, 3)
    return ck.logistic(observed(x), series(y, "ORR"), seed=1)


@pytest.fixture(scope="module")
def pfs():
    """A Weibull model of 60 patients."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=60)
    days, end = 28 + rng.exponential(150 * np.exp(0.6 * x)), rng.uniform(60, 400, 60)
    frame = pd.DataFrame({"PFS_TIME": np.minimum(days, end), "PFS_EVENT": (days < end).astype(int)}, index=names(60))
    return ck.tte(observed(np.exp(x)), frame, seed=1)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 3), (6, 8), (18, 19), (3, 3)])
def test_intervals_of_shares_are_exact(k, n):
    """If it fails, an interval of 3 of 3 is a point."""
    want = stats.binomtest(k, n).proportion_ci(method="exact")
    assert clopper_pearson(k, n) == pytest.approx((want.low, want.high), abs=1e-12)


def test_a_quantile_table_counts_everybody_once(orr):
    """If it fails, the points of the figure are not the patients."""
    table = ck.quantile_table(orr)
    assert table["N"].sum() == 60 and table["EVENTS"].sum() == orr.observed(None).sum()
    assert list(table["N"]) == [15] * 4
    assert (table["FROM"] <= table["VALUE"]).all() and (table["TO"].shift(1).dropna() < table["FROM"][1:]).all()


def test_the_area_under_the_curve_is_mann_and_whitneys(orr):
    """If it fails, discrimination is misstated."""
    y, p = orr.observed(None), patient_probabilities(orr).mean(axis=0)
    u = stats.mannwhitneyu(p[y == 1], p[y == 0]).statistic / ((y == 1).sum() * (y == 0).sum())
    table = ck.performance(orr, seed=1)
    assert table.loc["auroc", "IN_SAMPLE"] == pytest.approx(u, abs=1e-12)
    assert auroc(np.array([1.0, 1.0]), np.array([0.0, 1.0]), np.full((1, 2), 0.5))[0] == 0.5
    assert table.loc["brier", "IN_SAMPLE"] == pytest.approx(np.mean((p - y) ** 2), abs=1e-3)
    assert table.loc["brier", "LEFT_OUT"] > table.loc["brier", "IN_SAMPLE"]
    assert (table["LOW"] < table["LEFT_OUT"]).all() and (table["LEFT_OUT"] < table["HIGH"]).all()


def test_leaving_a_patient_out_is_fitting_without_it():
    """Against twelve refits. If it fails, weights of models are of something else than prediction."""
    x, y = responders(12, 1.0, 3)
    both = ck.logistic(observed(x), series(y, "ORR"), seed=1)
    table = loo(both)
    for i in (0, 5, 11):
        keep = np.arange(12) != i
        ids = [n for n, k in zip(names(12), keep, strict=True) if k]
        rest = ck.logistic(pd.Series(x[keep], ids, name="cmax"), pd.Series(y[keep], ids, name="ORR"), seed=1)
        # The standardisation, and with it the prior, moves a little with the patient.
        p = rest.predict(x[i]).mean()
        want = np.log(p if y[i] else 1 - p)
        assert table["ELPD"].iloc[i] == pytest.approx(want, abs=0.12)


def test_product_limit_estimates_are_those_of_lifelines():
    """If it fails, the descriptive curve is not Kaplan and Meier's."""
    table = pd.DataFrame(REFERENCE["table"])
    times = pd.DataFrame({"TIME": table["t"], "EVENT": table["e"], "ENTRY": 0.0})
    found, want = ck.kaplan_meier(times), pd.DataFrame(REFERENCE["kaplan_meier"]).iloc[1:].reset_index(drop=True)
    np.testing.assert_allclose(found["TIME"], want["time"])
    np.testing.assert_allclose(found["SURVIVAL"], want["survival"], atol=1e-12)
    np.testing.assert_allclose(found["LOW"], want["low"], atol=1e-9)
    np.testing.assert_allclose(found["HIGH"], want["high"], atol=1e-9)


def test_competing_causes_have_a_closed_form():
    """Two constant hazards a and b: F_a(t) = a/(a+b) (1 - exp(-(a+b) t)).

    If it fails, causes add up to more than one.
    """
    rng = np.random.default_rng(1)
    n = 50
    time, end = rng.exponential(60, (2, n)), rng.uniform(40, 200, n)
    first, code = time.min(axis=0), 1 + time.argmin(axis=0)
    frame = pd.DataFrame({"OS_TIME": np.minimum(first, end), "OS_EVENT": np.where(first < end, code, 0)}, names(n))
    metric = observed(np.exp(rng.normal(size=n)), window=(0.0, 0.0))
    fits = {
        name: ck.tte(
            metric, frame, seed=1, landmark=None, distribution="exponential", form="flat",
            options=ck.ResponseOptions(cause=cause),
        )
        for name, cause in (("relapse", 1), ("death", 2))
    }  # fmt: skip
    days = np.array([10.0, 50.0, 150.0])
    table = ck.cumulative_incidence(fits, 1.0, days)
    rate = {k: np.exp(r.draws["ln_rate"].to_numpy()) / r.clock.unit for k, r in fits.items()}
    both = rate["relapse"] + rate["death"]
    for name, own in rate.items():
        want = np.median((own / both)[:, None] * (1 - np.exp(-both[:, None] * days)), axis=0)
        np.testing.assert_allclose(table[table["CAUSE"] == name]["MEDIAN"], want, atol=1e-6)


def test_weights_are_those_of_the_largest_log_score():
    """If it fails, stacking is not at its maximum."""
    from scipy.optimize import minimize

    elpd = np.random.default_rng(1).normal(-1, 0.5, (40, 3))
    found = stacking(elpd)

    def loss(v):
        w = np.exp(v - np.logaddexp.reduce(v))
        return -np.log(np.exp(elpd) @ w).sum()

    best = min(minimize(loss, np.random.default_rng(k).normal(size=3)).fun for k in range(4))
    assert -np.log(np.exp(elpd) @ found).sum() == pytest.approx(best, abs=1e-5)


def test_the_null_wins_where_nothing_is_and_loses_where_something_is():
    """If it fails, no effect can never win, or always does."""
    weights = []
    for slope in (0.0, 1.8):
        x, y = responders(60, slope, 12)
        members = {f: ck.logistic(observed(x), series(y, "ORR"), seed=1, form=f) for f in ("linear", "flat")}
        found = ck.average(members, seed=1, method="evidence")
        weights.append(found.null)
        mixed = found.predict({"cmax": [1.0, 2.0]})
        assert mixed.shape == (4000, 2)
        want = sum(w * members[k].predict([1.0, 2.0]).mean(axis=0) for k, w in found.weights.items())
        np.testing.assert_allclose(mixed.mean(axis=0), want, atol=0.01)
    assert weights[0] > 0.6 and weights[1] < 0.01
    with pytest.raises(ck.ModelError, match="flat"):
        ck.average({"linear": members["linear"]}, seed=1)


def test_figures_show_every_patient_and_carry_words(orr, pfs):
    """If it fails, a figure of an association does not say so, or leaves patients out."""
    axes = plots.exposure_response({"unadjusted": orr, "again": orr})
    assert len(axes) == 2 and axes[0].get_xscale() == "log"
    assert "copies/ug" in axes[0].get_xlabel()
    patients = next(x for x in axes[0].get_lines() if x.get_label() == "patient")
    assert len(patients.get_xdata()) == 60
    assert "association" in axes[0].figure.get_supxlabel()
    curves, table = plots.survival(pfs)
    assert "descriptive" in curves.figure.legends[0].get_title().get_text()
    first = [t.get_text() for t in table.texts][:: len(table.get_xticks())]
    assert sum(int(n) for n in first) == len(pfs.patients.ids)
    assert len(plots.calibration(orr)) == 1
    assert "odds ratio" in plots.ratios(orr)[0].get_xlabel()
    with pytest.raises(ValueError, match="different kinds"):
        plots.ratios({"ORR": orr, "PFS": pfs})
