"""CRM and TITE-CRM against published estimates and integrals at 30 digits."""

import itertools

import mpmath
import numpy as np
import pandas as pd
import pytest

import carkinetics as ck

GUESSES = (0.05, 0.12, 0.25, 0.40, 0.55)
EXAMPLE = "3N 5N 5T 3N 4N"  # Cheung (2011), page 21
LATE = pd.DataFrame({"LEVEL": [1, 1, 2, 2, 3, 3], "DLT": [0, 0, 0, None, 1, None], "FOLLOW_UP": [10, 10, 10, 9, 3, 5]})


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("logistic", (0.00768, 0.0265, 0.0817, 0.182, 0.331)),
        ("power", (0.00701, 0.0299, 0.101, 0.219, 0.372)),
    ],
)
def test_plug_in_estimates_are_the_published_ones(model, published):
    """Cheung 2011, page 21, as dfcrm computes it. If it fails, model, prior or convention is another one."""
    found = ck.design.crm(GUESSES, 0.25, model=model).recommend(EXAMPLE)
    assert found.table["P_DLT"].tolist() == pytest.approx(published, rel=3e-3)
    assert found.dose == 4


def test_follow_up_as_weight_gives_the_published_estimates():
    """TITE-CRM, logistic, weights 1, 1, 1, 0.9, 1 (a toxicity), 0.5, as dfcrm computes it.

    If it fails, patients who are followed count too much or too little.
    """
    found = ck.design.tite_crm(GUESSES, 0.25, window=10, model="logistic").recommend(LATE)
    assert found.table["P_DLT"].tolist() == pytest.approx((0.0748, 0.164, 0.310, 0.460, 0.599), rel=3e-3)
    assert found.dose == 3
    assert found.table["FOLLOWED"].tolist() == pytest.approx([2, 1.9, 1.5, 0, 0])
    assert found.table["TREATED"].tolist() == [2, 2, 2, 0, 0]


def exact_posterior(model, patients):
    """Plug-in and mean rates and P(rate > 0.25), by mpmath; patients are (level, toxic, weight)."""

    def rate(level, b):
        guess = mpmath.mpf(str(GUESSES[level]))
        if model == "power":
            return guess ** mpmath.exp(b)
        x = mpmath.log(guess / (1 - guess)) - 3
        return 1 / (1 + mpmath.exp(-3 - mpmath.exp(b) * x))

    def density(b):
        value = mpmath.exp(-b * b / (2 * mpmath.mpf("1.34")))
        for level, toxic, weight in patients:
            p = rate(level, b)
            value *= p if toxic else 1 - mpmath.mpf(str(weight)) * p
        return value

    ends = [-11, -6, -3, -1, 0, 1, 3, 6, 11]
    total = mpmath.quad(density, ends)
    mean_b = mpmath.quad(lambda b: b * density(b), ends) / total
    found = []
    for level in range(5):
        mean = mpmath.quad(lambda b, k=level: rate(k, b) * density(b), ends) / total
        limit = mpmath.mpf("0.25")
        guess = mpmath.mpf(str(GUESSES[level]))
        logit = mpmath.log(limit / (1 - limit)) - 3
        x = mpmath.log(guess / (1 - guess)) - 3
        at = mpmath.log(mpmath.log(limit) / mpmath.log(guess) if model == "power" else logit / x)
        over = mpmath.quad(density, [e for e in ends if e < at] + [at]) / total
        found.append([float(v) for v in (rate(level, mean_b), mean, over)])
    return np.array(found).T


@pytest.mark.slow
@pytest.mark.parametrize("model", ["power", "logistic"])
@pytest.mark.parametrize("trial", [EXAMPLE, "1NNN 2NNN 3NNN 4NTT 3NTT 2NNT 2NNN", "1TTT 1TTT"])
def test_estimates_are_the_integrals(model, trial):
    """Within 1e-7 of integrals at 30 digits. If it fails, the quadrature loses digits where data are sharp."""
    table = ck.design.outcomes(trial)
    patients = [(k - 1, y == 1, 1) for k, y in zip(table["LEVEL"], table["DLT"], strict=True)]
    with mpmath.workdps(30):
        wanted = exact_posterior(model, patients)
    found = ck.design.crm(GUESSES, 0.25, model=model).recommend(trial).table
    for column, values in zip(("P_DLT", "P_DLT_MEAN", "P_TOXIC"), wanted, strict=True):
        np.testing.assert_allclose(found[column], values, rtol=1e-7, atol=1e-9)


