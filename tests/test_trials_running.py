"""Many trials: the same numbers however they are run, nothing is lost, and shares are those of exact enumeration."""

import json
import os
import pickle
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest

import arms
import carkinetics as ck
from carkinetics.trials import running
from carkinetics.trials.batches import digest
from carkinetics.trials.characteristics import true_rates
from carkinetics.trials.files import parse_trial
from carkinetics.trials.simulation import replicate_seed

QUIET = (("dropout_per_year = 0.5", "dropout_per_year = 0"), ("median = 300", "median = 1e9"))


@pytest.fixture(scope="module")
def trial():
    """24 patients, two levels, BOIN."""
    return parse_trial(arms.with_design())


@pytest.fixture(scope="module")
def twelve(trial):
    """Twelve trials, in this process."""
    return ck.simulate_trials(trial, 12, seed=5, analyse="design", progress=False)


def test_every_trial_is_one_that_can_be_looked_at(trial, twelve):
    """If it fails, a trial of a run cannot be simulated again by itself."""
    for r in (0, 7):
        alone = ck.simulate_trial(trial, seed=replicate_seed(5, r))
        row = twelve.replicates.loc[r]
        assert row["seed"] == alone.seed and row["dlt"] == alone.patients["DLT"].sum()
        assert row["patients_1"] == (alone.patients["LEVEL"] == 1).sum()


