"""What fools people: each guard speaks where it should, and is silent where it should be."""

import numpy as np
import pandas as pd
import pytest

import carkinetics as ck
from carkinetics.response.guards import separation
from responses import modes_only, names, observed, responders, series

__all__ = ["modes_only"]


def reasons(result):
    return {r.split(":")[0] for r in result.check().reasons}


def test_a_well_behaved_trial_has_no_warnings(modes_only):
    """If it fails, every report cries wolf."""
    x, y = responders(120, 0.8, 1)
    check = ck.logistic(observed(x), series(y, "ORR"), seed=1).check()
    assert check.status == "ok" and check.reasons == ()
    assert any("association" in n for n in check.notes) and any("without error" in n for n in check.notes)


def test_separation_is_a_property_of_all_columns_together():
    """Two covariates that separate together and not alone. If it fails, separation is looked for in one column."""
    a, b = np.array([0.0, 1.0, 2.0, 3.0, 0.5, 1.5]), np.array([0.0, 1.0, 2.0, 3.0, 1.5, 2.5])
    y = np.array([0, 0, 0, 0, 1, 1.0])
    one = np.ones(6)
    assert separation(np.column_stack([one, a, b]), y)
    assert not separation(np.column_stack([one, a]), y)
    assert not separation(np.column_stack([one, b]), y)
    assert separation(np.column_stack([one, [1, 2, 3, 3, 4, 5.0]]), np.array([0, 0, 0, 1, 1, 1.0]))  # but for a tie


def test_few_events_and_uniform_bins_are_named(modes_only):
    """If it fails, three responders carry an Emax curve and nobody is told."""
    x = np.exp(np.linspace(-2, 2, 40))
    y = np.zeros(40, int)
    y[[25, 33, 38]] = 1
    found = reasons(ck.logistic(observed(x), series(y, "ORR"), seed=1))
    assert {"few events", "uniform bin"} <= found


def test_a_covariate_that_is_the_exposure_is_named(modes_only):
    """If it fails, burden and Cmax that say the same are both called effects."""
    x, y = responders(60, 1.0, 2)
    z = pd.DataFrame({"BURDEN": np.log(x) + 0.1 * np.random.default_rng(1).normal(size=60)}, index=names(60))
    assert "collinear" in reasons(ck.logistic(observed(x), series(y, "ORR"), seed=1, covariates=z))
    other = pd.DataFrame({"BURDEN": np.random.default_rng(1).normal(size=60)}, index=names(60))
    assert "collinear" not in reasons(ck.logistic(observed(x), series(y, "ORR"), seed=1, covariates=other))


def test_exposure_measured_after_treatment_of_toxicity_is_named(modes_only):
    """If it fails, tocilizumab that stopped the expansion makes CRS look harmless."""
    x, y = responders(60, 1.0, 2)
    treated = pd.Series({"P001": 5.0, "P002": 20.0, "P003": np.nan})
    options = ck.ResponseOptions(treated_day=treated)
    result = ck.logistic(observed(x, window=(0.0, 14.0)), series(y, "CRS3"), seed=1, options=options)
    said = next(r for r in result.check().reasons if r.startswith("after treatment"))
    assert "1 patients" in said and "P001" in said and "P002" not in said


def test_a_metric_that_reaches_past_the_response_is_refused(modes_only):
    """If it fails, AUC0-28 predicts a response that was told on day 14."""
    x, y = responders(30, 1.0, 2)
    early = ck.ResponseOptions(outcome_day=14.0)
    with pytest.raises(ck.DataError, match=r"days up to 28.*immortal time"):
        ck.logistic(observed(x, window=(0.0, 28.0)), series(y, "ORR"), seed=1, options=early)
    with pytest.warns(ck.FitWarning, match="immortal"):
        ck.logistic(observed(x, window=(0.0, 28.0)), series(y, "ORR"), seed=1, options=early, allow_immortal_time=True)
    each = ck.ResponseOptions(outcome_day=pd.Series(28.0, names(30)))
    ck.logistic(observed(x, window=(0.0, 28.0)), series(y, "ORR"), seed=1, options=each)
    with pytest.raises(ck.DataError, match="P029"):
        short = ck.ResponseOptions(outcome_day=pd.Series(28.0, names(29)))
        ck.logistic(observed(x, window=(0.0, 28.0)), series(y, "ORR"), seed=1, options=short)


def test_extrapolated_exposures_are_counted(modes_only):
    """If it fails, exposures beyond a patient's follow-up look like measured ones."""
    x, y = responders(40, 1.0, 2)
    metric = observed(x)
    status = ("extrapolated", "extrapolated", *metric.status[2:])
    metric = ck.Metric("auc", "d", metric.subjects, metric.draws, status, metric.reason, "qpcr", (0.0, 28.0))
    said = ck.logistic(metric, series(y, "ORR"), seed=1).check().reasons
    assert any(r.startswith("extrapolated:") and "P000 and P001" in r for r in said)
