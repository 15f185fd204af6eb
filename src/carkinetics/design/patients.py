"""The patients of a phase 1 trial: planned level, dose infused, toxicity and response, one row a patient."""

# pandas' own annotations call ``frame[mask]`` a Series or an array: these rules would flag every line.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportReturnType=false, reportGeneralTypeIssues=false, reportAssignmentType=false

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from carkinetics.errors import DataError
from carkinetics.findings import listed, nearest

COLUMNS = ("ID", "COHORT", "LEVEL", "INFUSED", "DLT", "FOLLOW_UP", "ORR", "DAY")
WORDS = {"yes": 1.0, "no": 0.0, "pending": np.nan, "": np.nan, "true": 1.0, "false": 0.0}
# What one letter of the short notation says: (DLT, response).
LETTERS = {"N": (0.0, 0.0), "T": (1.0, 0.0), "E": (0.0, 1.0), "B": (1.0, 1.0), "P": (np.nan, np.nan)}
# A product is released at 80 % of the planned dose and above: it counts as the planned level.
TOLERANCE = 0.2
_COHORT = re.compile(r"([1-9]\d*)([A-Z]+)")


@dataclass(frozen=True, eq=False)
class Patients:
    """A validated table of patients, in their order; what is not known is NaN.

    Attributes
    ----------
    level : array of shape (patient,)
        Planned level; the lowest is 1.
    infused : array of shape (patient,)
        Dose infused, in the unit of the design's doses.
    dlt, response : array of shape (patient,)
        1, 0, or NaN while it is pending.
    follow_up, day : array of shape (patient,)
        Days since the infusion; day of the infusion in the trial.
    cohort : array of shape (patient,)
    """

    level: Int[np.ndarray, " patient"]
    infused: Float[np.ndarray, " patient"]
    dlt: Float[np.ndarray, " patient"]
    response: Float[np.ndarray, " patient"]
    follow_up: Float[np.ndarray, " patient"]
    day: Float[np.ndarray, " patient"]
    cohort: Int[np.ndarray, " patient"]

    @property
    def n(self) -> int:
        """How many."""
        return len(self.level)


def outcomes(text: str) -> pd.DataFrame:
    """A table of patients from the short notation of a trial, such as ``"1NNN 2NNT"``.

    Parameters
    ----------
    text : str
        Cohorts, each with its level and one letter a patient: ``N`` nothing, ``T`` dose-limiting toxicity, ``E``
        response, ``B`` both, ``P`` pending.

    Returns
    -------
    DataFrame
        ``ID COHORT LEVEL DLT ORR``, one row a patient.

    Raises
    ------
    DataError
        A cohort is not written that way.
    """
    rows: list[dict[str, Any]] = []
    for number, cohort in enumerate(text.split(), start=1):
        match = _COHORT.fullmatch(cohort)
        if match is None or set(match[2]) - set(LETTERS):
            raise DataError(
                f"outcomes, cohort {number}: {cohort!r} must be a level from 1 and letters of N, T, E, B or P, "
                "as in '1NNN 2NNT'."
            )
        for letter in match[2]:
            dlt, response = LETTERS[letter]
            name = f"P{len(rows) + 1:02d}"
            rows.append({"ID": name, "COHORT": number, "LEVEL": int(match[1]), "DLT": dlt, "ORR": response})
    return pd.DataFrame(rows, columns=["ID", "COHORT", "LEVEL", "DLT", "ORR"])


def read_patients(data: pd.DataFrame | str | None, doses: tuple[float, ...], *, amounts: bool) -> Patients:
    """Validate a table of patients against the dose levels of a design.

    Parameters
    ----------
    data : DataFrame, str or None
        Columns ``LEVEL`` and ``DLT`` (1, 0, yes, no, pending or empty), and where there are any ``ID COHORT INFUSED
        FOLLOW_UP ORR DAY``; or the short notation of :func:`outcomes`; None before the first patient.
    doses : tuple of float
        Dose of every level.
    amounts : bool
        Doses are amounts, so that a dose infused can be compared with them.

    Raises
    ------
    DataError
        A column is missing or a value cannot be; every row is listed.
    """
    table = outcomes(data) if isinstance(data, str) else outcomes("") if data is None else data
    _refuse_columns(table, amounts)
    level = _level(table, len(doses))
    planned = np.array(doses)[level - 1] if len(level) else np.empty(0)
    infused = _number(table, "INFUSED", positive=True)
    infused = np.where(np.isnan(infused), planned, infused)
    dlt, response = _yes_or_no(table, "DLT"), _yes_or_no(table, "ORR")
    follow_up, day = _number(table, "FOLLOW_UP"), _number(table, "DAY")
    return Patients(level, infused, dlt, response, follow_up, day, _cohort(table, level))


