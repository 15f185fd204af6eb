"""The gates: whether chains agree, and are long enough. Sampling goes on until they pass."""

import numpy as np
from jaxtyping import Float

RHAT_MAX = 1.01
ESS_MIN = 400  # bulk and tail
_TAIL = (0.05, 0.95)  # quantiles of which tail ESS is the smaller: Vehtari et al. 2021


def convergence(
    draws: Float[np.ndarray, "chain draw quantity"],
) -> tuple[Float[np.ndarray, " quantity"], Float[np.ndarray, " quantity"], Float[np.ndarray, " quantity"]]:
    """Rank-normalised split R-hat, bulk ESS and tail ESS of every quantity; R-hat is NaN of one that never moved.

    References
    ----------
    Vehtari A et al., Bayesian Anal 2021;16:667-718, doi:10.1214/20-BA1221; as implemented in ArviZ.
    """
    from arviz_stats.base.array import array_stats

    with np.errstate(invalid="ignore", divide="ignore"):  # a quantity that never moved has no R-hat
        rhat = array_stats.rhat(draws, chain_axis=0, draw_axis=1)
        bulk = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk")
        tail = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="tail", prob=_TAIL)
    return np.atleast_1d(rhat), np.atleast_1d(bulk), np.atleast_1d(tail)


def gate_failures(draws: Float[np.ndarray, "chain draw quantity"]) -> int:
    """How many quantities miss a gate: R-hat, bulk ESS or tail ESS."""
    rhat, bulk, tail = convergence(draws)
    return int(np.sum(~((rhat <= RHAT_MAX) & (bulk >= ESS_MIN) & (tail >= ESS_MIN))))
