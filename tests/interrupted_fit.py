"""A small fit in a process of its own, which may kill itself at a given write: ``folder result [when name]``."""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.fitting import fit
from carkinetics.inference import checkpoint
from carkinetics.inference.chains import Settings
from carkinetics.model_files import load_model

SETTINGS = Settings(pilot=150, warmup=100, draws=100, max_draws=100, target_accept=0.8)  # those of test_checkpoint.py
KNOWN = ("foldx", "alpha", "fb", "beta")


METHOD = "nuts"


def small_model():
    """Only the peak and its day differ between patients, so that the sampler is soon compiled."""
    return load_model(MODEL).with_values({f"omega.{name}": 0 for name in KNOWN}).fix(*KNOWN)


def main(folder: str, result: str, when: str = "", name: str = "") -> None:
    """Fit; die before or after the record ``name`` takes its place; write the draws if it comes to that."""
    checkpoint.SAVE_SECONDS = 0.0
    replace = os.replace

    def deadly(source, target):
        hit = Path(target).name == name
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if hit and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly
    data = read_trial(virtual_trial(1, patients=12))
    options = {"method": METHOD, "chains": 2, "settings": SETTINGS, "progress": False}
    done = fit(small_model(), data, seed=3, checkpoint=folder, **options)
    posterior = done.tree["posterior"].to_dataset()
    np.savez(result, **{str(k): v.values for k, v in posterior.items()}, lp=done.tree["sample_stats"]["lp"].values)


if __name__ == "__main__":
    main(*sys.argv[1:])
