"""What all designs share: from a table of patients to a decision with its trace."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from carkinetics.design.decision import Decision, Step
from carkinetics.design.evidence import Evidence, gather
from carkinetics.design.patients import Patients, counted_level, read_patients
from carkinetics.design.rules import Rule
from carkinetics.design.setting import Setting
from carkinetics.errors import DesignError

FINAL = "what is selected at the end"


class Proposal(NamedTuple):
    """What a design proposes, per trial: a level (0 is stop), and whether the trial is complete with it."""

    level: Int[np.ndarray, " trial"]
    done: Bool[np.ndarray, " trial"]


class _Outcome(NamedTuple):
    """One trial's next level with its trace; 0 is stop."""

    level: int
    done: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class AbstractDesign(ABC):
    """A phase 1 design. Every decision is a function of the patients alone: nothing is drawn, nothing remembered.

    Attributes
    ----------
    setting : Setting
        Dose levels, starting level and the DLT probability that safety rules compare with.
    rules : tuple of Rule
        Asked in this order, after the design's own proposal.
    """

    setting: Setting
    rules: tuple[Rule, ...] = field(default=())

    @property
    @abstractmethod
    def name(self) -> str:
        """What the design is called in a trace."""

    @property
    @abstractmethod
    def convention(self) -> str:
        """What the estimates in its tables are."""

    @property
    def target(self) -> float | None:
        """The DLT probability that the design aims at; None where it has none."""
        return self.setting.limit

    def wanted(self, rates: Float[np.ndarray, " level"]) -> Bool[np.ndarray, " level"]:
        """The levels that are right to select where these are the true DLT probabilities."""
        return np.isclose(
            np.abs(rates - (self.target or 0.0)), np.abs(rates - (self.target or 0.0)).min(), rtol=0, atol=1e-12
        )

    @property
    def uses_response(self) -> bool:
        """Whether the decision reads responses too."""
        return False

    @property
    def window(self) -> float | None:
        """Days over which follow-up is weighted; None where outcomes must be complete."""
        return None

    @abstractmethod
    def propose(self, evidence: Evidence) -> Proposal:
        """The next level of every trial, before the rules; every trial has patients."""

    @abstractmethod
    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The level of every trial that is selected at its end, among those up to ``cap``; 0 is none."""

    @abstractmethod
    def estimates(self, evidence: Evidence) -> dict[str, Float[np.ndarray, " level"]]:
        """Columns of the table, of the first trial."""

    @abstractmethod
    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """Why the first trial's proposal is what it is."""

    def recommend(self, data: pd.DataFrame | str | None = None) -> Decision:
        """The dose for the next patients.

        Parameters
        ----------
        data : DataFrame, str or None
            One row a patient: ``LEVEL`` and ``DLT`` (1, 0, empty while pending), and where there are any ``ID COHORT
            INFUSED FOLLOW_UP ORR DAY``; or the notation of :func:`carkinetics.design.outcomes`.

        Returns
        -------
        Decision
            Where outcomes are pending and decide, ``wait``.

        Raises
        ------
        DataError
            A row cannot be.
        DesignError
            The design knows no dose levels.
        """
        patients = self._read(data)
        found = [self._next(evidence, patients) for evidence in self._cases(patients)]
        level, done = min(f.level for f in found), all(f.done for f in found)
        differ = len({(f.level, f.done) for f in found}) > 1
        worst = min(found, key=lambda f: f.level)
        known = next(self._cases(patients, known_only=True))
        pending = self._pending(patients)
        current = int(known.current[0])
        word = "wait" if differ else _word(level, current, done, patients.n)
        reason = next((s.reason for s in reversed(worst.steps) if s.acted), worst.steps[0].reason)
        if differ:
            most = max(f.level for f in found)
            reason = f"{int(pending.sum())} outcomes are pending, and decide between {_said(level)} and {_said(most)}."
        elif pending.any() and self.window is None:
            reason += f" {int(pending.sum())} outcomes are pending; whatever they are, this does not change."
        days = [d for rule in self.rules if (d := rule.not_before(patients)) is not None]
        return self._decision(level, word, reason, (known, patients), worst.steps, max(days, default=None))

    def select(self, data: pd.DataFrame | str | None = None) -> Decision:
        """The level that is selected if the trial ends here; patients whose outcome is pending do not count."""
        patients = self._read(data)
        evidence = next(self._cases(patients, known_only=True))
        level = int(self.final_levels(evidence)[0])
        word = "complete" if level else "stop"
        reason = f"{_said(level)} is selected" if level else "no level can be selected"
        step = Step(self.name, int(evidence.current[0]) or None, level or None, True, FINAL)
        return self._decision(level, word, f"{reason}: {self.selection}.", (evidence, patients), (step,), None)

    @property
    @abstractmethod
    def selection(self) -> str:
        """How a level is selected at the end, in words."""

    def next_levels(self, evidence: Evidence) -> Proposal:
        """The next level of every trial after all rules; 0 is stop."""
        return self._asked(evidence)[-1][1]

    def final_levels(self, evidence: Evidence) -> Int[np.ndarray, " trial"]:
        """The level of every trial that is selected at its end; 0 is none."""
        cap = np.full(len(evidence.current), len(self.setting.doses))
        for rule in self.rules:
            if rule.final:
                cap = np.minimum(cap, rule.cap(evidence, self.setting))
        return np.minimum(self.choose(evidence, cap), cap)

    def _asked(self, evidence: Evidence) -> list[tuple[Rule | None, Proposal]]:
        """The proposal, then what is left of it after every rule."""
        begun = evidence.current > 0
        proposal = self.propose(evidence)
        level = np.where(begun, proposal.level, self.setting.start)
        found: list[tuple[Rule | None, Proposal]] = [(None, Proposal(level, proposal.done & begun))]
        for rule in self.rules:
            level = np.minimum(level, np.maximum(rule.cap(evidence, self.setting), 0))
            found.append((rule, Proposal(level, (found[-1][1].done & (level > 0)) | (level == 0))))
        return found

    def _next(self, evidence: Evidence, patients: Patients) -> _Outcome:
        """The decision on one trial, with its trace."""
        asked = self._asked(evidence)
        current = int(evidence.current[0])
        first = asked[0][1]
        why = self.explain(evidence, first) if current else "No patient yet: the starting level."
        steps = [Step(self.name, current or None, int(first.level[0]) or None, True, why)]
        before, held = int(first.level[0]), None
        for rule, after in asked[1:]:
            assert rule is not None
            now = int(after.level[0]) if held is None else min(held, int(after.level[0]))
            if now > current > 0 and rule.holds(patients, self.setting):
                now = held = current
            text = rule.says(self.setting) + ("" if now != before else ": nothing to change")
            steps.append(Step(type(rule).__name__, before or None, now or None, now != before, f"{_capital(text)}."))
            before = now
        last = asked[-1][1]
        return _Outcome(before, bool(last.done[0]) and before == int(last.level[0]), tuple(steps))

    def _read(self, data: pd.DataFrame | str | None) -> Patients:
        if not self.setting.doses:
            raise DesignError(f"{self.name} knows no dose levels. Give doses=[...], or their number.")
        return read_patients(data, self.setting.doses, amounts=self.setting.amounts)

    def _pending(self, patients: Patients) -> Bool[np.ndarray, " patient"]:
        pending = np.isnan(patients.dlt)
        if self.window is None:
            for rule in self.rules:
                pending |= rule.pending(patients)
        else:
            pending |= (patients.dlt == 0) & (patients.follow_up < self.window)
        return pending | (np.isnan(patients.response) if self.uses_response else False)

    def _cases(self, patients: Patients, *, known_only: bool = False) -> Iterator[Evidence]:
        """What the trial may have shown: once if nothing is pending, else with all pending outcomes good or bad."""
        pending, weight = self._pending(patients), np.ones(patients.n)
        dlt, response = patients.dlt.copy(), patients.response.copy()
        if self.window is not None:
            weight = np.where(pending, np.clip(np.nan_to_num(patients.follow_up) / self.window, 0, 1), 1.0)
            dlt[pending] = 0.0
            yield gather(patients, self.setting.doses, dlt, response, weight)
            return
        if known_only or not pending.any():
            dlt[pending] = np.nan
            yield gather(patients, self.setting.doses, dlt, response, weight)
            return
        open_dlt = pending & (patients.dlt != 1)
        open_dlt &= np.isnan(patients.dlt) | np.any([r.pending(patients) for r in self.rules] or [False], axis=0)
        for toxic in (0.0, 1.0):
            for good in (0.0, 1.0) if self.uses_response else (0.0,):
                filled = np.where(np.isnan(response), good, response)
                yield gather(patients, self.setting.doses, np.where(open_dlt, toxic, dlt), filled, weight)

    def _decision(
        self,
        level: int,
        word: str,
        reason: str,
        of: tuple[Evidence, Patients],
        steps: tuple[Step, ...],
        not_before: float | None,
    ) -> Decision:
        evidence, patients = of
        numbers = np.arange(1, len(self.setting.doses) + 1)
        pending = self._pending(patients)
        waiting = [int((pending & (patients.level == k)).sum()) for k in numbers]
        counts = {"TREATED": evidence.treated[0].astype(int), "DLT": evidence.toxic[0].astype(int)}
        if self.window is not None:
            counted = counted_level(patients, self.setting.doses)
            counts |= {
                "TREATED": np.array([int((counted == k).sum()) for k in numbers]),
                "FOLLOWED": evidence.treated[0],
            }
        if self.uses_response:
            counts["ORR"] = evidence.effective[0].astype(int)
        doses = {"DOSE": self.setting.doses} if self.setting.amounts else {}
        columns = {"LEVEL": numbers, **doses, **counts, "PENDING": waiting, **self.estimates(evidence)}
        table = pd.DataFrame({**columns, "RECOMMENDED": numbers == level})
        amount = self.setting.doses[level - 1] if level and self.setting.amounts else None
        return Decision(level or None, amount, word, reason, table, steps, not_before, self.convention)


def _word(level: int, current: int, done: bool, n: int) -> str:
    if level == 0:
        return "stop"
    if done:
        return "complete"
    if n == 0:
        return "start"
    return "escalate" if level > current else "de-escalate" if level < current else "stay"


def _said(level: int) -> str:
    return f"level {level}" if level else "stop"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
