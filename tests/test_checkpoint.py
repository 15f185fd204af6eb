"""A killed fit goes on with the draws it would have had; nothing wrong with its folder passes unnoticed."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from carkinetics import cli, fitting
from carkinetics.demo import read_trial, virtual_trial
from carkinetics.errors import FitError, FitWarning
from carkinetics.fitting import fit
from carkinetics.inference import checkpoint as checkpoints
from carkinetics.inference import identity, records
from carkinetics.inference.chains import Settings
from carkinetics.inference.lock import locked
from carkinetics.inference.records import Damaged, read_record, write_record
from carkinetics.model_parts import Prior
from interrupted_fit import small_model

SCRIPT = Path(__file__).parent / "interrupted_fit.py"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs, shared by this module's fits and their processes."""
    folder = tmp_path_factory.mktemp("compiled")
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    _use_cache(str(folder), 0.1)
    yield folder
    _use_cache(*before)


def _use_cache(folder, seconds):
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def save_every_block(monkeypatch):
    """Every block is kept: tests are too short to wait."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def options(nuts_options):
    """Of a short fit in two stages, of 150 and 200 iterations at least."""
    return nuts_options


@pytest.fixture(scope="module")
def small_settings(options):
    return options["settings"]


@pytest.fixture(scope="module")
def small_fit(small_nuts):
    """The fit without a checkpoint."""
    return small_nuts


@pytest.fixture
def run(options):
    """The fit of ``small_fit``, with other options and a checkpoint."""
    return lambda folder, **other: fit(**options | other, checkpoint=folder)


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """The folder of a finished fit, and the fit."""
    folder = tmp_path_factory.mktemp("checkpoints") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
        return folder, fit(**options, checkpoint=folder)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished fit's folder without the record that it is finished."""
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    (copy / "finished.ckpt").unlink()
    return copy


def same(first, second):
    """Whether two fits have bitwise the same draws."""
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
        a, b = (f.tree[group].to_dataset() for f in (first, second))
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name].values, b[name].values)
    assert first.tree.attrs["gradients"] == second.tree.attrs["gradients"]


def forget(folder, *patterns):
    """Delete records, as if the process had been killed before it wrote them."""
    for pattern in patterns:
        paths = list(folder.glob(pattern))
        assert paths, pattern
        for path in paths:
            path.unlink()