def test_a_folder_is_gone_on_from(trial, twelve, tmp_path):
    """If it fails, an interrupted run begins anew, or ends with other numbers."""
    half = ck.simulate_trials(trial, 7, seed=5, analyse="design", folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(half.replicates, twelve.replicates.iloc[:7])
    first = tmp_path / "batch_000000.json"
    before = first.stat().st_mtime_ns
    whole = ck.simulate_trials(trial, 12, seed=5, analyse="design", folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(whole.replicates, twelve.replicates)
    assert first.stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.glob("batch_*")) == [f"batch_00000{k}.json" for k in range(3)]
    fewer = ck.simulate_trials(trial, 3, seed=5, analyse="design", folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(fewer.replicates, twelve.replicates.iloc[:3])


def test_what_is_finished_is_not_done_again(trial, tmp_path, monkeypatch):
    """If it fails, a restart costs what was done before."""
    ck.simulate_trials(trial, 6, seed=1, analyse="design", folder=tmp_path, progress=False)
    (tmp_path / "batch_000000.json").unlink()
    asked = []
    monkeypatch.setattr(running, "_one", lambda t, s, a, f: asked.append(s) or {"stopped": 0})
    ck.simulate_trials(trial, 6, seed=1, analyse="design", folder=tmp_path, progress=False)
    assert asked == [replicate_seed(1, r) for r in range(5)]


@pytest.mark.parametrize("change", ["trial", "seed", "analyse"])
def test_a_folder_of_another_run_is_refused(trial, tmp_path, change):
    """If it fails, trials of two kinds are averaged."""
    ck.simulate_trials(trial, 2, seed=1, analyse="design", folder=tmp_path, progress=False)
    other = parse_trial(arms.with_design(arms.BOIN, ("probability = 0.2", "probability = 0.21")))
    what = {"trial": (other, 1, "design"), "seed": (trial, 2, "design"), "analyse": (trial, 1, shares)}
    with pytest.raises(ck.FitError, match="batches of another run"):
        of, seed, how = what[change]
        ck.simulate_trials(of, 2, seed=seed, analyse=how, folder=tmp_path, progress=False)


@pytest.mark.parametrize("content", ["", '{"rows": 3}', '{"rows": [{"a": 1}]}', "[1]", '{"rows": ['])
def test_a_damaged_file_is_named(trial, tmp_path, content):
    """If it fails, a damaged file is taken for trials, or ends in a traceback."""
    ck.simulate_trials(trial, 2, seed=1, analyse="design", folder=tmp_path, progress=False)
    (tmp_path / "batch_000000.json").write_text(content)
    with pytest.raises(ck.FitError, match=r"batch_000000.json.*Delete it"):
        ck.simulate_trials(trial, 2, seed=1, analyse="design", folder=tmp_path, progress=False)


def test_batches_are_plain_json(trial, tmp_path):
    """If it fails, a file holds what only one program reads, or something that could be executed."""
    ck.simulate_trials(trial, 2, seed=1, analyse="design", folder=tmp_path, progress=False)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json"]
    rows = json.loads((tmp_path / "batch_000000.json").read_text())["rows"]
    assert all(isinstance(v, int | float | str | None) for row in rows for v in row.values())


def shares(found, seed):
    """An analysis of one's own."""
    return {"share": float(found.patients["ORR"].mean()), "nothing": float("nan"), "who": str(found.trial.name)}


def test_an_analysis_of_your_own(trial):
    """If it fails, only the library's analysis can be judged."""
    found = ck.simulate_trials(trial, 2, seed=1, analyse=shares, progress=False)
    assert found.replicates["share"].between(0, 1).all() and found.replicates["nothing"].isna().all()


def test_wrong_arguments_are_refused(trial):
    """If it fails, a slip is taken for a run."""
    with pytest.raises(ck.ModelError, match="n = 0"):
        ck.simulate_trials(trial, 0, seed=1)
    with pytest.raises(ck.ModelError, match="workers = 0"):
        ck.simulate_trials(trial, 1, seed=1, workers=0)
    with pytest.raises(ck.ModelError, match="choose 'laplace' or 'design'"):
        ck.simulate_trials(trial, 1, seed=1, analyse="nuts")


@pytest.mark.thorough
def test_shares_are_those_of_exact_enumeration():
    """If it fails, trials that are simulated from the kinetics are not those of the design with the same DLT rates.

    Without losses, and with all patients in the design's part, what BOIN selects depends on the DLT rates alone.
    """
    text = arms.with_design(arms.BOIN.replace("patients = 12", "patients = 24"), *QUIET)
    trial = parse_trial(text)
    found = ck.simulate_trials(trial, 150, seed=3, analyse="design", progress=False)
    exact = ck.design.exact(trial.assignment.design, found.truth["DLT"].to_numpy(), patients=24, cohort=3)
    for name in ("SELECTED", "PATIENTS", "DLT"):
        off = (found.table[name] - exact.table[name]) / found.table[f"{name}_SE"]
        assert (off.abs() < 4).all(), (name, off)
    assert abs(found.summary.loc["stopped", "VALUE"] - exact.summary.loc["stopped", "VALUE"]) < 0.05


def test_true_rates_are_those_of_quadrature(trial):
    """If it fails, trials are judged against another truth: P(DLT) averaged over the log-normal peak."""
    table = true_rates(parse_trial(arms.text(('source = "a test"\n\n[[kinetics', 'values = { "omega.tmax" = 0.1 }\n'
        'source = "a test"\n\n[[kinetics'))))  # fmt: skip
    eta, weight = np.polynomial.hermite_e.hermegauss(80)
    for row in table.to_dict("records"):
        peak = 24000 * (row["DOSE"] / 2e6) ** 0.5 * np.exp(trial.model["cmax"].iiv * eta)
        exact = float(weight @ trial.toxicity.chance(peak) / weight.sum())
        assert abs(row["DLT"] - exact) < 4 * row["DLT_SE"]


def test_the_true_response_rate_is_that_of_simulated_patients():
    """If it fails, responses are counted otherwise than the truth that they are compared with (deaths included)."""
    sizes = (
        ("patients = 10", "patients = 1000"),
        ("patients = 14", "patients = 1000"),
        ("patients = 24", "patients = 2000"),
    )
    trial = parse_trial(arms.text(*sizes, ("dropout_per_year = 0.5", "dropout_per_year = 0")))
    seen = ck.simulate_trial(trial, seed=9).patients.groupby("LEVEL")["ORR"].mean()
    table = true_rates(trial).set_index("LEVEL")["ORR"]
    assert ((seen - table).abs() < 4 * np.sqrt(0.25 / 1000 + 0.25 / 4000)).all()


def test_monte_carlo_errors_are_those_of_means(twelve):
    """If it fails, an error is not the standard deviation over the root of the number of trials."""
    x = twelve.replicates["dlt"].astype(float)
    row = twelve.summary.loc["dlt"]
    assert row["VALUE"] == pytest.approx(x.mean()) and row["SE"] == pytest.approx(x.std() / np.sqrt(12))
    assert twelve.table["SELECTED"].sum() + (twelve.replicates["selected"] == 0).mean() == pytest.approx(1.0)
    assert "12 trials" in str(twelve)


@pytest.mark.slow
def test_four_workers_give_the_same_bits(trial, twelve, tmp_path):
    """If it fails, the answer depends on how many processes computed it."""
    pytest.importorskip("distributed")
    found = ck.simulate_trials(trial, 12, seed=5, analyse="design", workers=4, folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(found.replicates, twelve.replicates, check_exact=True)


def slowly(found, seed):
    """An analysis that takes long enough to be killed, and says in which process it ran."""
    time.sleep(0.5)
    return {"pid": os.getpid()}


def test_a_trial_that_is_sent_again_is_the_one_that_was_sent(trial):
    """If it fails, a worker compiles everything anew for each batch, until no memory can be mapped any more."""
    sent = running.Sent(digest(trial), trial)
    first, second = (pickle.loads(pickle.dumps(sent)) for _ in range(2))
    assert first.trial is not second.trial
    assert running._received(first) is running._received(second)
    other = parse_trial(arms.with_design(arms.BOIN, ("probability = 0.2", "probability = 0.21")))
    assert running._received(running.Sent(digest(other), other)) is other


@pytest.mark.slow
def test_workers_keep_memory_and_are_not_profiled():
    """If it fails, a run takes a quarter longer than it says."""
    pytest.importorskip("distributed")
    config = pytest.importorskip("dask.config")
    with running._cluster(None, 1) as at:
        assert at.run(config.get, "distributed.worker.profile.enabled") == dict.fromkeys(at.nthreads(), False)
        kept = at.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_")
        assert set(kept.values()) == {running.KEPT["MALLOC_TRIM_THRESHOLD_"]}


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(trial, twelve, tmp_path):
    """If it fails, a process that dies takes finished trials with it, or the run ends."""
    distributed, killed = pytest.importorskip("distributed"), []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, env=running.ALONE, silence_logs=50
    ) as cluster, distributed.Client(cluster) as client:  # fmt: skip

        def kill():
            while not (done := list(tmp_path.glob("batch_*.json"))):
                time.sleep(0.1)
            killed.append(json.loads(done[0].read_text())["rows"][0]["pid"])
            os.kill(killed[0], signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        found = ck.simulate_trials(trial, 80, seed=5, analyse=slowly, client=client, folder=tmp_path, progress=False)
        assert killed and killed[0] not in client.run(os.getpid).values()
    same = [c for c in twelve.replicates if c != "pid"]
    pd.testing.assert_frame_equal(found.replicates[same].iloc[:12], twelve.replicates[same], check_exact=True)
    assert len(found.replicates) == 80 and killed[0] in set(found.replicates["pid"])
    assert found.replicates["pid"].nunique() >= 3  # its successor took part


@pytest.mark.slow
def test_a_fit_gives_the_same_bits_with_four_workers(trial):
    """If it fails, fits depend on the number of processes or threads."""
    alone = ck.simulate_trials(trial, 6, seed=2, progress=False)
    found = ck.simulate_trials(trial, 6, seed=2, workers=4, progress=False)
    pd.testing.assert_frame_equal(found.replicates, alone.replicates, check_exact=True)
    assert (alone.replicates["analysis"] == "done").sum() >= 3


@pytest.mark.slow
@pytest.mark.parametrize("steep", [False, True])
def test_more_is_better_where_it_is(steep):
    """If it fails, a plan says that more is better where the dose does nothing, or misses it where it does much."""
    slope = (
        (("value = 0.5", "value = 3.0"), ("slope = 0.8", "slope = 1.5")) if steep else (("value = 0.5", "value = 0.0"),)
    )
    sizes = (("patients = 10", "patients = 30"), ("patients = 14", "patients = 30"), ("patients = 24", "patients = 60"))
    found = ck.simulate_trials(parse_trial(arms.text(*slope, *sizes, *QUIET)), 10, seed=4, progress=False)
    said = found.replicates["more"]
    assert (found.replicates["analysis"] == "done").sum() >= 9
    assert said.mean() >= 0.7 if steep else said.mean() <= 0.3
