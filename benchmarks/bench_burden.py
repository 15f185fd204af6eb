"""CAR-T cells and leukaemia burden together: 28 real patients, two outputs of one ODE, baseline burden as its start.

    uv run python benchmarks/bench_burden.py [--method laplace] [--draws 4000]

Liu's model without escape. The burden at the infusion is each patient's own (a power of 1, known), the room for
leukaemia, activation and the loss of inactive cells are the paper's; growth, killing and loss of CAR-T cells and of
leukaemia are estimated. A value of 0.2 is the floor of the digitised figures: at or below it a sample is
left-censored. Data: Liu 2022 (``CARKINETICS_REAL_DATA``, or the folder beside the repository); no patient's values are
kept.
"""

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import carkinetics as ck
from bench_fit import save
from carkinetics.parameter_table import contraction

FLOOR = 0.2
OMEGAS = {"kill": 0.8, "rta": 0.3, "lta": 0.5, "tn0": 0.8, "rb": 0.3}
ESTIMATED = (*OMEGAS, "kr")


def folder() -> Path | None:
    """Where the digitised patients lie; None if they are absent."""
    for place in (os.environ.get("CARKINETICS_REAL_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if place and (Path(place) / "ball_burden").is_dir():
            return Path(place) / "ball_burden"
    return None


def burden_data(where: Path) -> ck.Dataset:
    """Both assays; what was measured at the infusion is a covariate."""
    parts = [pd.read_csv(where / f"Data_{name}.csv").assign(FILE=name) for name in ("CR", "PR", "NR")]
    raw = pd.concat(parts, ignore_index=True)
    raw["ID"] = raw["FILE"] + raw["ID"].astype(int).astype(str)
    raw["DVID"] = raw["y_ID"].map({1: "blood", 2: "leukaemia"})
    start = raw[(raw["time"] == 0) & (raw["DVID"] == "leukaemia")].groupby("ID")["y"].first()
    raw["B0"] = raw["ID"].map(start)
    raw = raw[(raw["time"] > 0) & raw["B0"].notna()]
    low = raw["y"] <= FLOOR
    table = pd.DataFrame(
        {
            "ID": raw["ID"],
            "TIME": raw["time"].astype(float),
            "DV": np.where(low, FLOOR, raw["y"]),
            "CENS": low.astype(int),
            "DVID": raw["DVID"],
            "B0": raw["B0"],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.DataWarning)
        return ck.read_dataset(table, units={"DV": "1e9 cells"})


def burden_model() -> ck.Model:
    """Liu's numbers, with variability where patients can tell of it, and heavy tails."""
    model = ck.load_model("liu_2022_ball")
    model = model.with_values({f"omega.{n}": w for n, w in OMEGAS.items()})
    parameters = tuple(
        p if p.name in OMEGAS else replace(p, iiv=0.0, fixed=p.name not in ESTIMATED) for p in model.parameters
    )
    assays = tuple(
        replace(a, error="student_t", sigma=0.7, second=4.0, prior_second=None)
        for a in model.assays
        if a.name != "leukaemia_negative"
    )
    model = replace(model, parameters=parameters, assays=assays, checks=())
    model = model.with_values({f"sigma.{a.name}": 0.7 for a in assays})
    start = ck.Covariate("B0", on="b0", form="power", center=model["b0"].value, value=1.0, fixed=True)
    return model.with_covariates(start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="importance")
    parser.add_argument("--draws", type=int, default=4000)
    arguments = parser.parse_args()
    where = folder()
    if where is None:
        sys.exit("the digitised patients are absent; set CARKINETICS_REAL_DATA to the folder that has ball_burden")
    data, begin = burden_data(where), time.perf_counter()
    settings = ck.Settings(max_draws=arguments.draws)
    fit = ck.fit(burden_model(), data, seed=1, method=arguments.method, settings=settings, infusion_phase=False)
    check, table = fit.check(), fit.parameters()
    found = {
        "method": arguments.method,
        "patients": data.n_subjects,
        "samples": data.n_obs,
        "below": int((data.cens == 1).sum()),
        "seconds": json.loads(fit.tree.attrs["seconds"]),
        "whole_s": time.perf_counter() - begin,
        "status": check.status,
        "check": str(check).splitlines(),
        "parameters": {n: [round(float(x), 6) for x in row] for n, row in table[["TV", "2.5 %", "97.5 %"]].iterrows()},
        "contraction": {n: round(x, 3) for n, x in contraction(fit).items()},
    }
    print(json.dumps(found, indent=1))
    save("burden", found)


if __name__ == "__main__":
    main()
