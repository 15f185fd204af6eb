"""How well models of the library predict real patients: leave one patient out, and late samples from early ones.

    CARKINETICS_REAL_DATA=... uv run python benchmarks/bench_real.py [--models plain "phase, student 4"] [--seed 1]
        [--exact 3] [--no-joint]

Rules for the data and the models are in ``real_patients.py``. Per model: the log predictive density of patients left
out, against the first model's, with its standard error; coverage of their 50 % and 90 % intervals; the same for samples
after day 28 predicted from the patient's own earlier ones; how the fit went. Results are sums and shares over
patients; nothing about a single one is kept. They are appended to ``results/<machine>.json``.
"""

import argparse
import json
import os
import sys
import time
import warnings

import numpy as np

import carkinetics as ck
from bench_fit import save
from carkinetics.dataset import Dataset
from carkinetics.fit_result import Fit
from carkinetics.fitting import fit
from carkinetics.model import Model
from carkinetics.predictive import ESS_MIN, LeftOut, left_out
from real_patients import TABLE, joint_model, models, patients, rules

LATE = 28.0  # day


def fitted(model: Model, data: Dataset, seed: int) -> tuple[Fit, dict]:
    """A fit, and how it went."""
    load, started = os.getloadavg()[0], time.perf_counter()
    found = fit(model, data, seed=seed, progress=False, infusion_phase=False)  # each model as it is written
    wall, check = time.perf_counter() - started, found.check()
    facts = {"status": check.status, "wall": wall, "load_before": load, "load_after": os.getloadavg()[0]}
    return found, facts | {"seconds": json.loads(found.tree.attrs["seconds"])} | check.numbers


def typical(found: Fit) -> dict:
    """Typical values with their intervals, omegas, correlations."""
    posterior = found.tree["posterior"].to_dataset()
    table = found.parameters()[["TV", "2.5 %", "97.5 %"]]
    facts = {"parameters": {str(name): row.tolist() for name, row in table.iterrows()}}
    omega = posterior["omega"].mean(("chain", "draw"))
    facts["omega"] = dict(zip(omega["parameter"].values.tolist(), omega.values.tolist(), strict=True))
    if "correlation" in posterior:
        names = posterior["random"].values.tolist()
        low, middle, high = posterior["correlation"].quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
        facts["correlations"] = {
            f"{a} {b}": [middle[i, j], low[i, j], high[i, j]]
            for i, a in enumerate(names)
            for j, b in enumerate(names[:i])
            if low[i, j] != high[i, j]
        }
    return facts


def predicted(found: Fit, seed: int, exact: int) -> tuple[LeftOut, dict]:
    """Patients left out, with refits of those whose weights fail; ``exact`` more are refitted to check the weights."""
    started = time.perf_counter()
    every = left_out(found, seed=seed)
    ess = every.patients["ESS"]
    weak = list(ess.index[~(ess >= ESS_MIN)])
    facts = {
        "ess": ess.min(),
        "k": every.patients["K"].max(),
        "sets": every.patients["SETS"].min(),
        "refits": len(weak),
    }
    if exact:
        # Those who are nearest to failing tell most.
        checked = list(ess.drop(weak).sort_values().index[:exact])
        again = left_out(found, seed=seed, refit=[*weak, *checked])
        off = again.patients["ELPD"] - every.patients["ELPD"]
        facts |= {"checked": off[checked].tolist(), "were": ess[checked].tolist(), "weak_off": off[weak].tolist()}
        every = again
    elif weak:
        every = left_out(found, seed=seed, refit=weak)
    late = left_out(found, seed=seed, after=LATE)
    facts |= covered(every, "") | covered(late, "late_")
    facts |= {"late_ess": late.patients["ESS"].min(), "seconds_left_out": time.perf_counter() - started}
    return every, facts


def covered(found: LeftOut, prefix: str) -> dict:
    """Density and coverage; of quantified samples alone as well."""
    quantified = LeftOut(found.patients, found.rows[found.rows["CENS"] == 0])
    numbers = {"elpd": found.elpd, "samples": len(found.rows)}
    numbers |= {f"cover_{level}": found.coverage(level / 100) for level in (50, 90)}
    numbers |= {f"cover_{level}_quantified": quantified.coverage(level / 100) for level in (50, 90)}
    above = float((quantified.rows["LOW"] > 0.5).mean())
    return {prefix + name: value for name, value in (numbers | {"above_median": above}).items()}


def compared(one: LeftOut, other: LeftOut) -> dict[str, float]:
    """Difference of the log predictive densities, and its standard error over patients."""
    off = one.patients["ELPD"] - other.patients["ELPD"]
    return {"gain": off.sum(), "gain_se": np.sqrt(len(off)) * off.std(ddof=1)}


def joint(seed: int) -> dict:
    """Blood, marrow and lymph node together: ratios, their spread between patients, what the data added."""
    data = patients(("PB", "BM", "LNBx"))
    found, facts = fitted(joint_model(), data, seed)
    posterior = found.tree["posterior"].to_dataset()
    for name in ("ratio_marrow", "ratio_node"):
        theta, omega = (posterior[v].sel(parameter=name).values for v in ("theta", "omega"))
        wide = found.model[name].prior.scale
        facts[name] = {
            "ratio": np.exp(np.quantile(theta, [0.025, 0.5, 0.975])).tolist(),
            "omega": np.quantile(omega, [0.025, 0.5, 0.975]).tolist(),
            "sd_of_prior_sd": float(theta.std() / wide),
        }
    counts = {a: int((data.assay == k).sum()) for k, a in enumerate(data.assays)}
    facts["said"] = [r for r in found.check().reasons if "ratio" in r]
    return facts | {"samples": counts} | typical(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(models()))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--exact", type=int, default=0)
    parser.add_argument("--no-joint", action="store_true")
    arguments = parser.parse_args()
    if not TABLE.exists():
        sys.exit(f"{TABLE} is not here; set CARKINETICS_REAL_DATA to the folder that holds ctl019/.")
    warnings.simplefilter("ignore", ck.FitWarning)
    data, results, first = patients(), [], None
    counts = {"patients": data.n_subjects, "samples": data.n_obs, "censored": int((data.cens == 1).sum())}
    for name in arguments.models:
        found, facts = fitted(models()[name], data, arguments.seed)
        every, more = predicted(found, arguments.seed, arguments.exact)
        first = every if first is None else first
        results.append({"model": name} | compared(every, first) | facts | more | typical(found))
        print(json.dumps(results[-1]), file=sys.stderr)
    result = counts | {"rules": rules(), "models": results}
    if not arguments.no_joint:
        result["joint"] = joint(arguments.seed)
        print(json.dumps(result["joint"]), file=sys.stderr)
    print(save("real", result))


if __name__ == "__main__":
    main()
