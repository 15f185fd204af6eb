"""Bayesian logistic regression of toxicity on dose, with overdose control."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy import special

from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence
from carkinetics.design.logistic_model import Groups, Logistic, NormalPrior, OverdoseControl, Summary, columns, why
from carkinetics.design.rules import NoSkipping, Rule
from carkinetics.design.setting import make_setting
from carkinetics.errors import DesignError


def blrm(
    doses: Sequence[float] | np.ndarray,
    *,
    reference: float | None = None,
    prior: NormalPrior | None = None,
    control: OverdoseControl | None = None,
    start: int = 1,
    rules: Sequence[Rule] = (NoSkipping(),),
) -> "Blrm":
    """Bayesian logistic regression with escalation under overdose control.

    logit p(d) = ln alpha + beta ln(d / reference). Of the levels with P(p > ``control.high``) below
    ``control.overdose``, the one with the highest P(p in the interval) is next; if there is none, the trial stops.

    Parameters
    ----------
    doses : sequence of float
        Dose of every level.
    reference : float, optional
        Dose at which the odds of a toxicity are alpha; without, the highest.
    prior : NormalPrior, optional
        Of (ln alpha, ln beta); without, that of Neuenschwander et al., whose reference is the highest dose and has a
        prior median rate of 0.90: right for a range that is meant to reach toxic doses, too strict for one that is not.
    control : OverdoseControl, optional
        The interval that is aimed at and the largest probability of lying above it; without, 0.16 to 0.33 and 0.25.
    start : int
        Level of the first cohort.
    rules : sequence of Rule
        Safety rules; without, no level is skipped.

    References
    ----------
    Neuenschwander, Branson & Gsponer, Stat Med 2008;27:2420-2439, doi:10.1002/sim.3230, sections 2 and 3. Overdose
    control: Babb, Rogatko & Zacks, Stat Med 1998;17:1103-1120.
    """
    prior, control = prior or NormalPrior(), control or OverdoseControl()
    if not 0 < control.low < control.high < 1 or not 0 < control.overdose < 1:
        raise DesignError(f"blrm: {control}: the interval must rise within (0, 1), and overdose lie between 0 and 1.")
    if not (min(prior.sd) > 0 and abs(prior.correlation) < 1 and np.isfinite(prior.mean).all()):
        raise DesignError(f"blrm: {prior} needs SDs above 0 and a correlation between -1 and 1.")
    setting = make_setting(doses, start, control.high)
    if not setting.doses or not setting.amounts:
        raise DesignError("blrm: give the dose of every level, doses=[...]; the model is of the logarithm of the dose.")
    at = float(reference or setting.doses[-1])
    if not at > 0:
        raise DesignError(f"blrm: reference = {reference!r} must be a dose above 0.")
    x = tuple((float(np.log(d / at)),) for d in setting.doses)
    return Blrm(setting=setting, rules=tuple(rules), model=Logistic(prior, control, x), reference=at)


@dataclass(frozen=True, kw_only=True)
class Blrm(AbstractDesign):
    """See :func:`blrm`."""

    model: Logistic
    reference: float

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "BLRM"

    @property
    def convention(self) -> str:
        """What the estimates in its tables are."""
        rate = special.expit(self.model.prior.mean[0])
        return f"{self.model.control.convention} Prior median rate {rate:.2f} at the reference dose {self.reference:g}."

    @property
    def target(self) -> float | None:
        """The middle of the interval."""
        return (self.model.control.low + self.model.control.high) / 2

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return "the level most probably in the interval, among those that were given and are admissible"

    def summary(self, evidence: Evidence) -> Summary:
        """Posterior of the levels' rates."""
        return self.model.summary(*self._groups(evidence))

    def _groups(self, evidence: Evidence) -> Groups:
        return self.model.groups(evidence, self.setting.doses, lambda d: (float(np.log(d / self.reference)),))

    def propose(self, evidence: Evidence) -> Proposal:
        """The admissible level most probably in the interval; ``monotone``: the lowest that fewer toxicities give."""
        level = self.model.level(self._groups(evidence))
        return Proposal(level, level == 0)

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The same, among levels that were given."""
        levels = np.arange(1, evidence.treated.shape[1] + 1)
        return self.model.best(self.summary(evidence), (evidence.treated > 0) & (levels <= cap[:, None]))

    def estimates(self, evidence: Evidence) -> dict[str, np.ndarray]:
        """Mean rate and the probabilities of the intervals."""
        return columns(self.summary(evidence), self.model.control.overdose)

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """The probabilities that decide."""
        found, level = self.summary(evidence), int(proposal.level[0])
        best = int(self.model.best(found, np.ones(found.mean.shape, bool))[0])
        if best == level:
            return why(found, level, self.model)
        lower = "stop" if level == 0 else f"level {level}"
        return f"{why(found, best, self.model)} With fewer toxicities it would be {lower}; one more never raises it."
