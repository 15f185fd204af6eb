"""Late rises: planted ones are found, none are found where there are none, and one sample has no power."""

import dataclasses

import numpy as np
import pytest

import carkinetics as ck
from carkinetics.dataset import Dataset
from carkinetics.diagnostics import weighted_residuals
from carkinetics.late_samples import _Residuals, _statistic


def changed(fit, place, factor):
    """The fit with these samples multiplied, as if the curve had not been fitted to them."""
    dv = fit.data.dv.copy()
    dv[place] *= factor
    dv.flags.writeable = False
    cens = fit.data.cens.copy()
    cens[place] = 0
    data: Dataset = dataclasses.replace(fit.data, dv=dv, cens=cens)
    return dataclasses.replace(fit, data=data)


def late(fit, name):
    here = np.flatnonzero((fit.data.subject == fit.data.subjects.index(name)) & (fit.data.time > 60))
    return here[np.argsort(fit.data.time[here])]


def test_few_are_flagged_where_nobody_rises(rich_fit):
    """If it fails, every fifth patient is called a relapse."""
    table = ck.late_rise(rich_fit)
    assert len(table) == rich_fit.data.n_subjects
    assert (table["SAMPLES"] == 4).all()
    assert table["FLAG"].mean() <= 0.1
    assert table["P"].dropna().between(0, 1).all()


def test_a_planted_rise_is_found_and_one_high_sample_is_not(rich_fit):
    """Two samples in a row thirty times too high; and one, which is an outlier."""
    table = ck.late_rise(rich_fit).set_index("ID")
    name = table.index[(table["POWER"] > 0.9) & (table["P"] > 0.3)][0]
    last = late(rich_fit, name)[-2:]
    rise = ck.late_rise(changed(rich_fit, last, 30.0)).set_index("ID")
    assert rise.loc[name, "FLAG"] and rise.loc[name, "P"] < 0.01
    once = ck.late_rise(changed(rich_fit, last[-1:], 30.0)).set_index("ID")
    assert not once.loc[name, "FLAG"]
    assert (rise["FLAG"].drop(name) == table["FLAG"].drop(name)).all()


def test_the_statistic_by_hand():
    """If it fails, a pair is compared with other samples than those before it, or a limit counts as a low level."""

    def found(values, below=()):
        x = np.array([values])
        return float(_statistic(_Residuals(x, np.isin(np.arange(x.shape[1]), below)[None]))[0])

    assert found([1.0, 2.0]) == 1.0  # nothing before: the smaller one
    assert found([-2.0, -1.0, 0.5, 3.0]) == pytest.approx(0.5 + 1.5)  # after two that were too low
    assert found([3.0, 3.0, 1.0, 2.0]) == 3.0  # those before were high: they take nothing away
    assert found([0.0, 0.0, 0.0, 9.0]) == 0.0  # one outlier is no rise
    assert found([2.0, 2.0, 1.0, 2.0], below=[0, 1]) == 1.0  # a limit above the curve says nothing of what is below
    assert found([-2.0, 1.0, 2.0], below=[0]) == pytest.approx(1.0 + 2.0)  # a limit below the curve: it was too low
    assert found([1.0, 2.0], below=[1]) == -np.inf  # a sample below the limit is no evidence


@pytest.mark.thorough
def test_power_is_how_often_a_tenfold_rise_is_found(rich_fit):
    """Replicates of the samples, with the last two ten times as high: flagged as often as POWER says."""
    table = ck.late_rise(rich_fit).set_index("ID")
    name = table.index[np.argmax(table["POWER"])]
    here, rng = late(rich_fit, name), np.random.default_rng(1)
    ipred = np.median(rich_fit.tree["posterior"].to_dataset()["ipred"].values.reshape(-1, rich_fit.data.n_obs), axis=0)
    post = rich_fit.tree["posterior"].to_dataset()
    sigma, nu = (float(post[n].mean()) for n in ("sigma", "nu"))
    flags = []
    for _ in range(40):
        factor = ipred[here] * np.exp(sigma * rng.standard_t(nu, len(here))) / rich_fit.data.dv[here]
        factor[-2:] *= 10
        flags.append(ck.late_rise(changed(rich_fit, here, factor)).set_index("ID").loc[name, "FLAG"])
    assert np.mean(flags) == pytest.approx(table.loc[name, "POWER"], abs=0.25)


def test_one_late_sample_has_no_power(rich_fit):
    """If it fails, a single sample is called a rise, or a p-value is made up."""
    table = ck.late_rise(rich_fit, after=150.0)
    assert (table["SAMPLES"] == 1).all()
    assert table["P"].isna().all()
    assert (table["POWER"] == 0).all()
    assert not table["FLAG"].any()


def test_predictions_that_are_zero_in_single_precision_are_no_rise(rich_fit):
    """If it fails, a patient whose cells are gone ends late_rise in a logarithm of zero."""
    none = np.zeros((2, rich_fit.data.n_obs))
    found = weighted_residuals(rich_fit, none, none)
    assert np.isfinite(found[:, [a != "count" for a in np.array(rich_fit.data.assays)[rich_fit.data.assay]]]).all()
