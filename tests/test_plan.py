"""What a plan says of given rates: by hand."""

import numpy as np
import pandas as pd
import pytest

import carkinetics as ck
from carkinetics.endpoints import Judged
from carkinetics.response.logistic_model import LogisticResponse

LEVELS = np.array([1e6, 2e6, 5e6])


def plan_of(good, bad, *, doses=(9e5, 4.2e6), weights=(1.0, -1.5), **rules):
    """A plan with these rates (draw, level) of an efficacy and a toxicity."""
    unread = object.__new__(LogisticResponse)  # a plan does not look at its responses again
    ends = tuple(
        Judged(name, unread, None, target, w, toxic)
        for name, target, w, toxic in (("ORR", 0.5, weights[0], False), ("CRS>=3", 0.25, weights[1], True))
    )
    rates = {"ORR": np.array(good, float), "CRS>=3": np.array(bad, float)}
    means = {"cmax (qpcr)": np.tile(np.log([1.0, 2.0, 4.0]), (len(good), 1))}
    spread = {"cmax (qpcr)": np.ones((3, 3))}
    priors = pd.DataFrame({"OF": ["ORR"], "PARAMETER": ["slope"], "PRIOR": ["Normal(0, 2.5)"]})
    return ck.Plan(LEVELS, "cells/kg", ends, rates, means, spread, np.array(doses, float), ck.PlanRules(**rules),
                   {"fit": "ok"}, priors, ("It rests on 12 patients.",))  # fmt: skip


GOOD = [[0.2, 0.4, 0.6], [0.3, 0.5, 0.9], [0.4, 0.3, 0.2], [0.2, 0.6, 0.6]]
BAD = [[0.1, 0.1, 0.3], [0.1, 0.2, 0.2], [0.1, 0.2, 0.4], [0.2, 0.2, 0.5]]


