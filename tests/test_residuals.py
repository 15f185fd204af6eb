"""Residual families: against 50 digits of mpmath, SciPy's distributions and quadrature, and their own draws."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import integrate, stats

from carkinetics import counts
from carkinetics.errors import ModelError
from carkinetics.residuals import RESIDUALS, residual
from tiers import tiered

KINDS = ("quantified", "below", "above", "between")
PARAMS = {"lognormal": (0.65,), "student_t": (0.65, 4.0), "combined": (0.3, 5.0), "negative_binomial": (0.3,)}

# The log-normal with two SDs is in tests/test_replicates.py.
FAMILIES = tuple(name for name in RESIDUALS if name != "replicates")


# What is exact: probabilities below and from x on, and the log density, from mpmath's own functions.


def normal_sides(z):
    return mp.erfc(-z / mp.sqrt(2)) / 2, mp.erfc(z / mp.sqrt(2)) / 2


def student_sides(t, nu):
    if abs(t) > 1:
        tail = mp.betainc(nu / 2, mp.mpf("0.5"), 0, nu / (nu + t * t), regularized=True) / 2
    else:  # near 0 the incomplete beta function takes the root of a rounding error
        density = mp.gamma((nu + 1) / 2) / mp.gamma(nu / 2) / mp.sqrt(nu * mp.pi)
        tail = 0.5 - abs(t) * density * mp.hyp2f1(mp.mpf("0.5"), (nu + 1) / 2, mp.mpf("1.5"), -t * t / nu)
    return (tail, 1 - tail) if t < 0 else (1 - tail, tail)


def sides(name, ln_x, f, *p):
    if name == "lognormal":
        return normal_sides((ln_x - f) / p[0])
    if name == "student_t":
        return student_sides((ln_x - f) / p[0], p[1])
    if name == "combined":
        return normal_sides((mp.exp(ln_x) - mp.exp(f)) / mp.hypot(p[1], p[0] * mp.exp(f)))
    k, n = 1 / p[0], mp.ceil(mp.exp(ln_x) * (1 - mp.mpf(10) ** -12)) - 1
    x = k / (k + mp.exp(f))
    return mp.betainc(k, n + 1, 0, x, regularized=True), mp.betainc(n + 1, k, 0, 1 - x, regularized=True)


def density(name, ln_x, f, *p):
    if name == "lognormal":
        return mp.log(mp.npdf(ln_x, f, p[0])) - ln_x
    if name == "combined":
        return mp.log(mp.npdf(mp.exp(ln_x), mp.exp(f), mp.hypot(p[1], p[0] * mp.exp(f))))
    if name == "student_t":
        (s, nu), t = p, (ln_x - f) / p[0]
        top = mp.loggamma((nu + 1) / 2) - mp.loggamma(nu / 2) - mp.log(nu * mp.pi) / 2
        return top - (nu + 1) / 2 * mp.log1p(t * t / nu) - mp.log(s) - ln_x
    k, y, mean = 1 / p[0], mp.exp(ln_x), mp.exp(f)
    ways = mp.loggamma(y + k) - mp.loggamma(k) - mp.loggamma(y + 1)
    return ways - k * mp.log1p(mean / k) + y * mp.log(mean / (k + mean))


def exact(name, kind, ends, f, *p):
    if kind == "quantified":
        return density(name, ends[0], f, *p)
    if kind == "between":
        low, high = (sides(name, x, f, *p) for x in ends)
        if low[0] + high[1] < 0.5:
            return mp.log1p(-low[0] - high[1])
        return mp.log(high[0] - low[0] if high[0] < low[1] else low[1] - high[1])
    side, other = sides(name, ends[0], f, *p)[:: 1 if kind == "below" else -1]
    return mp.log(side) if side < 0.5 else mp.log1p(-other)


def exact_with_slopes(name, kind, ends, params):
    """Value, and its slopes in the prediction and the family's parameters, at exactly these floats."""
    with mp.workdps(50):
        ends, q = [mp.mpf(float(x)) for x in ends], [mp.mpf(float(x)) for x in params]
        slopes = [
            mp.diff(lambda x, i=i: exact(name, kind, ends, *q[:i], x, *q[i + 1 :]), q[i]) for i in range(len(params))
        ]
        return [float(x) for x in (exact(name, kind, ends, *q), *slopes)]


