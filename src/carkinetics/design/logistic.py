"""Bayesian logistic regression of toxicity on dose, with overdose control."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from carkinetics.design import quadrature
from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence
from carkinetics.design.rules import NoSkipping, Rule
from carkinetics.design.setting import make_setting
from carkinetics.errors import DesignError

INTERVAL = (0.16, 0.33)  # DLT probabilities that are aimed at
OVERDOSE = 0.25  # largest P(DLT probability above the interval) of a level that may be given
# Prior of ln alpha and ln beta of Neuenschwander et al. (2008), where the reference is the highest dose.
MEAN, SD, CORRELATION = (2.15, 0.52), (0.84, 0.80), 0.2
_REACH = 8.0  # prior SDs that are integrated over
_PANELS, _STEPS = 32, 121  # of ln alpha, of ln beta
_TOGETHER = 128  # trials whose posteriors are in memory at once


class NormalPrior(NamedTuple):
    """Bivariate normal prior of ln alpha and ln beta."""

    mean: tuple[float, float] = MEAN
    sd: tuple[float, float] = SD
    correlation: float = CORRELATION


def blrm(
    doses: Sequence[float] | np.ndarray,
    *,
    reference: float | None = None,
    prior: NormalPrior | None = None,
    interval: tuple[float, float] = INTERVAL,
    overdose: float = OVERDOSE,
    start: int = 1,
    rules: Sequence[Rule] = (NoSkipping(),),
) -> "Blrm":
    """Bayesian logistic regression with escalation under overdose control.

    logit p(d) = ln alpha + beta ln(d / reference). Of the levels with P(p > upper end of the interval) below
    ``overdose``, the one with the highest P(p in the interval) is next; if there is none, the trial stops.

    Parameters
    ----------
    doses : sequence of float
        Dose of every level.
    reference : float, optional
        Dose at which the odds of a toxicity are alpha; without, the highest.
    prior : NormalPrior, optional
        Of (ln alpha, ln beta); without, that of Neuenschwander et al., whose reference is the highest dose.
    interval : (float, float)
        DLT probabilities that are aimed at.
    overdose : float
        Largest probability of lying above the interval.
    start : int
        Level of the first cohort.
    rules : sequence of Rule
        Safety rules; without, no level is skipped.

    References
    ----------
    Neuenschwander, Branson & Gsponer, Stat Med 2008;27:2420-2439, doi:10.1002/sim.3230, sections 2 and 3. Overdose
    control: Babb, Rogatko & Zacks, Stat Med 1998;17:1103-1120.
    """
    prior = prior or NormalPrior()
    low, high = (float(p) for p in interval)
    if not 0 < low < high < 1 or not 0 < overdose < 1:
        raise DesignError(f"blrm: interval = {interval!r} must rise within (0, 1), and overdose lie between 0 and 1.")
    if not (min(prior.sd) > 0 and abs(prior.correlation) < 1 and np.isfinite(prior.mean).all()):
        raise DesignError(f"blrm: {prior} needs SDs above 0 and a correlation between -1 and 1.")
    setting = make_setting(doses, start, high)
    if not setting.doses or not setting.amounts:
        raise DesignError("blrm: give the dose of every level, doses=[...]; the model is of the logarithm of the dose.")
    at = float(reference or setting.doses[-1])
    if not at > 0:
        raise DesignError(f"blrm: reference = {reference!r} must be a dose above 0.")
    x = tuple((float(np.log(d / at)),) for d in setting.doses)
    made = Logistic(prior, (low, high), float(overdose), x)
    return Blrm(setting=setting, rules=tuple(rules), model=made, reference=at)


class Surface(NamedTuple):
    """Nodes of ln alpha and ln beta, flat, with their ln prior weights.

    ``ln_rate``, ``ln_not`` are of the levels; ``low``, ``high`` the share of each node's weight at which a level's
    rate is below the interval, below its upper end.
    """

    ln_prior: Float[np.ndarray, " node"]
    ln_rate: Float[np.ndarray, "level node"]
    ln_not: Float[np.ndarray, "level node"]
    low: Float[np.ndarray, "level node"]
    high: Float[np.ndarray, "level node"]


class Summary(NamedTuple):
    """Posterior of every trial and level: the mean rate, and the probabilities of the interval and above it."""

    mean: Float[np.ndarray, "trial level"]
    target: Float[np.ndarray, "trial level"]
    over: Float[np.ndarray, "trial level"]


@dataclass(frozen=True)
class Logistic:
    """logit rate = ln alpha + beta x, averaged over the values of x that a level can have.

    Attributes
    ----------
    prior : NormalPrior
    interval : (float, float)
    overdose : float
    x : tuple of tuple of float
        Per level: one value, ln(dose / reference), or draws of ln(exposure / reference).
    """

    prior: NormalPrior
    interval: tuple[float, float]
    overdose: float
    x: tuple[tuple[float, ...], ...]

    @cached_property
    def _axes(self) -> tuple[quadrature.Panels, Float[np.ndarray, " step"]]:
        (m0, m1), (s0, s1), _ = self.prior
        ln_alpha = quadrature.panels(m0 - _REACH * s0, m0 + _REACH * s0, _PANELS)
        return ln_alpha, np.linspace(m1 - _REACH * s1, m1 + _REACH * s1, _STEPS)

    @cached_property
    def surface(self) -> Surface:
        """Nodes and what is summed over them."""
        (m0, m1), (s0, s1), rho = self.prior
        ln_alpha, ln_beta = self._axes
        a, b = (ln_alpha.nodes - m0) / s0, ((ln_beta - m1) / s1)[:, None]
        ln_prior = np.log(ln_alpha.weights) - (a**2 - 2 * rho * a * b + b**2) / (2 * (1 - rho**2))
        rates = [self.ln_rate(np.array(x)) for x in self.x]
        shares = [[self._share_below(np.array(x), limit) for x in self.x] for limit in self.interval]
        return Surface(ln_prior.ravel(), *(np.stack(r) for r in zip(*rates, strict=True)), *map(np.stack, shares))

    def ln_rate(self, x: Float[np.ndarray, " draw"]) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
        """Ln rate and ln (1 - rate) at the nodes, averaged over ``x``."""
        ln_alpha, ln_beta = self._axes
        ln, ln_not = (np.full((len(ln_beta), len(ln_alpha.nodes)), -np.inf) for _ in range(2))
        for value in x:
            eta = ln_alpha.nodes + np.exp(ln_beta)[:, None] * value
            ln, ln_not = np.logaddexp(ln, special.log_expit(eta)), np.logaddexp(ln_not, special.log_expit(-eta))
        return (ln - np.log(len(x))).ravel(), (ln_not - np.log(len(x))).ravel()

    def _share_below(self, x: Float[np.ndarray, " draw"], limit: float) -> Float[np.ndarray, " node"]:
        """Share of each node's weight at which the rate is below ``limit``: ln alpha below a threshold, by slope."""
        ln_alpha, ln_beta = self._axes
        shift = np.exp(ln_beta)[:, None] * x
        # bracketed by the smallest and the largest of the draws' own thresholds
        low, high = special.logit(limit) - shift.max(axis=1), special.logit(limit) - shift.min(axis=1)
        for _ in range(80 if len(x) > 1 else 0):
            middle = (low + high) / 2
            above = special.expit(middle[:, None] + shift).mean(axis=1) > limit
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return (quadrature.below(ln_alpha, (low + high) / 2) / ln_alpha.weights).ravel()

    def posterior(self, ln_likelihood: Float[np.ndarray, "trial node"]) -> Summary:
        """Posterior of the levels' rates."""
        surface = self.surface
        weight = quadrature.posterior(surface.ln_prior, ln_likelihood)
        weight = weight / weight.sum(axis=1, keepdims=True)
        low, high = weight @ surface.low.T, weight @ surface.high.T
        return Summary(weight @ np.exp(surface.ln_rate).T, high - low, np.maximum(1 - high, 0.0))

    def summary(self, evidence: Evidence, x_rows: tuple[Float[np.ndarray, " draw"], ...] | None = None) -> Summary:
        """Posterior from the counts, some trials at a time; with ``x_rows``, from the patients of one trial."""
        surface = self.surface
        if evidence.rows is not None and x_rows is not None:
            likelihood = np.zeros((1, len(surface.ln_prior)))
            for key in dict.fromkeys(x.tobytes() for x in x_rows):  # patients with the same x share their rates
                ln, ln_not = self.ln_rate(np.frombuffer(key))
                mine = evidence.rows.toxic[[x.tobytes() == key for x in x_rows]]
                likelihood += mine.sum() * ln + (1 - mine).sum() * ln_not
            return self.posterior(likelihood)
        parts = []
        for begin in range(0, len(evidence.current), _TOGETHER):
            toxic, treated = (v[begin : begin + _TOGETHER] for v in (evidence.toxic, evidence.treated))
            parts.append(self.posterior(toxic @ surface.ln_rate + (treated - toxic) @ surface.ln_not))
        return Summary(*(np.concatenate(p) for p in zip(*parts, strict=True)))

    def best(self, found: Summary, allowed: Bool[np.ndarray, "trial level"]) -> Int[np.ndarray, " trial"]:
        """The admissible level most probably in the interval; 0 if none is."""
        allowed = allowed & (found.over < self.overdose)
        value = np.where(allowed, found.target, -1.0)
        return np.where(allowed.any(axis=1), value.argmax(axis=1) + 1, 0)


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
        (low, high), most = self.model.interval, self.model.overdose
        return (
            f"P_DLT is the posterior mean of the rate; P_UNDER, P_TARGET, P_OVER the probabilities that it is below "
            f"{low:g}, between, above {high:g}; ADMISSIBLE where P_OVER < {most:g}."
        )

    @property
    def target(self) -> float | None:
        """The middle of the interval."""
        return sum(self.model.interval) / 2

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return "the level most probably in the interval, among those that were given and are admissible"

    def summary(self, evidence: Evidence) -> Summary:
        """Posterior of the levels' rates; the doses infused enter where there is one trial."""
        rows = evidence.rows
        x = None if rows is None else tuple(np.array([np.log(a / self.reference)]) for a in rows.amount)
        return self.model.summary(evidence, x)

    def propose(self, evidence: Evidence) -> Proposal:
        """The admissible level most probably in the interval."""
        found = self.summary(evidence)
        level = self.model.best(found, np.ones(found.mean.shape, bool))
        return Proposal(level, level == 0)

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The same, among levels that were given."""
        levels = np.arange(1, evidence.treated.shape[1] + 1)
        return self.model.best(self.summary(evidence), (evidence.treated > 0) & (levels <= cap[:, None]))

    def estimates(self, evidence: Evidence) -> dict[str, Float[np.ndarray, " level"]]:
        """Mean rate and the probabilities of the intervals."""
        return columns(self.summary(evidence), self.model.overdose)

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """The probabilities that decide."""
        return why(self.summary(evidence), int(proposal.level[0]), self.model)


def columns(found: Summary, overdose: float) -> dict[str, np.ndarray]:
    """The first trial's posterior, as columns of a table."""
    mean, target, over = (v[0] for v in found)
    under = np.maximum(1 - target - over, 0.0)
    return {"P_DLT": mean, "P_UNDER": under, "P_TARGET": target, "P_OVER": over, "ADMISSIBLE": over < overdose}


def why(found: Summary, level: int, model: Logistic) -> str:
    """The probabilities that decide on a level, in words."""
    if level == 0:
        return f"No level has P(DLT rate > {model.interval[1]:g}) < {model.overdose:g}: stop."
    target, over = found.target[0, level - 1], found.over[0, level - 1]
    return (
        f"Level {level} is the most probable in {model.interval[0]:g} to {model.interval[1]:g} ({target:.3f}) of those "
        f"with P(above) < {model.overdose:g} (its own {over:.3f})."
    )