def test_a_plan_by_hand():
    """If it fails, a probability, the utility or the choice is another one than the page says."""
    plan = plan_of(GOOD, BAD)
    utility = np.array([[0.05, 0.25, 0.15], [0.15, 0.2, 0.6], [0.25, 0.0, -0.4], [-0.1, 0.3, -0.15]])
    np.testing.assert_allclose(plan.utility, utility, atol=1e-12)
    np.testing.assert_allclose(plan.p_best, [0.25, 0.5, 0.25])
    table = plan.table
    np.testing.assert_allclose(table["ORR_P"], [0, 0.25, 0.75])  # above 0.5, not at it
    np.testing.assert_allclose(table["CRS>=3_P"], [1, 1, 0.25])
    assert list(table["ADMISSIBLE"]) == [True, True, False]
    assert plan.best == 2e6 and list(table["BEST"]) == [False, True, False]
    assert list(table["EXTRAPOLATED"]) == [False, False, True]
    assert list(table["PATIENTS"]) == [1, 0, 1]
    np.testing.assert_allclose(table["UTILITY"], utility.mean(axis=0))
    np.testing.assert_allclose(table["ORR"], np.median(GOOD, axis=0))
    low, high = np.quantile(GOOD, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(table["ORR_LOW"], low)
    np.testing.assert_allclose(table["ORR_HIGH"], high)
    assert plan.p_more == 0.75 and not plan.more_is_better
    higher = plan.higher.set_index("QUANTITY")
    assert higher.loc["cmax (qpcr)", "MEDIAN"] == pytest.approx(4)
    assert higher.loc["CRS>=3", "MEDIAN"] == pytest.approx(0.25)
    assert higher.loc["UTILITY", "P_MORE"] == 0.5


def test_the_verdict_says_whether_more_is_better():
    """If it fails, a reader is told of evidence that there is not, or is not told of the one that there is."""
    plan = plan_of(GOOD, BAD)
    assert "No evidence that more is better" in plan.verdict and "0.75 < 0.95" in plan.verdict
    assert plan_of(GOOD, BAD, more=0.7).verdict.splitlines()[1].startswith("More is better for ORR")
    tiny = [[0.5, 0.5, 0.509]] * 4  # less than one more responder in a hundred
    assert plan_of(tiny, BAD).p_more == 0 and plan_of(tiny, BAD, margin=0.0).p_more == 1


def test_no_admissible_level_is_no_level():
    """If it fails, stopping is an index, and -1 is the top dose."""
    plan = plan_of(GOOD, [[0.4, 0.5, 0.6]] * 4)
    assert plan.best is None and plan.verdict.startswith("No dose")
    assert not plan.table["BEST"].any() and plan.sensitivity["BEST"].isna().all()
    assert "none" in repr(plan)


def test_weights_and_their_sensitivity():
    """If it fails, the recommendation hides that it hangs on a weight."""
    plan = plan_of(GOOD, BAD, safe=0.2)
    assert plan.best == 2e6
    table = plan.sensitivity.set_index("FACTOR")
    assert table.loc[0.0, "BEST"] == 5e6 and table.loc[4.0, "BEST"] == 1e6
    again = plan.weighed({"CRS>=3": 0.0})
    np.testing.assert_allclose(again.utility, GOOD)
    assert plan.weighed({"CRS>=3": -1.5}).best == plan.best
    with pytest.raises(ck.ModelError, match="Did you mean 'ORR'"):
        plan.weighed({"OR": 1.0})


def test_levels_nobody_had_are_extrapolated():
    """If it fails, a dose far from all patients looks like one that was tried."""
    assert plan_of(GOOD, BAD, doses=()).table["EXTRAPOLATED"].all()
    assert "not known" in str(plan_of(GOOD, BAD, doses=()))
    assert list(plan_of(GOOD, BAD, doses=(1.9e6,)).extrapolated) == [True, False, True]
    assert not plan_of(GOOD, BAD, doses=(1.05e6, 4.6e6)).extrapolated.any()  # within a tenth
    assert "This dose is EXTRAPOLATED" in plan_of(GOOD, BAD, doses=(1e6,)).verdict


def test_all_that_a_reader_needs_is_printed():
    """If it fails, a recommendation is printed without its numbers of patients, priors, status or limits."""
    text = str(plan_of(GOOD, BAD))
    for said in ("2e+06 cells/kg", "ORR +1, CRS>=3 -1.5", "ORR: slope ~ Normal(0, 2.5)", "fit: ok", "12 patients",
                 "EXTRAPOLATED: 5e+06", "not a medical device"):  # fmt: skip
        assert said in text


@pytest.mark.parametrize("bad", [{"level": 90.0}, {"more": 1.0}, {"safe": 0.0}, {"margin": -0.1}])
def test_rules_that_cannot_be(bad):
    """If it fails, an interval of 90 is taken for one of 90 %."""
    with pytest.raises(ck.ModelError, match=next(iter(bad))):
        ck.PlanRules(**bad)


def test_figures_show_the_table():
    """If it fails, a point, an interval or a mark of extrapolation is drawn elsewhere than the table says."""
    from matplotlib import pyplot as plt

    plan = plan_of(GOOD, BAD)
    table = plan.table
    ax = ck.plots.pareto(plan)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rate of CRS>=3", "rate of ORR")
    tried, new = (
        next(line for line in ax.lines if line.get_label() == f"level{end}") for end in ("", ", extrapolated")
    )
    np.testing.assert_allclose(tried.get_xdata(), table["CRS>=3"][:2])
    np.testing.assert_allclose(new.get_ydata(), table["ORR"][2:])
    axes = ck.plots.utility(plan)
    np.testing.assert_allclose([bar.get_height() for bar in axes[1].patches], plan.p_best)
    plt.close("all")


def test_labels_of_close_levels_are_apart():
    """If it fails, three doses with nearly the same rates are one blot."""
    from matplotlib import pyplot as plt
    from matplotlib.text import Text

    close = plan_of([[0.52, 0.50, 0.51]] * 4, [[0.20, 0.21, 0.20]] * 4)
    ax = ck.plots.pareto(close)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in ax.texts]  # without the lines to their points
    assert [t.get_text() for t in ax.texts] == ["1e+06", "2e+06", "5e+06"]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    plt.close("all")
