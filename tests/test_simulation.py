"""Virtual patients: their distributions, their residuals, the assay's limit, and the table that comes out."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from carkinetics import solvers
from carkinetics.cohort import Cohort, inputs_for
from carkinetics.dataset import read_dataset
from carkinetics.density import compiled_ln_curves
from carkinetics.errors import CarkineticsError, ModelError
from carkinetics.model_files import load_model
from carkinetics.model_parts import Assay, Prior
from carkinetics.simulation import simulate, solve, truth_of

MODEL = load_model("stein_2019_tisagenlecleucel")
UNLIMITED = dataclasses.replace(MODEL, assays=(dataclasses.replace(MODEL.assays[0], lloq=None),))
FLOW = Assay("flow", "level", "PB", "copies/ug", "lognormal", 0.9, Prior("lognormal", np.log(0.9), 0.4), lloq=400.0)
SCHEDULE = (1.0, 4.0, 7.0, 9.0, 11.0, 14.0, 17.0, 21.0, 28.0, 60.0, 90.0, 180.0, 365.0)
Z = stats.norm.isf(0.5e-4)  # two-sided level of 1e-4; the seeds are fixed


def samples(simulation):
    return simulation.table[simulation.table["EVID"] == 0]


def ln_level(frame, individual):
    """Stein's curve as printed, at every row of a table."""
    p = individual.loc[frame["ID"]].reset_index(drop=True)
    t = frame["TIME"].to_numpy()
    s = np.maximum(t - p["tmax"], 0)
    fb = np.minimum(p["fb"], 1 - 1e-12)
    decline = np.log((1 - fb) * np.exp(-p["alpha"] * s) + fb * np.exp(-p["beta"] * s))
    rise = np.log(p["foldx"]) / p["tmax"] * np.minimum(t - p["tmax"], 0)
    return (np.log(p["cmax"]) + rise + decline).to_numpy()


@pytest.fixture(scope="module")
def large():
    return simulate(UNLIMITED, Cohort(n=20_000, times=(5.0, 30.0)), seed=11)


def test_individual_parameters_have_the_models_means_and_sds(large):
    """If it fails, virtual patients are of another population than the model's."""
    n = len(large.individual)
    assert n == 20_000
    for p in MODEL.parameters:
        x = np.log(large.individual[p.name])
        assert abs(x.mean() - np.log(p.value)) < Z * p.iiv / np.sqrt(n), p.name
        assert abs(x.std(ddof=1) / p.iiv - 1) < Z / np.sqrt(2 * n), p.name
    correlation = np.corrcoef(np.log(large.individual.to_numpy()).T)
    assert np.abs(correlation - np.eye(6)).max() < stats.norm.isf(0.5e-4 / 15) / np.sqrt(n)


def test_logit_parameters_and_those_without_variability_are_drawn_as_stated():
    """If it fails, a parameter of another transform, or without variability, is drawn as a log-normal."""
    parameters = tuple(
        dataclasses.replace(p, transform="logit", value=0.2, iiv=0.7)
        if p.name == "fb"
        else dataclasses.replace(p, iiv=0.0)
        if p.name == "beta"
        else p
        for p in UNLIMITED.parameters
    )
    model = dataclasses.replace(UNLIMITED, parameters=parameters)
    drawn = simulate(model, Cohort(n=20_000, times=(5.0,)), seed=12).individual
    x = np.log(drawn["fb"] / (1 - drawn["fb"]))
    assert abs(x.mean() - np.log(0.25)) < Z * 0.7 / np.sqrt(20_000)
    assert abs(x.std() / 0.7 - 1) < Z / np.sqrt(40_000)
    np.testing.assert_allclose(drawn["beta"], 0.0032, rtol=1e-12)


def test_residuals_are_normal_on_the_log_scale_with_the_models_sigma(large):
    """If it fails, the simulated noise is of another size or shape than the likelihood's, or of another curve."""
    rows = samples(large)
    residual = np.log(rows["DV"].to_numpy()) - ln_level(rows, large.individual)
    n = len(residual)
    assert n == 40_000
    assert abs(residual.mean()) < Z * 0.56 / np.sqrt(n)
    assert abs(residual.std(ddof=1) / 0.56 - 1) < Z / np.sqrt(2 * n)
    assert stats.kstest(residual / 0.56, "norm").pvalue > 1e-4
    by_patient = residual.reshape(-1, 2)
    assert abs(np.corrcoef(by_patient.T)[0, 1]) < Z / np.sqrt(n / 2)  # independent from sample to sample


