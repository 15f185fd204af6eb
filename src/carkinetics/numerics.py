"""Special functions that likelihoods share: Stirling's remainder, and the probability of an interval."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

# Stirling's series in 1/x, 1/x^3, ...: the first seven leave 3e-17 from x = 10 on (DLMF 5.11.1).
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_SHIFT = 10
# An interval over which the log of the cdf moves by no more than this is narrow. Then ten nodes are exact to 1e-14 even
# for a Cauchy density; a wider one can be had as a difference of two cdfs, of which one is at most 0.6 of the other.
_NARROW = 0.5
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


def log1mexp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``log(1 - exp(x))`` for x below 0, with the digits of both ends."""
    near = x > -math.log(2)
    at_zero = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, at_zero, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def stirling_remainder(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``log gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2``: what Stirling's formula leaves, for x above 0.

    Differences of two log gammas of large arguments keep their digits when they are written with it, and derivatives
    to any order are those of rational functions and logs.

    References
    ----------
    NIST Digital Library of Mathematical Functions, 5.11.1 and 5.5.1, https://dlmf.nist.gov/5.11.
    """
    small, large = jnp.where(x < _SHIFT, x, 1.0), jnp.where(x < _SHIFT, 2.0 * _SHIFT, x)
    end = small + _SHIFT
    product = small
    for j in range(1, _SHIFT):
        product = product * (small + j)
    # log gamma(x) = log gamma(x + 10) - log(x (x + 1) ... (x + 9))
    shifted = _series(end) + (end - 0.5) * jnp.log(end) - jnp.log(product) - _SHIFT - (small - 0.5) * jnp.log(small)
    return jnp.where(x < _SHIFT, shifted, _series(large))


def _series(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    square, total = 1 / (x * x), jnp.zeros_like(x)
    for c in reversed(_STIRLING):
        total = total * square + c
    return total / x


def log_prob_within(
    low: Float[Array, "*n"],
    high: Float[Array, "*n"],
    log_half: Float[Array, "*n"],
    log_cdf: Callable[[Float[Array, "*m"]], Float[Array, "*m"]],
    log_kernel: Callable[[Float[Array, "*m"]], Float[Array, "*m"]],
    log_top: Float[Array, "*n"] | float,
) -> Float[Array, "*n"]:
    """Log probability that a variable lies between ``low`` and ``high``.

    The variable's density is symmetric around 0 and falls on either side. As a difference of two cdfs, a narrow
    interval would lose its digits, and its slope more of them: there the density is integrated.

    Parameters
    ----------
    log_half : Float[Array, "*n"]
        Log of ``(high - low) / 2`` with all its digits: the ends of a narrow interval far away no longer have them.
    log_cdf, log_kernel : callable
        Elementwise; the second, called with one more axis in front, is the log density relative to that at 0.
    log_top : Float[Array, "*n"] or float
        Log density at 0.
    """
    flip = low + high > 0  # to the tail in which no cdf is near 1
    a, b = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    below, rest = log_cdf(b), log_cdf(a)
    narrow = below - rest < _NARROW
    # Where the other formula is taken, this one gets numbers that harm no gradient.
    wide = below + log1mexp(jnp.where(narrow, -1.0, rest - below))
    m, log_h = jnp.where(narrow, 0.5 * (a + b), 0.0), jnp.where(narrow, log_half, -2.0)
    nodes, weights = (jnp.asarray(a).reshape(-1, *(1,) * jnp.ndim(m)) for a in (_NODES, _WEIGHTS))
    middle = log_kernel(m)
    mean = (weights * jnp.exp(log_kernel(m + jnp.exp(log_h) * nodes) - middle)).sum(0)
    return jnp.where(narrow, log_top + middle + log_h + jnp.log(mean), wide)
