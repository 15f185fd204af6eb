"""Replicates of one sample: they share what happened to the sample, and differ by what happened to each of them.

``ln y_j = f + u + e_j``, with ``u`` normal of SD ``sample`` for the whole sample and ``e_j`` of SD ``sigma``. Given the
replicates before it, each is normal again, about a prediction moved towards them: so the likelihood is one of rows.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from carkinetics import observation

NAME = "replicates"


def given_earlier(
    ln_pred: Float[Array, "*n"], sigma: Float[Array, "*n"], sample: Float[Array, "*n"], earlier: Float[Array, "2 *n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Prediction and SD of the sample effect once ``earlier`` replicates (their number, the sum of their ln) are known.

    And what is left of a change of the prediction.
    """
    count, total = earlier
    weight = sample**2 / (sigma**2 + count * sample**2)
    left = 1 - count * weight
    return ln_pred * left + weight * total, sample * jnp.sqrt(left), left


def spread(sigma, sample):
    """SD of one replicate about the prediction."""
    return jnp.sqrt(sigma**2 + sample**2)


def quantified(ln_dv, ln_pred, sigma, sample) -> Float[Array, "*n"]:
    """Log density of a value."""
    return observation.log_density(ln_dv, ln_pred, spread(sigma, sample))


def below(ln_limit, ln_pred, sigma, sample) -> Float[Array, "*n"]:
    """Log probability of a value below the limit."""
    return observation.log_prob_below(ln_limit, ln_pred, spread(sigma, sample))


def above(ln_limit, ln_pred, sigma, sample) -> Float[Array, "*n"]:
    """Log probability of a value above the limit."""
    return observation.log_prob_above(ln_limit, ln_pred, spread(sigma, sample))


def between(ln_lower, ln_upper, ln_pred, sigma, sample) -> Float[Array, "*n"]:
    """Log probability of a value between two limits."""
    return observation.log_prob_between(ln_lower, ln_upper, ln_pred, spread(sigma, sample))


def information(ln_pred, sigma, sample) -> Float[Array, "*n"]:
    """Of a quantified value about its prediction."""
    return jnp.broadcast_to(spread(sigma, sample) ** -2, jnp.shape(ln_pred))


def draw(rng: np.random.Generator, ln_pred, sigma, sample) -> Float[np.ndarray, "*n"]:
    """Single samples: the effect and the replicate's error together."""
    return np.asarray(ln_pred + np.hypot(sigma, sample) * rng.standard_normal(np.shape(ln_pred)))


def draw_together(rng: np.random.Generator, ln_pred, sigma, sample, taken: Float[np.ndarray, "2 row"]):
    """Replicates of samples, the row last: those with the same patient and time, ``taken``, share their effect."""
    _, of = np.unique(taken, axis=1, return_inverse=True)
    shared = rng.standard_normal((*np.shape(ln_pred)[:-1], int(of.max(initial=-1)) + 1))[..., of.ravel()]
    return np.asarray(ln_pred + sample * shared + sigma * rng.standard_normal(np.shape(ln_pred)))


def cdf(ln_dv, ln_pred, sigma, sample) -> Float[np.ndarray, "*n"]:
    """Probability of a value up to this one."""
    return np.asarray(special.ndtr((ln_dv - np.asarray(ln_pred)) / np.hypot(sigma, sample)))


FUNCTIONS: dict[str, Any] = {
    "quantified": quantified,
    "below": below,
    "above": above,
    "between": between,
    "information": information,
    "draw": draw,
    "cdf": cdf,
}
