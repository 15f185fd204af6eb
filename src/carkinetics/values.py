"""What a value means: quantified, below or above a limit, or a problem.

Text cells of DV, CENS and LIMIT and the declared limits go in; DV, CENS and LIMIT of the likelihood come out.
"""

# pandas' own annotations call ``frame[mask]`` a Series or an array: these rules would flag every line.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from carkinetics.errors import DataError
from carkinetics.findings import Findings, hint, listed, shown
from carkinetics.tables import MISSING, parse_numbers

DEFAULT_ASSAY = "qpcr"
BLQ_WORDS = ("BLQ", "BQL", "BLOQ", "LLOQ", "<LLOQ", "ND")
MAX_DV = 1e15


def per_assay(name: str, given: Any, cells: pd.DataFrame) -> dict[str, Any]:
    """One entry per assay from a value for all or a mapping; unknown assays are refused."""
    assays = sorted(set(cells["DVID"].str.strip())) if "DVID" in cells else [DEFAULT_ASSAY]
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(assays, given)
    for key in given:
        if key not in assays:
            has = f"DVID has {listed(map(shown, assays))}.{hint(str(key), assays)}"
            raise DataError(f'{name}: no assay "{shown(str(key))}". {has}')
    return dict(given)


def lloq_per_assay(lloq: Any, cells: pd.DataFrame) -> dict[str, float]:
    """The limit of each assay that has one."""
    limits = per_assay("lloq", lloq, cells)
    for value in limits.values():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
            raise DataError(f"lloq={value!r} is no limit. Give a number above 0, in the unit of DV.")
    return {assay: float(value) for assay, value in limits.items()}


def refuse_text(cells: pd.DataFrame, bad: Bool[np.ndarray, " row"], column: str, found: Findings) -> None:
    """Name the cells in ``bad``, which are no numbers."""
    comma = cells[column].str.fullmatch(r"[+-]?[0-9.]+,[0-9.,]+").to_numpy(dtype=bool)
    found.error(
        bad & comma,
        column,
        "not a number, got {got}",
        "Write it without a thousands separator; if the comma is the decimal mark, pass "
        "options=ReadOptions(decimal=',').",
    )
    found.error(bad & ~comma, column, "not a number, got {got}", "Write a plain number, such as 1200 or 1.2E+03.")


def read_column(
    cells: pd.DataFrame, column: str, decimal: str, found: Findings, valid: tuple[int, ...] = ()
) -> Float[np.ndarray, " row"]:
    """One optional column as numbers, NaN where it is absent or empty; ``valid`` lists its codes."""
    if column not in cells:
        return np.full(len(cells), np.nan)
    numbers = parse_numbers(cells[column], decimal)
    numbers[np.isinf(numbers)] = np.nan
    bad = np.isnan(numbers) & ~cells[column].isin(MISSING).to_numpy()
    if valid:
        bad |= ~np.isnan(numbers) & ~np.isin(numbers, valid)
        found.error(bad, column, "not a known code, got {got}", f"Use {listed(valid)}.")
    else:
        refuse_text(cells, bad, column, found)
    return numbers


def read_values(
    cells: pd.DataFrame, rows: pd.DataFrame, lloq: Mapping[str, float], decimal: str, found: Findings
) -> pd.DataFrame:
    """DV, CENS and LIMIT of each row after the rules about what cannot be quantified.

    CENS 1 is left-censored at DV (in [LIMIT, DV] with a LIMIT), -1 right-censored at DV (in [DV, LIMIT]).
    Without a CENS entry, ``<50`` is left-censored at 50, ``>1e6`` right-censored at 1e6, and a word such as
    ``BLQ`` left-censored at the declared limit. A 0 is below the declared limit too; so is a quantified value
    that is smaller than it. All rows that are not observations have NaN, 0, NaN.
    """
    obs = rows["OBS"].to_numpy()
    text = cells["DV"]
    given = np.where(obs, read_column(cells, "CENS", decimal, found, (-1, 0, 1)), np.nan)
    word = obs & text.str.replace(" ", "").str.upper().isin(BLQ_WORDS).to_numpy()
    below = obs & text.str.startswith("<").to_numpy(dtype=bool) & ~word
    above = obs & text.str.startswith(">").to_numpy(dtype=bool)
    dv = parse_numbers(text.str.replace("^[<>] *", "", regex=True), decimal)
    dv[~obs | word] = np.nan
    empty = obs & text.isin(MISSING).to_numpy()
    cens = np.where(~np.isnan(given), given, np.where(below | word, 1.0, np.where(above, -1.0, 0.0)))
    _check_forms(cells, found, obs & ~word & ~empty, dv)
    wrong = ((below | word) & (cens != 1)) | (above & (cens != -1))
    found.error(
        wrong,
        "DV",
        "value and CENS contradict each other, got {got}",
        'Use CENS=1 for "<" and CENS=-1 for ">", or leave CENS empty.',
    )
    found.error(empty & (cens != 1), "DV", "the value is empty", "Write the value, or MDV=1 if the sample gave none.")
    found.note("text-forms", below | above | word, "DV", "read as censored: {got}")
    limit = np.where(obs, read_column(cells, "LIMIT", decimal, found), np.nan)
    frame = pd.DataFrame({"DV": dv, "CENS": cens, "LIMIT": limit, "GIVEN": given}, index=cells.index)
    frame["LLOQ"] = rows["DVID"].map(dict(lloq)).to_numpy(dtype=float)
    frame["NONE"] = (cens == 1) & (word | empty | (dv == 0))
    _check_without_limit(frame, found)
    _apply_lloq(frame, found)
    _check_limits(frame, found)
    return frame[["DV", "CENS", "LIMIT"]].astype({"CENS": int})