def counted_level(patients: Patients, doses: tuple[float, ...]) -> Int[np.ndarray, " patient"]:
    """The level that every patient counts for in a rule-based design; 0 where the dose was below the lowest.

    The planned level if at least 80 % of its dose was infused, else the highest level whose dose is not above it. A
    toxicity then counts against a level that is not above the dose that caused it.
    """
    known, infused = np.array(doses), patients.infused * (1 + 1e-9)
    not_above = np.searchsorted(known, infused, side="right")
    planned = known[patients.level - 1] if patients.n else np.empty(0)
    released = infused >= (1 - TOLERANCE) * planned
    return np.where(released & (not_above < patients.level), patients.level, not_above).astype(int)


def _refuse_columns(table: pd.DataFrame, amounts: bool) -> None:
    for name in ("LEVEL", "DLT"):
        if name not in table:
            found = listed(table.columns)
            raise DataError(f"patients: column {name} is missing; found {found}. Known columns: {listed(COLUMNS)}.")
    for name in table.columns:
        near = None if name in COLUMNS else nearest(str(name), COLUMNS, cutoff=0.8)
        if near is not None and near not in table:
            raise DataError(f"patients: column {name!r} is not known. Did you mean {near!r}?")
    if "INFUSED" in table and not amounts:
        raise DataError("patients: column INFUSED needs the doses of the levels; give the design doses=[...].")
    if "ID" in table and table["ID"].duplicated().any():
        twice = table.loc[table["ID"].duplicated(), "ID"].unique()
        raise DataError(f"patients: {listed(twice)} occur more than once. One row a patient.")


def _refuse_rows(wrong: np.ndarray, table: pd.DataFrame, name: str, wanted: str) -> None:
    """Raise for the rows that are wrong, all of them."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        got = listed(dict.fromkeys(repr(v) for v in table[name].iloc[rows].tolist()))
        place = f"row{'s' if len(rows) > 1 else ''} {listed(rows + 1)}"
        raise DataError(f"patients, {place}: {name} must be {wanted}, got {got}.")


def _number(table: pd.DataFrame, name: str, *, positive: bool = False) -> Float[np.ndarray, " patient"]:
    """A column of numbers that may be empty; all NaN where there is none."""
    if name not in table:
        return np.full(len(table), np.nan)
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
    wrong = (np.isnan(values) & table[name].notna().to_numpy()) | np.isinf(values)
    wanted = "a dose above 0, in the unit of the design's doses" if positive else "a number of days from 0"
    _refuse_rows(wrong | (values <= 0 if positive else values < 0), table, name, wanted)
    return values


def _level(table: pd.DataFrame, n: int) -> Int[np.ndarray, " patient"]:
    values = pd.to_numeric(table["LEVEL"], errors="coerce").to_numpy(float)
    wrong = ~((values >= 1) & (values <= n) & (values == np.round(values)))
    _refuse_rows(wrong, table, "LEVEL", f"a level from 1 to {n} of this design")
    return values.astype(int)


def _cohort(table: pd.DataFrame, level: Int[np.ndarray, " patient"]) -> Int[np.ndarray, " patient"]:
    """Cohorts as given; without, each change of the level begins one."""
    if "COHORT" not in table:
        return np.cumsum(np.diff(level, prepend=level[:1]) != 0).astype(int) + 1
    values = pd.to_numeric(table["COHORT"], errors="coerce").to_numpy(float)
    _refuse_rows(~((values >= 1) & (values == np.round(values))), table, "COHORT", "a whole number from 1")
    return values.astype(int)


def _yes_or_no(table: pd.DataFrame, name: str) -> Float[np.ndarray, " patient"]:
    """1, 0, or NaN while it is pending; without the column, pending."""
    if name not in table:
        return np.full(len(table), np.nan)
    given = [
        WORDS.get(str(v).strip().casefold(), v) if isinstance(v, str | bool | np.bool_) else v for v in table[name]
    ]
    values = pd.to_numeric(pd.Series(given, dtype=object), errors="coerce").to_numpy(float)
    wrong = ~(np.isnan(values) | (values == 0) | (values == 1))
    wrong |= np.isnan(values) & ~np.array([v is None or v is pd.NA or v != v for v in given], bool)
    _refuse_rows(wrong, table, name, "1, 0 or empty (or yes, no, pending)")
    return values