def test_each_assay_has_its_own_noise_and_limit():
    """If it fails, the second assay repeats the first one's noise, or uses its sigma or limit."""
    both = simulate(UNLIMITED.with_assay(dataclasses.replace(FLOW, lloq=None)), Cohort(n=5000, times=(7.0,)), seed=13)
    rows = samples(both)
    residual = pd.Series(np.log(rows["DV"].to_numpy()) - ln_level(rows, both.individual), index=rows["DVID"])
    for name, sigma in (("qpcr", 0.56), ("flow", 0.9)):
        assert abs(residual[name].std() / sigma - 1) < Z / np.sqrt(2 * 5000)
    assert abs(np.corrcoef(residual["qpcr"], residual["flow"])[0, 1]) < Z / np.sqrt(5000)


def test_values_are_censored_exactly_where_they_are_below_the_limit():
    """If it fails, values below the limit leak into the table, or quantified ones are lost."""
    cohort = Cohort(n=300, times=SCHEDULE)
    free = samples(simulate(UNLIMITED.with_assay(dataclasses.replace(FLOW, lloq=None)), cohort, seed=14))
    cut = samples(simulate(MODEL.with_assay(FLOW), cohort, seed=14))
    keys = ["ID", "TIME", "DVID"]
    rows = cut.merge(free, on=keys, suffixes=("", "_free"))
    assert len(rows) == len(cut) == 300 * 13 * 2
    limit = rows["DVID"].map({"qpcr": 50.0, "flow": 400.0})
    below = rows["DV_free"] < limit
    assert 0.05 < below.mean() < 0.95
    np.testing.assert_array_equal(rows["CENS"], below.astype(int))
    np.testing.assert_array_equal(rows["DV"], np.where(below, limit, rows["DV_free"]))
    assert (free["CENS"] == 0).all()


def test_the_share_below_the_limit_is_the_models():
    """If it fails, a virtual study is more or less censored than the model says."""
    n = 20_000
    rows = samples(simulate(MODEL, Cohort(n=n, times=(0.0,)), seed=15))
    # ln level at day 0 is ln cmax - ln foldx plus noise: normal, with the variances added up.
    mean, variance = np.log(24000) - np.log(3900), 0.65 + 2.4 + 0.56**2
    share = stats.norm.cdf((np.log(50) - mean) / np.sqrt(variance))
    assert abs(rows["CENS"].mean() - share) < Z * np.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("seed", range(5))
def test_the_reader_reads_the_table_without_a_word(seed):
    """If it fails, the library warns of its own tables, or reads another number of samples and doses."""
    simulation = simulate(MODEL, Cohort(n=30, times=SCHEDULE), seed=seed)
    data = read_dataset(simulation.table, units={"DV": "copies/ug", "AMT": "cells"})  # warnings are errors here
    assert [n for n in data.report.notes if n.warned] == []
    assert (data.n_subjects, data.n_obs) == (30, 30 * 13)
    assert data.subjects == tuple(simulation.individual.index)
    doses = simulation.table[simulation.table["EVID"] == 1]
    np.testing.assert_array_equal(data.doses()["AMT"], doses.sort_values("ID")["AMT"])
    ours = samples(simulation).sort_values(["ID", "TIME"])
    np.testing.assert_array_equal(data.dv, ours["DV"])
    np.testing.assert_array_equal(data.cens, ours["CENS"])


def test_a_csv_file_of_the_table_reads_the_same(tmp_path):
    """If it fails, a virtual study cannot be written down and read again."""
    table = simulate(MODEL, Cohort(n=12, times=SCHEDULE), seed=1).table
    table.to_csv(tmp_path / "study.csv", index=False)
    units = {"DV": "copies/ug"}
    assert read_dataset(tmp_path / "study.csv", units=units).sha256 == read_dataset(table, units=units).sha256


