"""Isotonic DLT rates of any number of trials, and the level that is closest to a target."""

import numpy as np
from jaxtyping import Bool, Float, Int

from carkinetics.design.evidence import Evidence

# What is added to toxicities and to patients, so that 0 of 3 and 0 of 6 differ in weight.
ADDED = (0.05, 0.1)
_TIE = 1e-10
_NOTHING = 1e-12  # weight of a level that does not count


def isotonic(evidence: Evidence, counted: Bool[np.ndarray, "trial level"]) -> Float[np.ndarray, "trial level"]:
    """DLT rates that do not fall with the level, weighted by the inverse variance of a Beta(0.05, 0.05) posterior.

    By the min-max formula, of the levels that count; those that do not have no weight.

    References
    ----------
    Yan, Zhang, Zhou, Pan, Liu & Yuan, J Stat Softw 2020;94(13), doi:10.18637/jss.v094.i13, section 2.
    """
    y, n = evidence.toxic + ADDED[0], evidence.treated + ADDED[1]
    rate = y / n
    weight = np.where(counted, n**2 * (n + 1) / (y * (n - y)), _NOTHING)
    levels = rate.shape[1]
    found = np.empty_like(rate)
    for k in range(levels):
        least = [np.min([_mean(rate, weight, i, j) for j in range(k, levels)], axis=0) for i in range(k + 1)]
        found[:, k] = np.max(least, axis=0)
    return found


def _mean(
    rate: Float[np.ndarray, "trial level"], weight: Float[np.ndarray, "trial level"], first: int, last: int
) -> Float[np.ndarray, " trial"]:
    """Weighted mean of the levels from ``first`` to ``last``."""
    here = slice(first, last + 1)
    return (rate[:, here] * weight[:, here]).sum(axis=1) / weight[:, here].sum(axis=1)


def closest(
    rate: Float[np.ndarray, "trial level"], allowed: Bool[np.ndarray, "trial level"], target: float
) -> Int[np.ndarray, " trial"]:
    """The allowed level whose rate is closest to the target; 0 if none is allowed.

    Of equal rates, the highest level if they are below the target and the lowest if above.
    """
    nudged = rate + _TIE * np.arange(1, rate.shape[1] + 1)
    distance = np.where(allowed, np.abs(nudged - target), np.inf)
    return np.where(allowed.any(axis=1), distance.argmin(axis=1) + 1, 0)
