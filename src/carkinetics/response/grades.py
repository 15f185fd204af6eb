"""Ordered grades: proportional odds, and departures from them, without a log of zero anywhere.

References
----------
McCullagh P. J R Stat Soc B 1980;42:109-142, doi:10.1111/j.2517-6161.1980.tb01109.x. Partial proportional odds:
Peterson B, Harrell FE. Appl Stat 1990;39:205-217, doi:10.2307/2347760.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.numerics import log1mexp
from carkinetics.response.terms import AbstractTerms

DEPARTURE_SD = 1.0  # of a threshold's own slope from the common one
_CROSSED = -1e4  # log probability of a grade whose thresholds have crossed; never reached at a mode


@dataclass(frozen=True)
class Graded(AbstractTerms):
    """``logit P(y >= k) = exposure + covariates - c_k``, with ``c_1 < c_2 < ...``.

    ``theta`` begins with ``c_1`` and the logs of the gaps. Their prior is that of category probabilities which are
    uniform over the simplex at the mean exposure: an empty grade is an unlikely one and not an impossible one. With
    ``proportional`` false every threshold but the first adds ``departure_k`` to the slope.

    Attributes
    ----------
    grades : int
        How many there are; ``y["grade"]`` counts them from 0.
    """

    grades: int = 2
    proportional: bool = True

    @property
    def baseline(self) -> tuple[tuple[str, float, float], ...]:
        """The first threshold and the log gaps; their prior is not normal, so the SDs here are infinite."""
        gaps = ((f"ln_gap_{k}", 0.0, math.inf) for k in range(2, self.grades))
        return (("threshold_1", 0.0, math.inf), *gaps)

    @property
    def baseline_prior_says(self) -> str:
        """Of all thresholds together."""
        return "uniform over the grades' probabilities"

    @property
    def departures(self) -> tuple[tuple[str, float, float], ...]:
        """What every threshold but the first adds to the slope."""
        return () if self.proportional else tuple((f"departure_{k}", 0.0, DEPARTURE_SD) for k in range(2, self.grades))

    @property
    def begin(self) -> tuple[float, ...]:
        """Equally likely grades."""
        share = np.arange(1, self.grades) / self.grades
        c = np.log(share / (1 - share))
        return (float(c[0]), *(float(x) for x in np.log(np.diff(c))))

    @property
    def ratio(self) -> str:
        """Of the odds of a grade at least so high; with departures, at the first threshold."""
        return "odds ratio"

    def baseline_prior(self, theta: Float[Array, " p"]) -> Float[Array, ""]:
        """Uniform over the probabilities of grades, in the coordinates of ``theta``."""
        c = self.thresholds(theta)
        uniform = math.lgamma(self.grades) + (jax.nn.log_sigmoid(c) + jax.nn.log_sigmoid(-c)).sum()
        return uniform + theta[1 : self.grades - 1].sum()

    def thresholds(self, theta: Float[Array, " p"]) -> Float[Array, " threshold"]:
        """``c_1 < c_2 < ...``"""
        gaps = jnp.exp(theta[1 : self.grades - 1])
        return theta[0] + jnp.concatenate([jnp.zeros(1), jnp.cumsum(gaps)])

    def above(self, theta: Float[Array, " p"], u: Array, z: Array, s: Array) -> Array:
        """``logit P(y >= k)``, threshold first."""
        c = self.thresholds(theta).reshape(-1, *(1,) * u.ndim)
        eta = self.predictor(theta, u, z, s) - c
        if self.proportional:
            return eta
        departures = jnp.concatenate([jnp.zeros(1), theta[len(theta) - len(self.departures) :]])
        return eta + departures.reshape(c.shape) * u

    def log_lik(self, theta: Array, u: Array, z: Array, s: Array, y: Mapping[str, Array]) -> Float[Array, "node n"]:
        """Of every patient at every node.

        The difference of two logistic functions is ``sigmoid(a) sigmoid(-b) (1 - exp(b - a))``: its log keeps its
        digits, and its slope, however far the predictor is from the thresholds.
        """
        eta, grade = self.above(theta, u, z, s), y["grade"]
        last = self.grades - 2

        def at(k: Array) -> Array:
            chosen = jnp.broadcast_to(jnp.clip(k, 0, last), eta.shape[1:])
            return jnp.take_along_axis(eta, chosen[None], axis=0)[0]

        a, b = at(grade - 1), at(grade)  # at least this grade; at least the next
        lower = jnp.where(grade > 0, jax.nn.log_sigmoid(a), 0.0)
        upper = jnp.where(grade <= last, jax.nn.log_sigmoid(-b), 0.0)
        between = (grade > 0) & (grade <= last)
        gap = jnp.where(between, b - a, -1.0)
        inside = jnp.where(between, log1mexp(jnp.where(gap < 0, gap, -1.0)), 0.0)
        return jnp.where(gap < 0, lower + upper + inside, _CROSSED)

    def chance(self, theta: Array, u: Array, z: Array, s: Array, at: Array) -> Array:
        """Probability of a grade of at least ``at[0]``, counted from 0."""
        grade = at[0]
        eta = self.above(theta, u, z, s)
        k = jnp.clip(grade - 1, 0, self.grades - 2).astype(int)
        return jnp.where(grade <= 0, 1.0, jnp.where(grade >= self.grades, 0.0, jax.nn.sigmoid(eta[k])))
