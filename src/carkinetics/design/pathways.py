"""Dose-transition pathways: every way the next cohorts can turn out, and what the design then says."""

import numpy as np
import pandas as pd

from carkinetics.design.base import AbstractDesign
from carkinetics.design.decision import Decision
from carkinetics.design.patients import outcomes
from carkinetics.errors import DesignError

_MOST = 4096  # paths


def paths(
    design: AbstractDesign,
    data: pd.DataFrame | str | None = None,
    *,
    cohorts: int = 2,
    cohort: int = 3,
) -> pd.DataFrame:
    """All outcomes of the next cohorts and the decisions after them.

    Parameters
    ----------
    design : AbstractDesign
    data : DataFrame, str or None
        The patients so far, as for ``design.recommend``; their outcomes must not be pending.
    cohorts : int
        Cohorts to look ahead.
    cohort : int
        Patients of a cohort; every one gets the planned dose.

    Returns
    -------
    DataFrame
        One row a path: ``LEVEL_1 DLT_1`` (and ``ORR_1`` of designs that use responses) of the first cohort and so on,
        then ``DECISION`` and ``NEXT``, the level after it; missing where the trial has ended.

    Raises
    ------
    DesignError
        There are too many paths, or outcomes are pending.
    """
    each = (cohort + 1) ** (2 if design.uses_response else 1)
    if cohorts < 1 or cohort < 1 or each**cohorts > _MOST:
        raise DesignError(f"paths: {cohorts} cohorts of {cohort} have {each}**{cohorts} paths; {_MOST} at most.")
    table = outcomes(data) if isinstance(data, str) else outcomes("") if data is None else data
    decision = design.recommend(table)
    if decision.table["PENDING"].sum() or decision.decision == "wait":
        raise DesignError("paths: outcomes are pending; look ahead once they are known, or leave these patients out.")
    rows: list[dict[str, object]] = []
    _follow(design, table, decision, {}, (1, cohorts, cohort, rows))
    names = [f"{n}_{k}" for k in range(1, cohorts + 1) for n in ("LEVEL", "DLT", "ORR")]
    found = pd.DataFrame(rows)
    columns = [n for n in names if n in found] + ["DECISION", "NEXT"]
    whole = [c for c in columns if c != "DECISION"]
    return found[columns].astype(dict.fromkeys(whole, "Int64"))


def _follow(
    design: AbstractDesign,
    table: pd.DataFrame,
    decision: Decision,
    path: dict[str, object],
    at: tuple[int, int, int, list[dict[str, object]]],
) -> None:
    """Add every path that begins with ``path`` to the rows."""
    number, cohorts, size, rows = at
    if number > cohorts or decision.decision in ("stop", "complete"):
        rows.append({**path, "DECISION": decision.decision, "NEXT": decision.dose})
        return
    for toxic in range(size + 1):
        for good in range(size + 1) if design.uses_response else (0,):
            more = _more(table, int(decision.dose or 0), (toxic, good, size))
            step = {f"LEVEL_{number}": decision.dose, f"DLT_{number}": toxic}
            if design.uses_response:
                step[f"ORR_{number}"] = good
            then = design.recommend(more)
            _follow(design, more, then, {**path, **step}, (number + 1, cohorts, size, rows))


def _more(table: pd.DataFrame, level: int, counts: tuple[int, int, int]) -> pd.DataFrame:
    """The table with one more cohort."""
    toxic, good, size = counts
    order = np.arange(size)
    cohort = 1 if table.empty else int(table["COHORT"].max()) + 1 if "COHORT" in table else None
    new = pd.DataFrame(
        {
            "ID": [f"next {len(table) + k + 1}" for k in order],
            "LEVEL": level,
            "DLT": (order < toxic).astype(float),
            "ORR": (order < good).astype(float),
        }
    )
    if cohort is not None:
        new["COHORT"] = cohort
    return new if table.empty else pd.concat([table, new], ignore_index=True)
