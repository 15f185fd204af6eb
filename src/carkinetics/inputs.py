"""What was done to every patient and measured beside: from the table to :class:`~carkinetics.structure.Inputs`."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from carkinetics.covariates import category, resolve
from carkinetics.dataset import Dataset
from carkinetics.errors import DataError, DataWarning
from carkinetics.findings import listed
from carkinetics.model import Model
from carkinetics.model_parts import Assay, Regressor
from carkinetics.structure import AbstractStructure, Course, Inputs

AMOUNTS = ("cells", "cells/kg")
_SHOWN = 10


def inputs_of(model: Model, data: Dataset) -> Inputs:
    """Infusions, treatments and regressors of every patient, subject axis last, as ``model`` reads them.

    Raises
    ------
    DataError
        A column that the model reads is absent, or empty for a patient who needs it; no dose where the structure
        needs one; more infusions than the structure takes.

    Warns
    -----
    DataWarning
        Patients have further infusions, and the structure takes one.
    """
    first, days, later = _infusions(model, data)
    since = [_since(data, t.column) for t in model.acting]
    none = np.zeros((0, data.n_subjects))
    with jax.enable_x64(True):
        return Inputs(
            dose=jnp.asarray(first),
            later_day=jnp.asarray(days),
            later_dose=jnp.asarray(later),
            since=jnp.asarray(np.stack(since) if since else none),
            factor=jnp.ones((len(since), data.n_subjects)),
            course={r.name: _course(data, r) for r in model.regressors},
        )


def ln_offset(assay: Assay, x: Inputs, t: Float[np.ndarray, "*t"]) -> Float[Array, "..."]:
    """What is added to the ln of the assay's output for ln of what it reads at ``t``; 0 without a conversion."""
    if assay.conversion is None:
        return jnp.zeros(np.shape(t))
    wbc = x.course[assay.conversion.regressor](jnp.asarray(t))
    return jnp.asarray(assay.conversion.ln_factor(np.asarray(wbc)))


