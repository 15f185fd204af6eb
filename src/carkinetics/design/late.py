"""Operating characteristics of TITE designs: patients arrive while earlier ones are still followed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from carkinetics.design.base import AbstractDesign
from carkinetics.design.evidence import Evidence, Rows
from carkinetics.design.operating import Operating, Truth, checked, described, draws
from carkinetics.errors import DesignError
from carkinetics.simulation import refuse_seed

_TOGETHER = 256  # trials whose posteriors are in memory at once


def simulate_late(
    design: AbstractDesign,
    truth: Sequence[float] | np.ndarray,
    n: int = 1000,
    *,
    seed: int,
    patients: int = 36,
    every: float = 14.0,
) -> Operating:
    """Simulate trials of a TITE design, in which the dose is decided anew for every patient.

    A patient arrives every ``every`` days. One who will have a toxicity has it at a time that is uniform over the
    design's window. At the end all are followed to the end of the window. Rules that read a calendar
    (``MinimumFollowUp``, ``Stagger``) are not applied.

    Parameters
    ----------
    design : AbstractDesign
        A TITE design.
    truth : sequence of float
        DLT probability of every level, over the window.
    n : int
        Trials.
    seed : int
        Replicates have random numbers of their own, as in :func:`simulate`.
    patients : int
        Patients of a trial.
    every : float
        Days between two patients.

    Raises
    ------
    DesignError
        The design has no window, or a number cannot be.
    """
    of = checked(design, truth, n, patients, 1)
    refuse_seed(seed)
    if design.window is None:
        raise DesignError(f"simulate_late: {design.name} needs complete outcomes; use simulate.")
    if not every > 0:
        raise DesignError(f"simulate_late: every = {every!r} must be a number of days above 0.")
    luck = draws(seed, n, patients)
    parts = [_some(design, of, luck[k : k + _TOGETHER], every) for k in range(0, n, _TOGETHER)]
    ended = np.concatenate([p[0] for p in parts])
    treated, toxic = (np.concatenate([p[k] for p in parts]) for k in (1, 2))
    none = np.zeros(treated.shape)
    return described(design, of, ended, Evidence(treated, toxic, none, none, np.ones(n, int)), None)


def _some(
    design: AbstractDesign, truth: Truth, luck: Float[np.ndarray, "trial patient column"], every: float
) -> tuple[Int[np.ndarray, " trial"], Float[np.ndarray, "trial level"], Float[np.ndarray, "trial level"]]:
    """What is selected, and patients and toxicities by level, of some trials."""
    n, patients, _ = luck.shape
    window, rates = float(design.window or 0.0), np.array(truth.toxicity)
    level, when = np.zeros((n, patients), int), np.full((n, patients), np.inf)
    live = np.ones(n, bool)
    for i in range(patients):
        next_level = design.next_levels(_seen(design, level[:, :i], when[:, :i], every * (i - np.arange(i)))).level
        live &= next_level > 0
        level[:, i] = np.where(live, next_level, 0)
        toxic = live & (luck[:, i, 0] < rates[np.maximum(next_level, 1) - 1])
        when[toxic, i] = window * luck[toxic, i, 1]
    last = _seen(design, level, when, np.full(patients, window))
    ended = np.where(live, design.final_levels(last), 0)
    return ended, last.treated, last.toxic


def _seen(
    design: AbstractDesign,
    level: Int[np.ndarray, "trial patient"],
    when: Float[np.ndarray, "trial patient"],
    followed: Float[np.ndarray, " patient"],
) -> Evidence:
    """What is known after these days of follow-up; level 0 is a patient who never came."""
    came, doses = level > 0, np.array(design.setting.doses)
    toxic = came & (when <= followed)
    weight = np.where(toxic, 1.0, np.minimum(followed / float(design.window or 1.0), 1.0)) * came
    at = level[:, :, None] == np.arange(1, len(doses) + 1)
    treated, bad = (np.where(at, v[:, :, None], 0.0).sum(axis=1) for v in (weight, toxic))
    current = np.where(came, level, 0)[:, -1] if level.shape[1] else np.zeros(len(level), int)
    rows = Rows(doses[np.maximum(level, 1) - 1], toxic.astype(float), weight)
    none = np.zeros(treated.shape)
    return Evidence(treated, bad, none, none, current, rows)
