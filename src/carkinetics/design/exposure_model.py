"""BLRM informed by exposure: toxicity through what the population's kinetics make of a dose."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from carkinetics.design.base import AbstractDesign, Proposal
from carkinetics.design.evidence import Evidence
from carkinetics.design.logistic import Blrm
from carkinetics.design.logistic_model import Groups, Logistic, NormalPrior, Summary, columns, why
from carkinetics.errors import DesignError

QUANTILES = 200  # of the exposures at a dose that the rate is averaged over

Draws = Float[np.ndarray, "draw level"]


def exposure_informed(
    free: Blrm,
    exposure: np.ndarray | Callable[[np.ndarray], np.ndarray],
    *,
    reference: float | None = None,
    prior: NormalPrior | None = None,
    above: bool = False,
) -> "ExposureInformed":
    """A BLRM whose regressor is the exposure that patients get from a dose, beside the one of the dose alone.

    logit p = ln alpha + beta ln(exposure / reference); the rate at a dose is its mean over the exposures of new
    patients, so that between-patient variability flattens the curve. The recommendation is the lower of the two
    designs' unless ``above``.

    Parameters
    ----------
    free : Blrm
        The design without exposure: doses, interval, rules, start.
    exposure : array of shape (draw, level), or function
        Exposures of new patients at every level, such as Cmax from :func:`carkinetics.simulate` with uncertainty; or a
        function from doses (any number) to such draws, which is needed where doses infused are not those of levels.
    reference : float, optional
        Exposure at which the odds of a toxicity are alpha; without, the median at the free design's reference dose.
    prior : NormalPrior, optional
        Without, that of ``free``.
    above : bool
        The exposure may lead to a higher level than the dose alone.

    Raises
    ------
    DesignError
        Draws are not positive, do not fit the levels, or do not rise with the dose on average.
    """
    doses = np.array(free.setting.doses)
    draws = _draws(exposure, doses)
    if reference is None:
        medians = np.log(np.median(draws, axis=0))
        reference = float(np.exp(np.interp(np.log(free.reference), np.log(doses), medians)))
    if not reference > 0:
        raise DesignError(f"exposure_informed: reference = {reference!r} must be an exposure above 0.")
    x = tuple(_x(draws[:, k], reference) for k in range(len(doses)))
    model = Logistic(prior or free.model.prior, free.model.control, x)
    function = exposure if callable(exposure) else None
    return ExposureInformed(
        setting=free.setting, rules=free.rules, free=free, model=model, exposure=function, at=reference, above=above
    )


def _draws(exposure: np.ndarray | Callable[[np.ndarray], np.ndarray], doses: Float[np.ndarray, " dose"]) -> Draws:
    found = np.asarray(exposure(doses) if callable(exposure) else exposure, float)
    if found.ndim != 2 or found.shape[1] != len(doses):
        raise DesignError(f"exposure has shape {found.shape}; wanted (draw, level), with {len(doses)} levels.")
    if not (np.isfinite(found) & (found > 0)).all():
        raise DesignError("exposure must be above 0 and finite in every draw.")
    medians = np.median(found, axis=0)
    if not (np.diff(medians) > 0).all():
        raise DesignError(
            f"exposure: the medians {[float(f'{m:.3g}') for m in medians]} do not rise with the dose, so exposure says "
            "nothing about the dose; use the design without it."
        )
    return found


def _x(draws: Float[np.ndarray, " draw"], reference: float) -> tuple[float, ...]:
    """Ln exposure over the reference, of many draws their quantiles."""
    ln = np.sort(np.log(draws / reference))
    if len(ln) > QUANTILES:
        ln = np.quantile(ln, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return tuple(float(v) for v in ln)


@dataclass(frozen=True, kw_only=True)
class ExposureInformed(AbstractDesign):
    """See :func:`exposure_informed`."""

    free: Blrm
    model: Logistic
    exposure: Callable[[np.ndarray], np.ndarray] | None
    at: float
    above: bool

    @property
    def name(self) -> str:
        """What the design is called in a trace."""
        return "BLRM with exposure"

    @property
    def convention(self) -> str:
        """What the estimates in its tables are."""
        which = "may be above" if self.above else "is never above"
        return (
            f"{self.free.convention} Columns ending in _EXPOSURE are of the model with exposure, averaged over new "
            f"patients' exposures; the recommendation {which} that of the dose alone (FREE)."
        )

    @property
    def target(self) -> float | None:
        """The middle of the interval."""
        return self.free.target

    @property
    def selection(self) -> str:
        """How a level is selected at the end, in words."""
        return f"{self.free.selection}, by the model with exposure"

    def summary(self, evidence: Evidence) -> Summary:
        """Posterior of the levels' rates in the model with exposure."""
        return self.model.summary(*self._groups(evidence))

    def _groups(self, evidence: Evidence) -> Groups:
        return self.model.groups(evidence, self.setting.doses, self._x_of)

    def _x_of(self, dose: float) -> tuple[float, ...]:
        if dose in self.setting.doses:
            return self.model.x[self.setting.doses.index(dose)]
        if self.exposure is None:
            raise DesignError(
                f"a dose of {dose:g} was infused, which is no level's. Give exposure as a function of the dose."
            )
        return _x(_draws(self.exposure, np.array([dose]))[:, 0], self.at)

    def propose(self, evidence: Evidence) -> Proposal:
        """The level by exposure, at most that of the dose alone."""
        level = self.model.level(self._groups(evidence))
        if not self.above:
            level = np.minimum(level, self.free.propose(evidence).level)
        return Proposal(level, level == 0)

    def choose(self, evidence: Evidence, cap: Int[np.ndarray, " trial"]) -> Int[np.ndarray, " trial"]:
        """The same, among levels that were given."""
        levels = np.arange(1, evidence.treated.shape[1] + 1)
        allowed = (evidence.treated > 0) & (levels <= cap[:, None])
        found = self.model.best(self.summary(evidence), allowed)
        return found if self.above else np.minimum(found, self.free.choose(evidence, cap))

    def estimates(self, evidence: Evidence) -> dict[str, np.ndarray]:
        """Both models' columns, and the level that each would give."""
        overdose, numbers = self.model.control.overdose, np.arange(1, len(self.setting.doses) + 1)
        free = columns(self.free.summary(evidence), overdose)
        informed = columns(self.summary(evidence), overdose)
        level = int(self.free.next_levels(evidence).level[0])
        return {**free, "FREE": numbers == level, **{f"{k}_EXPOSURE": v for k, v in informed.items()}}

    def explain(self, evidence: Evidence, proposal: Proposal) -> str:
        """Both designs' proposals."""
        found = self.summary(evidence)
        best = int(self.model.best(found, np.ones(found.mean.shape, bool))[0])
        free = int(self.free.propose(evidence).level[0])
        said = why(found, best, self.model)
        alone = f"level {free}" if free else "stop"
        level = int(proposal.level[0])
        held = "" if level == best else f" The lower counts: {f'level {level}' if level else 'stop'}."
        return f"By exposure: {said} By the dose alone: {alone}.{held}"
