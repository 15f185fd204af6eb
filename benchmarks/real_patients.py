"""The real patients of ``bench_real.py``, and the models that are compared on them.

Blood of 29 patients after CTL019 (Nobles CL et al., J Clin Invest 2020;130:673-685, doi:10.1172/JCI130144). The table
is not in the repository; its folder is ``CARKINETICS_REAL_DATA``, by default ``shared/data`` beside the repository.
"""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

import carkinetics as ck
from carkinetics.dataset import Dataset, ReadOptions, read_dataset
from carkinetics.model import Model
from carkinetics.model_files import load_model
from carkinetics.model_parts import Prior

FOLDER = Path(os.environ.get("CARKINETICS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
TABLE = FOLDER / "ctl019" / "ctl019_qpcr.csv"
COLUMNS = {"ID": "patient", "TIME": "day", "DV": "copies_per_ug_dna", "VISIT": "visit"}
LIMIT = 10.0  # copies/ug; a zero is "not detected"
BLOOD, MARROW, NODE = "PB", "BM", "LNBx"
ASSAYS = {BLOOD: "qpcr", MARROW: "marrow", NODE: "node"}
PUBLISHED = "stein_2019_tisagenlecleucel"

# What the data were seen to need and the published population does not have, see ``widened``.
WIDE_OMEGAS = {"cmax": 1.0}
OMEGA_SD = 0.7
STUDENT_SIGMA = 0.65


def rules() -> list[str]:
    """What is done to the table, in words."""
    return [
        "specimen PB (the joint fit: BM, LNBx too)",
        "labels that name a control or a repetition are left out, as data.review() finds them",
        "samples before the infusion are left out: TIME < 0, and day 0 with 'pre' in its label",
        "from one day before an infusion that the table does not record (data.review()) samples are left out",
        "two samples of one time: the first",
        f"zeros and values below {LIMIT:g} copies/ug are left-censored there",
    ]


def patients(specimens: tuple[str, ...] = (BLOOD,)) -> Dataset:
    """First infusion of every patient, by the rules."""
    source = pd.read_csv(TABLE)
    source = source[source["specimen"].isin(specimens)].rename(columns={v: k for k, v in COLUMNS.items()})
    source["DVID"] = source["specimen"].map(ASSAYS)
    suspected = _read(source[source["specimen"] == BLOOD]).review().table
    controls = suspected[suspected["KIND"] == "control"]["LINES"].explode()
    # The review counts rows of the table that it was given from 1.
    blood = source.index[source["specimen"] == BLOOD]
    source = source.drop(index=blood[controls.to_numpy(int) - 1])
    before = (source["TIME"] < 0) | ((source["TIME"] == 0) & source["VISIT"].str.contains("pre", case=False))
    cut = dict(_again(suspected))
    again = source["TIME"] >= source["ID"].map(cut).fillna(np.inf) - 1.0
    return _read(source[~before & ~again])


def _again(suspected: pd.DataFrame):
    """Patients with an unrecorded infusion, and its day."""
    for row in suspected[suspected["KIND"] == "infusion"].to_dict("records"):
        days = [float(d) for d in re.findall(r"cut at day ([0-9.]+)", " ".join(row["CHOICES"]))]
        yield row["PATIENTS"][0], min(days)


def _read(table: pd.DataFrame) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.DataWarning)
        options = ReadOptions(predose="exclude", duplicates="first")
        units = {"DV": "copies/ug"}
        return read_dataset(table.drop(columns=["vcn_per_cell", "below_10"]), lloq=LIMIT, units=units, options=options)


def widened(model: Model) -> Model:
    """The published population, with an omega of Cmax that non-expanders fit into."""
    priors = {f"omega.{name}": Prior("lognormal", float(np.log(v)), OMEGA_SD) for name, v in WIDE_OMEGAS.items()}
    return model.with_priors(priors)


def student(model: Model, nu: float = 4.0, *, estimated: bool = False) -> Model:
    """With Student-t residuals of the log."""
    values = {"sigma": STUDENT_SIGMA, "nu": nu}
    return model.with_residual("student_t", values=values, estimated=("nu",) if estimated else ())


def models() -> Mapping[str, Model]:
    """The models that are compared, by name; the first is the plain one."""
    plain = widened(load_model(PUBLISHED))
    infused = plain.with_infusion_phase()
    both = student(infused)
    expansion = ("foldx", "tmax", "cmax")
    return {
        "plain": plain,
        "student 4": student(plain),
        "phase": infused,
        "phase, student 4": both,
        "phase, student 3": student(infused, 3.0),
        "phase, student nu": student(infused, estimated=True),
        "phase, student 4, eta on kd": both.with_values({"omega.kd": 0.3}),
        "phase, student 4, corr 3": both.with_correlation(*expansion),
        "phase, student 3, corr 3": student(infused, 3.0).with_correlation(*expansion),
        "phase, student 4, corr 6": both.with_correlation(*expansion, "alpha", "fb", "beta"),
        "phase, student 4, corr 3, disease": both.with_correlation(*expansion).with_covariates(
            ck.Covariate(column="disease", on="cmax", form="categorical")
        ),
    }


def joint_model() -> Model:
    """Blood, marrow and lymph node: log-ratios to blood that vary between patients, residuals of their own."""
    model = student(widened(load_model(PUBLISHED)).with_infusion_phase())
    return model.with_tissue("marrow", "BM").with_tissue("node", "LN", omega=0.0)  # two samples
