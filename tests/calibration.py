"""Simulation-based calibration: ranks of the truth among posterior draws, and whether they are uniform.

Talts S et al. 2018, arXiv:1804.06788; Modrak M et al., Bayesian Anal 2023, doi:10.1214/23-BA1404 (functions of
parameters and data, such as the log likelihood, find errors to which ranks of parameters are blind); the band:
Sailynoja T et al., Stat Comput 2022;32:32, doi:10.1007/s11222-022-10090-6.
"""

import numpy as np
from scipy import stats


def thinned(draws: np.ndarray, n: int) -> np.ndarray:
    """``n`` draws from each chain of (chain, draw, quantity), evenly spaced, as (draw, quantity)."""
    chosen = np.linspace(0, draws.shape[1] - 1, n).round().astype(int)
    return draws[:, chosen].reshape(-1, draws.shape[-1])


def ranks(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many of the draws (draw, quantity) lie below the truth; from 0 to the number of draws."""
    return (draws < truth).sum(0)


def ecdf(rank: np.ndarray, n_draws: int) -> np.ndarray:
    """How many ranks (..., replication) are at most 0, 1 ... ``n_draws`` - 1: an ECDF, as counts."""
    return (rank[..., None] <= np.arange(n_draws)).sum(-2)


def ecdf_band(
    replications: int, n_draws: int, probability: float, *, simulations: int = 100_000
) -> tuple[np.ndarray, np.ndarray]:
    """The counts of :func:`ecdf` between which uniform ranks stay, everywhere at once, with this probability.

    The band is made of intervals of the binomial distribution, all at the same level, found by simulation.
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


def leaves(rank: np.ndarray, n_draws: int, band: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether the ranks (replication,) leave the band of uniform ones."""
    counts = ecdf(rank, n_draws)
    return bool(((counts < band[0]) | (counts > band[1])).any())
