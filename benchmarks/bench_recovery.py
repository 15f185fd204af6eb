"""Recovery where a quarter of the samples lie below the limit: bias and coverage over a hundred virtual trials.

Forty patients of the demo's model and schedule, a limit of 120 copies/ug (19 to 36 % of a trial's samples lie below).
One line of JSON a trial, in ``results/recovery/blq_<method>.jsonl``, so that an interrupted run goes on where it was,
and ``tests/test_recovery_blq.py`` asks of all of them what it can only rerun of a few:

    NPROC=1 python benchmarks/bench_recovery.py run --method importance [--trials 100] [--part 0/2]
    python benchmarks/bench_recovery.py tell --method importance

``--part 0/2`` and ``--part 1/2`` are two processes' shares; every trial has its own seed, so that they give the same.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from carkinetics.cohort import Cohort
from carkinetics.dataset import read_dataset
from carkinetics.demo import MODEL, SCHEDULE
from carkinetics.fit_result import phi_draws
from carkinetics.fitting import fit
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.simulation import simulate

FOLDER = Path(__file__).parent / "results" / "recovery"
LLOQ = 120.0  # copies/ug
PUBLISHED = load_model(MODEL)
LAYOUT = make_layout(PUBLISHED)


def trial(seed: int, lloq: float = LLOQ):
    """A virtual trial's table."""
    limited = replace(PUBLISHED, assays=tuple(replace(a, lloq=lloq) for a in PUBLISHED.assays))
    return simulate(limited, Cohort(40, SCHEDULE, dose_per_kg=(1e6, 5e6)), seed=seed).table


def recovered(table, seed: int, method: str) -> dict:
    """Mean and 95 % interval of every population parameter, on the sampler's scale, and what the check says."""
    data = read_dataset(table, units={"DV": "copies/ug"})
    result = fit(PUBLISHED, data, seed=seed, method=method, progress=False)
    phi, check = phi_draws(result), result.check()
    low, high = np.quantile(phi, (0.025, 0.975), axis=0)
    return {
        "seed": seed,
        "censored": float(table.loc[table["EVID"] == 0, "CENS"].mean()),
        "status": check.status,
        "rhat": check.numbers.get("rhat"),
        "divergences": check.numbers.get("divergences"),
        "seconds": round(sum(json.loads(result.tree.attrs["seconds"]).values()), 1),
        "mean": phi.mean(axis=0).round(6).tolist(),
        "low": low.round(6).tolist(),
        "high": high.round(6).tolist(),
    }


def stored(method: str) -> list[dict]:
    """The trials that were run, by seed."""
    lines = [line for path in FOLDER.glob(f"blq_{method}*.jsonl") for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda row: row["seed"])


def bias_and_cover(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the means from the truth, and whether 95 % intervals hold it; (trial, parameter) each."""
    mean, low, high = (np.array([row[k] for row in rows]) for k in ("mean", "low", "high"))
    return mean - LAYOUT.start, (low <= LAYOUT.start) & (LAYOUT.start <= high)


def run(method: str, trials: int, part: int, parts: int) -> None:
    """Those of this part that are not stored yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = {row["seed"] for row in stored(method)}
    path = FOLDER / (f"blq_{method}.jsonl" if parts == 1 else f"blq_{method}_{part}.jsonl")
    for seed in range(1, trials + 1):
        if seed % parts == part and seed not in done:
            row = recovered(trial(seed), seed, method)
            with path.open("a") as file:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")


def tell(method: str) -> dict:
    """Bias of what a number is wanted of, and coverage, with Monte Carlo errors."""
    rows = stored(method)
    off, held = bias_and_cover(rows)
    n = len(rows)
    return {
        "trials": n,
        "censored": [round(f([row["censored"] for row in rows]), 3) for f in (min, np.mean, max)],
        "status": {s: sum(row["status"] == s for row in rows) for s in ("ok", "warning", "failed")},
        "bias, factor": dict(zip(LAYOUT.phi_names, np.exp(off.mean(axis=0)).round(3).tolist(), strict=True)),
        "its error": dict(zip(LAYOUT.phi_names, (off.std(axis=0, ddof=1) / np.sqrt(n)).round(3).tolist(), strict=True)),
        "95 % intervals hold": dict(zip(LAYOUT.phi_names, held.mean(axis=0).round(3).tolist(), strict=True)),
        "of all": round(float(held.mean()), 4),
        "seconds a trial, median and largest": [f([row["seconds"] for row in rows]) for f in (np.median, max)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "tell"))
    parser.add_argument("--method", default="importance", choices=("importance", "nuts", "laplace"))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--part", default="0/1", help="which share of the trials, 0/2 and 1/2 for two processes")
    given = parser.parse_args()
    if given.what == "run":
        warnings.simplefilter("ignore")
        run(given.method, given.trials, *map(int, given.part.split("/")))
    else:
        print(json.dumps(tell(given.method), indent=2))


if __name__ == "__main__":
    main()
