"""The same problem in carkinetics, Stan (PyStan) and PyMC (nutpie): compilation, sampling, effective draws.

    uv run --group peers python benchmarks/bench_peers.py [--seeds 6 5] [--only carkinetics stan] [--tries 3]
        [--long 20000] [--python /path/to/an/environment/with/the/peers/bin/python]

Same data, priors and likelihood: every peer shows that its log density is carkinetics' (up to a constant)
before it is timed. Each runs in a process of its own with empty compilation caches, one after the other; four
chains share the machine's cores. Effective draws are rank-normalised bulk ESS of the 13 population parameters,
by one and the same function; per second means per second of sampling, warm-up included, compilation apart.
Only a run whose chains agree (R-hat <= 1.05) is compared: a peer is run again with another seed until they do,
at most ``--tries`` times.
``--long N`` runs Stan again with N draws a chain and compares everybody's means and SDs with it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from bench_fit import save
from carkinetics.fit_result import RHAT_FAILED
from carkinetics.inference.gates import convergence
from peers.problem import SEEDS, make_problem, peers_model
from peers.worker import ABSENT

HERE = Path(__file__).resolve().parent
PEERS = ("carkinetics", "stan", "pymc")
MEANS_WITHIN = 4.0  # Monte Carlo standard errors of the difference
SDS_WITHIN = 0.15
LONG_KEPT = 4000  # draws per chain of the long run that are kept; the rest is thinned away


@dataclass(frozen=True)
class Bench:
    """Where the workers run, on which problem."""

    folder: Path
    python: str

    def run(self, peer: str, name: str, *options: str) -> dict:
        """Run one worker on ``problem.npz``; its facts and draws, or why there are none."""
        result = self.folder / f"{name}.npz"
        cache = self.folder / f"cache-{peer}"
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), *(str(Path(x).resolve()) for x in inherited if x)]),
            "XDG_CACHE_HOME": str(cache),
            "CARKINETICS_CACHE": str(cache / "jax"),
            "PYTENSOR_FLAGS": f"base_compiledir={cache / 'pytensor'}",
            "NUMBA_CACHE_DIR": str(cache / "numba"),
        }
        python = sys.executable if peer == "carkinetics" else self.python
        command = [python, "-m", f"peers.{peer}_worker", str(self.folder / "problem.npz"), str(result), *options]
        # In the folder, since Stan's compiler leaves its object files where it is called from.
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            last = last.replace(f"{tempfile.gettempdir()}{os.sep}", "")  # no path of this machine is kept
            return {"absent" if done.returncode == ABSENT else "failed": last}
        with np.load(result) as file:
            return json.loads(file["facts"].item()) | {"draws": file["draws"]}

    def run_until_mixed(self, peer: str, tries: int) -> dict:
        """Run a worker with one sampler seed after another until its chains agree; all the R-hats in ``tries``.

        Only a run whose chains agree says how fast a sampler is; how often they do not is told beside it.
        """
        found, rhats, compiled = {}, [], 0.0
        for number in range(1, tries + 1):
            found = self.run(peer, f"{peer}-{number}", "--sampler-seed", str(number))
            if "draws" not in found:
                return found
            compiled = compiled or found["compile_seconds"]
            found["compile_seconds"] = compiled  # later tries find it in the cache
            rhats.append(float(convergence(found["draws"])[0].max()))
            if rhats[-1] <= RHAT_FAILED:
                break
        return found | {"tries": rhats}


def numbers(facts: dict) -> dict:
    """What is reported of one run."""
    rhat, bulk, tail = convergence(facts["draws"])
    out = {k: v for k, v in facts.items() if k != "draws"}
    out |= {"rhat": float(rhat.max()), "kept_draws": int(np.prod(facts["draws"].shape[:2]))}
    out |= {"ess_bulk_min": float(bulk.min()), "ess_bulk_median": float(np.median(bulk))}
    out |= {"ess_tail_min": float(tail.min()), "worst": parameter_names()[int(bulk.argmin())]}
    whole = facts["compile_seconds"] + facts["sampling_seconds"]
    for which in ("min", "median"):
        ess = out[f"ess_bulk_{which}"]
        out[f"ess_per_second_{which}"] = ess / facts["sampling_seconds"]
        out[f"ess_per_second_with_compilation_{which}"] = ess / whole
        if facts["gradients"]:
            out[f"ess_per_1e5_gradients_{which}"] = 1e5 * ess / facts["gradients"]
    return out


def parameter_names() -> list[str]:
    """Names of the 13 population parameters, in the order of the draws."""
    model = peers_model()
    names = [p.name for p in model.parameters]
    return [*names, *(f"ln omega {name}" for name in names), "ln sigma"]


def ratios(found: dict[str, dict]) -> dict[str, dict[str, float]]:
    """How many times as many effective draws carkinetics gives as each peer, where the chains of both agree."""
    ours = found.get("carkinetics", {})
    kinds = ("per_second", "per_second_with_compilation", "per_1e5_gradients")
    keys = [f"ess_{kind}_{which}" for kind in kinds for which in ("min", "median")]
    return {
        peer: {key: ours[key] / theirs[key] for key in keys if key in ours and key in theirs}
        for peer, theirs in found.items()
        if peer != "carkinetics"
        and "ess_bulk_min" in theirs
        and "ess_bulk_min" in ours
        and max(theirs["rhat"], ours["rhat"]) <= RHAT_FAILED
    }


def agreement(draws: Float[np.ndarray, "chain draw x"], reference: Float[np.ndarray, "chain draw x"]) -> pd.DataFrame:
    """Means and SDs against the long run: one row per population parameter."""
    mean, sd, error = _moments(draws)
    long_mean, long_sd, long_error = _moments(reference)
    table = pd.DataFrame({"mean": mean, "long mean": long_mean, "sd": sd, "long sd": long_sd}, index=parameter_names())
    table["mean off, MC errors"] = (mean - long_mean) / np.hypot(error, long_error)
    table["mean off, SDs"] = (mean - long_mean) / long_sd
    table["sd ratio"] = sd / long_sd
    means_agree = table["mean off, MC errors"].abs() <= MEANS_WITHIN
    table["agrees"] = means_agree & ((table["sd ratio"] - 1).abs() <= SDS_WITHIN)
    return table


def _moments(draws: Float[np.ndarray, "chain draw x"]):
    """Mean, SD, and the mean's Monte Carlo standard error."""
    from arviz_stats.base.array import array_stats

    error = array_stats.mcse(draws, chain_axis=0, draw_axis=1, method="mean")
    return draws.mean((0, 1)), draws.std((0, 1), ddof=1), np.atleast_1d(error)


