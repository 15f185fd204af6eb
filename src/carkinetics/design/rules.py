"""Safety rules that are laid over a design: each can only lower what was proposed, and says what it did."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from carkinetics.design.evidence import Evidence, too_toxic
from carkinetics.design.patients import Patients, counted_level
from carkinetics.design.setting import Setting
from carkinetics.errors import DesignError


class Rule(ABC):
    """A safety rule.

    ``cap`` is all that a simulation needs; ``pending``, ``holds`` and ``not_before`` read the calendar of one trial.
    """

    # Whether the rule also limits what is selected at the end of a trial.
    final: bool = False

    @abstractmethod
    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """The highest level that the rule allows next, per trial; 0 is stop."""

    @abstractmethod
    def says(self, setting: Setting) -> str:
        """What the rule asks for."""

    def pending(self, patients: Patients) -> Bool[np.ndarray, " patient"]:
        """Patients whose outcome does not count yet."""
        return np.zeros(patients.n, bool)

    def holds(self, patients: Patients, setting: Setting) -> bool:
        """Whether the rule forbids to escalate now, because of the calendar."""
        return False

    def not_before(self, patients: Patients) -> float | None:
        """The first day on which the next patient may be infused."""
        return None


@dataclass(frozen=True)
class NoSkipping(Rule):
    """No level is skipped: at most one above the highest that was infused."""

    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """One above the highest level infused; the starting level before that."""
        highest = evidence.highest()
        return np.where(highest == 0, np.maximum(setting.start, evidence.current), highest + 1)

    def says(self, setting: Setting) -> str:
        """What the rule asks for."""
        return "at most one level above the highest that was infused"


@dataclass(frozen=True)
class _TooToxic(Rule):
    """A level is too toxic where P(DLT probability > limit) exceeds ``probability`` with ``least`` patients or more."""

    probability: float = 0.95
    least: int = 3
    final = True

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1 or self.least < 1:
            raise DesignError("A safety rule's probability must lie between 0 and 1 and its patients be at least 1.")

    def closed(self, evidence: Evidence, setting: Setting) -> Bool[np.ndarray, "trial level"]:
        """Levels that are too toxic."""
        return too_toxic(evidence, setting.limit, self.probability, self.least)

    def bound(self, setting: Setting) -> str:
        """What closes a level, in words."""
        return f"P(DLT rate > {setting.limit:.3g}) > {self.probability:g} with {self.least} patients or more"


@dataclass(frozen=True)
class Elimination(_TooToxic):
    """A level and all above it are closed once P(DLT probability > limit) exceeds ``probability``.

    With a uniform prior and the level's own patients, ``least`` at least; if the lowest level is closed the trial
    stops. The limit is the design's target rate.
    """

    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """One below the lowest level that is closed."""
        closed = self.closed(evidence, setting)
        return np.where(closed.any(axis=1), closed.argmax(axis=1), closed.shape[1])

    def says(self, setting: Setting) -> str:
        """What the rule asks for."""
        return f"no level, and none above one, with {self.bound(setting)}"


@dataclass(frozen=True)
class FirstDoseStop(_TooToxic):
    """The trial stops once the lowest level is too toxic: P(DLT probability > limit) exceeds ``probability``."""

    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """0 where the lowest level is too toxic."""
        closed = self.closed(evidence, setting)
        return np.where(closed[:, 0], 0, closed.shape[1])

    def says(self, setting: Setting) -> str:
        """What the rule asks for."""
        return f"stop if the lowest level has {self.bound(setting)}"


@dataclass(frozen=True)
class MaximumJump(Rule):
    """The dose is at most ``factor`` times the highest that was infused."""

    factor: float = 2.0

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise DesignError(f"MaximumJump: factor = {self.factor!r} must be at least 1.")

    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """The highest level within the factor of the highest level infused."""
        if not setting.amounts:
            raise DesignError("MaximumJump needs the doses of the levels; give the design doses=[...].")
        doses, highest = np.array(setting.doses), evidence.highest()
        given = np.where(highest == 0, doses[setting.start - 1], doses[np.maximum(highest, 1) - 1])
        return np.searchsorted(doses, self.factor * given * (1 + 1e-9), side="right")

    def says(self, setting: Setting) -> str:
        """What the rule asks for."""
        return f"at most {self.factor:g} times the highest dose infused"


@dataclass(frozen=True)
class MinimumFollowUp(Rule):
    """A patient without a toxicity counts after ``days``; for TITE designs, ``patients`` at the current level must.

    In designs that need complete outcomes, a patient with a shorter ``FOLLOW_UP`` and no toxicity is pending. In those
    that weight the follow-up, an escalation waits for ``patients`` with a complete one, or a toxicity, at the current
    level.
    """

    days: float
    patients: int = 1

    def __post_init__(self) -> None:
        if not self.days > 0 or self.patients < 1:
            raise DesignError("MinimumFollowUp: days must be above 0 and patients at least 1.")

    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """No limit from counts alone."""
        return np.full(len(evidence.current), len(setting.doses))

    def pending(self, patients: Patients) -> Bool[np.ndarray, " patient"]:
        """Without a toxicity and followed for a shorter time."""
        return (patients.dlt == 0) & (patients.follow_up < self.days)

    def holds(self, patients: Patients, setting: Setting) -> bool:
        """Too few patients of the current level have been followed."""
        level = counted_level(patients, setting.doses)
        complete = (patients.dlt == 1) | (patients.follow_up >= self.days)
        complete |= (patients.dlt == 0) & np.isnan(patients.follow_up)
        last = patients.cohort == patients.cohort.max(initial=0)
        current = max(level[last].max(initial=0), 1)
        return int((complete & (level == current)).sum()) < self.patients

    def says(self, setting: Setting) -> str:
        """What the rule asks for."""
        return f"{self.days:g} days of follow-up, of {self.patients} at the current level before an escalation"


@dataclass(frozen=True)
class Stagger(Rule):
    """``days`` between two infusions, for the first ``patients`` of every level (all, if None)."""

    days: float = 14.0
    patients: int | None = None

    def __post_init__(self) -> None:
        if not self.days > 0:
            raise DesignError(f"Stagger: days = {self.days!r} must be above 0.")

    def cap(self, evidence: Evidence, setting: Setting) -> Int[np.ndarray, " trial"]:
        """No limit: it moves the day, not the dose."""
        return np.full(len(evidence.current), len(setting.doses))

    def not_before(self, patients: Patients) -> float | None:
        """Days after the last infusion; needs the column ``DAY``."""
        if patients.n == 0 or np.isnan(patients.day).all():
            return None
        last = int(np.nanargmax(patients.day))
        before = int((patients.level == patients.level[last]).sum())
        if self.patients is not None and before > self.patients:
            return None
        return float(patients.day[last] + self.days)

    def says(self, setting: Setting) -> str:
        """What the rule asks for."""
        who = "" if self.patients is None else f" for the first {self.patients} of a level"
        return f"{self.days:g} days between infusions{who} (column DAY)"