def alter(path, how):
    """Damage a file."""
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 4
    path.write_bytes({"truncated": content[: len(content) // 2], "flipped": bytes(flipped), "empty": b""}[how])


def process(folder, result, *fault, cache):
    """A fit in a process of its own."""
    environment = os.environ | {"CARKINETICS_CACHE": str(cache), "PYTHONWARNINGS": "error"}
    environment["PYTHONPATH"] = str(Path(fitting.__file__).parents[1])
    command = [sys.executable, str(SCRIPT), str(folder), str(result), *fault]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def same_draws(result, reference):
    """Whether a process of its own wrote the draws of ``reference``."""
    with np.load(result, allow_pickle=False) as found:
        posterior = reference.tree["posterior"].to_dataset()
        assert set(found) == {*posterior, "lp"}
        for name in posterior:
            np.testing.assert_array_equal(found[name], posterior[name].values)
        np.testing.assert_array_equal(found["lp"], reference.tree["sample_stats"]["lp"].values)


@pytest.mark.thorough
@pytest.mark.usefixtures("finished")  # has compiled the programs that the processes then find
def test_killed_in_pilot_warm_up_and_sampling_and_while_writing(small_fit, cache, tmp_path):
    """K01: four processes, three of them killed, have the draws of one that was left alone."""
    faults = [
        ("before", "stage-0.chain-1.00000050.ckpt"),
        ("after", "stage-1.chain-0.00000050.ckpt"),
        ("before", "stage-1.chain-1.00000175.ckpt"),
    ]
    for fault in faults:
        killed = process(tmp_path / "run", tmp_path / "draws.npz", *fault, cache=cache)
        _, said = killed.communicate()
        assert killed.returncode == -signal.SIGKILL, said
        assert (tmp_path / "run" / fault[1]).exists() == (fault[0] == "after")
    last = process(tmp_path / "run", tmp_path / "draws.npz", cache=cache)
    _, said = last.communicate()
    assert last.returncode == 0, said
    same_draws(tmp_path / "draws.npz", small_fit)
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_killed_at_any_moment(small_fit, cache, tmp_path, moment):
    """K01: SIGKILL after random delays until a process comes through; the draws never differ."""
    clock = random.Random(moment)
    for patience in [clock.uniform(1, 8) * 1.3**kills for kills in range(8)] + [None]:
        running = process(tmp_path / "run", tmp_path / "draws.npz", cache=cache)
        try:
            _, said = running.communicate(timeout=patience)
            break
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
    assert running.returncode == 0, said
    same_draws(tmp_path / "draws.npz", small_fit)


@pytest.mark.parametrize(
    "lost",
    [
        ("stage-*",),
        ("stage-1*",),
        ("stage-0.chain-1.00000150.ckpt", "stage-1*"),
        ("stage-1.chain-0.*",),
        ("stage-1.chain-1.0000017?.ckpt", "stage-1.chain-1.0000020?.ckpt"),
    ],
    ids=["start", "after the pilot", "pilot", "one chain behind", "sampling"],
)
def test_what_was_not_written_is_sampled_again(small_fit, folder, run, lost):
    """A checkpoint of any moment leads to the same draws: with chains of different length, or between stages."""
    forget(folder, *lost)
    same(run(folder), small_fit)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "lost",
    [
        ("stage-*",),
        ("stage-1*", "stage-2*", "stage-3*"),
        ("stage-1.chain-1*", "stage-2*", "stage-3*"),
        ("stage-3.chain-0*",),
    ],
    ids=["start", "after the first pilot", "second pilot", "sampling"],
)
def test_importance_goes_on_with_the_same_draws(importance, run, tmp_path, lost):
    """If it fails, what the proposals are tuned to is not kept whole."""
    folder, alone, settings = importance
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    forget(copy, "finished.ckpt", *lost)
    same(run(copy, method="importance", settings=settings), alone)


@pytest.fixture(scope="module")
def importance(options, tmp_path_factory):
    """The folder of a finished fit by importance Gibbs, the same fit without a folder, and its settings."""
    folder, settings = tmp_path_factory.mktemp("importance") / "run", Settings(100, 50, 50, 50, proposals=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
        other = {"method": "importance", "settings": settings}
        fit(**options | other, checkpoint=folder)
        return folder, fit(**options | other), settings


@pytest.mark.thorough
def test_extensions_careful_stages_and_a_tuning_anew_are_gone_through_again(run, monkeypatch, tmp_path):
    """Decisions fall out the same: a resumed run must not judge by draws that came after the decision."""
    monkeypatch.setattr(fitting, "EXTENSION", 50)
    monkeypatch.setattr(fitting, "_few_divergences", lambda states: states[0].warmup > 0)
    monkeypatch.setattr(fitting, "RETUNE_RHAT", 0.0)
    decided = []
    monkeypatch.setattr(fitting, "gate_failures", lambda phi: decided.append(phi.shape[1]) or int(phi.shape[1] < 150))
    settings = Settings(pilot=50, warmup=50, draws=50, max_draws=200, target_accept=0.8)
    alone = run(None, settings=settings)
    # A stage with a few divergences; a careful one, which never converges; tuned anew, both once more.
    assert decided == [50, 100, 50, 100, 150]
    run(tmp_path / "run", settings=settings)
    for lost in (
        ("stage-4.chain-1.00000125.ckpt", "stage-4.chain-1.00000150.ckpt"),
        ("stage-4*",),
        ("stage-3.chain-0.00000100.ckpt", "stage-4*"),
        ("stage-2*", "stage-3*", "stage-4*"),
    ):
        forget(tmp_path / "run", "finished.ckpt", *lost)
        decided.clear()
        same(run(tmp_path / "run", settings=settings), alone)
        assert decided == [50, 100, 50, 100, 150]


def test_a_finished_fit_is_returned_as_it_was(finished, small_fit, run, monkeypatch):
    """The same call after the end samples nothing, compiles no sampler, and gives the same tree."""
    monkeypatch.setattr(fitting, "Programs", None)
    folder, first = finished
    again = run(folder)
    same(again, first)
    same(again, small_fit)
    assert again.tree.attrs == first.tree.attrs


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_the_newest_file_may_be_damaged(small_fit, folder, run, how):
    """K02: the file before it is used, and the user is told, now and in check()."""
    alter(folder / "stage-1.chain-0.00000200.ckpt", how)
    with pytest.warns(FitWarning, match=r"stage-1\.chain-0\.00000200\.ckpt: damaged"):
        resumed = run(folder)
    same(resumed, small_fit)
    assert any("damaged" in reason for reason in resumed.check().reasons)


@pytest.mark.parametrize("name", ["run.ckpt", "stage-0.ckpt", "stage-1.ckpt"])
def test_what_can_be_made_anew_may_be_damaged(small_fit, folder, run, name):
    """K02: these follow from data, model and seed, or from the pilot; the draws stored after them still fit."""
    alter(folder / name, "flipped" if name != "run.ckpt" else "truncated")
    with pytest.warns(FitWarning, match=name):
        same(run(folder), small_fit)
    assert len(list(folder.glob("stage-1.chain-0.*"))) == 8


def test_a_damaged_end_is_sampled_again(finished, small_fit, run, tmp_path):
    """K02: also after the run was over."""
    shutil.copytree(finished[0], tmp_path / "run")
    alter(tmp_path / "run" / "stage-1.chain-1.00000200.ckpt", "flipped")
    with pytest.warns(FitWarning, match=r"00000200"):
        same(run(tmp_path / "run"), small_fit)


def test_two_damaged_generations_are_refused(folder, run):
    """K02: the error names the file and the checksums, and nothing is deleted."""
    for n in ("00000175", "00000200"):
        alter(folder / f"stage-1.chain-0.{n}.ckpt", "flipped")
    with pytest.raises(FitError, match=r"stage-1\.chain-0\.00000175\.ckpt: damaged \(its SHA-256 is [0-9a-f]{16}"):
        run(folder)
    assert (folder / "stage-1.chain-0.00000175.ckpt").exists()


def test_a_missing_file_is_refused(folder, run):
    """A gap must not shift the draws."""
    forget(folder, "stage-1.chain-0.00000100.ckpt")
    with pytest.raises(FitError, match="does not follow on the file before it"):
        run(folder)


def test_a_file_of_another_run_is_refused(folder, run, tmp_path):
    """Files that were mixed must not be joined: a chain's file, and a stage's."""
    shutil.copy(folder / "stage-1.chain-1.00000200.ckpt", folder / "stage-1.chain-0.00000200.ckpt")
    shutil.copy(folder / "stage-1.chain-0.00000150.ckpt", folder / "stage-1.chain-0.00000175.ckpt")
    with pytest.raises(FitError, match="does not follow"):
        run(folder)
    record = read_record(folder / "stage-0.ckpt")
    write_record(folder / "stage-0.ckpt", record.facts | {"run": "0" * 64}, record.arrays)
    with pytest.raises(FitError, match="from another run"):
        run(folder)


def _other_data(options):
    return {"data": read_trial(virtual_trial(2, patients=12))}


def _other_prior(options):
    return {"model": small_model().with_priors({"cmax": Prior("normal", 9.0, 1.0)})}


def _fixed(options):
    return {"model": small_model().fix("cmax")}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_other_data, "the data"),
        (_other_prior, "the model"),
        (_fixed, "the model"),
        (lambda s: {"seed": 4}, r"seed \(3 there, 4 here\)"),
        (lambda s: {"chains": 3}, r"chains \(2 there, 3 here\)"),
        (lambda s: {"settings": replace(s, warmup=125)}, r"settings: warmup \(100 there, 125 here\)"),
    ],
    ids=["data", "prior", "fixed", "seed", "chains", "settings"],
)
def test_the_checkpoint_of_another_fit_is_refused(folder, run, small_settings, other, said):
    """K03: what differs is said."""
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.ckpt")}
    with pytest.raises(FitError, match=said):
        run(folder, **other(small_settings))
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.ckpt")} == before


