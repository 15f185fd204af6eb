"""Whether a sampler's draws agree with a posterior that is known: means, spreads, quantiles and tails.

A difference counts in units of its Monte Carlo error, the sampler's and the reference's together.
"""

from typing import NamedTuple

import numpy as np
from arviz_stats.base.array import array_stats

PROBABILITIES = (0.05, 0.5, 0.95)
LIMIT = 4.0  # Monte Carlo errors; of 30 honest comparisons one exceeds it in 500 runs


class Facts(NamedTuple):
    """What is compared, and its Monte Carlo error: (quantity, 5) each, for mean, SD and three quantiles."""

    value: np.ndarray
    error: np.ndarray


def facts_of(draws: np.ndarray) -> Facts:
    """Facts of draws (chain, draw, quantity), with errors by ArviZ."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    value = [draws.mean((0, 1)), draws.std((0, 1)), *np.quantile(draws, PROBABILITIES, axis=(0, 1))]
    error = [array_stats.mcse(draws, method=method, **axes) for method in ("mean", "sd")]
    error += [array_stats.mcse(draws, method="quantile", prob=p, **axes) for p in PROBABILITIES]
    return Facts(np.stack(value, -1), np.stack(error, -1))


def disagreements(names: list[str], found: Facts, wanted: Facts, limit: float = LIMIT) -> list[str]:
    """Every fact in which two posteriors differ by more than ``limit`` Monte Carlo errors."""
    apart = (found.value - wanted.value) / np.hypot(found.error, wanted.error)
    facts = ("mean", "SD", *(f"{100 * p:.0f} % quantile" for p in PROBABILITIES))
    return [
        f"{fact} of {name}: {found.value[i, j]:.4g}, wanted {wanted.value[i, j]:.4g}, {apart[i, j]:.1f} errors apart"
        for i, name in enumerate(names)
        for j, fact in enumerate(facts)
        if not abs(apart[i, j]) <= limit  # so that NaN disagrees
    ]


def tail(draws: np.ndarray, wanted: float, error: float, below: float) -> float:
    """How many errors apart the share of draws (chain, draw) under ``below`` is from the ``wanted`` probability.

    The error is that of a sampler which visits the tail as often as it should: one that never goes there cannot
    know how wrong it is.
    """
    inside = (draws < below).astype(float)
    ess = array_stats.ess(inside, chain_axis=0, draw_axis=1) if 0 < inside.mean() < 1 else inside.size
    return float(abs(inside.mean() - wanted) / np.hypot(np.sqrt(wanted * (1 - wanted) / min(ess, inside.size)), error))
