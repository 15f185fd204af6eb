"""Calibration of a user's own model: ranks against closed forms, and the stored ranks of every structure."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import carkinetics as ck
import test_calibration
from bench_sbc import SEED, digest
from carkinetics.calibrating import Calibration, true_log_likelihood
from carkinetics.dataset import read_dataset
from carkinetics.errors import ModelError
from carkinetics.layout import make_layout
from carkinetics.rank_statistics import coverage
from carkinetics.simulation import simulate
from sbc_models import VARYING, sbc_design, sbc_model

ROOT = Path(__file__).parents[1]
STORED = sorted((ROOT / "benchmarks" / "results" / "sbc").glob("*.json"))
N, DRAWS = 200, 100


def of_ranks(ranks):
    """A calibration with these ranks of one quantity."""
    return Calibration(pd.DataFrame({"mu": ranks}), DRAWS, pd.Series(["ok"] * len(ranks)), "laplace", "a model")


def test_coverage_counts_the_part_of_a_rank_that_lies_inside():
    """If it fails, uniform ranks do not have the coverage of their interval, to the last digit."""
    every = np.arange(DRAWS + 1)
    for level in (0.5, 0.8, 0.9, 0.95):
        assert coverage(every, DRAWS, level) == pytest.approx(level, abs=1e-12)
    # Of four draws five places: the central half of (0, 5) is (1.25, 3.75).
    assert [coverage(np.array([k]), 4, 0.5) for k in range(5)] == pytest.approx([0.0, 0.75, 1.0, 0.75, 0.0])


@pytest.mark.parametrize(
    ("sd", "shift", "mean", "spread"), [(1.0, 0.0, 0.5, 1.0), (0.7, 0.0, 0.5, 1 / 0.7), (1.0, 1.0, 0.24, 1.0)]
)
def test_a_table_says_what_is_wrong_with_a_posterior(sd, shift, mean, spread):
    """A truth from a normal among draws of one that is too narrow, or shifted: mean and spread are known."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(4 * N)
    ranks = (shift + sd * rng.standard_normal((4 * N, DRAWS)) < truth[:, None]).sum(1)
    row = of_ranks(ranks).table().loc["mu"]
    right = sd == 1 and shift == 0
    assert row["MEAN"] == pytest.approx(mean, abs=0.04)
    assert row["SPREAD"] == pytest.approx(spread, rel=0.12)
    assert row["OUTSIDE"] == (not right)
    assert row["COVER 95 %"] == pytest.approx(
        np.diff(stats.norm.cdf((-1.96 * sd + shift, 1.96 * sd + shift)))[0], abs=0.03
    )
    assert (row["P"] > 1e-3) == right
    assert of_ranks(ranks).outside == ([] if right else ["mu"])


def test_the_figure_is_of_the_ranks():
    """If it fails, a panel shows another quantity, or no band."""
    ranks = np.arange(N) % (DRAWS + 1)
    axes = ck.plots.sbc(of_ranks(ranks))
    table = of_ranks(ranks).ecdf()
    assert len(axes) == 1
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), table["DIFFERENCE"])
    assert (table["LOW"] < 0).all() and (table["HIGH"] > 0).all()
    at = table.set_index("SHARE")["DIFFERENCE"]
    assert at.iloc[49] == pytest.approx(np.mean(ranks <= 49) - 50 / 101, abs=1e-12)


def test_the_log_likelihood_of_the_truth_is_scipys():
    """If it fails, the quantity that finds what single parameters hide is that of other patients or limits."""
    model = test_calibration.MODEL
    trial = simulate(model, test_calibration.COHORT, seed=3)
    assert (trial.table["CENS"] == 1).any()
    data = read_dataset(trial.table, units={"TIME": "day", "DV": "copies/ug"})
    layout = make_layout(model)
    fit = ck.Fit(model=model, data=data, tree=xr.DataTree())
    found = true_log_likelihood(fit, layout.start, trial.individual)
    samples = data.n_obs - (data.cens == 1).sum()
    assert samples > 0
    assert found == pytest.approx(test_calibration.log_likelihood(trial, model.assays[0].sigma), rel=1e-9)


