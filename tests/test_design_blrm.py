"""BLRM with overdose control against its paper, scipy's integrals and mpmath."""

import mpmath
import numpy as np
import pytest
from scipy import integrate, special

import carkinetics as ck
from carkinetics.design import NormalPrior, OverdoseControl, quadrature

DOSES = (1, 2.5, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 250)
TRIAL = "1NNN 2NNNN 3NNNNN 4NNNN 7TT"
# Posterior means, read off figure 1 (lower right) of Neuenschwander et al. (2008).
READ_OFF = (0.01, 0.02, 0.05, 0.13, 0.19, 0.25, 0.30, 0.35, 0.47, 0.53, 0.68, 0.74, 0.85, 0.89, 0.92)
# The same posterior by MCMC, from the manual of bcrm: its Monte Carlo error is near 0.004.
MCMC = (0.0128, 0.0317, 0.0645, 0.1310, 0.1951, 0.2549, 0.3099, 0.3602, 0.4472, 0.5185, 0.6463, 0.7271, 0.8180, 0.8657)
PRIOR = NormalPrior(correlation=0.134 / (0.84 * 0.80))


@pytest.fixture(scope="module")
def published():
    return ck.design.blrm(DOSES, prior=PRIOR, rules=()).recommend(TRIAL)


def test_posterior_means_are_the_published_ones(published):
    """Neuenschwander et al. 2008: 3, 4, 5, 4 patients without, 2 of 2 with a toxicity at 25.

    If it fails, model, prior or reference dose is another one.
    """
    assert np.abs(published.table["P_DLT"] - np.array(READ_OFF)).max() < 0.04
    assert np.abs(published.table["P_DLT"][:14] - np.array(MCMC)).max() < 0.006
    assert published.dose == 5 and published.amount == 15.0  # 20 has P(overdose) 0.264
    assert published.table["ADMISSIBLE"].tolist() == [True] * 5 + [False] * 10


def by_mpmath(counts, x, limits, prior):
    """Mean rate and P(rate < limit) at x, by nested integrals; counts are (x, patients, toxicities)."""
    (m0, m1), (s0, s1), rho = prior

    def density(a, lb):
        u, v = (a - m0) / s0, (lb - m1) / s1
        value = mpmath.exp(-(u * u - 2 * rho * u * v + v * v) / (2 * (1 - rho**2)))
        for at, n, y in counts:
            p = 1 / (1 + mpmath.exp(-a - mpmath.exp(lb) * at))
            value *= p**y * (1 - p) ** (n - y)
        return value

    across = [m0 + k * s0 for k in (-7, -2.5, 0, 2.5, 7)]
    along = [m1 + k * s1 for k in (-7, -2.5, 0, 2.5, 7)]

    def over(f, upper=None):
        def inner(lb):
            end = across[-1] if upper is None else upper(lb)
            points = [*(p for p in across if p < end), end]
            return mpmath.quad(lambda a: f(a, lb), points) if len(points) > 1 else mpmath.mpf(0)

        return mpmath.quad(inner, along)

    total = over(density)
    mean = over(lambda a, lb: density(a, lb) / (1 + mpmath.exp(-a - mpmath.exp(lb) * x))) / total
    shares = [over(density, lambda lb, c=c: mpmath.log(c / (1 - c)) - mpmath.exp(lb) * x) / total for c in limits]
    return [float(v) for v in (mean, *shares)]


@pytest.mark.slow
@pytest.mark.parametrize("level", [4])
def test_the_posterior_is_the_integral_to_1e_6(published, level):
    """Nested mpmath integrals of the published example. If it fails, overdose control rests on a coarse grid."""
    counts = [(np.log(DOSES[k] / 250), n, y) for k, n, y in ((0, 3, 0), (1, 4, 0), (2, 5, 0), (3, 4, 0), (6, 2, 2))]
    x = float(np.log(DOSES[level - 1] / 250))
    with mpmath.workdps(15):
        mean, low, high = by_mpmath(counts, x, (0.16, 0.33), PRIOR)
    row = published.table.iloc[level - 1]
    assert row["P_DLT"] == pytest.approx(mean, abs=1e-7)
    assert row["P_UNDER"] == pytest.approx(low, abs=1e-7)
    assert row["P_OVER"] == pytest.approx(1 - high, abs=1e-7)


