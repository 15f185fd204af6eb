"""BLRM with exposure: what it is with known exposure, and that it never leads higher unasked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import carkinetics as ck

DOSES = np.array([1e6, 2e6, 4e6, 8e6])
FREE = ck.design.blrm(DOSES)


def cmax(doses, draws=60, omega=0.8, power=1.0, seed=1):
    """Exposures of new patients: a power of the dose with log-normal variability."""
    z = np.random.default_rng(seed).standard_normal(draws)
    return 1e4 * (np.asarray(doses) / 1e6) ** power * np.exp(omega * (z - z.mean()))[:, None]


def test_exposure_without_variability_is_the_dose():
    """Exposure proportional to dose, the same in all: both models are one. If it fails, the reference is misplaced."""
    design = ck.design.exposure_informed(FREE, cmax(DOSES, omega=0.0))
    found = design.recommend("1NNN 2NNN 3NTN").table
    for name in ("P_DLT", "P_TARGET", "P_OVER"):
        np.testing.assert_allclose(found[f"{name}_EXPOSURE"], found[name], rtol=1e-9, atol=1e-12)


def test_variability_flattens_the_prior_curve():
    """The mean of a logistic curve over exposures is nearer to 1/2. If it fails, rates are taken at the mean exposure.

    Against the same average by plain Monte Carlo over prior and exposures.
    """
    draws = cmax(DOSES, omega=1.0)
    table = ck.design.exposure_informed(FREE, draws).recommend().table
    random = np.random.default_rng(2)
    prior = ck.design.NormalPrior()
    z = random.standard_normal((2, 40000))
    z[1] = prior.correlation * z[0] + np.sqrt(1 - prior.correlation**2) * z[1]
    ln_alpha, ln_beta = (prior.mean[k] + prior.sd[k] * z[k] for k in range(2))
    reference = np.median(draws[:, -1])
    for level in range(4):
        eta = ln_alpha + np.exp(ln_beta) * np.log(draws[:, level, None] / reference)
        rates = (1 / (1 + np.exp(-eta))).mean(axis=0)
        assert table["P_DLT_EXPOSURE"][level] == pytest.approx(rates.mean(), abs=0.006)
        assert table["P_OVER_EXPOSURE"][level] == pytest.approx((rates > 0.33).mean(), abs=0.012)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(toxic=st.lists(st.integers(0, 3), min_size=1, max_size=4), power=st.sampled_from([0.3, 1.0, 2.0]))
def test_it_is_never_above_the_design_without_exposure(toxic, power):
    """If it fails, a kinetic model raises a dose that nobody allowed it to raise."""
    trial = " ".join(f"{k + 1}{'T' * y}{'N' * (3 - y)}" for k, y in enumerate(toxic))
    design = ck.design.exposure_informed(FREE, cmax(DOSES, power=power, draws=6))
    found, free = design.recommend(trial), FREE.recommend(trial)
    assert (found.dose or 0) <= (free.dose or 0)
    assert found.table.loc[found.table["FREE"], "LEVEL"].tolist() == ([free.dose] if free.dose else [])


def test_both_designs_stand_side_by_side_and_higher_is_opted_for():
    """A weak dose-exposure relation: with opt-in the level is higher. If it fails, the option does nothing."""
    weak = cmax(DOSES, power=0.2, omega=0.3)
    prior = ck.design.NormalPrior(mean=(-2.0, 0.0), sd=(0.5, 0.3), correlation=0.0)
    trial = "1NNN 2NNN"
    held = ck.design.exposure_informed(FREE, weak, prior=prior).recommend(trial)
    asked = ck.design.exposure_informed(FREE, weak, prior=prior, above=True).recommend(trial)
    assert held.dose == FREE.recommend(trial).dose < asked.dose
    assert "By the dose alone" in held.trace[0].reason and "The lower counts" in held.trace[0].reason
    assert {"P_OVER", "P_OVER_EXPOSURE", "FREE"} <= set(held.table)


def test_a_dose_between_levels_needs_a_function():
    """If it fails, a shortfall is read as a level's exposure without a word."""
    table = ck.design.outcomes("1NNN 2NTN").assign(INFUSED=[None] * 5 + [1.5e6])
    with pytest.raises(ck.DesignError, match="as a function of the dose"):
        ck.design.exposure_informed(FREE, cmax(DOSES)).recommend(table)
    found = ck.design.exposure_informed(FREE, cmax).recommend(table)
    assert found.dose is not None


@pytest.mark.parametrize(
    ("exposure", "said"),
    [
        (np.ones((5, 3)), "wanted \\(draw, level\\)"),
        (np.zeros((5, 4)), "above 0"),
        (np.ones((5, 4)), "do not rise with the dose"),
        (cmax(DOSES)[:, ::-1], "do not rise with the dose"),
    ],
)
def test_exposures_that_say_nothing_are_refused(exposure, said):
    """If it fails, a model whose exposure does not depend on the dose decides on doses."""
    with pytest.raises(ck.DesignError, match=said):
        ck.design.exposure_informed(FREE, exposure)