def found_with_slopes(name, kind, cases):
    """The same of the library, for many cases at once, as the engine calls it: compiled and reverse."""
    f = getattr(RESIDUALS[name], kind)
    with jax.enable_x64(True):
        columns = [jnp.asarray(c) for c in np.array(cases, float).T]
        ends = 2 if kind == "between" else 1
        slopes = jax.jit(jax.grad(lambda *a: f(*a).sum(), tuple(range(ends, len(columns)))))(*columns)
        return np.array([jax.jit(f)(*columns), *slopes]).T


# Where: prediction, limit and parameters of every family.

T = [s * t for s in (-1, 1) for t in (0.0, 1e-3, 0.3, 1.0, 1.7, 6.0, 40.0, 1e4, 1e6)]
Z = [s * z for s in (-1, 1) for z in (0.0, 1e-3, 0.5, 3.0, 10.0, 19.999, 20.001, 40.0)]
COMBINED = [(-40.0, 0.3, 2.0), (-3.0, 0.3, 5.0), (0.0, 0.3, 5.0), (3.0, 0.5, 5.0), (9.0, 0.02, 1.0)]
WIDTHS = (1e-6, 1e-3, 0.1, 1.0, 5.0)


def combined_points(zs):
    points = [(np.exp(f) + z * np.hypot(b, a * np.exp(f)), f, a, b) for f, a, b in COMBINED for z in zs]
    return [(np.log(x), *rest) for x, *rest in points if x > 0]


def points(name, kind):
    if kind == "between":
        middles = (-30.0, -3.0, -0.1, 0.02, 1.0, 8.0, 30.0)
        if name == "lognormal":
            return [(0.65 * m - w / 2, 0.65 * m + w / 2, 0.0, 0.65) for m in middles for w in WIDTHS]
        if name == "student_t":
            more = [(m, nu) for m in (*middles, -1e4) for nu in (1.0, 4.0, 100.0)]
            return [(0.65 * m - w / 2, 0.65 * m + w / 2, 0.0, 0.65, nu) for m, nu in more for w in WIDTHS]
        if name == "combined":
            return [(x, x + w, *rest) for x, *rest in combined_points((-3, 0.1, 1, 30)) for w in WIDTHS]
        limits = [(1, 1), (5, 16), (5, 17), (300, 3), (300, 50)]
        return [(np.log(y), np.log(y + w), f, a) for y, w in limits for f in (-1.0, 5.0) for a in (1e-3, 0.1, 3.0)]
    if name == "lognormal":
        return [(3.25 + 0.65 * z, 3.25, 0.65) for z in Z]
    if name == "student_t":
        return [(3.25 + 0.65 * t, 3.25, 0.65, nu) for t in T for nu in (1.0, 1.5, 4.0, 7.3, 100.0)]
    if name == "combined":
        return combined_points(Z)
    # At 1 / dispersion = 10 Stirling's remainder changes its formula.
    return [(np.log(y), f, a) for y in (1, 30, 1000) for f in (-3.0, 4.0, 7.0) for a in (1e-3, 0.1, 10.0)]


@pytest.mark.parametrize("kind", tiered(KINDS, thorough={"between", "above"}))
@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_slopes_equal_fifty_digits(name, kind):
    """If it fails, a residual family bends a fit by a numerical error, or its sampler by a wrong gradient."""
    cases = points(name, kind)
    ends = 2 if kind == "between" else 1
    wanted = np.array([exact_with_slopes(name, kind, c[:ends], c[ends:]) for c in cases])
    found = found_with_slopes(name, kind, cases)
    # Slopes cross zero; what is smaller than a millionth there has no digits to compare.
    scale = np.abs(wanted) + np.where(np.arange(wanted.shape[1]) > 0, 1e-2, 1e-4)
    worst = np.abs(found - wanted) / scale
    assert (worst <= 1e-10).all(), [(cases[i], found[i], wanted[i]) for i in np.flatnonzero(worst.max(1) > 1e-10)][:3]
    small = (np.abs(wanted[:, 0]) < 1e-4) & (np.abs(wanted[:, 0]) > 1e-290)
    np.testing.assert_allclose(found[small, 0], wanted[small, 0], rtol=1e-8)  # and far into the side that is certain


