"""Predictive checks of summary statistics: by hand, calibrated, and against faults that they are there to show."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from carkinetics.replication import replicated
from carkinetics.summary_checks import STATISTICS, predictive_checks, statistics, two_sided

INF = np.inf


def test_statistics_by_hand():
    """If it fails, a peak's day, the last level or the share below the limit is of the wrong sample."""
    subject, time = np.array([0, 0, 0, 1, 1, 1]), np.array([5.0, 10.0, 30.0, 30.0, 10.0, 5.0])
    levels = np.log([[100.0, 400.0, 20.0, 60.0, 50.0, 25.0], [100.0, 30.0, 20.0, 60.0, 50.0, 25.0]])
    levels[0, 2] = levels[1, 3] = -INF
    found = statistics(levels, subject, time, np.full(6, np.log(10.0)))
    np.testing.assert_allclose(found["cmax"], [np.sqrt(400 * 60), np.sqrt(100 * 50)])
    spread = [np.log(400 / 60) / np.sqrt(2), np.log(100 / 50) / np.sqrt(2)]
    np.testing.assert_allclose(found["cmax_sd"], spread)
    np.testing.assert_allclose(found["tmax"], [(10 + 30) / 2, (5 + 10) / 2])
    np.testing.assert_allclose(found["t_last"], [(10 + 30) / 2, (30 + 10) / 2])
    np.testing.assert_allclose(found["last"], [np.sqrt(10 * 60), np.sqrt(20 * 10)])
    np.testing.assert_allclose(found["blq"], [1 / 6, 1 / 6])


def test_two_sided_p_values_by_hand():
    """If it fails, ties count on one side, or p-values pass 1."""
    simulated = np.array([1.0, 2.0, 3.0, 4.0])
    assert two_sided(simulated, 0.0) == 0.0
    assert two_sided(simulated, 2.5) == 1.0
    assert two_sided(simulated, 4.0) == pytest.approx(0.25)
    assert two_sided(np.full(9, 7.0), 7.0) == 1.0
    assert np.isnan(two_sided(simulated, np.nan))


def test_p_values_of_trials_of_the_same_population_are_uniform(small_fit):
    """If it fails, a right model is called wrong, or a wrong one right."""
    trials = replicated(small_fit, n=900, seed=1, population="estimate")
    below = np.where(trials.limits.below(trials.ln_dv), -INF, trials.ln_dv)
    data = trials.data
    drawn = statistics(below, data.subject, data.time, trials.limits.lloq)
    for name in ("cmax", "cmax_sd"):
        p = [two_sided(drawn[name][:500], x) for x in drawn[name][500:]]
        assert stats.kstest(p, "uniform").pvalue > 1e-4, name


def test_a_trial_of_the_model_is_expected_and_another_is_not(small_fit):
    """If it fails, a trial with ten times the level, or a prior far from the data, shows nowhere."""
    table = predictive_checks(small_fit, seed=1, n=200)
    assert table.index.get_level_values("STATISTIC").unique().tolist() == list(STATISTICS)
    posterior = table.xs("posterior", level="FROM")
    assert (posterior["P"] > 0.01).all()
    data = small_fit.data
    higher = dataclasses.replace(data, dv=np.where(data.cens == 0, 10 * data.dv, data.dv))
    found = predictive_checks(small_fit, seed=1, n=200, data=higher).loc["qpcr"]
    assert found.loc[("cmax", "posterior"), "P"] < 0.05
    assert found.loc[("cmax", "posterior"), "OBSERVED"] > table.loc[("qpcr", "cmax", "posterior"), "OBSERVED"]
    wide = table.loc["qpcr"]
    assert np.ptp(wide.loc[("cmax", "prior"), ["LOW", "HIGH"]]) > np.ptp(
        wide.loc[("cmax", "posterior"), ["LOW", "HIGH"]]
    )


def test_observed_statistics_are_the_datas(small_fit):
    """If it fails, the table compares another trial's numbers."""
    table, data = predictive_checks(small_fit, seed=1, n=50).loc["qpcr"], small_fit.data
    best = [data.dv[data.subject == i].max() for i in range(data.n_subjects)]
    assert table.loc[("cmax", "posterior"), "OBSERVED"] == pytest.approx(np.exp(np.median(np.log(best))), rel=1e-12)
    assert table.loc[("blq", "prior"), "OBSERVED"] == pytest.approx(np.mean(data.cens == 1), abs=1e-15)
