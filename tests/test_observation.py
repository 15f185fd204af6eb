"""The likelihood of one sample: against SciPy's log-normal and 50 to 400 digits of mpmath."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from carkinetics.observation import log_density, log_prob_above, log_prob_below, log_prob_between
from tiers import tiered

# (limit - prediction) / sigma: from 40 SD below the limit to 8 above it, both sides of the seam at 0 and of -20.
Z = np.concatenate(
    [np.linspace(-40, 8, 193), [-0.0, 1e-300, -1e-300, 1e-16, -1e-16, 1e-9, -1e-9, 1e-4, -1e-4, -20.001, -19.999]]
)
SIGMA, LN_PRED = 0.56, 3.25


def exact(z):
    """Log of the normal cdf with its first and second derivative, to 50 digits."""
    with mpmath.workdps(50):
        x = mpmath.mpf(float(z))
        cdf = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
        hazard = mpmath.npdf(x) / cdf
        # log1p keeps the digits of a probability near 1.
        log_cdf = mpmath.log(cdf) if x < 0 else mpmath.log1p(-mpmath.erfc(x / mpmath.sqrt(2)) / 2)
        return float(log_cdf), float(hazard), float(-hazard * (hazard + x))


EXACT = np.array([exact(z) for z in Z]).T


def below(z, order=0):
    """``log_prob_below`` at ``z`` SDs, or a derivative of it in the limit, times sigma to the order."""

    def f(limit):
        return log_prob_below(limit, jnp.asarray(LN_PRED), jnp.asarray(SIGMA))

    for _ in range(order):
        f = jax.grad(f)
    with jax.enable_x64(True):
        limits = LN_PRED + SIGMA * jnp.asarray(z, float)
        return np.asarray(jax.vmap(f)(limits)) * SIGMA**order


def _standard(f, order):
    """``f(z)`` with a limit at z, a prediction at 0 and sigma 1: no rounding on the way to z."""

    def g(z):
        return f(z, jnp.zeros(()), jnp.ones(()))

    for _ in range(order):
        g = jax.grad(g)
    with jax.enable_x64(True):
        return lambda z: np.asarray(jax.vmap(g)(jnp.asarray(z, float)))


@given(
    st.floats(-15, 25), st.floats(-15, 25), st.floats(1e-3, 20)
)  # levels from 3e-7 to 7e10, any residual SD that was ever reported
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_quantified_value_has_the_log_normal_density(ln_dv, ln_pred, sigma):
    """If it fails, every fit is of another residual model than log-normal, or lacks the factor 1 / DV."""
    with jax.enable_x64(True):
        found = log_density(jnp.asarray(ln_dv), jnp.asarray(ln_pred), jnp.asarray(sigma))
    wanted = stats.lognorm.logpdf(np.exp(ln_dv), s=sigma, scale=np.exp(ln_pred))
    assert float(found) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_the_density_integrates_to_one_over_the_unit_of_the_assay():
    """If it fails, log likelihoods of two models in the same unit cannot be compared."""
    with jax.enable_x64(True), mpmath.workdps(20):

        def f(dv):
            return mpmath.exp(float(log_density(jnp.log(float(dv)), jnp.asarray(1.0), jnp.asarray(0.4))))

        total = mpmath.quad(f, [1e-3, 1, 2, 3, 4, 6, 10, 40], maxdegree=5)
    assert float(total) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_below_the_limit_equals_fifty_digits(order):
    """If it fails, samples far below the limit bend the fit by a numerical error (M3's known weakness)."""
    with jax.enable_x64(True):
        found, wanted = _standard(log_prob_below, order)(Z), EXACT[order]
    assert (np.abs(found - wanted) <= 1e-10 * (1 + np.abs(EXACT[0]))).all()
    near = Z >= -20
    np.testing.assert_allclose(found[near], wanted[near], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=0)  # also where it is 1e-16 or smaller


@pytest.mark.parametrize("order", [0, 1, 2])
def test_above_the_limit_is_the_mirror_image(order):
    """If it fails, right-censored samples (above the upper limit) have another likelihood than left-censored."""
    with jax.enable_x64(True):
        found = _standard(log_prob_above, order)(-Z)
    np.testing.assert_allclose(found, (-1) ** order * EXACT[order], rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_location_and_scale_enter_as_they_should(order):
    """If it fails, sigma or the prediction is not what standardises a limit."""
    found, wanted = below(Z[Z < 4], order), EXACT[order][Z < 4]
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


@given(st.floats(-12, 12), st.floats(-12, 12), st.floats(0.05, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_gradients_in_prediction_and_sigma_follow_from_the_hazard(ln_limit, ln_pred, sigma):
    """If it fails, censored samples pull the prediction or the residual SD the wrong way."""
    with jax.enable_x64(True):
        arguments = tuple(jnp.asarray(x) for x in (ln_limit, ln_pred, sigma))
        d_limit, d_pred, d_sigma = (float(g) for g in jax.grad(log_prob_below, (0, 1, 2))(*arguments))
    z = (ln_limit - ln_pred) / sigma
    hazard = exact(z)[1]
    # Below 1e-308 a processor may flush to zero.
    np.testing.assert_allclose(
        [d_limit, d_pred, d_sigma], np.array([1, -1, -z]) * hazard / sigma, rtol=1e-9, atol=1e-300
    )


def test_the_seam_at_zero_cannot_be_seen():
    """If it fails, value, slope or curvature jumps where the prediction equals the limit."""
    for order, wanted in enumerate((np.log(0.5), np.sqrt(2 / np.pi), -2 / np.pi)):
        with jax.enable_x64(True):
            found = _standard(log_prob_below, order)([0.0, -0.0, 1e-14, -1e-14])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


def interval(a, b):
    """Log probability between ``a`` and ``b`` SDs, and its derivative in the prediction, from 400 digits."""
    with mpmath.workdps(400):
        lo, hi = mpmath.mpf(float(a)), mpmath.mpf(float(b))
        p = mpmath.ncdf(hi) - mpmath.ncdf(lo)
        return float(mpmath.log(p)), float(-(mpmath.npdf(hi) - mpmath.npdf(lo)) / p)


MIDDLES = (-38, -25, -20, -8, -3, -0.5, 0, 0.02, 0.5, 3, 8, 20, 25, 38)


@pytest.mark.parametrize("width", tiered([1e-3, 0.05, 1.0, 2.87, 10.0], thorough={0.05, 2.87, 10.0}))
def test_between_two_limits_equals_mpmath_in_both_tails(width):
    """If it fails, values between LOD and LLOQ, or in a tail, lose their likelihood to cancellation."""
    with jax.enable_x64(True):
        for middle in MIDDLES:
            a, b = middle - width / 2, middle + width / 2
            value, slope = jax.value_and_grad(log_prob_between, 2)(*(jnp.asarray(float(x)) for x in (a, b, 0.0, 1.0)))
            wanted = interval(a, b)
            assert float(value) == pytest.approx(wanted[0], rel=1e-9, abs=1e-9), middle
            assert float(slope) == pytest.approx(wanted[1], rel=1e-7, abs=1e-7), middle


@pytest.mark.parametrize("middle", [-20, -3, 0, 3, 20])
def test_a_narrow_interval_tends_to_density_times_width(middle):
    """If it fails, a value that was rounded (49.9995 to 50.0005) has another likelihood than the value itself."""
    width = 1e-6
    with jax.enable_x64(True):
        found = log_prob_between(*(jnp.asarray(float(x)) for x in (middle - width / 2, middle + width / 2, 0.0, 1.0)))
    assert float(found) == pytest.approx(stats.norm.logpdf(middle) + np.log(width), abs=1e-6)


def test_below_between_and_above_add_up_to_one():
    """If it fails, the kinds of censoring are not parts of one distribution."""
    rng = np.random.default_rng(3)
    ln_pred, sigma, low = rng.normal(4, 3, 200), rng.uniform(0.2, 2, 200), rng.normal(4, 2, 200)
    high = low + rng.exponential(2, 200)
    with jax.enable_x64(True):
        lo, hi, f, s = (jnp.asarray(x) for x in (low, high, ln_pred, sigma))
        total = (
            jnp.exp(log_prob_below(lo, f, s))
            + jnp.exp(log_prob_between(lo, hi, f, s))
            + jnp.exp(log_prob_above(hi, f, s))
        )
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


@pytest.mark.thorough
def test_arrays_give_what_scalars_give():
    """If it fails, a row's likelihood depends on the rows beside it."""
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        y, f, s = (jnp.asarray(x) for x in (rng.normal(4, 6, 30), rng.normal(4, 2, 30), rng.uniform(0.2, 2, 30)))
        for kind in (log_density, log_prob_below, log_prob_above):
            one_by_one = [kind(*each) for each in zip(y, f, s, strict=True)]
            np.testing.assert_allclose(kind(y, f, s), one_by_one, rtol=1e-13)
        one_by_one = [log_prob_between(*each) for each in zip(y, y + 1, f, s, strict=True)]
        np.testing.assert_allclose(log_prob_between(y, y + 1, f, s), one_by_one, rtol=1e-12)


@pytest.mark.parametrize("z", [-1e3, -300.0, 300.0, 1e3])
def test_nothing_is_nan_at_a_thousand_sds(z):
    """If it fails, one wild trajectory turns the gradient of the whole population into NaN."""
    with jax.enable_x64(True):
        for kind in (log_density, log_prob_below, log_prob_above):

            def f(x, kind=kind):
                return kind(x, jnp.zeros(()), jnp.ones(()))

            values = [g(jnp.asarray(z)) for g in (f, jax.grad(f), jax.grad(jax.grad(f)))]
            assert np.isfinite(values).all(), kind
        for width in (0.1, 1.0, 2500.0):
            between = partial(log_prob_between, jnp.asarray(z), jnp.asarray(z + width))
            both = jax.value_and_grad(lambda pred, between=between: between(pred, jnp.ones(())))(jnp.zeros(()))
            assert np.isfinite(both).all(), width


def test_a_thousand_sds_below_equals_the_asymptotic_series():
    """If it fails, the far tail is finite but wrong, and a sampler that starts there is led astray."""
    z = 1e3
    series = -0.5 * z * z - np.log(z) - 0.5 * np.log(2 * np.pi) + np.log1p(-1 / z**2 + 3 / z**4)
    with jax.enable_x64(True):
        assert float(log_prob_below(jnp.asarray(-z), jnp.zeros(()), jnp.ones(()))) == pytest.approx(series, rel=1e-14)
        slope = float(jax.grad(log_prob_below)(jnp.asarray(-z), jnp.zeros(()), jnp.ones(())))
    assert slope == pytest.approx(z + 1 / z - 2 / z**3, rel=1e-13)
