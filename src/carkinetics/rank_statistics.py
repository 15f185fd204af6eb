"""Ranks of a truth among posterior draws, and whether they are uniform, as those of a right posterior are."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

_SIMULATIONS = 100_000


def thinned(draws: Float[np.ndarray, "chain draw quantity"], n: int) -> Float[np.ndarray, "kept quantity"]:
    """``n`` draws from each chain, evenly spaced from the first to the last."""
    chosen = np.linspace(0, draws.shape[1] - 1, n).round().astype(int)
    return draws[:, chosen].reshape(-1, draws.shape[-1])


def ranks(
    draws: Float[np.ndarray, "draw quantity"], truth: Float[np.ndarray, " quantity"]
) -> Int[np.ndarray, " quantity"]:
    """How many of the draws lie below the truth; from 0 to the number of draws."""
    return (draws < truth).sum(0)


def ecdf(rank: Int[np.ndarray, "*n replication"], n_draws: int) -> Int[np.ndarray, "*n draw"]:
    """How many ranks are at most 0, 1 ... ``n_draws`` - 1: an ECDF, as counts."""
    return (rank[..., None] <= np.arange(n_draws)).sum(-2)


@lru_cache(maxsize=32)
def ecdf_band(
    replications: int, n_draws: int, probability: float, *, simulations: int = _SIMULATIONS
) -> tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """The counts of :func:`ecdf` between which uniform ranks stay, everywhere at once, with this probability.

    The band is made of intervals of the binomial distribution, all at the same level, found by simulation.

    References
    ----------
    Sailynoja T, Burkner PC, Vehtari A, Stat Comput 2022;32:32, doi:10.1007/s11222-022-10090-6.
    """
    share = np.arange(1, n_draws + 1) / (n_draws + 1)
    at_most = stats.binom.cdf(np.arange(-1, replications + 1)[:, None], replications, share)
    tails = 2 * np.minimum(at_most[1:], 1 - at_most[:-1])  # of a count (row), at a rank (column)
    cells = np.full(n_draws + 1, 1 / (n_draws + 1))
    counts = np.random.default_rng(0).multinomial(replications, cells, simulations)[:, :-1].cumsum(1)
    level = np.quantile(tails[counts, np.arange(n_draws)].min(1), 1 - probability)
    inside = tails >= level
    lower = inside.argmax(0)
    return lower, replications - inside[::-1].argmax(0)


def leaves(
    rank: Int[np.ndarray, " replication"],
    n_draws: int,
    band: tuple[Int[np.ndarray, " draw"], Int[np.ndarray, " draw"]],
) -> bool:
    """Whether the ranks leave the band of uniform ones."""
    counts = ecdf(rank, n_draws)
    return bool(((counts < band[0]) | (counts > band[1])).any())


def coverage(rank: Int[np.ndarray, " replication"], n_draws: int, level: float) -> float:
    """Share of truths in the central interval of this level, which is ``level`` if the ranks are uniform.

    Of a rank at the interval's end the part counts that lies inside.
    """
    low, high = (1 - level) / 2 * (n_draws + 1), (1 + level) / 2 * (n_draws + 1)
    inside = np.clip(np.minimum(rank + 1, high) - np.maximum(rank, low), 0.0, 1.0)
    return float(inside.mean())