@pytest.mark.parametrize("kind", tiered(["quantified", "below", "between"], thorough={"below", "between"}))
@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivatives_equal_fifty_digits(name, kind):
    """If it fails, the curvature that Laplace's method starts from is wrong."""
    f, limit = getattr(RESIDUALS[name], kind), np.log([30.0, 40.0])[: 2 if kind == "between" else 1]
    at = [(x, *PARAMS[name]) for x in (0.5, limit[0], 5.0)]  # the limit is the prediction: |t| has no derivative there
    with jax.enable_x64(True):
        ends = tuple(jnp.asarray(x) for x in limit)
        found = np.array(jax.jit(jax.vmap(jax.hessian(lambda q: f(*ends, *q))))(jnp.asarray(at)))
    for q, matrix in zip(at, found, strict=True):
        with mp.workdps(40):
            wanted = np.empty(matrix.shape)
            for i, j in np.ndindex(matrix.shape):
                order = tuple(int(k == i) + int(k == j) for k in range(len(q)))
                where = tuple(mp.mpf(float(x)) for x in q)
                wanted[i, j] = mp.diff(
                    lambda *q: exact(name, kind, [mp.mpf(float(x)) for x in limit], *q), where, order
                )
        np.testing.assert_allclose(matrix, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
def test_no_prediction_makes_a_derivative_nan(name):
    """If it fails, one wild trajectory turns the gradient of the whole population into NaN."""
    family = RESIDUALS[name]
    with jax.enable_x64(True):
        at = [jnp.asarray([-1e3, -50.0, 50.0, 1e3]), *(jnp.full(4, x) for x in PARAMS[name])]
        lower, upper = jnp.full(4, np.log(3.0)), jnp.full(4, np.log(30.0))

        @jax.jit
        def derivatives(*q):
            def total(*q):
                one_sided = (getattr(family, kind)(upper, *q) for kind in KINDS[:3])
                return (sum(one_sided) + family.between(lower, upper, *q)).sum()

            # First derivatives, and all second ones of a row together.
            return total(*q), jax.jvp(jax.grad(total, tuple(range(len(q)))), q, tuple(map(jnp.ones_like, q)))

        assert all(np.isfinite(x).all() for x in jax.tree.leaves(derivatives(*at)))
        assert (np.asarray(family.information(*at)) > 0).all()


# The parts of one distribution.


@pytest.mark.parametrize("ln_pred", [0.0, 3.0, 6.0])
@pytest.mark.parametrize("name", ["lognormal", "student_t", "combined"])
def test_density_and_censored_probabilities_add_up_to_one(name, ln_pred):
    """If it fails, quantified and censored rows are of two distributions, or a density is per another unit."""
    family, params = RESIDUALS[name], PARAMS[name]
    limit = 2.0
    with jax.enable_x64(True):
        f = jax.jit(lambda ln_dv: jnp.exp(family.quantified(ln_dv, jnp.asarray(ln_pred), *map(jnp.asarray, params))))
        below = float(jnp.exp(family.below(jnp.log(limit), jnp.asarray(ln_pred), *map(jnp.asarray, params))))
        top = np.log(limit) + 200.0 if name != "combined" else np.log(np.exp(ln_pred) * 20 + 200)
        # Over the log of the value, with the factor that belongs to it.
        rest, _ = integrate.quad(
            lambda u: float(f(jnp.asarray(u))) * np.exp(u), np.log(limit), top, points=[ln_pred, ln_pred + 3], limit=200
        )
    assert below + rest == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_three_states_add_up_to_one(name):
    """If it fails, not detected, detected and quantified overlap, or a count at a limit is lost or read twice."""
    rng = np.random.default_rng(5)
    ln_pred = rng.normal(3, 3, 300)
    lower, upper = (
        np.log(rng.integers(0, 40, 300) + 1.0),
        np.log(rng.integers(41, 300, 300) + rng.choice([0, 0.5], 300)),
    )
    family = RESIDUALS[name]
    with jax.enable_x64(True):
        lo, hi, f = (jnp.asarray(x) for x in (lower, upper, ln_pred))
        p = tuple(jnp.full(300, x) for x in PARAMS[name])
        total = (
            jnp.exp(family.below(lo, f, *p)) + jnp.exp(family.between(lo, hi, f, *p)) + jnp.exp(family.above(hi, f, *p))
        )
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dispersion", [1e-3, 0.3, 10.0])
def test_counts_are_scipys(dispersion):
    """If it fails, counts have another distribution, or a whole limit belongs to the wrong side."""
    y, mean = np.arange(0, 60), 12.0
    k = 1 / dispersion
    family, known = RESIDUALS["negative_binomial"], stats.nbinom(k, k / (k + mean))
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        ln_y, f, a = jnp.asarray(np.log(y)), jnp.full(60, np.log(mean)), jnp.full(60, dispersion)
        below = jax.jit(family.below)
        np.testing.assert_allclose(jax.jit(family.quantified)(ln_y, f, a), known.logpmf(y), rtol=1e-9)
        np.testing.assert_allclose(below(ln_y, f, a)[1:], known.logcdf(y[1:] - 1), rtol=1e-9, atol=1e-14)
        assert float(below(ln_y, f, a)[0]) == -np.inf  # no count is below 0
        np.testing.assert_allclose(below(jnp.log(y + 0.5), f, a), known.logcdf(y), rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(jax.jit(family.above)(ln_y, f, a), known.logsf(y - 1), rtol=1e-9, atol=1e-14)
        between = jax.jit(family.between)(ln_y, jnp.log(y + 20.0), f, a)  # from 0 on as well
        np.testing.assert_allclose(np.exp(between), known.cdf(y + 19) - known.cdf(y - 1), rtol=1e-9, atol=1e-15)


def test_a_whole_limit_is_whole_after_its_log():
    """If it fails, a limit of 3 counts is one of 4, because exp(log(3)) is above 3."""
    limits = np.arange(0, 2001)
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        np.testing.assert_array_equal(counts.to_limit(jnp.log(jnp.asarray(limits))), limits)
        np.testing.assert_array_equal(counts.to_limit(jnp.log(jnp.asarray(limits + 0.01))), limits + 1)
        assert (np.exp(np.log(limits.astype(float))) > limits).any()


def test_a_count_of_zero_has_a_gradient():
    """If it fails, the log of nothing turns the gradient of a patient without events into NaN."""
    with jax.enable_x64(True):
        ln_dv, f, a = (jnp.asarray([x]) for x in (-np.inf, 1.5, 0.3))
        family = RESIDUALS["negative_binomial"]
        quantified = jax.jit(jax.value_and_grad(lambda q: family.quantified(ln_dv, *q).sum()))
        value, slopes = quantified((f, a))
        mean = np.exp(1.5)
        np.testing.assert_allclose(value, -np.log1p(0.3 * mean) / 0.3, rtol=1e-13)
        np.testing.assert_allclose(slopes[0], -mean / (1 + 0.3 * mean), rtol=1e-13)
        assert np.isfinite(slopes[1]).all()
        upper = jnp.log(jnp.asarray([40.0]))
        slopes = jax.jit(jax.grad(lambda q: family.between(ln_dv, upper, *q).sum()))((f, a))
        assert np.isfinite(np.array(slopes)).all()


@pytest.mark.parametrize("nu", [1.0, 2.5, 4.0, 30.0, 100.0])
def test_student_t_is_scipys(nu):
    """If it fails, robust fits are of another family than they say."""
    t = np.linspace(-12, 12, 97)
    family = RESIDUALS["student_t"]
    with jax.enable_x64(True):
        x, f, s, n = jnp.asarray(0.65 * t), jnp.zeros(97), jnp.full(97, 0.65), jnp.full(97, nu)
        np.testing.assert_allclose(
            family.quantified(x, f, s, n) + x, stats.t.logpdf(0.65 * t, nu, scale=0.65), rtol=1e-11
        )
        np.testing.assert_allclose(family.below(x, f, s, n), stats.t.logcdf(t, nu), rtol=1e-9)
        np.testing.assert_allclose(family.above(x, f, s, n), stats.t.logsf(t, nu), rtol=1e-9)


def test_many_degrees_of_freedom_are_a_normal():
    """If it fails, Student-t does not contain the log-normal model that it is compared with."""
    z = np.linspace(-4, 4, 33)
    with jax.enable_x64(True):
        x, f, s = jnp.asarray(z), jnp.zeros(33), jnp.ones(33)
        for kind in ("quantified", "below", "above"):
            normal = getattr(RESIDUALS["lognormal"], kind)(x, f, s)
            np.testing.assert_allclose(getattr(RESIDUALS["student_t"], kind)(x, f, s, 1e6 * s), normal, atol=1e-3)


def test_without_an_additive_part_the_combined_family_is_proportional():
    """If it fails, one of its two parameters means something else."""
    with jax.enable_x64(True):
        x, f, p, a = (jnp.asarray([v]) for v in (4.2, 4.0, 0.3, 1e-9))
        found = RESIDUALS["combined"].quantified(x, f, p, a)
    np.testing.assert_allclose(found, stats.norm.logpdf(np.exp(4.2), np.exp(4.0), 0.3 * np.exp(4.0)), rtol=1e-12)


# Information, draws, cdf.


@pytest.mark.parametrize("ln_pred", tiered([0.0, 2.0, 5.0], thorough={0.0, 5.0}))
@pytest.mark.parametrize("name", FAMILIES)
def test_information_is_the_mean_squared_slope(name, ln_pred):
    """If it fails, a Gaussian around a patient's parameters has the wrong width."""
    family, params = RESIDUALS[name], PARAMS[name]
    with jax.enable_x64(True):
        f = jnp.asarray([ln_pred])
        p = tuple(jnp.asarray([x]) for x in params)
        wanted = float(family.information(f, *p)[0])
        if name == "negative_binomial":
            values = np.arange(0, 4000.0)
            weight = np.ones_like(values)
        elif name == "combined":  # over all values, those below 0 among them: by symmetry of z, from the closed form
            pred = np.exp(ln_pred)
            v = params[1] ** 2 + (params[0] * pred) ** 2
            assert wanted == pytest.approx(pred**2 / v + 0.5 * (2 * params[0] ** 2 * pred**2 / v) ** 2, rel=1e-12)
            return
        else:
            u = ln_pred + np.linspace(-400, 400, 800_001)
            values, weight = np.exp(u), np.exp(u) * 1e-3
        with np.errstate(divide="ignore"):
            x = jnp.asarray(np.log(values))
        many = [jnp.full(x.shape, v) for v in (ln_pred, *params)]
        slope = jax.grad(lambda f: family.quantified(x, f, *many[1:]).sum())(many[0])
        probability = np.exp(np.asarray(family.quantified(x, *many))) * weight
    assert np.sum(probability) == pytest.approx(1, abs=1e-6)
    assert np.sum(probability * np.asarray(slope) ** 2) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_follow_the_cdf_and_the_cdf_the_likelihood(name):
    """If it fails, simulated trials and predictive checks are of another residual model than the fit."""
    family, params, n = RESIDUALS[name], PARAMS[name], 20_000
    ln_pred = np.full(n, 2.0)
    p = tuple(np.full(n, x) for x in params)
    drawn = family.draw(np.random.default_rng(7), ln_pred, *p)
    assert drawn.shape == (n,) and not np.isnan(drawn).any()
    if family.counts:
        values = np.arange(0, 40)
        with np.errstate(divide="ignore"):
            cdf = family.cdf(np.log(values), *(np.full(40, x) for x in (2.0, *params)))
        seen = np.array([np.mean(np.exp(drawn) < v + 0.5) for v in values])
        assert np.abs(seen - cdf).max() < 1.63 / np.sqrt(n)  # 1 % of the largest distance, and less for counts
        limits, shift = np.log(values[1:]), 1
    else:
        # What is not above 0 has no log: the cdf just above 0 is its probability.
        kept = drawn[np.isfinite(drawn)]
        zero = family.cdf(np.full(1, -700.0), *(np.full(1, x) for x in (2.0, *params)))[0]
        assert abs(1 - len(kept) / n - zero) < 0.01

        def cdf_of_kept(x):
            return (family.cdf(x, *(np.full(len(x), v) for v in (2.0, *params))) - zero) / (1 - zero)

        assert stats.kstest(kept, cdf_of_kept).pvalue > 0.01
        cdf, limits, shift = family.cdf(np.linspace(-1, 5, 30), *(np.full(30, x) for x in (2.0, *params))), None, 0
    limits = np.linspace(-1, 5, 30) if limits is None else limits
    with jax.enable_x64(True):
        below = family.below(*(jnp.asarray(x) for x in (limits, *(np.full(len(limits), v) for v in (2.0, *params)))))
    np.testing.assert_allclose(np.exp(below), cdf[: len(limits)] if shift else cdf, rtol=1e-9)


def test_every_family_is_complete():
    """If it fails, a fit with the library's defaults has a parameter without a value or a prior."""
    for name, family in RESIDUALS.items():
        assert family.name == name and residual(name) is family
        assert name not in PARAMS or len(family.params) == len(PARAMS[name])
        for p in family.params:
            assert p.prior_sd > 0 and p.low < p.high
            assert p.default is None or p.low < p.default < p.high
    assert [p.name for p in RESIDUALS["student_t"].params if p.fixed] == ["nu"]


def test_an_unknown_family_is_refused_with_the_nearest_name():
    """If it fails, a misspelt residual model ends in a KeyError."""
    with pytest.raises(ModelError, match="Did you mean 'student_t'"):
        residual("student")
