"""Models side by side: what stacking weighs, what a difference and its error are, and what is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from carkinetics import comparison
from carkinetics.comparison import compare, stacking
from carkinetics.errors import FitError


def test_weights_of_two_models_are_the_best_mixtures():
    """If it fails, stacking optimises something else than the mixture's log score."""
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.3, -0.5):
        elpd = rng.normal(-10, 3, (40, 1)) + rng.normal(0, 2, (40, 2)) + [0.0, shift]

        def loss(share, elpd=elpd):
            return -np.logaddexp(np.log(share) + elpd[:, 0], np.log1p(-share) + elpd[:, 1]).sum()

        wanted = optimize.minimize_scalar(loss, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-11})
        best = wanted.x  # pyright: ignore[reportAttributeAccessIssue]
        assert stacking(elpd)[0] == pytest.approx(best, abs=2e-5)
        assert stacking(elpd).sum() == pytest.approx(1.0)


def test_weights_at_the_edges():
    """If it fails, a model that is worse for every patient has a weight, or far densities overflow."""
    elpd = np.array([[-1.0, -900.0, -2.0], [-2.0, -1e4, -4.0], [-3.0, -800.0, -3.5]])
    np.testing.assert_allclose(stacking(elpd), [1.0, 0.0, 0.0], atol=1e-4)


def test_differences_are_of_the_same_patients(monkeypatch, small_fit):
    """If it fails, the error of a difference is that of two unrelated sums."""
    rng = np.random.default_rng(2)
    hard = rng.normal(-20, 15, 30)  # what all models find hard
    made = {"a": hard + rng.normal(0, 1, 30), "b": hard + rng.normal(2.0, 1, 30)}
    tables = iter(made.values())

    def answered(fit, *, seed, refit):
        n = len(next(iter(made.values())))
        return pd.DataFrame({"ELPD": next(tables), "ESS": 90.0, "K": 0.3, "REFIT": False}, index=range(n))

    monkeypatch.setattr(comparison, "lopo", answered)
    found = compare({"a": small_fit, "b": small_fit}, seed=1)
    off = made["a"] - made["b"]
    assert list(found.table.index) == ["b", "a"]
    assert found.table["DIFF"].iloc[0] == 0
    a = found.table.loc["a"]
    np.testing.assert_allclose(a["DIFF"], off.sum())
    np.testing.assert_allclose(a["DIFF_SE"], np.sqrt(30) * off.std(ddof=1))
    assert 5 * a["DIFF_SE"] < a["SE"]
    assert "b predicts patients best." in str(found)


@pytest.mark.thorough
def test_a_model_against_itself_is_no_better(small_fit):
    """If it fails, the same densities come out different, or a difference of nothing is called one."""
    found = compare({"one": small_fit, "two": small_fit}, seed=3, refit=False)
    assert (found.table["DIFF"] == 0).all()
    np.testing.assert_allclose(found.table["WEIGHT"], 0.5)
    assert "cannot be told from it" in str(found)
    assert list(found.patients.index) == list(small_fit.data.subjects)


def test_other_data_and_too_few_fits_are_refused(small_fit):
    """If it fails, densities of different samples are subtracted."""
    data = small_fit.data
    other = dataclasses.replace(small_fit, data=dataclasses.replace(data, dv=data.dv * 2))
    with pytest.raises(FitError, match="one and two are fits of other samples"):
        compare({"one": small_fit, "two": other}, seed=1)
    with pytest.raises(FitError, match="give at least two"):
        compare({"one": small_fit}, seed=1)
