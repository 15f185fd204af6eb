"""The 3+3 design."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence
from carkinetics.design.rules import Rule
from carkinetics.design.setting import make_setting

FULL = 6  # patients of a level that has been expanded
THIRD = 1 / 3


def three_plus_three(
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    deescalate: bool = True,
    start: int = 1,
    rules: Sequence[Rule] = (),
) -> "ThreePlusThree":
    """The 3+3 design.

    Three patients: none with a toxicity, escalate; one, three more; two or three, the level is too toxic. Six: at most
    one with a toxicity, escalate; more, too toxic. With de-escalation the level below one that is too toxic is
    expanded to six patients before it is selected. The highest level is selected after 0 of 3 or at most 1 of 6. Where
    a level has another number of patients (a product below its dose), 0 of 3 to 5 pass as 0 of 3, and of more than six
    one in six.

    Parameters
    ----------
    doses : sequence of float or int
        Dose of every level, or how many levels there are.
    deescalate : bool
        Without, the level below the first that is too toxic is selected as it is.
    start : int
        Level of the first cohort.
    rules : sequence of Rule
        Safety rules beyond the design's own.

    References
    ----------
    Storer, Biometrics 1989;45:925-937, doi:10.2307/2531693. Lin & Shih, Biostatistics 2001;2:203-215,
    doi:10.1093/biostatistics/2.2.203 (A = B = 3, C = D = E = 1).
    """
    return ThreePlusThree(setting=make_setting(doses, start, THIRD), rules=tuple(rules), deescalate=deescalate)


@dataclass(frozen=True, kw_only=True)
class ThreePlusThree(AbstractDesign):
    """See :func:`three_plus_three`."""

    deescalate: bool = True

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "3+3"

    @property
    def convention(self) -> str:
        """What the estimates in its tables are."""
        return "RATE is the share of patients with a toxicity; a limit of 1/3 stands for the design in safety rules."

    @property
    def target(self) -> float | None:
        """It has none."""
        return None

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return "the highest level with 0 of 3, or at most 1 of 6, below every level that was too toxic"

    def propose(self, evidence: Evidence) -> Proposal:
        """The next level, from the counts of all levels."""
        passed, failed = _passed(evidence), _failed(evidence)
        levels, trial = passed.shape[1], np.arange(len(passed))
        first_failed = np.where(failed.any(axis=1), failed.argmax(axis=1) + 1, levels + 1)
        level = np.minimum(np.maximum(evidence.current, 1), first_failed - 1)
        at = np.maximum(level, 1) - 1
        cleared = passed[trial, at] & (level > 0)
        full = evidence.treated[trial, at] >= FULL
        up = cleared & (level < levels) & (level + 1 < first_failed)
        last = cleared & ~up & (full | (not self.deescalate) | (first_failed > levels))
        return Proposal(np.where(up, level + 1, level), last | (level == 0))

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The highest level that passed, below every level that failed."""
        passed, failed = _passed(evidence), _failed(evidence)
        levels = np.arange(1, passed.shape[1] + 1)
        below = ~np.maximum.accumulate(failed, axis=1) & (levels <= cap[:, None])
        return np.where(passed & below, levels, 0).max(axis=1)

    def estimates(self, evidence: Evidence) -> dict[str, Float[np.ndarray, " level"]]:
        """The share of patients with a toxicity."""
        n = evidence.treated[0]
        return {"RATE": np.divide(evidence.toxic[0], n, out=np.full(len(n), np.nan), where=n > 0)}

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """The counts that decide."""
        n, y = (int(v[0]) for v in evidence.at_current())
        level, current = int(proposal.level[0]), int(evidence.current[0])
        text = f"{y} of {n} with a toxicity at level {current}"
        if level == 0:
            return f"{text}: too toxic, and there is no lower level."
        if proposal.done[0]:
            return f"{text}; level {level} is the highest that passed: {self.selection}."
        if level == current:
            return f"{text}: more patients at the same level."
        return f"{text}: {'one level up' if level > current else f'too toxic, down to level {level}'}."


def _passed(evidence: Evidence) -> Bool[np.ndarray, "trial level"]:
    """Levels above which one may go: 0 of 3, or at most one in six."""
    n, y = evidence.treated, evidence.toxic
    return ((n >= FULL / 2) & (y == 0)) | ((n >= FULL) & (y <= np.floor(n / FULL)))


def _failed(evidence: Evidence) -> Bool[np.ndarray, "trial level"]:
    """Levels that are too toxic."""
    return (evidence.toxic >= 2) & ~_passed(evidence)
