"""A two-parameter logistic model of toxicity and its posterior by quadrature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from carkinetics.design import quadrature
from carkinetics.design.evidence import Evidence
from carkinetics.design.monotone import never_higher

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


class OverdoseControl(NamedTuple):
    """The DLT probabilities that are aimed at, and how surely a level must not lie above them.

    Attributes
    ----------
    low, high : float
        The interval.
    overdose : float
        P(DLT probability > high) of a level that may be given is below it.
    monotone : bool
        A toxicity in one of the patients treated never raises the next dose. The published rule does not promise that:
        a toxicity at the highest dose steepens the curve and can make a low dose admissible again. The next level is
        then the lowest that the published rule gives for the same patients with the same or fewer toxicities.
    """

    low: float = 0.16
    high: float = 0.33
    overdose: float = 0.25
    monotone: bool = True

    @property
    def convention(self) -> str:
        """What the columns of a table are."""
        return (
            f"P_DLT is the posterior mean of the rate; P_UNDER, P_TARGET, P_OVER the probabilities that it is below "
            f"{self.low:g}, between, above {self.high:g}; ADMISSIBLE where P_OVER < {self.overdose:g}."
        )


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


class Rates(NamedTuple):
    """Ln rate and ln (1 - rate) at the nodes, of groups of patients."""

    ln_rate: Float[np.ndarray, "group node"]
    ln_not: Float[np.ndarray, "group node"]


class Groups(NamedTuple):
    """Patients and toxicities by group, and the groups' rates; without rates, groups are levels."""

    treated: Float[np.ndarray, "trial group"]
    toxic: Float[np.ndarray, "trial group"]
    rates: Rates | None


@dataclass(frozen=True)
class Logistic:
    """logit rate = ln alpha + beta x, averaged over the values of x that a level can have.

    Attributes
    ----------
    prior : NormalPrior
    control : OverdoseControl
    x : tuple of tuple of float
        Per level: one value, ln(dose / reference), or draws of ln(exposure / reference).
    """

    prior: NormalPrior
    control: OverdoseControl
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
        shares = [
            [self._share_below(np.array(x), limit) for x in self.x] for limit in (self.control.low, self.control.high)
        ]
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

    def rates_of(self, x: Sequence[tuple[float, ...]]) -> Rates:
        """Ln rate and ln (1 - rate) at the nodes, of groups of patients with these values of x."""
        known = dict(zip(self.x, zip(self.surface.ln_rate, self.surface.ln_not, strict=True), strict=True))
        found = [known.get(v) or self.ln_rate(np.array(v)) for v in x]
        return Rates(np.stack([f[0] for f in found]), np.stack([f[1] for f in found]))

    def groups(self, evidence: Evidence, doses: Sequence[float], x_of: Callable[[float], tuple[float, ...]]) -> Groups:
        """Patients and toxicities by the dose infused where there is one trial, else by level.

        ``x_of`` gives the values of x at a dose.
        """
        if evidence.rows is None:
            return Groups(evidence.treated, evidence.toxic, None)
        amounts, toxic = evidence.rows.amount[0], evidence.rows.toxic[0]
        given = np.unique(np.concatenate([doses, amounts]))
        at = (amounts[:, None] == given).astype(float)
        return Groups(at.sum(axis=0)[None], (toxic @ at)[None], self.rates_of([x_of(float(d)) for d in given]))

    def level(self, groups: Groups) -> Int[np.ndarray, " trial"]:
        """The admissible level most probably in the interval; ``monotone``: the lowest that fewer toxicities give."""

        def decide(treated: np.ndarray, toxic: np.ndarray) -> np.ndarray:
            found = self.summary(treated, toxic, groups.rates)
            return self.best(found, np.ones(found.mean.shape, bool))

        if self.control.monotone:
            return never_higher(decide, groups.treated, groups.toxic)
        return decide(groups.treated, groups.toxic)

    def summary(
        self,
        treated: Float[np.ndarray, "trial group"],
        toxic: Float[np.ndarray, "trial group"],
        rates: Rates | None = None,
    ) -> Summary:
        """Posterior from the counts, some trials at a time; without ``rates``, groups are levels."""
        rates = rates or Rates(self.surface.ln_rate, self.surface.ln_not)
        parts = []
        for begin in range(0, len(treated), _TOGETHER):
            n, y = treated[begin : begin + _TOGETHER], toxic[begin : begin + _TOGETHER]
            parts.append(self.posterior(y @ rates.ln_rate + (n - y) @ rates.ln_not))
        return Summary(*(np.concatenate(p) for p in zip(*parts, strict=True)))

    def best(self, found: Summary, allowed: Bool[np.ndarray, "trial level"]) -> Int[np.ndarray, " trial"]:
        """The admissible level most probably in the interval; 0 if none is."""
        allowed = allowed & (found.over < self.control.overdose)
        value = np.where(allowed, found.target, -1.0)
        return np.where(allowed.any(axis=1), value.argmax(axis=1) + 1, 0)


def columns(found: Summary, overdose: float) -> dict[str, np.ndarray]:
    """The first trial's posterior, as columns of a table."""
    mean, target, over = (v[0] for v in found)
    under = np.maximum(1 - target - over, 0.0)
    return {"P_DLT": mean, "P_UNDER": under, "P_TARGET": target, "P_OVER": over, "ADMISSIBLE": over < overdose}


def why(found: Summary, level: int, model: Logistic) -> str:
    """The probabilities that decide on a level, in words."""
    low, high, overdose, _ = model.control
    if level == 0:
        return f"No level has P(DLT rate > {high:g}) < {overdose:g}: stop."
    target, over = found.target[0, level - 1], found.over[0, level - 1]
    return (
        f"Level {level} is the most probable in {low:g} to {high:g} ({target:.3f}) of those with P(above) < "
        f"{overdose:g} (its own {over:.3f})."
    )
