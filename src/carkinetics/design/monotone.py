"""Decisions that one more toxicity cannot raise, made of decisions that it can."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

_TOGETHER = 100_000  # combinations of counts in memory at once


def never_higher(
    decide: Callable[[np.ndarray, np.ndarray], np.ndarray],
    treated: Float[np.ndarray, "trial group"],
    toxic: Float[np.ndarray, "trial group"],
) -> Int[np.ndarray, " trial"]:
    """The lowest level that ``decide`` gives for the same patients with the same or fewer toxicities; 0 is stop.

    It is the highest monotone rule that is nowhere above ``decide``. Equal combinations of counts, of one trial or
    several, are decided once.
    """
    sizes = np.prod(toxic + 1, axis=1).astype(int)
    found, begin = np.empty(len(toxic), int), 0
    while begin < len(toxic):
        end = begin + max(int(np.searchsorted(np.cumsum(sizes[begin:]), _TOGETHER, side="right")), 1)
        fewer = np.concatenate([_fewer(y) for y in toxic[begin:end]])
        patients = np.repeat(treated[begin:end], sizes[begin:end], axis=0)
        cells, back = np.unique(np.concatenate([patients, fewer], axis=1), axis=0, return_inverse=True)
        groups = toxic.shape[1]
        level = decide(cells[:, :groups], cells[:, groups:])[back.ravel()]
        starts = np.concatenate([[0], np.cumsum(sizes[begin:end])[:-1]])
        found[begin:end] = np.minimum.reduceat(level, starts)
        begin = end
    return found


def _fewer(toxic: Float[np.ndarray, " group"]) -> Float[np.ndarray, "combination group"]:
    """Every combination of counts that is nowhere above ``toxic``."""
    axes = np.meshgrid(*(np.arange(y + 1) for y in toxic), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, len(toxic)).astype(float)
