"""Figures: they draw what they are given, with units, and escape what users write."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from carkinetics import plots
from carkinetics.diagnostics import gof
from carkinetics.simulation import truth_of


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_every_sample_of_a_patient_is_drawn(small_fit):
    """A sample left out of a patient's panel would hide a misfit."""
    axes = plots.individuals(small_fit, subjects=small_fit.data.subjects[:3])
    assert len(axes) == 3
    for i, ax in enumerate(axes):
        drawn = [line for line in ax.get_lines() if line.get_label() in ("quantified", "below the limit")]
        assert sum(len(line.get_xdata()) for line in drawn) == np.sum(small_fit.data.subject == i)
        assert ax.get_yscale() == "log"


def test_axes_carry_units(small_fit):
    """A figure without units cannot be read."""
    axes = plots.observed_predicted(gof(small_fit))
    assert all("copies/ug" in ax.get_xlabel() for ax in axes)
    assert "copies/ug" in plots.individuals(small_fit, n=2)[0].figure.get_supylabel()


def test_posteriors_show_every_population_parameter_and_its_truth(small_fit):
    """A parameter without a panel is a parameter nobody looks at."""
    model = small_fit.model
    axes = plots.posteriors(small_fit, truth=truth_of(model))
    assert len(axes) == 2 * len(model.parameters) + len(model.assays)
    for ax in axes:
        lines = [x for x in ax.get_lines() if x.get_label() == "simulated truth"]
        assert len(lines) == 1
        low, high = ax.get_xlim()
        assert low < lines[0].get_xdata()[0] < high


def test_patients_are_spread_over_the_list():
    """The first twelve patients are not a sample of a trial."""
    assert plots.spread(40, 5) == [0, 10, 20, 29, 39]
    assert plots.spread(3, 12) == [0, 1, 2]


def test_identifiers_are_shown_as_they_are():
    """A dollar sign in an ID must not start mathematics, nor a long ID overlap its neighbours."""
    assert plots.shorten("$x^2$") == r"\$x^2\$"
    assert len(plots.shorten("a" * 100)) == 18
