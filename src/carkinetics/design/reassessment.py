"""The continual reassessment method, and its version for outcomes that come late."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from carkinetics.design import quadrature
from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence, Rows
from carkinetics.design.isotonic import closest
from carkinetics.design.rules import FirstDoseStop, NoSkipping, Rule
from carkinetics.design.setting import Setting, make_setting, refuse_target
from carkinetics.errors import DesignError

PRIOR_SD = 1.34**0.5  # of the slope's logarithm, after O'Quigley & Shen
INTERCEPT = 3.0  # of the logistic model
MODELS = ("power", "logistic")
ESTIMATES = ("plug-in", "mean")
_REACH = 10.0  # prior SDs that are integrated over
_PANELS = 120


def skeleton(
    target: float, levels: int, *, mtd: int, halfwidth: float = 0.05, model: str = "power", intercept: float = INTERCEPT
) -> tuple[float, ...]:
    """Prior guesses of the DLT probabilities with equal indifference intervals.

    Between two neighbouring levels there is a slope at which the lower one has ``target - halfwidth`` and the upper
    one ``target + halfwidth``; the level ``mtd`` has the target.

    Parameters
    ----------
    target : float
        DLT probability aimed at.
    levels : int
        How many levels there are.
    mtd : int
        The level that is thought to have the target rate before the trial.
    halfwidth : float
        Half the width of the indifference interval.

    References
    ----------
    Lee & Cheung, Clin Trials 2009;6:227-238, doi:10.1177/1740774509105076.
    """
    target = refuse_target(target)
    if model not in MODELS:
        raise DesignError(f"skeleton: model = {model!r} must be one of {', '.join(MODELS)}.")
    if not 0 < halfwidth < min(target, 1 - target) or not 1 <= mtd <= levels:
        raise DesignError(f"skeleton: target -+ halfwidth must lie in (0, 1), and mtd be a level from 1 to {levels}.")

    def x(p: float) -> float:  # a level is x, and at slope b its rate that of b x
        return float(np.log(p) if model == "power" else special.logit(p) - intercept)

    ratio = x(target + halfwidth) / x(target - halfwidth)
    found = x(target) * ratio ** (np.arange(1, levels + 1) - mtd)
    if model == "logistic" and x(target + halfwidth) >= 0:
        raise DesignError(f"skeleton: the intercept {intercept:g} must lie above logit(target + halfwidth).")
    rates = np.exp(found) if model == "power" else special.expit(found + intercept)
    return tuple(float(p) for p in rates)


def crm(
    guesses: Sequence[float] | np.ndarray,
    target: float = 0.25,
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    model: str = "power",
    estimate: str = "plug-in",
    start: int = 1,
    rules: Sequence[Rule] = (NoSkipping(), FirstDoseStop()),
) -> "Crm":
    """The continual reassessment method with one parameter.

    ``power``: rate = guess ** exp(b); ``logistic``: logit rate = 3 + exp(b) x, with x such that b = 0 gives the guess.
    b is normal, with mean 0 and variance 1.34. The level whose rate is closest to the target is next.

    Parameters
    ----------
    guesses : sequence of float
        The skeleton: prior guesses of the DLT probabilities, rising; see :func:`skeleton`.
    target : float
        DLT probability aimed at.
    doses : sequence of float or int
        Dose of every level; without, there are as many levels as guesses. Needed where a dose infused is not that of
        a level: its guess is interpolated, logit against log dose.
    model : str
        ``power`` or ``logistic``.
    estimate : str
        ``plug-in``: the rate at the posterior mean of b. ``mean``: the posterior mean of the rate, which is higher.
    start : int
        Level of the first cohort.
    rules : sequence of Rule
        Safety rules; without, no level is skipped, and the trial stops if the lowest level is too toxic.

    References
    ----------
    O'Quigley, Pepe & Fisher, Biometrics 1990;46:33-48, doi:10.2307/2531628. Cheung, Dose Finding by the Continual
    Reassessment Method, 2011, doi:10.1201/b10783, chapter 3.
    """
    setting, prior = _made(guesses, target, doses, start, (model, estimate))
    return Crm(setting=setting, rules=tuple(rules), guesses=prior, model=model, estimate=estimate)


def tite_crm(
    guesses: Sequence[float] | np.ndarray,
    target: float = 0.25,
    doses: Sequence[float] | np.ndarray | int | None = None,
    *,
    window: float = 28.0,
    model: str = "power",
    start: int = 1,
    rules: Sequence[Rule] = (NoSkipping(), FirstDoseStop()),
) -> "Crm":
    """The continual reassessment method with follow-up as a weight.

    A patient without a toxicity counts with the share of ``window`` days that was followed (``FOLLOW_UP``; none if it
    is not known and the outcome pending), so that nobody waits for complete outcomes. The estimate is the plug-in one.

    References
    ----------
    Cheung & Chappell, Biometrics 2000;56:1177-1182, doi:10.1111/j.0006-341X.2000.01177.x, with linear weights.
    """
    if not window > 0:
        raise DesignError(f"tite_crm: window = {window!r} must be a number of days above 0.")
    setting, prior = _made(guesses, target, doses, start, (model, "plug-in"))
    return Crm(setting=setting, rules=tuple(rules), guesses=prior, model=model, days=float(window))


def _made(
    guesses: Sequence[float] | np.ndarray,
    target: float,
    doses: Sequence[float] | np.ndarray | int | None,
    start: int,
    options: tuple[str, str],
) -> tuple[Setting, tuple[float, ...]]:
    prior = tuple(float(p) for p in guesses)
    setting = make_setting(len(prior) if doses is None else doses, start, refuse_target(target))
    if len(prior) != len(setting.doses):
        raise DesignError(f"crm: {len(prior)} guesses for {len(setting.doses)} levels. Give one a level.")
    if not prior or not all(0 < a < b < 1 for a, b in zip(prior, (*prior[1:], 1 - 1e-12), strict=True)):
        raise DesignError(f"crm: the guesses {list(prior)} must rise and lie between 0 and 1.")
    model, estimate = options
    if model not in MODELS or estimate not in ESTIMATES:
        raise DesignError(f"crm: model is one of {', '.join(MODELS)}, estimate one of {', '.join(ESTIMATES)}.")
    if model == "logistic" and special.logit(prior[-1]) >= INTERCEPT:
        raise DesignError(f"crm: the logistic model needs guesses below {special.expit(INTERCEPT):.3f}.")
    return setting, prior


class _Grid(NamedTuple):
    """Nodes of b, their ln prior, and the ln rate and ln (1 - rate) of every level at them."""

    b: quadrature.Panels
    ln_prior: Float[np.ndarray, " node"]
    x: Float[np.ndarray, " level"]


@dataclass(frozen=True, kw_only=True)
class Crm(AbstractDesign):
    """See :func:`crm` and :func:`tite_crm`."""

    guesses: tuple[float, ...]
    model: str = "power"
    estimate: str = "plug-in"
    days: float | None = None

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "CRM" if self.days is None else "TITE-CRM"

    @property
    def window(self) -> float | None:
        """Days over which follow-up is weighted."""
        return self.days

    @property
    def convention(self) -> str:
        """What the estimates in its tables are."""
        used = "P_DLT" if self.estimate == "plug-in" else "P_DLT_MEAN"
        return (
            "P_DLT is the rate at the posterior mean of b (plug-in), P_DLT_MEAN the posterior mean of the rate; "
            f"{used} decides. P_TOXIC = P(DLT probability > target). Model {self.model}, b normal with variance 1.34."
        )

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return "the level whose estimated DLT rate is closest to the target, among those that were given"

    @cached_property
    def _grid(self) -> _Grid:
        b = quadrature.panels(-_REACH * PRIOR_SD, _REACH * PRIOR_SD, _PANELS)
        x = np.log(self.guesses) if self.model == "power" else special.logit(self.guesses) - INTERCEPT
        return _Grid(b, np.log(b.weights) - 0.5 * (b.nodes / PRIOR_SD) ** 2, x)

    @cached_property
    def _toxic_weights(self) -> Float[np.ndarray, "level node"]:
        """Share of each node's weight at which a level's rate exceeds the target: b below the level's own value."""
        grid, target = self._grid, self.setting.limit
        limit = np.log(target) if self.model == "power" else special.logit(target) - INTERCEPT
        # the rate exceeds the target where exp(b) x > limit; x is below 0, and so is the limit but for high targets
        with np.errstate(invalid="ignore"):
            at = np.where(limit / grid.x > 0, np.log(np.abs(limit / grid.x)), -np.inf)
        return quadrature.below(grid.b, at) / grid.b.weights

    def _ln_rates(
        self, x: Float[np.ndarray, " row"], b: Float[np.ndarray, " node"]
    ) -> tuple[Float[np.ndarray, "row node"], Float[np.ndarray, "row node"]]:
        """Ln rate and ln (1 - rate)."""
        scaled = x[:, None] * np.exp(b)
        if self.model == "logistic":
            return special.log_expit(INTERCEPT + scaled), special.log_expit(-INTERCEPT - scaled)
        with np.errstate(divide="ignore"):  # a rate that is 1 to the last digit
            return scaled, np.log(-np.expm1(scaled))

    def _x_of(self, amount: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
        """Where doses stand in the model; between levels and beyond them by logit guess against log dose."""
        doses, guesses = np.log(self.setting.doses), special.logit(self.guesses)
        at = np.log(amount)
        found = np.interp(at, doses, guesses)
        if len(doses) > 1:
            slopes = np.diff(guesses) / np.diff(doses)
            found = np.where(at < doses[0], guesses[0] + slopes[0] * (at - doses[0]), found)
            found = np.where(at > doses[-1], guesses[-1] + slopes[-1] * (at - doses[-1]), found)
        return special.log_expit(found) if self.model == "power" else found - INTERCEPT

    def _posterior(self, evidence: Evidence) -> Float[np.ndarray, "trial node"]:
        """Weights of the nodes, summing to 1."""
        grid = self._grid
        if evidence.rows is not None:
            likelihood = self._by_patient(evidence.rows)
        else:
            ln, ln_not = self._ln_rates(grid.x, grid.b.nodes)
            none = evidence.treated - evidence.toxic
            # a rate of exactly 1 makes ln_not -inf, and 0 times that is nothing
            likelihood = evidence.toxic @ ln + none @ np.maximum(ln_not, -1e8)
        density = quadrature.posterior(grid.ln_prior, likelihood)
        return density / density.sum(axis=1, keepdims=True)

    def _by_patient(self, rows: Rows) -> Float[np.ndarray, "trial node"]:
        """Ln likelihood of patients one by one: rate if toxic, else 1 - weight rate."""
        amounts, back = np.unique(rows.amount, return_inverse=True)
        ln, ln_not = self._ln_rates(self._x_of(amounts), self._grid.b.nodes)
        rate, ln_not = np.exp(ln), np.maximum(ln_not, -1e8)
        back = back.reshape(rows.amount.shape)
        found = np.zeros((len(rows.amount), ln.shape[1]))
        for k in range(rows.amount.shape[1]):
            weight, toxic, at = rows.weight[:, k, None], rows.toxic[:, k, None], back[:, k]
            partial = np.log1p(-np.where(weight < 1, weight, 0.0) * rate[at])
            found += np.where(toxic == 1, ln[at], np.where(weight < 1, partial, ln_not[at]))
        return found

    def rates(self, evidence: Evidence, estimate: str | None = None) -> Float[np.ndarray, "trial level"]:
        """Estimated DLT probabilities of the levels, per trial."""
        grid, weight = self._grid, self._posterior(evidence)
        if (estimate or self.estimate) == "mean":
            return weight @ np.exp(self._ln_rates(grid.x, grid.b.nodes)[0]).T
        return np.exp(self._ln_rates(grid.x, weight @ grid.b.nodes)[0]).T

    def propose(self, evidence: Evidence) -> Proposal:
        """The level whose rate is closest to the target."""
        rates = self.rates(evidence)
        level = closest(rates, np.ones(rates.shape, bool), self.setting.limit)
        return Proposal(level, np.zeros(len(level), bool))

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The same, among levels that were given."""
        levels = np.arange(1, len(self.guesses) + 1)
        allowed = (evidence.treated > 0) & (levels <= cap[:, None])
        return closest(self.rates(evidence), allowed, self.setting.limit)

    def estimates(self, evidence: Evidence) -> dict[str, Float[np.ndarray, " level"]]:
        """Both estimates and the probability of exceeding the target."""
        weight = self._posterior(evidence)[0]
        return {
            "GUESS": np.array(self.guesses),
            "P_DLT": self.rates(evidence, "plug-in")[0],
            "P_DLT_MEAN": self.rates(evidence, "mean")[0],
            "P_TOXIC": self._toxic_weights @ weight,
        }

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """The rate that is closest."""
        rates, level = self.rates(evidence)[0], int(proposal.level[0])
        of = f"{self.estimate} estimate {rates[level - 1]:.3f}"
        return f"Level {level} has the {of}, the closest to the target {self.setting.limit:g}."
