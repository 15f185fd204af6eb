"""BOIN12: dose finding by toxicity and response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import special, stats

from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence, too_toxic
from carkinetics.design.intervals import boin
from carkinetics.design.isotonic import closest, isotonic
from carkinetics.design.rules import Elimination, Rule
from carkinetics.design.setting import make_setting, refuse_target
from carkinetics.errors import DesignError

FUTILE = 0.90  # P(response rate < the least worth having) that closes a level
ENOUGH = 6  # patients after which an acceptable level with toxicities near the target is not left upward
EXPLORE = 9  # patients after which an untried next level is given, if the current one is not too toxic
_TOXIC = 0.95


class Utility(NamedTuple):
    """What the four outcomes of a patient are worth, 100 for the best and 0 for the worst."""

    response: float = 100.0
    nothing: float = 40.0
    both: float = 60.0
    toxicity: float = 0.0


def boin12(
    toxicity: float = 0.35,
    response: float = 0.25,
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    utility: Utility | None = None,
    start: int = 1,
    rules: Sequence[Rule] = (Elimination(_TOXIC, 1),),
) -> "Boin12":
    """The BOIN12 design: the level with the best trade-off of response and toxicity.

    A level's desirability is P(mean utility > benchmark), by a beta posterior of the utility as if it were a share of
    successes. Down where the DLT rate reaches BOIN's lambda_d; else the most desirable of the levels around that are
    admissible (not surely too toxic, not surely without response), of equal ones the highest. With 6 patients and a
    DLT rate above lambda_e it is not left upward; with 9, a next level that is untried is given.

    Parameters
    ----------
    toxicity : float
        Highest acceptable DLT probability.
    response : float
        Lowest response probability worth having.
    doses : sequence of float or int
        Dose of every level, or how many levels there are.
    utility : Utility, optional
        Without, 100, 40, 60 and 0.

    References
    ----------
    Lin, Zhou, Yan, Li & Yuan, JCO Precis Oncol 2020;4:1393-1402, doi:10.1200/PO.20.00257, table 2 and supplement.
    """
    setting = make_setting(doses, start, refuse_target(toxicity, "toxicity"))
    worth = Utility(*(float(u) for u in utility or Utility()))
    if not worth.response > max(worth.nothing, worth.both) >= min(worth.nothing, worth.both) >= worth.toxicity:
        raise DesignError(f"boin12: {worth}: a response alone must be worth most, a toxicity alone least.")
    least = refuse_target(response, "response")
    return Boin12(setting=setting, rules=tuple(rules), response=least, utility=worth)


@dataclass(frozen=True, kw_only=True)
class Boin12(AbstractDesign):
    """See :func:`boin12`."""

    response: float
    utility: Utility

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "BOIN12"

    @property
    def uses_response(self) -> bool:
        """Responses decide too."""
        return True

    @property
    def target(self) -> float | None:
        """It aims at a trade-off, not at a DLT probability."""
        return None

    @property
    def convention(self) -> str:
        """What the estimates in its tables are."""
        return (
            f"UTILITY is the mean worth of a patient's outcome, {tuple(self.utility)} for response alone, nothing, "
            f"both and toxicity alone; DESIRABLE = P(mean utility > {100 * self.benchmark:.1f}). A level is ADMISSIBLE "
            f"unless P(DLT rate > {self.setting.limit:g}) > {_TOXIC:g} there or below, or "
            f"P(response rate < {self.response:g}) > {FUTILE:g}."
        )

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return "the level with the highest mean utility that is admissible and not above the maximum tolerated one"

    @property
    def bounds(self) -> tuple[float, float]:
        """BOIN's lambda_e and lambda_d for the highest acceptable DLT probability."""
        of = boin(self.setting.limit)
        return of.escalate, of.deescalate

    @property
    def benchmark(self) -> float:
        """Half-way from the utility of the highest acceptable toxicity and the lowest response to the best, of 1."""
        p, q, u = self.setting.limit, self.response, self.utility
        lowest = u.response * q * (1 - p) + u.nothing * (1 - q) * (1 - p) + u.both * q * p + u.toxicity * (1 - q) * p
        span = u.response - u.toxicity
        return float(((lowest - u.toxicity) / span + 1) / 2)

    def worth(self, evidence: Evidence) -> Float[np.ndarray, "trial level"]:
        """The sum of the patients' utilities, of 1 each."""
        u, span = self.utility, self.utility.response - self.utility.toxicity
        good, bad = evidence.effective - evidence.both, evidence.toxic - evidence.both
        none = evidence.treated - good - bad - evidence.both
        of = (u.response - u.toxicity) * good + (u.nothing - u.toxicity) * none + (u.both - u.toxicity) * evidence.both
        return of / span

    def desirability(self, evidence: Evidence) -> Float[np.ndarray, "trial level"]:
        """P(mean utility > benchmark)."""
        x = self.worth(evidence)
        return special.betaincc(1 + x, 1 + evidence.treated - x, self.benchmark)

    def admissible(self, evidence: Evidence) -> Bool[np.ndarray, "trial level"]:
        """Levels that are not surely too toxic, there or below, and not surely without response."""
        toxic = np.maximum.accumulate(too_toxic(evidence, self.setting.limit, _TOXIC, 1), axis=1)
        x, n = evidence.effective, evidence.treated
        return ~toxic & (special.betainc(1 + x, 1 + n - x, self.response) <= FUTILE)

    def propose(self, evidence: Evidence) -> Proposal:
        """Down if too toxic; else the most desirable of the admissible levels around."""
        (n, y), (low, high) = evidence.at_current(), self.bounds
        levels, trial = evidence.treated.shape[1], np.arange(len(n))
        numbers, current = np.arange(1, levels + 1), evidence.current[:, None]
        fine = self.admissible(evidence)
        reach = np.where((y > low * n) & (n >= ENOUGH), 0, 1)[:, None]
        around = (numbers >= current - 1) & (numbers <= current + reach) & fine
        value = np.where(around, self.desirability(evidence), -1.0)
        best = levels - value[:, ::-1].argmax(axis=1)
        lower = np.where(fine & (numbers < current), numbers, 0).max(axis=1)
        level = np.where(around.any(axis=1), best, lower)
        above = np.minimum(evidence.current, levels - 1)  # index of the next level
        explore = (n >= EXPLORE) & (evidence.current < levels) & (evidence.treated[trial, above] == 0)
        level = np.where(explore, evidence.current + 1, level)
        level = np.where((y >= high * n) & (n > 0), np.maximum(evidence.current - 1, 1), level)
        return Proposal(level, level == 0)

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The highest mean utility among admissible levels up to the one with a DLT rate closest to the limit."""
        numbers = np.arange(1, evidence.treated.shape[1] + 1)
        given = (evidence.treated > 0) & (numbers <= cap[:, None])
        tolerated = closest(isotonic(evidence, given), given, self.setting.limit)
        allowed = given & self.admissible(evidence) & (numbers <= tolerated[:, None])
        mean = np.where(allowed, (1 + self.worth(evidence)) / (2 + evidence.treated), -1.0)
        return np.where(allowed.any(axis=1), mean.argmax(axis=1) + 1, 0)

    def estimates(self, evidence: Evidence) -> dict[str, np.ndarray]:
        """Mean utility, desirability, and whether a level is admissible."""
        n, x = evidence.treated[0], self.worth(evidence)[0]
        mean = np.divide(100 * x, n, out=np.full(len(n), np.nan), where=n > 0)
        of = {"UTILITY": mean, "DESIRABLE": self.desirability(evidence)[0]}
        return {**of, "ADMISSIBLE": self.admissible(evidence)[0]}

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """The counts at the current level and the desirability of the next."""
        n, y = (int(v[0]) for v in evidence.at_current())
        level, (low, high) = int(proposal.level[0]), self.bounds
        text = f"{y} of {n} with a toxicity at level {int(evidence.current[0])} (up to {low:.3f}, down from {high:.3f})"
        if level == 0:
            return f"{text}: no level is admissible."
        return f"{text}: level {level}, with a desirability of {self.desirability(evidence)[0, level - 1]:.3f}."


def desirability_table(design: Boin12, sizes: Sequence[int] = (0, 3, 6, 9)) -> pd.DataFrame:
    """The rank-based desirability score of every combination of counts, as BOIN12's protocols print it.

    Returns
    -------
    DataFrame
        ``N DLT ORR RDS``: the rank of the desirability among admissible combinations, the mean rank of equal ones;
        missing where the combination closes the level.

    Raises
    ------
    DesignError
        The utility is not additive, so that the counts of toxicities and responses do not give it.
    """
    u = design.utility
    if abs(u.response + u.toxicity - u.nothing - u.both) > 1e-9:
        raise DesignError("desirability_table: needs response + toxicity = nothing + both; otherwise pairs count.")
    cells = np.array([(n, y, x) for n in sizes for y in range(n + 1) for x in range(n + 1)], float)
    n, y, x = (c[:, None] for c in cells.T)
    # an additive utility is the same however toxicities and responses fall together
    counts = Evidence(n, y, x, np.maximum(y + x - n, 0), np.ones(len(cells), int))
    fine = design.admissible(counts)[:, 0]
    score = np.full(len(cells), np.nan)
    score[fine] = stats.rankdata(np.round(design.desirability(counts)[fine, 0], 12))
    table = pd.DataFrame(cells.astype(int), columns=["N", "DLT", "ORR"])
    return table.assign(RDS=score)
