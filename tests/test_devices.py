"""Where chains run: never one after another without a word."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from carkinetics import fitting
from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.errors import FitError
from carkinetics.fitting import fit
from carkinetics.inference.chains import Settings
from carkinetics.inference.devices import VARIABLE, Lanes, lanes
from carkinetics.model_files import load_model

CPUS = tuple(SimpleNamespace(platform="cpu", id=i) for i in range(4))
GPUS = tuple(SimpleNamespace(platform="gpu", id=i) for i in range(4))


@pytest.mark.parametrize(
    ("chains", "devices", "found", "wanted"),
    [
        (4, None, CPUS[:1], Lanes(CPUS[:1], 1, 4)),
        (4, None, CPUS, Lanes(CPUS[:1], 1, 4)),
        (4, 2, CPUS, Lanes(CPUS[:2], 1, 4)),
        (4, None, GPUS[:1], Lanes(GPUS[:1], 4, 4)),
        (4, None, GPUS, Lanes(GPUS, 1, 4)),
        (2, None, GPUS, Lanes(GPUS[:2], 1, 2)),
        (8, 2, GPUS, Lanes(GPUS[:2], 4, 8)),
    ],
)
def test_chains_are_threads_on_a_cpu_and_vectorised_on_accelerators(chains, devices, found, wanted, monkeypatch):
    """If it fails, chains wait for each other, or an accelerator runs one at a time."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert lanes(chains, devices, found=found) == wanted
    monkeypatch.setenv(VARIABLE, "" if devices is None else str(devices))
    assert lanes(chains, None, found=found) == wanted


@pytest.mark.parametrize(
    ("chains", "devices", "said"),
    [(4, 8, "one after another"), (3, 2, "evenly"), (4, 0, "whole number"), (4, True, "whole number")],
)
def test_what_cannot_run_side_by_side_is_refused(chains, devices, said):
    """Silently sequential chains are refused."""
    with pytest.raises(FitError, match=said):
        lanes(chains, devices, found=GPUS)


def test_a_bad_variable_is_named(monkeypatch):
    """If it fails, a typing error in a job script is a traceback."""
    monkeypatch.setenv(VARIABLE, "all")
    with pytest.raises(FitError, match="CARKINETICS_DEVICES = 'all'"):
        lanes(4, found=CPUS)


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["importance", "nuts"])
def test_a_vectorised_lane_gives_the_threads_draws(method, monkeypatch):
    """If it fails, what runs on an accelerator is another sampler than what is tested here."""
    model, data = load_model(MODEL), read_trial(virtual_trial(1, patients=4))
    settings = Settings(pilot=25, warmup=25, draws=25, max_draws=25, proposals=8, max_tree_depth=5)
    options = {"seed": 1, "method": method, "chains": 2, "settings": settings, "progress": False}
    states = []
    original = fitting._Stages._begin_tuned

    def first_stage(stages):
        states.append([np.concatenate([b.phi for b in c.blocks]) for c in stages.states])
        original(stages)

    monkeypatch.setattr(fitting._Stages, "_begin_tuned", first_stage)
    fit(model, data, **options)
    monkeypatch.setattr(fitting, "lanes", lambda chains, devices: Lanes(lanes(chains, None).devices, chains, chains))
    vectorised = fit(model, data, **options)
    assert vectorised.tree["posterior"].sizes["chain"] == 2
    threads, lane = states[0], states[len(states) // 2]
    for a, b in zip(threads, lane, strict=True):
        # Sums in another order differ in the last digits, and a sampler doubles differences with every step.
        np.testing.assert_allclose(a[:2], b[:2], rtol=1e-6)
    assert not np.allclose(threads[0][:2], threads[1][:2])


SCRIPT = """
import json, threading
import jax, numpy as np
from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.fitting import fit
from carkinetics.inference import chains
from carkinetics.inference.chains import Settings
from carkinetics.model_files import load_model

used, original = set(), chains.Programs.block
def block(self, states, tuning):
    out = original(self, states, tuning)
    used.add(str(jax.tree.leaves(out[0][0])[1].devices()))
    return out
chains.Programs.block = block
settings = Settings(pilot=25, warmup=25, draws=25, max_draws=25, proposals=8)
model, data = load_model(MODEL), read_trial(virtual_trial(1, patients=4))
done = fit(model, data, seed=1, chains=4, settings=settings, progress=False)
theta = done.tree["posterior"]["theta"].values
print(json.dumps([sorted(used), theta.shape[0], bool(np.isfinite(theta).all()), len(np.unique(theta[:, -1, 0]))]))
"""


@pytest.mark.thorough
def test_chains_are_spread_over_forced_host_devices(tmp_path):
    """Two devices that JAX is made to believe in: both are used, by two chains each."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        VARIABLE: "2",
        "PYTHONPATH": os.pathsep.join([str(Path(fitting.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used, chains, finite, different = json.loads(done.stdout.splitlines()[-1])
    assert (len(used), chains, finite, different) == (2, 4, True, 4)