def test_weighted_estimates_are_the_integrals():
    """The same with partial follow-up. If it fails, the weight is put elsewhere than 1 - w p."""
    patients = [(0, 0, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0.9), (2, 1, 1), (2, 0, 0.5)]
    with mpmath.workdps(30):
        wanted = exact_posterior("power", patients)
    found = ck.design.tite_crm(GUESSES, 0.25, window=10).recommend(LATE).table
    for column, values in zip(("P_DLT", "P_DLT_MEAN", "P_TOXIC"), wanted, strict=True):
        np.testing.assert_allclose(found[column], values, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("model", ["power", "logistic"])
@pytest.mark.parametrize(("target", "halfwidth", "mtd"), [(0.25, 0.05, 3), (0.3, 0.1, 1), (0.2, 0.04, 6)])
def test_skeletons_have_the_indifference_intervals_that_were_asked_for(model, target, halfwidth, mtd):
    """Lee & Cheung 2009: a slope exists at which neighbours have target - delta and target + delta.

    If it fails, the skeleton is not the calibrated one.
    """
    found = ck.design.skeleton(target, 6, mtd=mtd, halfwidth=halfwidth, model=model)
    assert found[mtd - 1] == pytest.approx(target, rel=1e-12)
    low, high = mpmath.mpf(target - halfwidth), mpmath.mpf(target + halfwidth)
    for one, other in itertools.pairwise(found):
        one, other = mpmath.mpf(one), mpmath.mpf(other)
        if model == "power":
            slopes = mpmath.log(low) / mpmath.log(one), mpmath.log(high) / mpmath.log(other)
        else:
            slopes = [
                (mpmath.log(rate / (1 - rate)) - 3) / (mpmath.log(guess / (1 - guess)) - 3)
                for rate, guess in ((low, one), (high, other))
            ]
        assert float(slopes[0]) == pytest.approx(float(slopes[1]), rel=1e-9)


def test_the_dose_infused_enters_the_model():
    """A toxicity at 60 % of level 3 raises the curve more than one at level 3; a level's own dose changes nothing.

    If it fails, a manufacturing shortfall is read as the planned dose.
    """
    doses = [1e6, 2e6, 4e6, 8e6, 16e6]
    design = ck.design.crm(GUESSES, 0.25, doses)
    table = ck.design.outcomes("1NNN 2NNN 3NNT")
    planned = design.recommend(table).table["P_DLT"]
    same = design.recommend(table.assign(INFUSED=[doses[k - 1] for k in table["LEVEL"]])).table["P_DLT"]
    np.testing.assert_allclose(same, planned, rtol=1e-12)
    short = table.assign(INFUSED=[None] * 8 + [2.4e6])
    assert (design.recommend(short).table["P_DLT"] > planned).all()
    at_two = ck.design.outcomes("1NNN 2NNNT 3NN").assign(COHORT=[1] * 3 + [2] * 3 + [3] * 3)
    exactly_two = design.recommend(table.assign(INFUSED=[None] * 8 + [2e6])).table["P_DLT"]
    np.testing.assert_allclose(exactly_two, design.recommend(at_two).table["P_DLT"], rtol=1e-12)


def test_both_conventions_are_named_and_differ():
    """If it fails, a reader cannot tell the plug-in rate from the posterior mean."""
    plug, mean = (ck.design.crm(GUESSES, 0.25, estimate=e).recommend(EXAMPLE) for e in ("plug-in", "mean"))
    assert "plug-in" in plug.convention and "P_DLT decides" in plug.convention
    assert "P_DLT_MEAN decides" in mean.convention
    assert (plug.table["P_DLT_MEAN"] > plug.table["P_DLT"]).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ck.design.crm((0.1, 0.1, 0.3)), "must rise"),
        (lambda: ck.design.crm((0.0, 0.1)), "must rise"),
        (lambda: ck.design.crm((0.1, 1.0)), "must rise"),
        (lambda: ck.design.crm((0.1, 0.3), 0.25, 3), "2 guesses for 3 levels"),
        (lambda: ck.design.crm((0.1, 0.3), 25), "0.3 for 30 %"),
        (lambda: ck.design.crm((0.1, 0.3), model="probit"), "power, logistic"),
        (lambda: ck.design.crm((0.1, 0.3), estimate="mode"), "plug-in, mean"),
        (lambda: ck.design.tite_crm((0.1, 0.3), window=0), "window = 0"),
        (lambda: ck.design.skeleton(0.25, 5, mtd=6), "mtd"),
    ],
)
def test_wrong_settings_are_refused(make, said):
    """If it fails, a wrong protocol runs, or the message does not say what is wrong."""
    with pytest.raises(ck.DesignError, match=said):
        make()
