"""What is said of doses: rates with intervals, utility, which dose is best and how surely, and what is against it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.endpoints import Judged
from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.model_parts import nearest_or_raise

LEVEL = 0.9  # of intervals of population averages
MORE = 0.95  # probability from which on a higher dose counts as better
MARGIN = 0.01  # of a rate: fewer than one more responder in a hundred patients is no gain
SAFE = 0.5  # probability that a toxicity's rate is at its target or below, which an admissible dose has at least
SLACK = 1.1  # a level within this factor of the doses that were given is not called extrapolated
NEAR = 1.25  # a patient whose dose is within this factor of a level counts as treated there
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)  # by which the weights of toxicities are multiplied for the sensitivity
SUPPORT = "Decision support for trained staff, not a medical device: a dose is chosen by people who know the patients."


@dataclass(frozen=True)
class PlanRules:
    """By what a dose is chosen.

    Attributes
    ----------
    level : float
        Of all intervals of the plan: 0.9.
    more : float
        Probability of a gain from which on a higher dose is said to be better.
    margin : float
        Gain in the rate of the first efficacy that counts as one.
    safe : float
        A level is admissible if every toxicity's rate is at most its target with at least this probability.
    """

    level: float = LEVEL
    more: float = MORE
    margin: float = MARGIN
    safe: float = SAFE

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        for name in ("level", "more", "safe"):
            if not 0 < getattr(self, name) < 1:
                raise ModelError(f"rules: {name} = {getattr(self, name)!r} must be between 0 and 1, such as 0.9.")
        if not 0 <= self.margin < 1:
            raise ModelError(f"rules: margin = {self.margin!r} must be a difference of rates, such as 0.01.")


RULES = PlanRules()


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """Doses, judged by what is known.

    Attributes
    ----------
    levels : array of shape (level,)
        In ``unit``, increasing.
    endpoints : tuple of Judged
    rates : mapping
        By endpoint: the average over new patients, (draw, level).
    means : mapping
        By exposure metric: ln of its geometric mean over new patients, (draw, level).
    spread : mapping
        By exposure metric: 5th, 50th and 95th percentile of patients, population uncertainty included, (3, level).
    doses : array
        Of the fitted patients, in ``unit``; empty where none is known.
    rules : PlanRules
    status : mapping
        Of the fit and of every response: ``ok``, ``approximation``, ``warning`` or ``failed``, with the first reason.
    priors : DataFrame
        ``OF PARAMETER PRIOR``.
    notes : tuple of str
        Who it is about, what it rests on, what it cannot tell.
    """

    levels: Float[np.ndarray, " level"]
    unit: str
    endpoints: tuple[Judged, ...]
    rates: Mapping[str, Float[np.ndarray, "draw level"]]
    means: Mapping[str, Float[np.ndarray, "draw level"]]
    spread: Mapping[str, Float[np.ndarray, "3 level"]]
    doses: Float[np.ndarray, " patient"]
    rules: PlanRules
    status: Mapping[str, str]
    priors: pd.DataFrame
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        best = "none" if self.best is None else f"{self.best:g}"
        return f"Plan({len(self.levels)} levels, best: {best} {self.unit})"

    @cached_property
    def utility(self) -> Float[np.ndarray, "draw level"]:
        """Expected utility of a new patient: the weighted sum of the rates."""
        return np.sum([e.weight * self.rates[e.name] for e in self.endpoints], axis=0)

    @property
    def p_best(self) -> Float[np.ndarray, " level"]:
        """Probability that a level has the highest expected utility; of equal ones the lowest has it."""
        top = self.utility.argmax(axis=1)
        return np.bincount(top, minlength=len(self.levels)) / len(top)

    @property
    def extrapolated(self) -> np.ndarray:
        """Levels outside the doses of the fitted patients by more than a tenth; all, where these are not known."""
        if not len(self.doses):
            return np.ones(len(self.levels), bool)
        return (self.levels * SLACK < self.doses.min()) | (self.levels > self.doses.max() * SLACK)

    @property
    def admissible(self) -> np.ndarray:
        """Levels at which every toxicity is at most its target with the probability that the rules ask for."""
        toxic = [self._reached(e) >= self.rules.safe for e in self.endpoints if e.toxic]
        return np.all(toxic, axis=0)

    @property
    def best(self) -> float | None:
        """The admissible level with the highest expected utility, over all uncertainty; None: stop, none is."""
        return self._best(self.utility)

    def _best(self, utility: Float[np.ndarray, "draw level"]) -> float | None:
        if not self.admissible.any():
            return None
        return float(self.levels[np.where(self.admissible, utility.mean(axis=0), -np.inf).argmax()])

    def _reached(self, e: Judged) -> Float[np.ndarray, " level"]:
        return e.reached(self.rates[e.name]).mean(axis=0)

    @property
    def table(self) -> pd.DataFrame:
        """One row a level.

        Returns
        -------
        DataFrame
            ``DOSE``, ``PATIENTS`` (fitted ones within a factor of 1.25 of it), ``EXTRAPOLATED``; of every endpoint its
            rate (median), ``_LOW`` and ``_HIGH`` (90 % interval unless the rules say otherwise) and ``_P``, the
            probability that its target is met (above it for an efficacy, at or below it for a toxicity); ``UTILITY``
            (mean), ``UTILITY_LOW``, ``UTILITY_HIGH``, ``P_BEST``, ``ADMISSIBLE``, ``BEST``.
        """
        near = np.abs(np.log(np.maximum(self.doses, 1e-300)) - np.log(self.levels)[:, None]) < np.log(NEAR)
        found: dict[str, np.ndarray] = {"DOSE": self.levels, "PATIENTS": near.sum(axis=1)}
        found["EXTRAPOLATED"] = self.extrapolated
        for e in self.endpoints:
            low, median, high = np.quantile(self.rates[e.name], self._tails, axis=0)
            found |= {e.name: median, f"{e.name}_LOW": low, f"{e.name}_HIGH": high, f"{e.name}_P": self._reached(e)}
        low, _, high = np.quantile(self.utility, self._tails, axis=0)
        found |= {"UTILITY": self.utility.mean(axis=0), "UTILITY_LOW": low, "UTILITY_HIGH": high}
        chosen = np.zeros(len(self.levels), bool) if self.best is None else self.levels == self.best
        return pd.DataFrame(found | {"P_BEST": self.p_best, "ADMISSIBLE": self.admissible, "BEST": chosen})

    @property
    def _tails(self) -> tuple[float, float, float]:
        return ((1 - self.rules.level) / 2, 0.5, (1 + self.rules.level) / 2)

    @property
    def exposure(self) -> pd.DataFrame:
        """``METRIC DOSE MEAN LOW HIGH P5 P50 P95``: geometric mean over new patients with its interval; patients."""
        rows = []
        for name, ln in self.means.items():
            low, median, high = np.exp(np.quantile(ln, self._tails, axis=0))
            for k, dose in enumerate(self.levels):
                row = {"METRIC": name, "DOSE": dose, "MEAN": median[k], "LOW": low[k], "HIGH": high[k]}
                rows.append(row | dict(zip(("P5", "P50", "P95"), self.spread[name][:, k], strict=True)))
        return pd.DataFrame(rows)

    @property
    def higher(self) -> pd.DataFrame:
        """The highest level against the lowest.

        Returns
        -------
        DataFrame
            ``QUANTITY KIND MEDIAN LOW HIGH P_MORE``: ratios of exposures, differences of rates and of the utility, and
            the probability of more (ratio above 1, difference above 0; of the first efficacy also above the margin).
        """
        rows = []
        for name, ln in self.means.items():
            rows.append(self._compared(name, "ratio", np.exp(ln[:, -1] - ln[:, 0]), 1.0))
        for e in self.endpoints:
            gain = self.rates[e.name][:, -1] - self.rates[e.name][:, 0]
            rows.append(self._compared(e.name, "difference", gain, 0.0))
        rows.append(self._compared("UTILITY", "difference", self.utility[:, -1] - self.utility[:, 0], 0.0))
        return pd.DataFrame(rows)

    def _compared(self, name: str, kind: str, x: Float[np.ndarray, " draw"], null: float) -> dict[str, str | float]:
        low, median, high = np.quantile(x, self._tails)
        found: dict[str, str | float] = {"QUANTITY": name, "KIND": kind}
        found |= {"MEDIAN": float(median), "LOW": float(low), "HIGH": float(high)}
        return found | {"P_MORE": float((x > null).mean())}

    @property
    def p_more(self) -> float:
        """Probability that the highest level's rate of the first efficacy exceeds the lowest's by the margin."""
        rate = self.rates[self.endpoints[0].name]
        return float((rate[:, -1] > rate[:, 0] + self.rules.margin).mean())

    @property
    def more_is_better(self) -> bool:
        """Whether there is evidence that more is better for the first efficacy; of toxicity it says nothing."""
        return self.p_more >= self.rules.more

    @property
    def sensitivity(self) -> pd.DataFrame:
        """The best level with the weights of toxicities multiplied by ``FACTOR``: ``BEST``, ``P_BEST``."""
        rows = []
        for factor in FACTORS:
            other = self.weighed({e.name: factor * e.weight for e in self.endpoints if e.toxic})
            top = other.best
            p = float("nan") if top is None else float(other.p_best[self.levels == top][0])
            rows.append({"FACTOR": factor, "BEST": float("nan") if top is None else top, "P_BEST": p})
        return pd.DataFrame(rows)

    def weighed(self, weights: Mapping[str, float]) -> "Plan":
        """The same with other weights of these endpoints, by name; nothing is simulated again."""
        names = [e.name for e in self.endpoints]
        for name in weights:
            nearest_or_raise(name, names, "endpoint", "weights")
        other = (replace(e, weight=float(weights.get(e.name, e.weight))) for e in self.endpoints)
        return replace(self, endpoints=tuple(other))

    @property
    def verdict(self) -> str:
        """The recommendation in words, and whether more is better at all."""
        return f"{self._chosen}\n{self._more}"

    @property
    def _chosen(self) -> str:
        if self.best is None:
            toxic = ", ".join(f"{e.name} <= {e.target:g}" for e in self.endpoints if e.toxic)
            return f"No dose: at no level is {toxic} with a probability of {self.rules.safe:g} or more."
        k = int(np.flatnonzero(self.levels == self.best)[0])
        row = self.table.iloc[k]
        parts = [
            f"{e.name} {row[e.name]:.2f} ({row[f'{e.name}_LOW']:.2f} to {row[f'{e.name}_HIGH']:.2f})"
            for e in self.endpoints
        ]
        text = f"{self.best:g} {self.unit}: {', '.join(parts)}; best of all levels with probability "
        text += f"{row['P_BEST']:.2f}."
        return text + (" This dose is EXTRAPOLATED." if row["EXTRAPOLATED"] else "")

    @property
    def _more(self) -> str:
        name, low, high = self.endpoints[0].name, self.levels[0], self.levels[-1]
        what = f"that {name} at {high:g} exceeds that at {low:g} by more than {self.rules.margin:g}"
        if self.more_is_better:
            return f"More is better for {name}: the probability {what} is {self.p_more:.2f}."
        return f"No evidence that more is better: the probability {what} is {self.p_more:.2f} < {self.rules.more:g}."

    @property
    def _outside(self) -> list[str]:
        if not len(self.doses):
            return ["EXTRAPOLATED: the doses of the fitted patients are not known."]
        outside = [f"{d:g}" for d in self.levels[self.extrapolated]]
        span = f"{self.doses.min():g} to {self.doses.max():g}"
        return [f"EXTRAPOLATED: {listed(outside)}, outside the doses of the fitted patients, {span}."] * bool(outside)

    def __str__(self) -> str:
        weights = ", ".join(f"{e.name} {e.weight:+g}" for e in self.endpoints)
        with pd.option_context("display.width", 200, "display.max_columns", 60):
            table = self.table.to_string(index=False, float_format=lambda x: f"{x:.3g}")
            tests = self.sensitivity.to_string(index=False, float_format=lambda x: f"{x:.3g}", na_rep="none")
        flags = [f"{name}: {text}" for name, text in self.status.items()]
        priors = [f"{row['OF']}: {row['PARAMETER']} ~ {row['PRIOR']}" for row in self.priors.to_dict("records")]
        parts = [self.verdict, table, f"Utility: {weights}. With toxicities weighed otherwise:", tests]
        parts += ["Status:", *(f"- {f}" for f in flags), "Priors:", *(f"- {p}" for p in priors)]
        return "\n".join([*parts, "Notes:", *(f"- {n}" for n in (*self._outside, *self.notes, SUPPORT))])
