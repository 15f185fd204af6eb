"""The embedded example: a virtual trial with a known truth, simulated, fitted, printed and drawn."""

import pandas as pd

from carkinetics.cohort import Cohort
from carkinetics.dataset import Dataset, read_dataset
from carkinetics.fit_result import Fit
from carkinetics.model_files import load_model
from carkinetics.model_parts import iiv_cv_pct
from carkinetics.simulation import Simulation, simulate

MODEL = "stein_2019_tisagenlecleucel"
# 24 weeks, dense around the peak: what a phase 1 trial of one infusion can do with outpatients.
SCHEDULE = (1, 4, 7, 11, 14, 17, 21, 28, 42, 56, 84, 112, 140, 168)
PATIENTS = 40


def virtual_trial(seed: int, *, patients: int = PATIENTS) -> Simulation:
    """A virtual CD38 CAR-T trial in B-ALL.

    Nobody has published the kinetics of CD38 CAR-T cells: the published CD19 kinetics in B-ALL stand in. One
    infusion of 1-5e6 cells/kg on day 0, blood qPCR on 14 days over 24 weeks, LLOQ 50 copies/ug.
    """
    return simulate(load_model(MODEL), Cohort(n=patients, times=SCHEDULE, dose_per_kg=(1e6, 5e6)), seed=seed)


def read_trial(trial: Simulation) -> Dataset:
    """The virtual trial's table, through the same reader as everybody's."""
    return read_dataset(trial.table, units={"TIME": "day", "DV": "copies/ug"})


def against_truth(result: Fit, truth: dict[str, float]) -> pd.DataFrame:
    """The parameter table beside the simulated truth, and whether the 95 % intervals hold it."""
    table = result.parameters()
    rows = []
    for name, row in table.iterrows():
        true_tv = truth[str(name)]
        out = {"parameter": name, "unit": row["unit"], "truth": true_tv, "TV": row["TV"], "RSE %": row["RSE %"]}
        out |= {"2.5 %": row["2.5 %"], "97.5 %": row["97.5 %"]}
        inside = [bool(row["2.5 %"] <= true_tv <= row["97.5 %"])]
        if f"omega {name}" in truth:
            true_cv = float(iiv_cv_pct(truth[f"omega {name}"]))
            out |= {"IIV truth": true_cv, "IIV CV %": row["IIV CV %"], "shrinkage %": row["shrinkage %"]}
            inside.append(bool(row["IIV 2.5 %"] <= true_cv <= row["IIV 97.5 %"]))
        rows.append(out | {"in 95 %": "/".join("yes" if i else "no" for i in inside)})
        rows[-1] |= row.reindex([c for c in ("R-hat", "ESS", "method") if c in row]).to_dict()
    return pd.DataFrame(rows).set_index("parameter")
