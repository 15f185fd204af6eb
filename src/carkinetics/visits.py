"""What visit labels and nominal days say about infusions that the table does not record.

A label such as ``Month 2`` counts from an infusion. Where the count starts again, or lies far from the days since the
first infusion, there may have been another one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DAYS = {"d": 1.0, "w": 7.0, "m": 30.4375, "y": 365.25}
# Visits slip: by up to two weeks at any time, and late ones by a share of the time that has passed.
SLIP, SLIP_SHARE = 15.0, 0.2
# A label may fall behind the one before by this much (day 28's marrow after day 31's blood) and more when visits are
# months apart, without a new count.
BACK, BACK_SHARE = 5.0, 0.2
# A label of the infusion itself (day 0 or 1) after the first week is a new count, however short the first one was.
FIRST_LABEL, FIRST_WEEK = 1.0, 7.0

_UNIT = r"(?<![a-z0-9])(days?|d|weeks?|wks?|w|months?|mons?|mo|m|years?|yrs?|y)"
_AFTER = re.compile(_UNIT + r"[\s._:]*([+-]?)\s*([0-9]+(?:\.[0-9]+)?)")  # Day 28, D-1, Month_3
_BEFORE = re.compile(r"([0-9]+(?:\.[0-9]+)?)[\s-]*(days?|weeks?|months?|years?)\b")  # 3 months
_PREDOSE = re.compile(r"baseline|screening|pre-?dose|pre-?infusion")
_SINCE_EVENT = re.compile(r"\+\s*d(?:ay)?\s*([0-9]+)\s*$")  # Month 5 +D1


@dataclass(frozen=True)
class NewCount:
    """Where the labels of one patient leave the count from the first infusion.

    ``rows`` are places in the patient's rows in the order of time, ``day`` is the day since the first infusion from
    which these labels count, and ``again`` is true if the labels start again rather than lie off.
    """

    rows: tuple[int, ...]
    day: float
    again: bool


def nominal_day(label: str) -> float:
    """Days that a visit label names (``Day 28``, ``D-1``, ``Week 4``, ``Month 5 +D2``, ``Year 4 Month 8``), else NaN.

    A label of a time before the infusion without a number (``Baseline``) is day 0.
    """
    text = re.sub(r"\(.*?\)", " ", label.casefold())
    parts = [(u[0], float(number) * (-1 if sign == "-" else 1)) for u, sign, number in _AFTER.findall(text)]
    parts = parts or [(u[0], float(number)) for number, u in _BEFORE.findall(text)]
    if not parts:
        return 0.0 if _PREDOSE.search(text) else float("nan")
    unit, number = parts[0]
    days = number * DAYS[unit]
    for unit_after, more in parts[1:]:
        # "Year 4 Month 8" adds; "Month 1 Day 28" says the same thing twice.
        if not 0 <= more * DAYS[unit_after] < 0.9 * DAYS[unit]:
            break
        days, unit = days + more * DAYS[unit_after], unit_after
    return days


def counted_since_event(label: str) -> float:
    """The 1 of ``Month 5 +D1``: days since something that happened at that visit; NaN for other labels."""
    found = _SINCE_EVENT.search(label.casefold())
    return float(found.group(1)) if found else float("nan")


def new_count(time: Float[np.ndarray, " row"], nominal: Float[np.ndarray, " row"]) -> NewCount | None:
    """Where nominal days of one patient, in the order of ``time`` (day), do not count from the first infusion."""
    known = ~np.isnan(nominal)
    before = np.fmax.accumulate(np.concatenate([[-np.inf], nominal[:-1]]))
    with np.errstate(invalid="ignore"):
        fell = before - nominal > BACK + BACK_SHARE * np.abs(before)
        first = (nominal <= FIRST_LABEL) & (before >= FIRST_WEEK)
        off = np.abs(time - nominal) > SLIP + SLIP_SHARE * np.abs(nominal)
    # Before the infusion only the order of visits counts, and screening is often weeks earlier than its label.
    back = known & np.isfinite(before) & (time > FIRST_LABEL) & (fell | first)
    off &= known & (time > FIRST_LABEL)
    rows = np.flatnonzero(back | off)
    if rows.size == 0:
        return None
    # The first label at or after the infusion places it best: later visits slip, and day -28 is only a window.
    after = np.where(nominal[rows] >= 0, nominal[rows], np.inf)
    place = rows[int(np.argmin(after))] if np.isfinite(after).any() else rows[-1]
    day = float(time[place] - nominal[place])
    return NewCount(tuple(int(i) for i in rows), day, bool(back.any()))


def events(labels: Sequence[str], time: Float[np.ndarray, " row"]) -> list[tuple[int, float]]:
    """Rows whose label counts days since an event after the first week, with the day of that event."""
    since = np.array([counted_since_event(label) for label in labels])
    return [(int(i), float(time[i] - since[i])) for i in np.flatnonzero(time - since > FIRST_WEEK)]