def _check_forms(cells: pd.DataFrame, found: Findings, obs: Bool[np.ndarray, " row"], dv: np.ndarray) -> None:
    special = obs & cells["DV"].str.fullmatch("(?i)[+-]?(?:nan|inf|infinity)").to_numpy(dtype=bool)
    found.error(special | np.isinf(dv), "DV", "not a value, got {got}", "Write the value, or MDV=1 if there is none.")
    refuse_text(cells, obs & np.isnan(dv) & ~special, "DV", found)
    found.error(dv < 0, "DV", "a negative value, got {got}", "Correct it; for a sample below the limit, write CENS=1.")
    found.error(
        (dv > MAX_DV) & np.isfinite(dv),
        "DV",
        "above what can exist, got {got}",
        "Correct the value or its unit.",
    )


def _check_without_limit(frame: pd.DataFrame, found: Findings) -> None:
    """Refuse what only a limit could explain, where none is known."""
    dv, cens, none = (frame[name].to_numpy() for name in ("DV", "CENS", "NONE"))
    unknown = frame["LLOQ"].isna().to_numpy()
    coded = none & (dv == 0) & unknown
    found.error(coded, "DV", "CENS=1 needs DV = LLOQ, got {got}", "Set DV to the assay's limit, or pass lloq=...")
    without = none & ~coded & unknown
    found.error(
        without,
        "DV",
        f"{without.sum()} rows below a limit that is not given",
        "Pass lloq=..., or write the limit in DV with CENS=1.",
    )
    found.error(
        (cens == 0) & (dv == 0) & unknown,
        "DV",
        "not a quantified value (its logarithm is infinite), got {got}",
        "Pass lloq=..., or write CENS=1 with the limit in DV.",
    )
    upper = (cens == -1) & (dv == 0)
    found.error(upper, "DV", "CENS=-1 needs DV = the upper limit, got {got}", "Set DV to that limit.")


def _apply_lloq(frame: pd.DataFrame, found: Findings) -> None:
    """Put rows that are below the declared limit at that limit."""
    dv, cens, lloq, none = (frame[name].to_numpy() for name in ("DV", "CENS", "LLOQ", "NONE"))
    known = ~np.isnan(lloq)
    # A CENS that the table gives and no LIMIT: then DV should be the declared limit.
    coded = (frame["LIMIT"].isna() & frame["GIVEN"].notna()).to_numpy() & (cens == 1)
    zero = known & (cens == 0) & (dv == 0)
    found.note("zero", zero, "DV", f"{zero.sum()} zeros are left-censored at lloq")
    high = coded & (dv > lloq)
    found.error(
        high,
        "DV",
        f"CENS=1 with DV above lloq={listed(f'{v:g}' for v in np.unique(lloq[high]))}, got {{got}}",
        "Write CENS=0 if it is a value, or correct lloq.",
    )
    low = known & (dv > 0) & (dv < lloq)
    ignored, unsure = low & coded, low & (cens == 0)
    found.warn("value-ignored", ignored, "DV", "CENS=1 with a value below lloq: left-censored at lloq, value ignored")
    found.warn("below-lloq", unsure, "DV", "quantified below lloq, got {got}: left-censored at lloq")
    at_lloq = known & (none | zero | ignored | unsure)
    frame["DV"] = np.where(at_lloq, lloq, dv)
    frame["CENS"] = np.where(at_lloq, 1.0, cens)


def _check_limits(frame: pd.DataFrame, found: Findings) -> None:
    dv, cens, limit = (frame[name].to_numpy() for name in ("DV", "CENS", "LIMIT"))
    wrong = ((cens == 1) & ((limit >= dv) | (limit < 0))) | ((cens == -1) & (limit <= dv))
    found.error(
        wrong,
        "LIMIT",
        "not the other end of the interval, got {got}",
        "With CENS=1, LIMIT is the lower end and below DV; with CENS=-1 it is the upper end and above DV.",
    )
    idle = (cens == 0) & ~np.isnan(limit)
    found.note("limit-unused", idle, "LIMIT", f"LIMIT on {idle.sum()} rows with CENS=0 is not used")
    # Values are positive, so a lower end of 0 is no end.
    frame["LIMIT"] = np.where(idle | ((cens == 1) & (limit == 0)), np.nan, limit)