def test_the_truth_that_is_ranked_is_the_one_that_was_simulated():
    """If it fails, every rank is of a population that nobody was drawn from."""
    from carkinetics.calibrating import _of, _trial

    model = sbc_model("expansion_contraction")
    trial = _trial(model, sbc_design("expansion_contraction"), 5, None)
    truth = simulate(model, sbc_design("expansion_contraction"), seed=_of(5, 0), uncertainty=True, limits=False).truth
    for component, x in zip(make_layout(model).components, trial.phi, strict=True):
        assert np.exp(x) == pytest.approx(truth[component.name], rel=1e-9)
    below = _trial(test_calibration.MODEL, test_calibration.COHORT, 1, 8)
    assert (below.table["CENS"] == 1).sum() == 8


def test_what_cannot_be_calibrated_is_refused():
    """If it fails, one trial passes for a calibration, or the search for a trial never ends."""
    model, design = test_calibration.MODEL, test_calibration.COHORT
    with pytest.raises(ModelError, match="n = 1"):
        ck.sbc(model, design, seed=1, n=1)
    with pytest.raises(ModelError, match="0 to the 48 samples"):
        ck.sbc(model, design, seed=1, n=2, below=10_000)


def test_every_structure_has_stored_ranks():
    """If it fails, a structure was added whose fits nobody has calibrated: 2 to 90 minutes on one core.

    `python benchmarks/bench_sbc.py --structure NAME`, with `--method quick` where it is solved as an ODE.
    """
    from carkinetics.structures import STRUCTURES

    assert set(VARYING) == set(STRUCTURES)
    assert {json.loads(path.read_text())["structure"] for path in STORED} == set(STRUCTURES)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_stored_ranks_are_what_was_stored(path):
    """If it fails, a file was changed by hand, holds too few trials, or is of another model than the command's."""
    found = json.loads(path.read_text())
    assert digest(found) == found["sha256"]
    assert path.stem == f"{found['structure']}_{found['method']}"
    ranks = np.array(found["ranks"])
    assert ranks.shape == (len(found["trials"]), len(found["quantities"]))
    assert len(found["status"]) >= 200 and len(ranks) >= 0.95 * len(found["status"])
    assert ranks.min() >= 0 and ranks.max() <= found["draws"]
    model = sbc_model(found["structure"])
    assert found["quantities"] == [*make_layout(model).phi_names, "log likelihood"]
    assert list(sbc_design(found["structure"]).times) == found["days"]
    again = Calibration(
        pd.DataFrame(ranks, columns=found["quantities"]), found["draws"], pd.Series(found["status"]), "", ""
    )
    assert again.outside == found["outside"]
    if found["method"] not in ("laplace", "quick"):
        assert found["outside"] == []  # an exact method must stay inside; an approximation says where it does not


@pytest.mark.thorough
@pytest.mark.parametrize("structure", ["expansion_contraction"])
def test_a_short_run_gives_the_stored_ranks(structure):
    """If it fails, fits have changed since the ranks were stored: run the command of the file again."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "sbc" / f"{structure}_laplace.json").read_text())
    found = ck.sbc(sbc_model(structure), sbc_design(structure), seed=SEED, n=3, method="laplace")
    assert list(found.ranks) == stored["quantities"]
    off = np.abs(found.ranks.to_numpy() - np.array(stored["ranks"])[:3])
    assert off.max() <= 2  # another machine rounds otherwise
    assert dataclasses.is_dataclass(found)


@pytest.mark.slow
@pytest.mark.parametrize("structure", sorted(VARYING))
def test_every_design_draws_trials_that_could_be(structure):
    """If it fails, the command of a structure ends in an error, or draws levels that no assay reports."""
    from carkinetics.calibrating import _trial

    model = sbc_model(structure)
    assert len(make_layout(model).random) == len(VARYING[structure])
    trial = _trial(model, sbc_design(structure), 1, None)
    samples = trial.table[trial.table["EVID"] == 0]
    assert np.isfinite(samples["DV"]).all()
    assert (samples["DV"] > 0).all()
    assert len(samples) == 80 * len(model.assays)
    assert trial.phi.shape == (len(make_layout(model).components),)
