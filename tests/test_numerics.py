"""Stirling's remainder and probabilities of intervals, against mpmath."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from carkinetics.numerics import log1mexp, stirling_remainder

X = np.concatenate([np.geomspace(0.05, 1e6, 60), [10.0, np.nextafter(10, 0), 0.5, 1.0]])


def remainder(x):
    return mp.loggamma(x) - (x - mp.mpf("0.5")) * mp.log(x) + x - mp.log(2 * mp.pi) / 2


@pytest.mark.parametrize("order", [0, 1, 2])
def test_stirlings_remainder_equals_mpmath(order):
    """If it fails, Student-t's constant and the probabilities of counts are off, at 10 more than elsewhere."""
    f = stirling_remainder
    for _ in range(order):
        f = jax.grad(f)
    with jax.enable_x64(True):
        found = np.asarray(jax.vmap(f)(jnp.asarray(X)))
    with mp.workdps(40):
        wanted = np.array([float(mp.diff(remainder, mp.mpf(x), order)) for x in X])
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=2e-14)


def test_log1mexp_keeps_the_digits_of_both_ends():
    """If it fails, intervals that hold nearly everything or nearly nothing lose their probability."""
    x = -np.geomspace(1e-12, 700, 40)
    with jax.enable_x64(True), mp.workdps(400):
        wanted = [float(mp.log1p(-mp.exp(mp.mpf(v)))) for v in x]
        np.testing.assert_allclose(log1mexp(jnp.asarray(x)), wanted, rtol=1e-12, atol=1e-300)