@pytest.mark.parametrize("trial", ["1N", "1NNN 2NNT 2NTT", "1NNN 2NNN 3NNN 4NNN 5NNN 5NNN 5NNN 5NNN", "1TTT 1TTT"])
def test_the_posterior_is_scipys_integral(trial):
    """One-dimensional adaptive integrals inside a fine sum. If it fails, sharp or extreme data lose digits.

    For a fixed slope the rate at a level is below a limit where ln alpha is below a threshold.
    """
    doses, (m, s, rho) = (1.0, 2.0, 4.0, 8.0, 16.0), NormalPrior()
    table = ck.design.outcomes(trial)
    x = np.log(np.array(doses) / 16.0)
    n = np.array([(table["LEVEL"] == k).sum() for k in range(1, 6)])
    y = np.array([((table["LEVEL"] == k) & (table["DLT"] == 1)).sum() for k in range(1, 6)])

    def density(a, lb):
        u, v = (a - m[0]) / s[0], (lb - m[1]) / s[1]
        eta = a + np.exp(lb) * x
        ln = (y * special.log_expit(eta) + (n - y) * special.log_expit(-eta)).sum()
        return np.exp(ln - (u * u - 2 * rho * u * v + v * v) / (2 * (1 - rho**2)))

    steps = np.linspace(m[1] - 6 * s[1], m[1] + 6 * s[1], 61)
    ends = (m[0] - 7.5 * s[0], m[0] + 7.5 * s[0])
    level, wanted = 2, np.zeros(3)
    for lb in steps:
        at = np.clip(special.logit(0.33) - np.exp(lb) * x[level], *ends)
        options = {"epsabs": 1e-13, "epsrel": 1e-10, "limit": 200, "points": [m[0] - 2 * s[0], m[0], m[0] + s[0]]}
        below = integrate.quad(density, ends[0], at, args=(lb,), epsabs=1e-13, epsrel=1e-10, limit=200)[0]
        whole = integrate.quad(density, *ends, args=(lb,), **options)[0]
        rate = integrate.quad(
            lambda a, b: density(a, b) * special.expit(a + np.exp(b) * x[level]), *ends, (lb,), **options
        )
        wanted += (whole, below, rate[0])
    row = ck.design.blrm(doses, rules=()).recommend(trial).table.iloc[level]
    assert row["P_DLT"] == pytest.approx(wanted[2] / wanted[0], abs=1e-7)
    assert row["P_OVER"] == pytest.approx(1 - wanted[1] / wanted[0], abs=1e-7)


def test_the_grid_gives_the_priors_own_probabilities():
    """Without patients: P(rate at the reference > 0.33) is a normal probability. If it fails, thresholds leak."""
    from scipy.stats import norm

    design = ck.design.blrm((1.0, 2.0, 4.0))
    table = design.recommend().table
    wanted = norm.sf((special.logit(0.33) - 2.15) / 0.84)
    assert table["P_OVER"][2] == pytest.approx(wanted, abs=1e-9)


def test_a_panels_partial_weights_are_exact_for_polynomials():
    """Integrals of powers up to any point inside. If it fails, P(overdose) jumps from node to node."""
    grid = quadrature.panels(-1.0, 2.0, 3)
    to = np.array([-1.0, -0.7, 0.0, 0.3, 1.99, 2.0, 5.0])
    weights = quadrature.below(grid, to)
    for power in range(quadrature.ORDER):
        end = np.minimum(to, 2.0)
        wanted = (end ** (power + 1) - (-1.0) ** (power + 1)) / (power + 1)
        np.testing.assert_allclose(weights @ grid.nodes**power, wanted, atol=1e-12)


def test_the_highest_dose_that_is_infused_enters_the_model():
    """Two toxicities after 60 % of the dose lower every level's admissibility against two at the planned dose.

    If it fails, a shortfall is read as the planned dose.
    """
    doses = (1e6, 2e6, 4e6, 8e6)
    design = ck.design.blrm(doses)
    table = ck.design.outcomes("1NNN 2NNN 3NTT")
    short = table.assign(INFUSED=[None] * 7 + [2.4e6, 2.4e6])
    planned, infused = design.recommend(table), design.recommend(short)
    assert infused.table["P_OVER"][1] > planned.table["P_OVER"][1]
    same = design.recommend(table.assign(INFUSED=[doses[k - 1] for k in table["LEVEL"]]))
    np.testing.assert_allclose(same.table["P_OVER"], planned.table["P_OVER"], rtol=1e-12)


def test_the_published_rule_is_not_monotone_and_ours_is():
    """Found by search: 4 more of the highest level's patients with a toxicity open a closed trial again.

    If it fails, either a toxicity raises the dose, or the option that promises otherwise does nothing.
    """
    doses = (1e6, 2e6, 4e6, 8e6, 16e6)
    n, y = (5, 4, 5, 8, 1), (2, 2, 1, 4, 0)
    text = " ".join(f"{k + 1}{'T' * b}{'N' * (a - b)}" for k, (a, b) in enumerate(zip(n, y, strict=True)))
    worse = text[:-1] + "T"
    free = ck.design.blrm(doses, control=OverdoseControl(monotone=False))
    assert (free.recommend(text).dose, free.recommend(worse).dose) == (None, 1)
    held = ck.design.blrm(doses)
    assert (held.recommend(text).dose, held.recommend(worse).dose) == (None, None)
    assert "one more never raises it" in held.recommend(worse).trace[0].reason


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ck.design.blrm([]), "one level at least"),
        (lambda: ck.design.blrm([1.0, 2.0], reference=-1.0), "reference = -1.0"),
        (lambda: ck.design.blrm([1.0, 2.0], control=OverdoseControl(low=0.4)), "must rise"),
        (lambda: ck.design.blrm([1.0, 2.0], control=OverdoseControl(overdose=25)), "between 0 and 1"),
        (lambda: ck.design.blrm([1.0, 2.0], prior=NormalPrior(sd=(0.0, 1.0))), "SDs above 0"),
        (lambda: ck.design.blrm([1.0, 2.0], prior=NormalPrior(correlation=1.0)), "correlation"),
    ],
)
def test_wrong_settings_are_refused(make, said):
    """If it fails, a wrong protocol runs, or the message does not say what is wrong."""
    with pytest.raises(ck.DesignError, match=said):
        make()
