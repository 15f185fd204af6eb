"""Dropping what is below the limit (M1): what goes, what is said, and which way it biases."""

import dataclasses

import numpy as np
import pytest

import carkinetics as ck

STEIN = ck.load_model("stein_2019_tisagenlecleucel")


def test_only_censored_samples_go_and_it_is_said(rich_trial):
    """If it fails, quantified samples are lost, or a biased fit looks like any other."""
    data = ck.read_dataset(rich_trial.table, units={"DV": "copies/ug"})
    less = ck.drop_censored(data)
    assert 0 < (data.cens != 0).sum() == data.n_obs - less.n_obs
    assert (less.cens == 0).all()
    assert less.subjects == data.subjects
    np.testing.assert_array_equal(np.sort(less.dv), np.sort(data.dv[data.cens == 0]))
    assert f"{data.n_obs - less.n_obs} censored samples were dropped (M1)" in str(less.report)
    assert (less.report.excluded["REASON"] == "censored, dropped (M1)").sum() == data.n_obs - less.n_obs
    assert less.sha256 != data.sha256


def test_three_states_are_simulated_and_read_back():
    """Not detected below the lod; between it and the lloq detected; quantified from there on."""
    assay = dataclasses.replace(STEIN.assays[0], lloq=100.0, lod=20.0)
    model = STEIN.with_assay(assay)
    cohort = ck.Cohort(n=60, times=(1.0, 3.0, 7.0, 28.0, 90.0, 168.0))
    found = ck.simulate(model, cohort, seed=3)
    free = ck.simulate(model, cohort, seed=3, limits=False).samples["dv"].values
    rows = found.table[found.table["EVID"] == 0]
    state = np.select([free < 20, free < 100], [0, 1], 2).ravel()
    cens, limit, dv = rows["CENS"].to_numpy(), rows["LIMIT"].to_numpy(), rows["DV"].to_numpy()
    assert [(state == k).sum() > 10 for k in range(3)] == [True] * 3
    np.testing.assert_array_equal(cens, (state < 2).astype(int))
    np.testing.assert_array_equal(dv[state == 0], 20.0)
    np.testing.assert_array_equal(dv[state == 1], 100.0)
    np.testing.assert_array_equal(limit[state == 1], 20.0)
    assert np.isnan(limit[state != 1]).all()
    data = ck.read_dataset(found.table, units={"DV": "copies/ug"})
    assert ((data.cens == 1) & np.isfinite(data.limit)).sum() == (state == 1).sum()
    assert ((data.cens == 1) & np.isnan(data.limit)).sum() == (state == 0).sum()


def test_an_infusion_phase_is_added_where_early_samples_show_it():
    """If it fails, the fall of infused cells is fitted as growth; or it is added where nobody can see it."""
    from carkinetics.infusion import with_evidence
    from carkinetics.structures.infusion_phase import InfusionPhase

    cohort = ck.Cohort(n=30, times=(0.05, 1.0, 2.0, 4.0, 7.0, 10.0, 14.0, 28.0))
    falling = ck.simulate(STEIN.with_infusion_phase(c0=5000.0), cohort, seed=1).table
    rising = ck.simulate(STEIN, cohort, seed=1).table
    for table, shown in ((falling, True), (rising, False)):
        data = ck.read_dataset(table, units={"DV": "copies/ug"})
        model, notes = with_evidence(STEIN, data)
        assert isinstance(model.structure, InfusionPhase) == shown
        assert [n for n in notes if "infusion_phase=False leaves it out" in n] == notes
        assert bool(notes) == shown
        assert with_evidence(STEIN, data, infusion_phase=False) == (STEIN, [])
        assert isinstance(with_evidence(STEIN, data, infusion_phase=True)[0].structure, InfusionPhase)


def test_counts_are_of_what_they_were_counted_in():
    """A negative binomial count in so many uL of blood: its mean is cells per uL times that; none is below 1."""
    import jax
    from scipy import stats

    from carkinetics.density import log_likelihood
    from carkinetics.observations import make_observations, row_positions

    counts = dataclasses.replace(
        STEIN.assays[0], name="flow", unit="events", error="negative_binomial", sigma=0.3, lloq=1.0, per="UL"
    )
    model = dataclasses.replace(STEIN.with_values({"cmax": 40.0}), assays=(counts,))
    volume = {"UL": 25.0}
    trial = ck.simulate(model, ck.Cohort(n=40, times=(7.0, 28.0, 90.0), covariates=volume), seed=2)
    data = ck.read_dataset(trial.table, units={"DV": "events"})
    assert (data.cens == 1).any() and (data.dv == np.round(data.dv)).all()
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        cells = np.full(obs.n_obs, np.log(3.0))  # per uL
        found = log_likelihood(cells + obs.offset, jax.numpy.array([[0.3], [np.nan]]), obs)
    at = row_positions(model, data)
    n, mean = 1 / 0.3, 75.0
    law = stats.nbinom(n, n / (n + mean))
    expected = np.where(data.cens == 1, law.logpmf(0), law.logpmf(data.dv))
    np.testing.assert_allclose(np.asarray(found)[at], expected, rtol=1e-9)
    without = dataclasses.replace(model, assays=(dataclasses.replace(counts, per="ML"),))
    with pytest.raises(ck.DataError, match="reads column ML"):
        make_observations(without, data)
