"""Counts with a negative binomial distribution: log probability and both tails, differentiable in the dispersion.

``dispersion`` (alpha) is that of ``variance = mean + alpha mean^2``; ``k = 1 / alpha`` is the other usual parameter.
The cdf is an incomplete beta function; its continued fraction is taken in the tail that is the smaller one.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from carkinetics.numerics import HALF_LOG_2PI, log1mexp, stirling_remainder

# Terms of the continued fraction: exact to 1e-12 for limits up to 1,000 and dispersions from 1e-3 on.
_TERMS = 64
_SHORT = 16  # An interval of so many counts is summed.
# exp(log(3)) is not 3: a limit as near as this to a whole number is that number.
_WHOLE = 1e-9
# Beyond this ln mean, exp(ln mean) may overflow, and log1p need not be exact.
_FAR = 100.0


def to_limit(ln_limit: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The least whole number that is not below the limit: a count is below the limit if it is below that."""
    limit = jnp.exp(ln_limit)
    nearest = jnp.round(limit)
    return jnp.where(jnp.abs(limit - nearest) <= _WHOLE * jnp.maximum(nearest, 1.0), nearest, jnp.ceil(limit))


def log_pmf(y: Float[Array, "*n"], ln_mean: Float[Array, "*n"], dispersion: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Log probability of a count ``y`` (0 or more).

    Written as a saddle point and remainders, because log gammas of large counts would cancel.

    References
    ----------
    Loader C, Fast and accurate computation of binomial probabilities, 2000 (the idea; for the binomial).
    """
    k, some = 1 / dispersion, y > 0
    ln_y = jnp.log(jnp.where(some, y, 1.0))
    ay = dispersion * y
    near = jnp.log1p(dispersion * (jnp.exp(jnp.where(ln_mean < _FAR, ln_mean, 0.0)) - y) / (1 + ay))
    ln_ratio = jnp.where(ln_mean < _FAR, near, jax.nn.softplus(jnp.log(dispersion) + ln_mean) - jnp.log1p(ay))
    saddle = (k + y) * ln_ratio + y * (ln_y - ln_mean)
    own = jnp.where(some, -HALF_LOG_2PI - 0.5 * ln_y - stirling_remainder(jnp.where(some, y, 1.0)), 0.0)
    return own - saddle - 0.5 * jnp.log1p(ay) + stirling_remainder(k + y) - stirling_remainder(k)


def log_sides(
    limit: Float[Array, "*n"], ln_mean: Float[Array, "*n"], dispersion: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Log probabilities of a count below a whole ``limit``, and of one that is not."""
    some = limit > 0
    n = jnp.where(some, limit - 1, 0.0)
    tail, other = _log_tail(n, ln_mean, dispersion), _is_lower(n, ln_mean, dispersion)
    rest = jnp.log1p(-jnp.exp(tail))
    below, above = jnp.where(other, tail, rest), jnp.where(other, rest, tail)
    return jnp.where(some, below, -jnp.inf), jnp.where(some, above, 0.0)


def log_within(
    lower: Float[Array, "*n"], upper: Float[Array, "*n"], ln_mean: Float[Array, "*n"], dispersion: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Log probability of a count from ``lower`` on and below ``upper``, both whole."""
    low, high = log_sides(lower, ln_mean, dispersion), log_sides(upper, ln_mean, dispersion)
    flip = ln_mean < jnp.log(0.5 * (lower + upper))
    more, less = jnp.where(flip, low[1], high[0]), jnp.where(flip, high[1], low[0])
    short = upper - lower <= _SHORT
    wide = more + log1mexp(jnp.where(short, -1.0, less - more))
    return jnp.where(short, _log_short(lower, upper, ln_mean, dispersion), wide)


def _log_short(lower, upper, ln_mean, dispersion) -> Array:
    """:func:`log_within` of a few counts, one by one: a difference of cdfs would lose digits."""
    w, total = jnp.exp(ln_mean - jax.nn.softplus(ln_mean + jnp.log(dispersion))), 1.0
    for y in range(_SHORT - 1, 0, -1):
        following = (1 + dispersion * (lower + y - 1)) * w / (lower + y)  # probability, relative to the one before
        total = 1 + jnp.where(lower + y < upper, following * total, 0.0)
    # An empty interval has no probability.
    some = upper > lower
    return jnp.where(some, log_pmf(lower, ln_mean, dispersion) + jnp.log(total), -jnp.inf)


def _is_lower(n: Float[Array, "*n"], ln_mean: Float[Array, "*n"], dispersion: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether the fraction is taken for P(count <= n) (else for P(count > n)): where it converges fast."""
    k = 1 / dispersion
    return jax.nn.sigmoid(-ln_mean - jnp.log(dispersion)) * (k + n + 3) < k + 1


def _log_tail_and_slope(n, ln_mean, dispersion) -> tuple[Array, Array]:
    """Log of the tail, and its slope in ln mean: both follow from one fraction.

    That of the incomplete beta function ``I_x(a, b)``, backwards, with ``a, b = k, n + 1`` in the lower tail and
    ``n + 1, k`` in the upper one. It is multiplied out so that ``k`` does not occur: derivatives of what is large in
    the dispersion would cancel.

    References
    ----------
    NIST Digital Library of Mathematical Functions, 8.17.22, https://dlmf.nist.gov/8.17.
    """
    ln_odds = ln_mean + jnp.log(dispersion)
    lower = _is_lower(n, ln_mean, dispersion)
    s, a = jnp.where(lower, dispersion, 1.0), jnp.where(lower, 1.0, n + 1)  # s, and s a
    b = jnp.where(lower, dispersion * (n + 1), 1.0)
    ln_w = ln_mean - jax.nn.softplus(ln_odds)  # w = x / dispersion in the upper tail
    x = jnp.where(lower, jax.nn.sigmoid(-ln_odds), jnp.exp(ln_w))

    def step(i, f):
        m = (_TERMS - i).astype(x.dtype)
        d = a + s * (2 * m - 1)
        even = m * s * (b - dispersion * m) * x / (d * (d + s))
        odd = -(a + s * (m - 1)) * (1 + dispersion * (n + m)) * x / ((d - s) * d)
        return 1 + odd * f / (f + even)

    f = jax.lax.fori_loop(0, _TERMS, step, jnp.ones_like(x))
    scale = jnp.where(lower, jnp.log(dispersion), 0.0)
    value = log_pmf(n, ln_mean, dispersion) + jnp.log1p(dispersion * n) + ln_w + scale - jnp.log(a * f)
    return value, jnp.where(lower, -f / dispersion, (n + 1) * f)


@jax.custom_jvp
def _log_tail(n: Float[Array, "*n"], ln_mean: Float[Array, "*n"], dispersion: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Log P(count <= n) where :func:`_is_lower`, else log P(count > n)."""
    return _log_tail_and_slope(n, ln_mean, dispersion)[0]


def _log_tail_jvp(primals, tangents):
    n, ln_mean, dispersion = primals
    value, slope = _log_tail_and_slope(n, ln_mean, dispersion)
    out = jnp.zeros_like(value) if isinstance(tangents[1], SymbolicZero) else slope * tangents[1]
    if not isinstance(tangents[2], SymbolicZero):
        # Forward through the fraction, so that a reverse sweep stores none of its terms.
        one = jnp.ones_like(dispersion)
        out += jax.jvp(lambda d: _log_tail_and_slope(n, ln_mean, d)[0], (dispersion,), (one,))[1] * tangents[2]
    return value, out


_log_tail.defjvp(_log_tail_jvp, symbolic_zeros=True)
