"""One trial's calendar: who is infused when and at which level, decided by what is known on the day."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from carkinetics.design.base import AbstractDesign
from carkinetics.design.decision import Decision
from carkinetics.trials.parts import MONTH, Trial


class Fates(NamedTuple):
    """What would happen to every patient at every level.

    Attributes
    ----------
    toxic, responds : Bool["patient level"]
        Within, or on, the outcome's day.
    onset : Float[" patient"]
        Day of the toxicity.
    progressed, died : Float["patient level"]
        Day.
    lost : Float[" patient"]
        Day.
    gap : Float[" patient"]
        Days until the next patient comes.
    """

    toxic: Bool[np.ndarray, "patient level"]
    responds: Bool[np.ndarray, "patient level"]
    onset: Float[np.ndarray, " patient"]
    progressed: Float[np.ndarray, "patient level"]
    died: Float[np.ndarray, "patient level"]
    lost: Float[np.ndarray, " patient"]
    gap: Float[np.ndarray, " patient"]

    def of(self, level: Int[np.ndarray, " n"]) -> "Fates":
        """Of the first patients, at the levels that they got; arrays have one column."""
        who, n = np.arange(len(level)), len(level)

        def at(x: np.ndarray) -> np.ndarray:
            return x[who, level - 1][:, None]

        return Fates(
            at(self.toxic), at(self.responds), self.onset[:n], at(self.progressed), at(self.died), self.lost[:n],
            self.gap[:n],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Enrolled:
    """Who was infused.

    Attributes
    ----------
    level : Int[" n"]
        From 1.
    day : Float[" n"]
        Of the infusion, in the trial.
    cohort : Int[" n"]
        From 1; all who come after the design's part of the trial are one, and so are those of arms.
    arm : tuple of str
    decisions : tuple of Decision
        The design's, in order; the last one is the level of the patients after its part.
    stopped : bool
        The design stopped the trial.
    """

    level: Int[np.ndarray, " n"]
    day: Float[np.ndarray, " n"]
    cohort: Int[np.ndarray, " n"]
    arm: tuple[str, ...]
    decisions: tuple[Decision, ...]
    stopped: bool


def known(trial: Trial, fates: Fates, elapsed: Float[np.ndarray, " n"]) -> pd.DataFrame:
    """Outcomes as they are known of patients so many days after their infusions.

    A toxicity that has not begun is pending until its window ends; of a patient who died or was lost before that, it is
    never known, and the same goes for the response of one who was lost. Who died is no responder.

    Parameters
    ----------
    fates : Fates
        Of these patients at their levels: one column.

    Returns
    -------
    DataFrame
        ``DLT``, ``ORR`` (1, 0, NaN), ``OUT`` (true of who can no longer have a DLT and was not watched long enough).
    """
    window, told = trial.toxicity.day, trial.response.day
    died = fates.died[:, 0]
    out = np.minimum(died, fates.lost)
    seen = np.minimum(elapsed, out)
    toxic = fates.toxic[:, 0] & (fates.onset <= seen)
    dlt = np.where(toxic, 1.0, np.where(seen >= window, 0.0, np.nan))
    orr = np.where(seen >= told, fates.responds[:, 0].astype(float), np.nan)
    orr = np.where((died <= fates.lost) & (died <= np.minimum(elapsed, told)), 0.0, orr)
    return pd.DataFrame({"DLT": dlt, "ORR": orr, "OUT": np.isnan(dlt) & (out <= elapsed)})


def enrol(trial: Trial, fates: Fates) -> Enrolled:
    """Infuse patients until all have come or the trial stops."""
    if trial.assignment.design is None:
        return _by_arms(trial, fates)
    return _Escalation(trial, trial.assignment.design, fates).run()


def _by_arms(trial: Trial, fates: Fates) -> Enrolled:
    """Arms in turn, as long as they have places."""
    arms = trial.assignment.arms
    turns = sorted((k, place) for place, a in enumerate(arms) for k in range(a.patients))
    level = np.array([arms[place].level for _, place in turns])
    names = tuple(arms[place].name for _, place in turns)
    return Enrolled(level, np.cumsum(fates.gap), np.ones(len(level), int), names, (), False)


class _Escalation:
    """The part of a trial in which a design decides, and what follows."""

    def __init__(self, trial: Trial, design: AbstractDesign, fates: Fates):
        self.trial, self.design, self.fates = trial, design, fates
        self.level: list[int] = []
        self.day: list[float] = []
        self.cohort: list[int] = []
        self.decisions: list[Decision] = []

    def run(self) -> Enrolled:
        """Cohort by cohort, then all others at the level that is selected."""
        of, now, most = self.trial.assignment, 0.0, self.trial.assignment.patients
        while len(self.level) < most:
            now, decision = self._asked(now)
            self.decisions.append(decision)
            if decision.dose is None:
                return self._enrolled(stopped=True)
            if decision.decision == "complete":
                break
            self._treat(decision.dose, min(of.cohort, most - len(self.level)), max(now, decision.not_before or 0.0))
            now = self.day[-1] + of.wait
        else:  # nobody is treated at a level that was selected before the last outcome is known
            now = max(now, self.day[-1] + self._window)
            self.decisions.append(self.design.select(self._table(now)))
        level = self.decisions[-1].dose
        if level is None:
            return self._enrolled(stopped=True)
        escalated = len(self.level)
        self._treat(level, self.trial.enrolment.patients - escalated, now, stagger=0.0)
        return self._enrolled(stopped=False, escalated=escalated)

    @property
    def _window(self) -> float:
        return max(self.trial.toxicity.day, self.trial.response.day if self.design.uses_response else 0.0)

    def _asked(self, now: float) -> tuple[float, Decision]:
        """The decision, and the day on which it can be made: pending outcomes may have to come in first."""
        decision = self.design.recommend(self._table(now))
        if decision.decision == "wait" and decision.dose is None:
            now = self.day[-1] + self._window
            decision = self.design.recommend(self._table(now))
        return now, decision

    def _treat(self, level: int, n: int, since: float, *, stagger: float | None = None) -> None:
        between = self.trial.enrolment.stagger if stagger is None else stagger
        own = max(self.cohort, default=0) + 1
        for _ in range(n):
            self.day.append(since + float(self.fates.gap[len(self.day)]))
            self.level.append(level)
            self.cohort.append(own)
            since = self.day[-1] + between

    def _table(self, now: float) -> pd.DataFrame:
        """What the design reads on a day: patients whose toxicity can still be told, or was."""
        level, day = np.array(self.level, int), np.array(self.day, float)
        elapsed = now - day
        found = known(self.trial, self.fates.of(level), elapsed)
        keep = ~found["OUT"].to_numpy(bool)
        response = found["ORR"].to_numpy()
        if self.design.uses_response:  # of a patient who was lost it will never be known: none
            lost = np.isnan(response) & (self.fates.lost[: len(level)] <= elapsed)
            response = np.where(lost, 0.0, response)
        columns = {"COHORT": np.array(self.cohort, int), "LEVEL": level, "DLT": found["DLT"].to_numpy()}
        table = pd.DataFrame(columns | {"ORR": response, "FOLLOW_UP": elapsed, "DAY": day})
        return table[keep].reset_index(drop=True)

    def _enrolled(self, *, stopped: bool, escalated: int | None = None) -> Enrolled:
        level, day, cohort = np.array(self.level, int), np.array(self.day, float), np.array(self.cohort, int)
        first = len(level) if escalated is None else escalated
        names = tuple("escalation" if k < first else "expansion" for k in range(len(level)))
        return Enrolled(level, day, cohort, names, tuple(self.decisions), stopped)


def gaps(trial: Trial, u: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Days until the next patient comes, exponential."""
    return -np.log(u) * MONTH / trial.enrolment.per_month
