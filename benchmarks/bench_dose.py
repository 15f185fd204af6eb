"""Are plans of doses calibrated: intervals of rates, the probability of being the best, and "no evidence of more".

Every trial has 40 patients, doses over a decade, a posterior of the kinetics in closed form (tests/dosing.py) and
responses fitted by the library. Three kinds: ``prior``: the truth is drawn from the priors; ``flat``: exposure does not
depend on the dose, and response depends on exposure; ``steep``: both are steep. One line of JSON a finished trial, so
that an interrupted run goes on where it was:

    python benchmarks/bench_dose.py run trials.jsonl --seconds 600
    python benchmarks/bench_dose.py tell trials.jsonl
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import dosing

KINDS = ("prior", "prior", "prior", "prior", "flat", "steep")
PATIENTS = 40


def truth_of(kind: str, seed: int) -> dosing.Truth:
    """Of one trial."""
    drawn = dosing.drawn_truth(np.random.default_rng([seed, 11]))
    if kind == "flat":
        return dataclasses.replace(drawn, beta=0.0, response=(-0.3, 1.2))
    if kind == "steep":
        return dataclasses.replace(drawn, beta=1.5, response=(-0.3, 1.5))
    return drawn


def trial(kind: str, seed: int) -> dict:
    """One trial's plan against its truth."""
    truth = truth_of(kind, seed)
    plan, rates = dosing.planned(truth, PATIENTS, seed)
    table = plan.table
    utility = rates @ np.array([e.weight for e in plan.endpoints])
    return {
        "kind": kind,
        "seed": seed,
        "true": rates.tolist(),
        "low": table[["ORR_LOW", "CRS>=3_LOW"]].to_numpy().tolist(),
        "high": table[["ORR_HIGH", "CRS>=3_HIGH"]].to_numpy().tolist(),
        "p_best": plan.p_best.tolist(),
        "best": int(utility.argmax()),
        "p_more": plan.p_more,
        "more": bool(plan.more_is_better),
    }


def run(path: Path, seconds: float) -> None:
    """Trials one after the other, those that are not yet in the file."""
    done = len(path.read_text().splitlines()) if path.exists() else 0
    started = time.perf_counter()
    with path.open("a") as file:
        while time.perf_counter() - started < seconds:
            print(json.dumps(trial(KINDS[done % len(KINDS)], done)), file=file, flush=True)
            done += 1


def tell(path: Path) -> dict:
    """Coverage, reliability and verdicts, with their Monte Carlo errors."""
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    prior = [t for t in trials if t["kind"] == "prior"]
    true, low, high = (np.array([t[k] for t in prior]) for k in ("true", "low", "high"))
    inside = ((low <= true) & (true <= high)).mean(axis=0)
    error = float(np.sqrt(0.09 / len(prior)))
    p = np.array([t["p_best"] for t in prior]).ravel()
    hit = np.array([[k == t["best"] for k in range(3)] for t in prior]).ravel()
    edges = [0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.01]
    curve = []
    for a, b in itertools.pairwise(edges):
        here = (p >= a) & (p < b)
        if here.any():
            curve.append({"said": round(p[here].mean(), 3), "seen": round(hit[here].mean(), 3), "n": int(here.sum())})
    found = {"trials": len(prior), "coverage ORR": inside[:, 0].round(3).tolist()}
    found |= {"coverage CRS>=3": inside[:, 1].round(3).tolist(), "error of coverage": round(error, 3)}
    found["reliability of P(best)"] = curve
    for kind in ("flat", "steep"):
        mine = [t["more"] for t in trials if t["kind"] == kind]
        found[f"{kind}: more is better"] = f"{sum(mine)} of {len(mine)}"
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "tell"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    if given.what == "run":
        run(given.path, given.seconds)
    else:
        print(json.dumps(tell(given.path), indent=2))
