"""Logistic regression: the log likelihood of a response that is there or not."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.response.terms import INTERCEPT_SD, AbstractTerms


class Binary(AbstractTerms):
    """``logit P(y = 1) = intercept + exposure + covariates``; ``y["sign"]`` is 1 of a responder and -1 of others."""

    @property
    def baseline(self) -> tuple[tuple[str, float, float], ...]:
        """The log odds at the mean ln exposure (of Emax forms: without exposure)."""
        return (("intercept", 0.0, INTERCEPT_SD),)

    @property
    def departures(self) -> tuple[tuple[str, float, float], ...]:
        """None."""
        return ()

    @property
    def begin(self) -> tuple[float, ...]:
        """Even odds."""
        return (0.0,)

    @property
    def ratio(self) -> str:
        """Of the odds of a response."""
        return "odds ratio"

    def baseline_prior(self, theta: Float[Array, " p"]) -> Float[Array, ""]:
        """Nothing beside the normal one."""
        return jnp.zeros(())

    def log_lik(self, theta: Array, u: Array, z: Array, s: Array, y: Mapping[str, Array]) -> Float[Array, "node n"]:
        """Of every patient at every node."""
        return jax.nn.log_sigmoid(y["sign"] * (theta[0] + self.predictor(theta, u, z, s)))

    def chance(self, theta: Array, u: Array, z: Array, s: Array, at: Array) -> Array:
        """Probability of a response; ``at`` is not used."""
        return jax.nn.sigmoid(theta[0] + self.predictor(theta, u, z, s))
