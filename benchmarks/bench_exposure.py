"""Observed against model-based exposure of real patients, and how exact and how fast the model-based one is.

    CARKINETICS_REAL_DATA=... uv run python benchmarks/bench_exposure.py [--method laplace] [--model "phase, student 4"]
        [--seed 1] [--peak-from 3] [--dry]

Rules for the data and the models are in ``real_patients.py``. Without real patients the demo's virtual trial stands in.
Results are correlations, ratios and counts over patients; nothing about a single one is kept. They are appended to
``results/<machine>.json`` (``--dry``: printed only).
"""

import argparse
import json
import sys
import time
import warnings

import numpy as np

import carkinetics as ck
from bench_fit import save
from carkinetics.demo import read_trial, virtual_trial
from carkinetics.exposures import CurveRules, exposure
from carkinetics.fitting import fit
from carkinetics.model_files import load_model
from carkinetics.profiles import NcaRules
from carkinetics.side_by_side import compare_exposure
from real_patients import PUBLISHED, TABLE, models, patients, rules

METRICS = ("cmax", "tmax", "auc_0_28", "auc_0_90", "t_last")


def compared(found: ck.Fit, peak_from: float) -> dict:
    """Agreement of both, and where the observed one fails and why."""
    both = compare_exposure(
        found,
        METRICS,
        observed=NcaRules(peak=(peak_from, np.inf)),
        curves=CurveRules(peak=(peak_from, 90.0)),
        allow_failed=True,
    )
    table = both.table
    status = table.groupby(["METRIC", "OBSERVED_STATUS"]).size().unstack(fill_value=0)
    of_model = table.groupby(["METRIC", "MODEL_STATUS"]).size().unstack(fill_value=0)
    return {
        "peak_from": peak_from,
        "summary": both.summary.set_index("METRIC").to_dict("index"),
        "why": both.failures().to_dict("records"),
        "observed": {str(k): v.to_dict() for k, v in status.iterrows()},
        "model": {str(k): v.to_dict() for k, v in of_model.iterrows()},
    }


def timed(found: ck.Fit) -> dict[str, float]:
    """Seconds of 1000 draws, compiled before and not."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        exposure(found, METRICS, allow_failed=True)
        seconds.append(time.perf_counter() - started)
    return {"first_s": seconds[0], "again_s": seconds[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="laplace", choices=("laplace", "importance", "nuts"))
    parser.add_argument("--model", default="phase, student 4", choices=list(models()))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peak-from", type=float, nargs="+", default=[0.0, 3.0], metavar="DAY")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ck.FitWarning)
    real = TABLE.exists()
    data = patients() if real else read_trial(virtual_trial(1))
    model = models()[arguments.model] if real else load_model(PUBLISHED)
    started = time.perf_counter()
    found = fit(model, data, seed=arguments.seed, method=arguments.method, progress=False)
    result = {
        "real": real,
        "patients": data.n_subjects,
        "rules": rules() if real else [],
        "model": arguments.model if real else PUBLISHED,
        "method": arguments.method,
        "status": found.check().status,
        "fit_s": time.perf_counter() - started,
        "exposure_s": timed(found),
        "compared": [compared(found, day) for day in arguments.peak_from],
    }
    print(json.dumps(result, indent=1), file=sys.stderr)
    if not arguments.dry:
        print(save("exposure", result))


if __name__ == "__main__":
    main()