def one_seed(seed: int, only: list[str], python: str, tries: int, long: int) -> dict:
    """All peers on one data set."""
    problem = make_problem(seed)
    censored = 1 - problem.n_quantified / len(problem.time)
    print(f"\nseed {seed}: {problem.n_subjects} patients, {100 * censored:.1f} % censored", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), python)
        problem.save(bench.folder / "problem.npz")
        runs = {}
        for peer in only:
            runs[peer] = bench.run_until_mixed(peer, tries)
            print(f"{peer}: " + ("done" if "draws" in runs[peer] else str(runs[peer])), file=sys.stderr)
        found = {peer: numbers(run) if "draws" in run else run for peer, run in runs.items()}
        result = {"seed": seed, "censored": censored, "peers": found, "ratios": ratios(found)}
        print(pd.DataFrame({k: _shown(v) for k, v in found.items()}).to_string(), file=sys.stderr)
        if long:
            thin = max(1, long // LONG_KEPT)
            reference = bench.run("stan", "long", "--draws", str(long), "--thin", str(thin))
            result |= against_long(runs, reference)
    return result


def _shown(found: dict) -> dict:
    """The numbers of one peer that fit in a table."""
    return {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in found.items() if not isinstance(v, dict)}


def against_long(runs: dict[str, dict], reference: dict) -> dict:
    """Everybody's agreement with the long run, printed and as data."""
    if "draws" not in reference:
        print(f"long run: {reference}", file=sys.stderr)
        return {"long": reference}
    tables = {peer: agreement(run["draws"], reference["draws"]) for peer, run in runs.items() if "draws" in run}
    for peer, table in tables.items():
        print(f"\n{peer} against the long run\n{table.round(3).to_string()}", file=sys.stderr)
    return {
        "long": numbers(reference),
        "agreement": {peer: json.loads(table.to_json(orient="index")) for peer, table in tables.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS[:1]), help="virtual trials")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--tries", type=int, default=3, help="sampler seeds, while a peer's chains disagree")
    parser.add_argument("--long", type=int, default=0, help="draws per chain of Stan's long run; 0 for none")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peers' environment")
    parser.add_argument("--note", default="", help="kept with the result, for instance what else the machine did")
    arguments = parser.parse_args()
    a = arguments
    runs = [one_seed(seed, a.only, a.python, a.tries, a.long) for seed in a.seeds]
    print(save("peers", {"note": arguments.note, "runs": runs}))
    if any("failed" in found for run in runs for found in run["peers"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