def test_a_lost_description_does_not_open_the_folder_to_others(folder, run):
    """K03: without run.ckpt the stages still know whose they are, and stay."""
    alter(folder / "run.ckpt", "empty")
    with pytest.warns(FitWarning, match=r"run\.ckpt"), pytest.raises(FitError, match="from another run"):
        run(folder, seed=4)
    assert not (folder / "run.ckpt").exists()
    run(folder)


def test_another_version_is_refused(folder, run, monkeypatch):
    """K03: another release may sample differently."""
    monkeypatch.setattr(identity, "version", lambda p: "99.0" if p == "carkinetics" else "1.0")
    with pytest.raises(FitError, match=r"versions: carkinetics \(\S+ there, 99.0 here\)"):
        run(folder)


class Accepted(Exception):
    """The folder was taken as this run's own."""


def accepted(*arguments, **options):
    raise Accepted


def test_a_changed_density_is_refused(folder, run, monkeypatch):
    """K03: also where neither model file, priors nor version tell, as in a structure that is being written."""
    log_joint = identity.log_joint
    monkeypatch.setattr(identity, "log_joint", lambda *a: log_joint(*a) * (1 + 1e-7))
    with pytest.raises(FitError, match="density of the model"):
        run(folder)
    monkeypatch.setattr(identity, "log_joint", lambda *a: log_joint(*a) * (1 + 1e-12))  # another processor
    monkeypatch.setattr(fitting, "_run", accepted)
    with pytest.raises(Accepted):
        run(folder)


