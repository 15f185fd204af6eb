"""Simulation-based calibration of every structure of the library: ranks of the truth in fits that were not told of it.

    uv run python benchmarks/bench_sbc.py --structure expansion_contraction [--n 200] [--method laplace]
    uv run python benchmarks/bench_sbc.py --list
    uv run python benchmarks/bench_sbc.py --table

Ten patients with eight samples, three or four parameters that vary (``tests/sbc_models.py``). Of every structure and
method one file, ``results/sbc/<structure>_<method>.json``, with the ranks of all trials and the SHA-256 of what they
are ranks of; ``tests/test_calibrating.py`` reads them. Every trial has its own seed: the first ten of 200 are the ten
of ``--n 10``.
"""

import argparse
import hashlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pandas as pd

import carkinetics as ck
from carkinetics.calibrating import Calibration
from carkinetics.model_writing import to_toml
from sbc_models import VARYING, sbc_design, sbc_model

FOLDER = Path(__file__).parent / "results" / "sbc"
SEED = 20
PACKAGES = ("carkinetics", "jax", "jaxlib", "numpyro", "numpy")


def calibrated(structure: str, method: str, n: int) -> dict:
    """What is stored of a structure."""
    model, design = sbc_model(structure), sbc_design(structure)
    began = time.perf_counter()
    found = ck.sbc(model, design, seed=SEED, n=n, method=method)
    print(found, file=sys.stderr)
    content = {
        "structure": structure,
        "method": method,
        "seed": SEED,
        "model": to_toml(model),
        "patients": design.n,
        "days": list(design.times),
        "dose": design.dose,
        "draws": found.draws,
        "quantities": list(found.ranks),
        "status": found.status.tolist(),
        "trials": found.ranks.index.tolist(),
        "ranks": found.ranks.to_numpy(int).tolist(),
    }
    beside = {
        "sha256": digest(content),
        "outside": found.outside,
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {p: version(p) for p in PACKAGES},
        "command": f"python benchmarks/bench_sbc.py --structure {structure} --method {method} --n {n}",
    }
    return content | beside


def digest(content: dict) -> str:
    """SHA-256 of everything but what was measured beside the ranks."""
    kept = {k: v for k, v in content.items() if k not in ("sha256", "outside", "seconds", "versions", "command")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def summary() -> str:
    """The stored calibrations as the table of docs/diagnostics.md."""
    lines = [
        "| structure | method | outside the band | 50 % intervals hold | 95 % intervals hold | spread |",
        "|" + "---|" * 6,
    ]
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text())
        ranks = pd.DataFrame(found["ranks"], columns=found["quantities"]).drop(columns=["log likelihood"])
        table = Calibration(ranks, found["draws"], pd.Series(found["status"]), found["method"], "").table()
        spans = [f"{table[c].min():.2f} to {table[c].max():.2f}" for c in ("COVER 50 %", "COVER 95 %", "SPREAD")]
        outside = ", ".join(found["outside"]) or "none"
        lines.append(f"| `{found['structure']}` | {found['method']} | {outside} | {' | '.join(spans)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structure", choices=sorted(VARYING), nargs="+")
    parser.add_argument("--method", default="laplace", choices=("laplace", "quick", "importance", "nuts"))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--list", action="store_true", help="print the names of the structures")
    parser.add_argument("--table", action="store_true", help="print what is stored as a table")
    arguments = parser.parse_args()
    if arguments.table:
        print(summary())
        return
    if arguments.list or not arguments.structure:
        print("\n".join(sorted(VARYING)))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for structure in arguments.structure:
        found = calibrated(structure, arguments.method, arguments.n)
        path = FOLDER / f"{structure}_{arguments.method}.json"
        path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        print(path, found["seconds"], "s", found["outside"])


if __name__ == "__main__":
    main()
