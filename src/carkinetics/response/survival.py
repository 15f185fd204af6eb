"""Times to an event: log densities and log survival of five distributions, with censoring and truncation.

Time is in units of the crude mean time to an event, so that a baseline near 0 is near the data.

References
----------
Kalbfleisch JD, Prentice RL. The Statistical Analysis of Failure Time Data, 2nd ed., 2002,
doi:10.1002/9781118032985: chapter 2 for the distributions, 3 for censoring and truncation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from carkinetics.numerics import HALF_LOG_2PI, log1mexp
from carkinetics.response.terms import SLOPE_SD, AbstractTerms

PROPORTIONAL = ("exponential", "weibull", "piecewise")  # hazards; the others accelerate time
DISTRIBUTIONS = (*PROPORTIONAL, "lognormal", "loglogistic")
RIGHT, EXACT, INTERVAL = 0, 1, 2
SHAPE_SD = 1.0  # of ln shape and ln sigma


@dataclass(frozen=True)
class Survival(AbstractTerms):
    """``exponential``, ``weibull``, ``piecewise``: ``ln hazard = baseline + exposure + covariates``.

    ``weibull``: ``H(t) = exp(eta) t^shape``. ``lognormal``, ``loglogistic``: ``ln T = location + exposure + covariates
    + sigma error``, so that a positive coefficient means a longer time.

    Attributes
    ----------
    distribution : str
    cuts : tuple of float
        ``piecewise``: where the hazard changes, in the model's unit of time.

    ``y`` has ``t1``, ``t2`` and ``entry`` (time from which the patient was under observation) and ``kind``: censored at
    ``t1``, event at ``t1``, or event in ``(t1, t2]``.
    """

    distribution: str = "exponential"
    cuts: tuple[float, ...] = ()

    @property
    def baseline(self) -> tuple[tuple[str, float, float], ...]:
        """Log rates, or location; and the log of the shape."""
        if self.distribution == "piecewise":
            return tuple((f"ln_rate_{k + 1}", 0.0, SLOPE_SD) for k in range(len(self.cuts) + 1))
        if self.distribution in PROPORTIONAL:
            shape = () if self.distribution == "exponential" else (("ln_shape", 0.0, SHAPE_SD),)
            return (("ln_rate", 0.0, SLOPE_SD), *shape)
        return (("location", 0.0, SLOPE_SD), ("ln_sigma", 0.0, SHAPE_SD))

    @property
    def departures(self) -> tuple[tuple[str, float, float], ...]:
        """None."""
        return ()

    @property
    def begin(self) -> tuple[float, ...]:
        """The crude rate, and no shape."""
        return (0.0,) * len(self.baseline)

    def baseline_prior(self, theta: Float[Array, " p"]) -> Float[Array, ""]:
        """Nothing beside the normal one."""
        return jnp.zeros(())

    @property
    def ratio(self) -> str:
        """Of hazards, or of times."""
        return "hazard ratio" if self.distribution in PROPORTIONAL else "time ratio"

    def log_survival(self, theta: Array, eta: Array, t: Array) -> Array:
        """``ln S(t)``; 0 at ``t = 0``. ``eta`` is what exposure and covariates add."""
        later = t > 0
        ln_t = jnp.log(jnp.where(later, t, 1.0))
        if self.distribution == "piecewise":
            return -jnp.exp(eta) * self._hazards(theta, t)
        if self.distribution in PROPORTIONAL:
            shape = jnp.exp(theta[1]) if self.distribution == "weibull" else 1.0
            return jnp.where(later, -jnp.exp(theta[0] + eta + shape * ln_t), 0.0)
        error = (ln_t - theta[0] - eta) * jnp.exp(-theta[1])
        tail = log_ndtr(-error) if self.distribution == "lognormal" else jax.nn.log_sigmoid(-error)
        return jnp.where(later, tail, 0.0)

    def log_density(self, theta: Array, eta: Array, t: Array) -> Array:
        """``ln f(t)`` for ``t > 0``."""
        ln_t = jnp.log(jnp.where(t > 0, t, 1.0))
        if self.distribution == "piecewise":
            piece = jnp.searchsorted(jnp.asarray(self.cuts), t, side="left") if self.cuts else jnp.zeros(t.shape, int)
            return theta[: len(self.cuts) + 1][piece] + eta + self.log_survival(theta, eta, t)
        if self.distribution in PROPORTIONAL:
            shape = theta[1] if self.distribution == "weibull" else 0.0
            hazard = theta[0] + eta + shape + (jnp.exp(shape) - 1) * ln_t
            return hazard + self.log_survival(theta, eta, t)
        error = (ln_t - theta[0] - eta) * jnp.exp(-theta[1])
        at = -0.5 * error**2 - HALF_LOG_2PI
        if self.distribution == "loglogistic":
            at = jax.nn.log_sigmoid(error) + jax.nn.log_sigmoid(-error)
        return at - theta[1] - ln_t

    def _hazards(self, theta: Array, t: Array) -> Array:
        """Cumulative baseline hazard of a piecewise constant one."""
        edges = jnp.asarray([0.0, *self.cuts])
        widths = jnp.asarray([*(b - a for a, b in zip((0.0, *self.cuts[:-1]), self.cuts, strict=True)), jnp.inf])
        spent = jnp.clip(t[None] - edges.reshape(-1, *(1,) * t.ndim), 0.0, widths.reshape(-1, *(1,) * t.ndim))
        return jnp.tensordot(jnp.exp(theta[: len(self.cuts) + 1]), spent, axes=1)

    def log_lik(self, theta: Array, u: Array, z: Array, s: Array, y: Mapping[str, Array]) -> Float[Array, "node n"]:
        """Of every patient at every node, given no event until entry."""
        eta = self.predictor(theta, u, z, s)
        kind = y["kind"]
        begin = self.log_survival(theta, eta, y["t1"])
        between = kind == INTERVAL
        end = self.log_survival(theta, eta, jnp.where(between, y["t2"], 2 * y["t1"] + 1))
        inside = begin + log1mexp(jnp.where(between, jnp.minimum(end - begin, -1e-300), -1.0))
        exact = self.log_density(theta, eta, y["t1"])
        found = jnp.where(kind == EXACT, exact, jnp.where(between, inside, begin))
        return found - self.log_survival(theta, eta, y["entry"])

    def chance(self, theta: Array, u: Array, z: Array, s: Array, at: Array) -> Array:
        """Probability of no event until ``at[0]``, given none until ``at[1]``."""
        eta = self.predictor(theta, u, z, s)
        until, given = (self.log_survival(theta, eta, jnp.broadcast_to(t, eta.shape)) for t in at)
        return jnp.exp(until - given)
