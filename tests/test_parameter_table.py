"""The parameter table of a fit with covariates, classes, correlations and two residual parameters."""

import numpy as np
import pytest

import carkinetics as ck
from carkinetics.fit_result import phi_draws
from carkinetics.layout import make_layout
from carkinetics.parameter_table import contraction


def test_everything_that_is_estimated_has_a_row(rich_fit):
    """If it fails, a number that was estimated is not reported."""
    table = rich_fit.parameters()
    expected = [
        *("foldx", "tmax", "cmax", "alpha", "fb", "beta", "e_burden_cmax", "e_sex_m_alpha", "fb non-persisters"),
        *("share non-persisters", "corr tmax cmax", "sigma qpcr", "nu qpcr"),
    ]
    assert list(table.index) == expected
    assert table["TV"].notna().all()
    assert (table["2.5 %"] < table["97.5 %"]).all()
    assert table.loc["sigma qpcr", "unit"] == "ln"
    assert table.loc["fb non-persisters", "unit"] == table.loc["fb", "unit"]
    assert table.loc["fb non-persisters", "TV"] < table.loc["fb", "2.5 %"]


def test_effects_are_those_that_made_the_data(rich_fit):
    """If it fails, an effect is reported of another covariate, or in another unit."""
    table = rich_fit.parameters()
    for name, truth in (("e_burden_cmax", 0.8), ("e_sex_m_alpha", 0.5)):
        assert table.loc[name, "2.5 %"] - 0.2 < truth < table.loc[name, "97.5 %"] + 0.2
    assert table.loc["e_burden_cmax", "2.5 %"] > 0


def test_contraction_is_the_share_of_variance_that_is_gone(rich_fit):
    """If it fails, a parameter that the data say nothing of looks estimated, or the other way round."""
    layout, found = make_layout(rich_fit.model), contraction(rich_fit)
    names = layout.phi_names
    assert list(found) == names
    after = phi_draws(rich_fit).var(axis=0)
    for k, component in enumerate(layout.components):
        if component.prior.family in ("normal", "lognormal"):
            expected = 1 - after[k] / component.prior.scale**2
            assert found[names[k]] == pytest.approx(expected, abs=0.1), names[k]
    table = rich_fit.parameters()
    assert table.loc["cmax", "contraction %"] > 90
    assert table.loc["nu qpcr", "contraction %"] < table.loc["sigma qpcr", "contraction %"]


def test_what_only_the_prior_tells_is_said(rich_fit):
    """If it fails, a tail that nobody was followed for is reported as if it had been seen."""
    text = " ".join(rich_fit.check().reasons)
    half_life = np.log(2) / np.median(rich_fit.tree["posterior"].to_dataset()["tv"].sel(parameter="beta").values)
    assert (f"beta: a half-life of {half_life:.0f} days, and no sample after day 168" in text) == (half_life > 168)
    assert "cmax" not in text


def test_classes_of_patients(rich_fit):
    """If it fails, probabilities are of the first class, or of other patients."""
    classes = rich_fit.classes()
    assert list(classes.index) == list(rich_fit.data.subjects)
    assert classes["probability"].between(0, 1).all()
    assert ((classes["2.5 %"] <= classes["probability"]) & (classes["probability"] <= classes["97.5 %"])).mean() > 0.9
    fb = np.log(rich_fit.tree["posterior"].to_dataset()["individual"].sel(parameter="fb").mean(("chain", "draw")))
    assert np.corrcoef(fb, classes["probability"])[0, 1] < -0.3
    with pytest.raises(ck.ModelError, match="one class of patients"):
        type(rich_fit)(ck.load_model("stein_2019_tisagenlecleucel"), rich_fit.data, rich_fit.tree).classes()


def test_it_is_saved_and_comes_back(rich_fit, tmp_path):
    """If it fails, the model of a saved fit is another one than that which was fitted."""
    again = ck.load_fit(rich_fit.save(tmp_path / "rich.nc"))
    assert again.model == rich_fit.model
    assert again.parameters().equals(rich_fit.parameters())
