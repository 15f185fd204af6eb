"""Bins of sampling days, in which samples of several days are compared together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from carkinetics.errors import ModelError

FEWEST = 10  # samples in a bin: fewer have no 5th and 95th percentile worth the name
MOST = 12  # bins: more cannot be told apart on a page
_GRID = 1500  # distinct places between which bins may end


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins of days: from one edge up to the next, and in the last one with it.

    Attributes
    ----------
    edges : Float[" edge"]
        Days.
    reason : str
        Why these.
    """

    edges: Float[np.ndarray, " edge"]
    reason: str

    def __len__(self) -> int:
        return len(self.edges) - 1

    def of(self, time: Float[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
        """The bin of every day."""
        return np.clip(np.searchsorted(self.edges, time, side="right") - 1, 0, len(self) - 1)


def make_bins(time: Float[np.ndarray, " row"], how: str | int | Sequence[float] = "auto") -> Bins:
    """Bins for samples of these days.

    Parameters
    ----------
    how : "auto", int or sequence of float
        ``auto``: every day by itself where there are 12 at most with 10 samples each; else the largest number of
        bins, up to 12, in which least squares of ``ln(1 + day)`` (exact k-means) leave at least 10 samples in each,
        since visits lie close together early and far apart late. A number: that many bins of equal counts. Edges: days,
        increasing, that hold all samples between them.

    Raises
    ------
    ModelError
        Neither of these.

    References
    ----------
    Lavielle M, Bleakley K, J Pharmacokinet Pharmacodyn 2011;38:861-871, doi:10.1007/s10928-011-9223-3. Exact k-means in
    one dimension: Wang H, Song M, R J 2011;3(2):29-33, doi:10.32614/RJ-2011-015.
    """
    if isinstance(how, str):
        if how != "auto":
            raise ModelError(f"bins = {how!r}: give 'auto', a number of bins, or their edges in days.")
        return _automatic(time)
    if isinstance(how, bool) or (isinstance(how, int | np.integer) and how < 1):
        raise ModelError(f"bins = {how!r}: give 'auto', a number of bins above 0, or their edges in days.")
    if isinstance(how, int | np.integer):
        edges = np.unique(np.quantile(time, np.linspace(0, 1, int(how) + 1), method="inverted_cdf"))
        edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])
        return Bins(edges, f"{len(edges) - 1} bins of about equal counts, as asked")
    edges = np.asarray(how, float)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all() or not np.isfinite(edges).all():
        raise ModelError("bins: edges must be two or more finite, increasing days.")
    if time.min() < edges[0] or time.max() > edges[-1]:
        raise ModelError(
            f"bins: edges from day {edges[0]:g} to {edges[-1]:g} leave out samples from day {time.min():g} to "
            f"{time.max():g}. Add edges that hold them."
        )
    return Bins(edges, "edges as given")


def _automatic(time: Float[np.ndarray, " row"]) -> Bins:
    days, counts = np.unique(time, return_counts=True)
    if len(days) <= MOST and counts.min() >= FEWEST:
        return Bins(_around(days), f"every sampling day is a bin: {len(days)}, with {counts.min()} samples or more")
    x = np.sign(time) * np.log1p(np.abs(time))
    if len(days) > _GRID:
        low, step = x.min(), np.ptp(x) / _GRID
        x = low + step * np.round((x - low) / step)
    places, counts = np.unique(x, return_counts=True)
    for k, starts in reversed(list(enumerate(least_squares(places, counts.astype(float), MOST), start=1))):
        held = np.add.reduceat(counts, starts)
        if held.min() >= FEWEST or k == 1:
            middle = 0.5 * (places[starts[1:] - 1] + places[starts[1:]])
            inner = np.sign(middle) * np.expm1(np.abs(middle))
            edges = np.concatenate([[days[0]], inner, [max(days[-1], days[0] + 1.0)]])
            most = f"the most, up to {MOST}, with {FEWEST} samples or more" if k > 1 else "too few samples for more"
            return Bins(edges, f"k-means of ln(1 + day): {k} bins, {most}")
    raise AssertionError("one bin always holds all samples")


def _around(days: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edge"]:
    """Edges half-way between days."""
    return np.concatenate([[days[0]], 0.5 * (days[1:] + days[:-1]), [max(days[-1], days[0] + 1.0)]])


def least_squares(
    x: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"], most: int
) -> list[Int[np.ndarray, " k"]]:
    """Where bins of sorted places begin whose squares about their means are least, of 1, 2, up to ``most`` bins."""
    n, most = len(x), min(most, len(x))
    w, wx, wxx = (np.concatenate([[0.0], np.cumsum(v)]) for v in (weight, weight * x, weight * x * x))

    def cost(begin, end):  # of places begin to end - 1 in one bin
        mass = w[end] - w[begin]
        return np.maximum(wxx[end] - wxx[begin] - (wx[end] - wx[begin]) ** 2 / mass, 0.0)

    best, last = np.full((most, n + 1), np.inf), np.zeros((most, n + 1), int)
    best[0, 1:] = cost(np.zeros(n, int), np.arange(1, n + 1))
    for k in range(1, most):
        for end in range(k + 1, n + 1):
            begin = np.arange(k, end)
            total = best[k - 1, begin] + cost(begin, np.full(len(begin), end))
            at = int(np.argmin(total))
            best[k, end], last[k, end] = total[at], begin[at]
    found = []
    for k in range(most):
        starts, end = [], n
        for j in range(k, -1, -1):
            end = int(last[j, end])
            starts.append(end)
        found.append(np.array(starts[::-1]))
    return found