def test_the_same_seed_gives_the_same_study_and_another_one_another():
    """If it fails, a virtual study cannot be repeated, or every one is the same."""
    cohort = Cohort(n=10, times=SCHEDULE)
    one, two, other = (simulate(MODEL, cohort, seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(one.individual, two.individual)
    assert not np.isclose(one.individual, other.individual).any()


def test_simulating_leaves_the_global_random_state_alone():
    """If it fails, a simulation changes the user's other random numbers, or depends on them."""
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate(MODEL, Cohort(n=3, times=(1.0,)), seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("dose", [(1e6, 5e6), (2e6, 2e6), (1.234e6, 1.236e6), (2e3, 8e3), (1.5e4, 2.4e4)])
def test_doses_and_weights_lie_within_their_ranges(dose):
    """If it fails, a virtual patient gets a dose that the protocol forbids, or none at all."""
    table = simulate(MODEL, Cohort(n=200, times=(1.0,), dose_per_kg=dose, weight=(50.0, 60.0)), seed=5).table
    assert table["DOSE_PER_KG"].between(*dose).all()
    assert table["WT"].between(50, 60).all()
    rows = table[table["EVID"] == 1]
    assert len(rows) == 200
    np.testing.assert_allclose(rows["AMT"], rows["DOSE_PER_KG"] * rows["WT"], rtol=1e-12)
    assert (rows["TIME"] == 0).all()
    assert (table.groupby("ID")[["WT", "DOSE_PER_KG"]].nunique() == 1).all(axis=None)


def test_doses_are_uniform_on_the_log_scale():
    """If it fails, low doses are rarer than the cohort's description says."""
    table = simulate(MODEL, Cohort(n=5000, times=(1.0,), dose_per_kg=(1e6, 1e8)), seed=6).table
    share = np.log(table.loc[table["EVID"] == 1, "DOSE_PER_KG"] / 1e6) / np.log(100)
    assert stats.kstest(share, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": -3},
        {"n": True},
        {"times": ()},
        {"times": (-1.0, 3.0)},
        {"times": (3.0, 1.0)},
        {"times": (1.0, 1.0)},
        {"times": (1.0, float("nan"))},
        {"times": (float("nan"),)},
        {"times": (1.0, float("inf"))},
        {"dose_per_kg": (5e6, 1e6)},
        {"dose_per_kg": (0.0, 1e6)},
        {"dose_per_kg": (-1e6, 1e6)},
        {"dose_per_kg": (float("nan"), 1e6)},
        {"dose_per_kg": (1e6, float("inf"))},
        {"weight": (90.0, 40.0)},
        {"weight": (0.0, 40.0)},
        {"weight": (-10.0, 40.0)},
        {"weight": (40.0, float("nan"))},
    ],
    ids=str,
)
def test_cohorts_that_cannot_be_are_refused(change):
    """If it fails, a mistake in the design gives a study of NaN, or an error out of NumPy."""
    cohort = Cohort(**({"n": 3, "times": (1.0, 7.0)} | change))
    with pytest.raises(ModelError):
        simulate(MODEL, cohort, seed=1)


def test_a_seed_out_of_range_is_refused():
    """If it fails, a negative seed ends in an error out of NumPy instead of a sentence."""
    with pytest.raises(CarkineticsError, match="seed"):
        simulate(MODEL, Cohort(n=3, times=(1.0,)), seed=-1)


def test_the_truth_is_named_as_in_the_parameter_table():
    """If it fails, recovery tests compare an estimate with the truth of another parameter."""
    truth = simulate(MODEL, Cohort(n=1, times=(1.0,)), seed=1).truth
    assert truth == truth_of(MODEL)
    assert truth["cmax"] == 24000
    assert truth["omega cmax"] == pytest.approx(np.sqrt(0.65))
    assert truth["sigma qpcr"] == 0.56
    assert len(truth) == 13


@pytest.mark.thorough
def test_a_patient_for_whom_steps_are_too_long_is_solved_by_shorter_ones():
    """If it fails, one expander in hundreds has 1e87 cells, or none, and nothing says so."""
    model = load_model("mueller_schoell_2021_axicabtagene")
    typical = np.array([p.value for p in model.parameters])
    extreme = typical.copy()
    for name, value in {"vmax1": 0.358, "vmax5_2": 0.526, "b0": 115.0}.items():
        extreme[[p.name for p in model.parameters].index(name)] = value
    times, values = np.array([3.0, 7.0, 14.0, 28.0]), np.stack([typical, extreme], axis=1)
    x = inputs_for(model, Cohort(2, times.tolist(), dose=2e8), pd.DataFrame(index=range(2)).assign(DOSE=2e8))
    with jax.enable_x64(True):
        grid = solvers.make_grid(model.structure, np.tile(times[:, None], 2), x)
        first = compiled_ln_curves(model.structure, grid, values, x)
        assert (np.asarray(first["level"]).max(axis=0) > 100).tolist() == [False, True]
        found = solve(model.structure, times, values, x)
        fine = solve(model.structure, times, values, x, refine=64)
    for name, curve in found.items():
        np.testing.assert_allclose(curve, fine[name], atol=2e-2 if name == "tumour" else 2e-3)
    assert found["level"].max() < np.log(1e4)
    with pytest.raises(ModelError, match=r"no curve for patient\(s\), with their parameters: 1 "):
        solve(model.structure, times, np.full((len(typical), 2), np.nan), x)


def test_a_model_without_variability_between_patients_is_simulated():
    """If it fails, models of one animal or one cell line cannot be simulated: nothing in them is random."""
    known = {f"sigma.{a}": 0.1 for a in ("cells", "tumour")}
    table = simulate(load_model("barros_2021_hdlm2").with_values(known), Cohort(2, (1.0, 7.0), dose=2e6), seed=1)
    found = samples(table)
    assert len(found) == 8 and np.isfinite(found["DV"]).all()
    assert found["DV"].nunique() == 8  # residuals differ, curves do not
