"""What trials have shown so far, as counts: one row a trial, so that a decision and a simulation share their code."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from carkinetics.design.patients import Patients, counted_level


class Rows(NamedTuple):
    """The patients one by one, for a model that reads the dose infused and the follow-up.

    ``amount`` is the dose infused, ``toxic`` 1 or 0, ``weight`` the share of the window that a patient without a
    toxicity was followed: with 0, nothing is known.
    """

    amount: Float[np.ndarray, "trial patient"]
    toxic: Float[np.ndarray, "trial patient"]
    weight: Float[np.ndarray, "trial patient"]


class Evidence(NamedTuple):
    """Counts of any number of trials.

    Attributes
    ----------
    treated, toxic, effective, both : arrays of shape (trial, level)
        Patients, with a dose-limiting toxicity, with a response, with both.
    current : array of shape (trial,)
        Level of the last cohort; 0 before the first patient.
    rows : Rows, optional
        The patients one by one; a model that reads them does not read the counts.
    """

    treated: Float[np.ndarray, "trial level"]
    toxic: Float[np.ndarray, "trial level"]
    effective: Float[np.ndarray, "trial level"]
    both: Float[np.ndarray, "trial level"]
    current: Int[np.ndarray, " trial"]
    rows: Rows | None = None

    def at_current(self) -> tuple[Float[np.ndarray, " trial"], Float[np.ndarray, " trial"]]:
        """Patients and toxicities at the current level."""
        trial, level = np.arange(len(self.current)), np.maximum(self.current, 1) - 1
        return self.treated[trial, level], self.toxic[trial, level]

    def highest(self) -> Int[np.ndarray, " trial"]:
        """The highest level that was given, 0 before the first patient."""
        levels = np.arange(1, self.treated.shape[1] + 1)
        return np.where(self.treated > 0, levels, 0).max(axis=1)


def nothing(trials: int, levels: int) -> Evidence:
    """Trials before their first patient."""
    treated, toxic, effective, both = np.zeros((4, trials, levels))
    return Evidence(treated, toxic, effective, both, np.zeros(trials, int))


def gather(
    patients: Patients,
    doses: tuple[float, ...],
    dlt: Float[np.ndarray, " patient"],
    response: Float[np.ndarray, " patient"],
    weight: Float[np.ndarray, " patient"],
) -> Evidence:
    """The counts of one trial, with outcomes as given; those that are NaN are not counted.

    A patient who got less than the lowest dose counts for no level, unless it was toxic: then for the lowest. One with
    a weight counts as that part of a patient.
    """
    level = counted_level(patients, doses)
    level = np.where((level == 0) & (dlt == 1), 1, level)
    known = ~np.isnan(dlt) & (level > 0)
    at = level[:, None] == np.arange(1, len(doses) + 1)
    treated = np.where(at & known[:, None], weight[:, None], 0.0).sum(axis=0)
    toxic = (at & (known & (dlt == 1))[:, None]).sum(axis=0)
    effective = (at & (known & (response == 1))[:, None]).sum(axis=0)
    both = (at & (known & (response == 1) & (dlt == 1))[:, None]).sum(axis=0)
    last = patients.cohort == patients.cohort.max(initial=0)
    current = max(level[last].max(initial=0), 1) if patients.n else 0
    seen = ~np.isnan(dlt)
    rows = Rows(patients.infused[None, seen], dlt[None, seen], weight[None, seen])
    treated, toxic, effective, both = (np.array(c, float)[None] for c in (treated, toxic, effective, both))
    return Evidence(treated, toxic, effective, both, np.array([current]), rows)


def too_toxic(evidence: Evidence, limit: float, probability: float, least: int) -> Bool[np.ndarray, "trial level"]:
    """Levels of which P(DLT probability > limit) exceeds ``probability``, with a uniform prior and ``least`` patients.

    References
    ----------
    Liu & Yuan, J R Stat Soc C 2015;64:507-523, doi:10.1111/rssc.12089, section 2.2.
    """
    above = special.betaincc(1 + evidence.toxic, 1 + evidence.treated - evidence.toxic, limit)
    return (evidence.treated >= least) & (above > probability)
