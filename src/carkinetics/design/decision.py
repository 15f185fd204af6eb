"""What a design says: the dose, why, and every rule that was asked."""

from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

DECISIONS = ("start", "escalate", "stay", "de-escalate", "stop", "wait", "complete")


class Step(NamedTuple):
    """One rule of the trace: the level before and after it (None is stop), whether it changed it, and why."""

    rule: str
    before: int | None
    after: int | None
    acted: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Decision:
    """What a design recommends.

    Attributes
    ----------
    dose : int or None
        Level for the next patients, or at ``complete`` the level that is selected; the lowest is 1. None: nobody is
        to be treated (``stop``, or ``wait`` while the outcomes that are pending could stop the trial).
    amount : float or None
        The dose of that level, in the unit of the design's doses; None also where the design knows no doses.
    decision : str
        ``start``, ``escalate``, ``stay``, ``de-escalate``, ``stop``, ``complete``; ``wait`` where outcomes that are
        pending decide: ``dose`` is then the highest that is right whatever they are.
    reason : str
        In words, with the numbers.
    table : DataFrame
        One row a level: ``LEVEL DOSE TREATED DLT PENDING``, what the design computes, ``RECOMMENDED``.
    trace : tuple of Step
        The design's own proposal, then every rule in the order in which it was asked.
    not_before : float or None
        Day of the trial before which the next patient must not be infused.
    convention : str
        What the estimates in the table are.
    """

    dose: int | None
    amount: float | None
    decision: str
    reason: str
    table: pd.DataFrame
    trace: tuple[Step, ...]
    not_before: float | None
    convention: str

    def __str__(self) -> str:
        where = "no dose" if self.dose is None else f"level {self.dose}"
        amount = "" if self.amount is None else f" ({self.amount:g})"
        lines = [f"{self.decision}: {where}{amount}. {self.reason}"]
        if self.not_before is not None:
            lines.append(f"not before day {self.not_before:g}")
        lines += [f"  {step.rule}: {_level(step.before)} -> {_level(step.after)}. {step.reason}" for step in self.trace]
        return "\n".join([*lines, self.table.to_string(index=False), self.convention])


def _level(level: int | None) -> str:
    return "stop" if level is None else f"level {level}"
