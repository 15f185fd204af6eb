"""What all response models have in common: how exposure acts, what the parameters are called, and their priors.

Exposure ``u`` is ln exposure, centred at its mean over patients and divided by its SD ``s`` between them; covariates
``z`` are standardised too. Priors are normal and made for these scales: 2.5 for a slope, as one SD of exposure is then
unlikely to change a log odds by more than 5, which holds where responders and non-responders are separated.

References
----------
Gelman A, Jakulin A, Pittau MG, Su YS. Ann Appl Stat 2008;2:1360-1383, doi:10.1214/08-AOAS191.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.errors import ModelError
from carkinetics.model_parts import Prior, nearest_or_raise
from carkinetics.numerics import HALF_LOG_2PI

FORMS = ("linear", "emax", "sigmoid_emax", "flat")
SLOPE_SD = 2.5
INTERCEPT_SD = 5.0
# Parameters of every form with their priors: (name, mean, SD). ec50 is that of u, so it lies among the patients.
_EXPOSURE = {
    "flat": (),
    "linear": (("slope", 0.0, SLOPE_SD),),
    "emax": (("emax", 0.0, 2 * SLOPE_SD), ("ec50", 0.0, 1.0)),
    "sigmoid_emax": (("emax", 0.0, 2 * SLOPE_SD), ("ec50", 0.0, 1.0), ("ln_hill", 0.0, 0.5)),
}


@dataclass(frozen=True)
class AbstractTerms(ABC):
    """A likelihood of one patient's response, and the priors of its parameters; hashable, so that it compiles once.

    Attributes
    ----------
    form : str
        One of ``FORMS``.
    covariates : tuple of str
    priors : tuple of (name, mean, SD)
        Normal priors that differ from the default; an infinite SD is a flat prior.
    """

    form: str
    covariates: tuple[str, ...] = ()
    priors: tuple[tuple[str, float, float], ...] = ()

    @property
    @abstractmethod
    def baseline(self) -> tuple[tuple[str, float, float], ...]:
        """Parameters beside exposure and covariates: name, prior mean and SD."""

    @abstractmethod
    def log_lik(self, theta: Array, u: Array, z: Array, s: Array, y: Mapping[str, Array]) -> Float[Array, "node n"]:
        """Log likelihood of every patient at every node of his exposure."""

    @abstractmethod
    def chance(self, theta: Array, u: Array, z: Array, s: Array, at: Array) -> Array:
        """Probability that is asked for: of a response; a grade of at least ``at[0]``; no event until ``at[0]``."""

    @property
    @abstractmethod
    def departures(self) -> tuple[tuple[str, float, float], ...]:
        """Parameters that stand last, after the covariates."""

    @property
    @abstractmethod
    def ratio(self) -> str:
        """What the exponential of a coefficient is."""

    @property
    @abstractmethod
    def begin(self) -> tuple[float, ...]:
        """Where a search begins in the baseline."""

    @abstractmethod
    def baseline_prior(self, theta: Float[Array, " p"]) -> Float[Array, ""]:
        """What the prior of the baseline has beside its normal terms."""

    @property
    def baseline_prior_says(self) -> str:
        """What a parameter of the baseline without a normal prior has."""
        return "flat"

    @property
    def defaults(self) -> tuple[tuple[str, float, float], ...]:
        """All parameters with their default priors, in the order of ``theta``."""
        covariates = ((c, 0.0, SLOPE_SD) for c in self.covariates)
        return (*self.baseline, *_EXPOSURE[self.form], *covariates, *self.departures)

    @property
    def is_flat(self) -> bool:
        """Whether no parameter has a prior."""
        return {name for name, _, sd in self.priors if np.isinf(sd)} == set(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order of ``theta``."""
        return tuple(name for name, _, _ in self.defaults)

    def prior(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Means and SDs of the normal priors."""
        own = {name: (mean, sd) for name, mean, sd in self.priors}
        both = np.array([own.get(name, (mean, sd)) for name, mean, sd in self.defaults], float).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def prior_says(self) -> list[str]:
        """The prior of every parameter, in words."""
        other = {} if self.is_flat else dict.fromkeys((name for name, _, _ in self.baseline), self.baseline_prior_says)
        of_each = zip(self.names, *self.prior(), strict=True)
        return [f"Normal({m:.3g}, {s:.3g})" if np.isfinite(s) else other.get(name, "flat") for name, m, s in of_each]

    def log_prior(self, theta: Float[Array, " p"]) -> Float[Array, ""]:
        """Log prior density; a flat prior adds nothing."""
        mean, sd = self.prior()
        finite = np.isfinite(sd)
        width = np.where(finite, sd, 1.0)
        terms = -0.5 * jnp.square((theta - mean) / width) - np.log(width) - HALF_LOG_2PI
        normal = jnp.where(finite, terms, 0.0).sum()
        return normal if self.is_flat else normal + self.baseline_prior(theta)

    @property
    def start(self) -> Float[np.ndarray, " p"]:
        """Where a search for the mode begins."""
        found = np.where(np.isfinite(self.prior()[1]), self.prior()[0], 0.0)
        found[: len(self.begin)] = self.begin
        return found

    @property
    def starts(self) -> tuple[Float[np.ndarray, " p"], ...]:
        """Several, where the posterior may have more than one mode."""
        if self.form not in ("emax", "sigmoid_emax"):
            return (self.start,)
        found, k = [], self.names.index("emax")
        for emax, ec50 in ((2.0, 0.0), (-2.0, 0.0), (2.0, 1.5), (2.0, -1.5), (-2.0, 1.5), (-2.0, -1.5)):
            start = self.start.copy()
            start[k], start[k + 1] = emax, ec50
            found.append(start)
        return tuple(found)

    def flat(self) -> "AbstractTerms":
        """The same with flat priors: its mode is the maximum of the likelihood."""
        return replace(self, priors=tuple((name, 0.0, float("inf")) for name in self.names))

    def with_priors(self, given: Mapping[str, Prior] | str | None) -> "AbstractTerms":
        """With these priors; ``"flat"`` for none at all."""
        if given is None:
            return self
        if isinstance(given, str):
            if given != "flat":
                raise ModelError(f'prior = "{given}": write "flat", or a Prior for each name of a parameter.')
            return self.flat()
        own = []
        for name, prior in given.items():
            nearest_or_raise(name, self.names, "parameter", "prior=")
            if prior.family != "normal":
                raise ModelError(f"prior of {name} is {prior.family}; write ck.Prior('normal', mean, sd).")
            own.append((name, float(prior.loc), float(prior.scale)))
        return replace(self, priors=tuple(own))

    def predictor(self, theta: Float[Array, " p"], u: Array, z: Array, s: Array) -> Array:
        """What exposure and covariates add, of every patient at every node (``u`` has any axes before patients)."""
        k = len(self.baseline)
        m = len(_EXPOSURE[self.form])
        return acting(self.form, theta[k : k + m], u, s) + theta[k + m : k + m + len(self.covariates)] @ z


def acting(form: str, theta: Float[Array, " k"], u: Array, s: Array) -> Array:
    """What exposure adds to a linear predictor: ``slope u``, or ``emax x^hill / (x^hill + ec50^hill)``."""
    if form == "flat":
        return jnp.zeros_like(u)
    if form == "linear":
        return theta[0] * u
    hill = jnp.exp(theta[2]) if form == "sigmoid_emax" else 1.0
    return theta[0] * jax.nn.sigmoid(hill * s * (u - theta[1]))
