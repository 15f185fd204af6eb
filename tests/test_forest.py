"""Covariates' effects on exposure: where they follow by arithmetic, and which patients they are of."""

import numpy as np
import pytest

import carkinetics as ck


@pytest.fixture(scope="module")
def effects(rich_fit):
    return ck.covariate_effects(rich_fit)


def test_an_effect_on_cmax_is_the_ratio_of_powers(rich_fit, effects):
    """Stein's level is proportional to cmax: both exposures change by (x / centre) ** e, draw by draw."""
    burden = effects[effects["COVARIATE"] == "BURDEN"]
    (covariate,) = (c for c in rich_fit.model.covariates if c.column == "BURDEN")
    beta = rich_fit.tree["posterior"].to_dataset()["beta"].sel(effect="e_burden_cmax").values.ravel()
    assert set(burden["QUANTITY"]) == {"cmax", "auc_0_28"}
    assert len(burden) == 4
    for row in burden.to_dict("records"):
        ratio = (row["VALUE"] / covariate.center) ** beta
        low, middle, high = np.quantile(ratio, [0.025, 0.5, 0.975])
        assert (row["LOW"], row["RATIO"], row["HIGH"]) == pytest.approx(
            (low, middle, high), rel=0.06
        )  # 400 draws of 1000
        assert row["NULL"] == pytest.approx(np.mean((ratio > 0.8) & (ratio < 1.25)), abs=0.05)
        assert row["AGAINST"] == covariate.center


def test_a_faster_decline_lowers_the_area_and_not_the_peak(effects):
    """If it fails, a category's effect acts on another parameter, or is of the reference."""
    sex = effects[effects["COVARIATE"] == "SEX"].set_index("QUANTITY")
    assert set(sex["VALUE"]) == {"M"} and set(sex["AGAINST"]) == {"F"}
    assert sex.loc["cmax", "RATIO"] == pytest.approx(1.0, abs=5e-3)  # a peak between two times of the grid
    assert sex.loc["auc_0_28", "RATIO"] < 1


def test_the_figure_has_a_line_for_each_value(effects, tmp_path):
    """If it fails, a covariate is missing in the figure that goes to the meeting."""
    from matplotlib.figure import Figure

    axes = ck.plots.forest(effects)
    labels = [t.get_text() for t in axes[0].get_yticklabels()]
    assert len(axes) == 2 and len(labels) == 3
    assert labels[-1] == "SEX M : F"
    assert isinstance(axes[0].figure, Figure)
    ck.plots.save(axes, tmp_path / "forest.png")
    assert (tmp_path / "forest.png").stat().st_size > 5000


def test_without_covariates_there_is_nothing_to_draw(small_fit):
    """If it fails, the user sees an empty figure and no reason."""
    with pytest.raises(ck.ModelError, match="has no covariates"):
        ck.covariate_effects(small_fit)