def test_a_full_disk_leaves_what_was_kept(small_fit, run, monkeypatch, tmp_path):
    """K04: an error, and the last good checkpoint is one from which the fit goes on."""
    written, sync = [], os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(FitError, match="No space left on device"):
        run(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.tmp"))
    monkeypatch.setattr(records.os, "fsync", sync)
    same(run(tmp_path / "run"), small_fit)


def test_a_folder_in_use_is_refused(folder, run):
    """K05: with pid and host."""
    with locked(folder), pytest.raises(FitError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"):
        run(folder)
    assert (folder / "lock").read_text() == ""


def test_the_lock_of_a_dead_process_is_taken_over(finished, run, tmp_path):
    """K05: after a kill nobody has to tidy up; a lock of another machine cannot be judged."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / "lock").write_text(json.dumps({"pid": dead.pid, "host": socket.gethostname()}))
    run(folder)
    (folder / "lock").write_text(json.dumps({"pid": dead.pid, "host": "elsewhere"}))
    with pytest.raises(FitError, match=f"process {dead.pid} on elsewhere.*delete"):
        run(folder)


def test_a_folder_that_cannot_be_written_is_refused_before_work(folder, run, monkeypatch, tmp_path):
    """K06: a file in its place, a disk that has become read-only; the start is not even looked for."""
    monkeypatch.setattr(fitting, "_run", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(FitError, match="Choose a writable folder"):
        run(tmp_path / "file")
    opened = Path.open

    def read_only(path, mode="r", *args, **kwargs):
        if path.parent in (folder, tmp_path / "new") and mode[0] != "r":
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(FitError, match="Read-only file system"):
            run(place)


@pytest.fixture
def at_write(monkeypatch):
    """Send this process a signal when a record of this name has been written."""

    def arrange(name, number):
        def write(path, facts, arrays):
            digest = write_record(path, facts, arrays)
            if path.name == name:
                os.kill(os.getpid(), number)
                time.sleep(0.05)
            return digest

        monkeypatch.setattr(checkpoints, "write_record", write)

    return arrange


def test_interruption_gives_a_partial_fit_and_the_rest_later(small_fit, run, at_write, tmp_path):
    """K07: Ctrl-C while sampling: what there is is usable, and marked; the same call completes it."""
    at_write("stage-1.chain-0.00000150.ckpt", signal.SIGINT)
    partial = run(tmp_path / "run")
    draws = partial.tree["posterior"].sizes["draw"]
    assert 0 < draws <= 100
    assert not partial.tree.attrs["complete"]
    assert any("incomplete" in reason for reason in partial.check().reasons)
    theta = small_fit.tree["posterior"]["theta"].values[:, :draws]
    np.testing.assert_array_equal(partial.tree["posterior"]["theta"].values, theta)
    resumed = run(tmp_path / "run")
    same(resumed, small_fit)
    assert json.loads(resumed.tree.attrs["seconds"])["before_resuming"] > 0


@pytest.mark.parametrize("name", ["stage-0.chain-0.00000025.ckpt", "stage-1.chain-0.00000050.ckpt"])
def test_interruption_before_any_draw_says_where_it_goes_on(small_fit, run, at_write, tmp_path, name):
    """K07: Ctrl-C in the pilot or the warm-up."""
    at_write(name, signal.SIGINT)
    with pytest.raises(FitError, match="the same call goes on from"):
        run(tmp_path / "run")
    same(run(tmp_path / "run"), small_fit)


def test_a_batch_system_may_end_it(small_fit, run, at_write, tmp_path):
    """K07: SIGTERM: every chain ends its block and keeps it, then the process ends with 143."""
    at_write("stage-1.chain-1.00000125.ckpt", signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (tmp_path / "run" / "lock").read_text() == ""
    same(run(tmp_path / "run"), small_fit)


def test_saves_are_spaced_and_every_draw_is_written_once(run, monkeypatch, tmp_path):
    """A long run writes each block once: with long pauses there is one file a chain and pause."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 3600.0)
    run(tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run").glob("*chain*"))
    assert names == [f"stage-{s}.chain-{c}.{n:08d}.ckpt" for s, n in ((0, 150), (1, 200)) for c in (0, 1)]


@pytest.mark.parametrize("forge", ["pickle", "npz", "object array", "huge", "short", "deep"])
def test_nothing_but_numbers_is_read(tmp_path, forge):
    """X01, X02: what could be executed, or claims more than the file has, is refused as damaged."""
    path = tmp_path / "stage-0.ckpt"
    arrays = {"object array": ["x", "|O", [1]], "huge": ["x", "<f8", [10**12]], "short": ["x", "<f8", [-1]]}
    if forge == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif forge == "npz":
        with path.open("wb") as handle:
            np.savez(handle, x=np.array([{}], dtype=object))
    else:
        head = "[" * 100_000 if forge == "deep" else json.dumps({"facts": {}, "arrays": [arrays[forge]]})
        body = head.encode() + b"\n" + bytes(8)
        path.write_bytes(b"carkinetics-record-1 " + records.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(Damaged, match="stage-0"):
        read_record(path)


def test_a_record_comes_back_as_it_was(tmp_path):
    """Facts, types, shapes and empty arrays."""
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(True), "c": np.zeros((0, 4)), "d": np.arange(3)[::-1]}
    written = write_record(tmp_path / "x.ckpt", {"n": 1, "s": "é"}, arrays)
    record = read_record(tmp_path / "x.ckpt")
    assert record.sha256 == written
    assert record.facts == {"n": 1, "s": "é"}
    for name, value in arrays.items():
        np.testing.assert_array_equal(record.arrays[name], value)
        assert record.arrays[name].dtype == value.dtype


def test_the_command_line_keeps_one(monkeypatch, small_trial, tmp_path, capsys):
    """--checkpoint reaches the fit."""
    small_trial.table.to_csv(tmp_path / "trial.csv", index=False)
    seen = {}

    def stop(model, data, **options):
        seen.update(options)
        raise FitError("enough")

    monkeypatch.setattr(fitting, "fit", stop)
    units = ["--unit", "TIME=day", "--unit", "DV=copies/ug"]
    assert cli.main(["fit", str(tmp_path / "trial.csv"), *units, "--checkpoint", str(tmp_path / "run")]) == 1
    assert seen["checkpoint"] == tmp_path / "run"
