"""Figures of diagnostics: every sample is drawn, axes have units, limits are drawn as such, axes can be given."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from carkinetics import plots
from carkinetics.diagnostics import gof, individual_fits
from carkinetics.errors import ModelError
from carkinetics.prediction_errors import npde
from carkinetics.visual_checks import vpc


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def errors(small_fit):
    return npde(small_fit, seed=1, n=200)


@pytest.fixture(scope="module")
def check(small_fit):
    return vpc(small_fit, seed=1, n=30)


def drawn(ax, *labels):
    return sum(len(line.get_xdata()) for line in ax.get_lines() if line.get_label() in labels)


def labelled(axes):
    return all(("(" in ax.get_xlabel() or "days" in ax.get_xlabel()) and "(" in ax.get_ylabel() for ax in axes)


def test_goodness_of_fit_shows_every_sample_with_units(small_fit, errors):
    """If it fails, samples are missing from a panel, or an axis has no unit."""
    axes = plots.gof(gof(small_fit, npde=errors), label=small_fit.label)
    data = small_fit.data
    assert axes.shape == (2, 3)
    assert labelled(axes.flat)
    for ax in axes[0, :2]:
        assert drawn(ax, "quantified") == np.sum(data.cens == 0)
        assert drawn(ax, "below the limit") == np.sum(data.cens == 1)
    for ax in axes[1, :2]:  # the residual of a limit is none
        assert drawn(ax, "quantified", "below the limit") == np.sum(data.cens == 0)
    for ax in axes[:, 2]:
        assert drawn(ax, "quantified", "below the limit") == data.n_obs
    assert plots.gof(gof(small_fit)).shape == (2, 2)


def test_prediction_errors_have_their_four_panels(errors):
    """If it fails, the quantiles are not those of the errors, or a panel has no unit."""
    axes = plots.npde(errors)
    line = next(x for x in axes[0, 0].get_lines() if len(x.get_xdata()) == len(errors.rows))
    np.testing.assert_array_equal(line.get_ydata(), np.sort(errors.rows["NPDE"]))
    assert "SD" in axes[0, 0].get_ylabel() and "copies/ug" in axes[1, 1].get_xlabel()
    low, middle, high = errors.quantiles(101)[1], errors.quantiles(101)[0], errors.quantiles(101)[2]
    assert middle[50] == pytest.approx(0.0, abs=1e-12)
    assert ((low < middle) & (middle < high)).all()


def test_the_visual_check_has_its_share_below_the_limit(check):
    """If it fails, the panel that shows dropped samples is gone, or lines are not those of the table."""
    axes = plots.vpc(check)
    assert axes.shape == (2, 1)
    top, bottom = axes[:, 0]
    median = next(x for x in top.get_lines() if x.get_label() == "median: observed")
    expected = check.percentiles.query("PERCENTILE == 50")["OBSERVED"]
    np.testing.assert_array_equal(median.get_ydata(), expected)
    share = next(x for x in bottom.get_lines() if x.get_label() == "share below: observed")
    np.testing.assert_array_equal(share.get_ydata(), check.blq["OBSERVED"])
    assert drawn(top, "samples", "below the limit") == len(check.samples)
    assert "copies/ug" in top.get_ylabel() and "days" in bottom.get_xlabel()
    assert top.get_yscale() == "log"


def test_individual_fits_have_bands_and_all_samples(small_fit):
    """If it fails, a patient's panel lacks a sample or the band of new samples."""
    names = small_fit.data.subjects[:3]
    axes = plots.individual_fits(individual_fits(small_fit, subjects=names, draws=100), small_fit.data)
    assert len(axes) == 3
    for i, ax in enumerate(axes):
        assert drawn(ax, "quantified", "below the limit") == np.sum(small_fit.data.subject == i)
        assert len(ax.collections) == 2
    assert "copies/ug" in axes[0].get_ylabel()


def test_axes_that_are_given_are_drawn_in(small_fit, check):
    """If it fails, a report cannot put a figure where it wants it, or draws over the wrong number of panels."""
    _, given = plt.subplots(2, 1)
    assert plots.vpc(check, axes=given)[0, 0] is given[0]
    with pytest.raises(ModelError, match="needs 2 rows of 2"):
        plots.gof(gof(small_fit), axes=given)


def test_a_fit_that_was_not_sampled_says_so(small_fit, check):
    """If it fails, a figure of an approximation passes for one of a sampled fit."""
    figure = plots.gof(gof(small_fit), label="Laplace approximation, not sampled")[0, 0].figure
    assert figure.get_supxlabel() == "Laplace approximation, not sampled"