def _infusions(model: Model, data: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Viable CAR+ cells up to day 0, then days and cells of the later infusions (inf and 0 to fill up)."""
    structure, rows = model.structure, data.doses()
    if structure.uses_dose:
        rows = rows.assign(AMT=_cells(rows, data))
    later = rows[rows["TIME"] > 0]
    if len(later) and not structure.repeatable:
        who = listed(sorted(set(later["ID"]))[:_SHOWN])
        warnings.warn(
            f"{data.source}: {later['ID'].nunique()} patients have further infusions ({who}); {structure.name} takes "
            "one: their cells count as infused on day 0, and a second expansion is not in the model."
            + _remedy(structure),
            DataWarning,
            stacklevel=4,
        )
        later = later[:0]
    _refuse_infusions(structure, data, later)
    totals = rows[~rows.index.isin(later.index)].groupby("ID")["AMT"].sum()
    recorded = set(rows["ID"])
    first = np.array([float(totals.get(i, 0.0)) if i in recorded else np.nan for i in data.subjects])
    if structure.uses_dose:
        absent = [i for i, dose in zip(data.subjects, first, strict=True) if np.isnan(dose)]
        _refuse(absent, data, f"no dose record, and {structure.name} needs one", "Add a row with EVID=1 and AMT.")
    if not len(later):
        none = np.zeros((0, data.n_subjects))
        return first, none, none
    later = later.groupby(["ID", "TIME"], as_index=False)["AMT"].sum(min_count=1)  # at one time they are one infusion
    each = [later[later["ID"] == i] for i in data.subjects]
    depth = max(len(e) for e in each)
    days = [np.pad(e["TIME"].to_numpy(float), (0, depth - len(e)), constant_values=np.inf) for e in each]
    cells = [np.pad(e["AMT"].to_numpy(float), (0, depth - len(e))) for e in each]
    return first, np.stack(days, axis=1), np.stack(cells, axis=1)


def _remedy(structure: AbstractStructure) -> str:
    return " model.with_occasions(...) gives every infusion its own." if structure.closed_form else ""


def _refuse_infusions(structure: AbstractStructure, data: Dataset, later: pd.DataFrame) -> None:
    """Refuse patients with more infusions than the structure takes."""
    most = structure.max_infusions
    if most is not None:
        counts = Counter(i for i, _ in set(zip(later["ID"], later["TIME"], strict=True)))
        found = [i for i, n in counts.items() if 1 + n > most]
        remedy = f"Use n={1 + max(counts.values(), default=0)}; parts of a split dose can be recorded as one infusion."
        _refuse(found, data, f"{structure.name} takes {most} infusions of a patient, and there are more", remedy)


def infusions_of(data: Dataset) -> Int[np.ndarray, " subject"]:
    """Number of infusions of every patient; at least the one of day 0."""
    rows = data.doses()
    counts = rows[rows["TIME"] > 0].groupby("ID")["TIME"].nunique()
    return np.array([1 + int(counts.get(i, 0)) for i in data.subjects])


def second_infusion(data: Dataset) -> Float[np.ndarray, " subject"]:
    """Day of every patient's second infusion; inf without one."""
    rows = data.doses()
    days = rows[rows["TIME"] > 0].groupby("ID")["TIME"].min()
    return np.array([float(days.get(i, np.inf)) for i in data.subjects])


def _cells(rows: pd.DataFrame, data: Dataset) -> np.ndarray:
    """AMT in viable CAR+ cells."""
    unit = data.units.get("AMT", "cells")
    if unit not in AMOUNTS:
        raise DataError(f"{data.source}: AMT in {unit!r} cannot be read as a dose. Use {listed(AMOUNTS)}.")
    amount = rows["AMT"].to_numpy(float)
    if unit == "cells":
        return amount
    weight = dict(zip(data.subjects, per_patient(data, "WT"), strict=True))
    kg = np.array([weight[i] for i in rows["ID"]])
    _refuse(
        [i for i, w in zip(rows["ID"], kg, strict=True) if not w > 0], data, "no weight", "AMT in cells/kg needs WT."
    )
    return amount * kg


def per_patient(data: Dataset, column: str) -> Float[np.ndarray, " subject"]:
    """A column's number for every patient, NaN where it is empty in all rows; one that changes is refused."""
    rows = _column(data, column).dropna()
    counts = rows.groupby("ID")["VALUE"].nunique()
    changing = [str(i) for i in counts.index[counts > 1]]
    _refuse(changing, data, f"{column} changes within a patient", "Give one value a patient.")
    found = rows.groupby("ID")["VALUE"].first()
    return np.array([float(found.get(i, np.nan)) for i in data.subjects])


def _column(data: Dataset, column: str) -> pd.DataFrame:
    """ID, TIME and number (VALUE) of a column of the table."""
    if column not in data.table:
        raise DataError(
            f"{data.source}: the model reads column {column}, which is absent. Add it, empty where unknown."
        )
    texts = data.table[column].replace("", np.nan)
    numbers = pd.to_numeric(texts, errors="coerce")
    wrong = numbers.isna() & texts.notna()
    if wrong.any():
        raise DataError(f"{data.source}: column {column}: {texts[wrong].iloc[0]!r} is not a number.")
    return pd.DataFrame({"ID": data.table["ID"], "TIME": data.table["TIME"], "VALUE": numbers.astype(float)})


def counted_in(data: Dataset, column: str) -> Float[np.ndarray, " row"]:
    """What every row in the likelihood was counted in; NaN where the cell is empty."""
    rows = data.table[data.table["USED"]]
    order = rows.sort_values(["ID", "TIME", "DVID", "DV", "CENS", "LIMIT"], kind="stable").index
    return _column(data, column)["VALUE"].loc[order].to_numpy(float)


def earlier_replicates(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of every row: how many quantified replicates come before it, and the sum of their natural logs.

    A censored one is told of by all quantified ones of its sample; several censored ones not by one another.
    """
    ln_dv = np.log(np.where(data.cens == 0, data.dv, 1.0))
    rows = pd.DataFrame({"s": data.subject, "t": data.time, "a": data.assay, "n": data.cens == 0, "ln": ln_dv})
    of_sample = rows.groupby(["s", "t", "a"], sort=False)[["n", "ln"]]
    before = of_sample.cumsum() - rows[["n", "ln"]]
    whole = of_sample.transform("sum")
    found = before.where(rows["n"], whole)
    return found["n"].to_numpy(float), found["ln"].to_numpy(float)


def baseline(data: Dataset, column: str) -> np.ndarray:
    """A column's value for every patient, a number where all are, else a text; NaN or empty where there is none."""
    if column not in data.table:
        raise DataError(f"{data.source}: the model reads column {column}, which is absent. Add it.")
    cells = data.table[column]
    if pd.api.types.is_numeric_dtype(cells):
        return per_patient(data, column)
    texts = cells.map(category)
    rows = pd.DataFrame({"ID": data.table["ID"], "VALUE": texts})[texts != ""]
    counts = rows.groupby("ID")["VALUE"].nunique()
    changing = [str(i) for i in counts.index[counts > 1]]
    _refuse(changing, data, f"{column} changes within a patient", "Give one value a patient.")
    found = rows.groupby("ID")["VALUE"].first()
    return np.array([str(found.get(i, "")) for i in data.subjects], dtype=object)


def resolved(model: Model, data: Dataset) -> tuple[Model, list[str]]:
    """The model with what covariates leave to the data (centres, categories, priors' widths), and what was imputed.

    Raises
    ------
    DataError
        A patient has no value, and the covariate says that this is refused.
    ModelError
        A covariate that is the same in all patients.
    """
    found, notes = [], []
    for c in model.covariates:
        x = baseline(data, c.column)
        if c.form != "categorical" and x.dtype == object:
            texts = [t for t in x if t]
            if texts:
                raise DataError(
                    f"{data.source}: column {c.column}: {texts[0]!r} is not a number; use form='categorical'."
                )
            x = np.full(len(x), np.nan)  # an empty column is one of texts
        absent = [i for i, v in zip(data.subjects, x, strict=True) if category(v) == ""]
        if absent and c.missing == "refuse":
            remedy = f"Give it, or Covariate({c.column!r}, ..., missing='center')."
            _refuse(absent, data, f"covariate {c.column} is empty in all rows", remedy)
        found.append(resolve(c, x))
        if absent:
            middle = found[-1].reference or f"{found[-1].center:g}"
            notes.append(f"{c.column} imputed as {middle} for {len(absent)} patients ({listed(absent[:_SHOWN])}).")
    shrinkage = model.shrinkage
    if shrinkage is not None and shrinkage.scale is None:
        n = sum(not e.fixed for c in found for e in c.effects)
        share = shrinkage.expected / max(n - shrinkage.expected, 1.0)
        shrinkage = replace(shrinkage, scale=float(share / np.sqrt(data.n_subjects)))
    model = replace(model, covariates=tuple(found), shrinkage=shrinkage)
    return model, sorted(set(notes))


def design_of(model: Model, data: Dataset) -> Float[np.ndarray, "effect subject"]:
    """What the effects of covariates act on, for every patient."""
    rows = [c.design(baseline(data, c.column)) for c in model.covariates]
    return np.concatenate([np.zeros((0, data.n_subjects)), *rows])


def _since(data: Dataset, column: str) -> np.ndarray:
    days = per_patient(data, column)
    return np.where(np.isnan(days), np.inf, days)


def _course(data: Dataset, regressor: Regressor) -> Course:
    rows = _column(data, regressor.column).dropna().sort_values("TIME", kind="stable")
    each = [rows[rows["ID"] == i] for i in data.subjects]
    absent = [i for i, e in zip(data.subjects, each, strict=True) if e.empty]
    _refuse(absent, data, f"{regressor.column} is empty in all rows", f"The model needs {regressor.name}.")
    depth = max(len(e) for e in each)

    def stacked(name: str) -> Array:
        columns = [e[name].to_numpy(float) for e in each]
        return jnp.asarray(np.stack([np.pad(c, (0, depth - len(c)), mode="edge") for c in columns], axis=1))

    return Course(stacked("TIME"), stacked("VALUE"), regressor.interpolation)


def _refuse(patients: Sequence[str], data: Dataset, what: str, remedy: str) -> None:
    if patients:
        who = listed(sorted(set(patients))[:_SHOWN])
        raise DataError(f"{data.source}: {what}: {len(set(patients))} patients ({who}). {remedy}")
