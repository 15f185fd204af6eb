"""Bins of days: the least squares are the least there are, counts are kept, and what cannot be is refused."""

from itertools import combinations

import numpy as np
import pytest

from carkinetics.bins import FEWEST, MOST, least_squares, make_bins
from carkinetics.errors import ModelError


def spread(x, weight, starts):
    """Squares about the means of bins that begin at these places."""
    total = 0.0
    for begin, end in zip(starts, [*starts[1:], len(x)], strict=True):
        part, w = x[begin:end], weight[begin:end]
        total += np.sum(w * (part - np.average(part, weights=w)) ** 2)
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_least_squares_are_the_least_of_all_ways_to_cut(k):
    """If it fails, bins are not those of k-means. All cuts of ten places are tried."""
    rng = np.random.default_rng(k)
    x, weight = np.sort(rng.uniform(0, 5, 10)), rng.integers(1, 9, 10).astype(float)
    starts = least_squares(x, weight, 4)[k - 1]
    every = [spread(x, weight, [0, *c]) for c in combinations(range(1, 10), k - 1)]
    assert len(starts) == k
    assert spread(x, weight, list(starts)) == pytest.approx(min(every), rel=1e-12)


def test_few_days_are_bins_by_themselves():
    """If it fails, samples of one visit are split, or visits are mixed without need."""
    days = np.repeat([1.0, 7.0, 28.0, 180.0], 20)
    bins = make_bins(days)
    assert bins.of(np.array([1.0, 7.0, 28.0, 180.0])).tolist() == [0, 1, 2, 3]
    assert "every sampling day is a bin: 4, with 20 samples" in bins.reason


def test_scattered_days_fall_into_bins_with_samples_enough():
    """If it fails, a bin has too few samples for a percentile, or late visits are cut where early ones should be."""
    rng = np.random.default_rng(1)
    visits = np.array([1.0, 4, 7, 10, 14, 21, 28, 60, 90, 180, 365])
    days = (visits * np.exp(0.04 * rng.standard_normal((40, 11)))).ravel()
    bins = make_bins(days)
    counts = np.bincount(bins.of(days), minlength=len(bins))
    assert counts.min() >= FEWEST
    assert 8 <= len(bins) <= MOST
    assert counts.sum() == days.size
    # A visit that is far from its neighbours stays together.
    assert len(set(bins.of(days.reshape(40, 11)[:, -1]))) == 1
    assert "k-means" in bins.reason


def test_many_days_and_days_before_the_infusion_have_bins():
    """If it fails, dense sampling takes minutes, or a day below 0 breaks the logarithm."""
    days = np.linspace(-7, 400, 6000)
    bins = make_bins(days)
    assert np.bincount(bins.of(days)).min() >= FEWEST
    assert make_bins(np.array([-3.0, -3.0])).of(np.array([-3.0])).tolist() == [0]


def test_asked_bins_are_given():
    """If it fails, a number or edges are read as something else."""
    days = np.arange(100.0)
    counts = np.bincount(make_bins(days, 4).of(days))
    assert counts.tolist() == pytest.approx([25] * 4, abs=1)
    assert make_bins(days, [0.0, 10.0, 99.0]).of(np.array([0.0, 9.9, 10.0, 99.0])).tolist() == [0, 0, 1, 1]
    assert len(make_bins(np.full(5, 3.0), 4)) == 1


@pytest.mark.parametrize("how", ["kmeans", 0, -1, True, [3.0], [2.0, 1.0], [0.0, np.nan, 5.0], [1.0, 50.0]], ids=str)
def test_bins_that_cannot_be_are_refused(how):
    """If it fails, samples fall out of a check without a word."""
    with pytest.raises(ModelError, match="bins"):
        make_bins(np.arange(100.0), how)
