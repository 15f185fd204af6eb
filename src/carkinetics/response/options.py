"""What all response verbs can be told beside the model."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carkinetics.errors import DataError, FitWarning, ModelError
from carkinetics.findings import listed
from carkinetics.response.patients import Patients
from carkinetics.response.sampling import DRAWS, FEWEST_DRAWS
from carkinetics.simulation import refuse_seed


@dataclass(frozen=True, eq=False)
class ResponseOptions:
    """Policies, and days by which guards judge.

    Attributes
    ----------
    missing : {"refuse", "drop"}
        What happens to patients without exposure, outcome or covariates; those dropped are counted in ``check()``.
    outcome_day : Series or float, optional
        Day on which the response or grade was told, by ID or of all: a metric may not reach past it.
    treated_day : Series, optional
        By ID, first day of tocilizumab, steroids or the like; missing where there was none.
    clock : {"landmark", "infusion"}
        ``tte``: time runs from the landmark, or from the infusion with what lies before the landmark truncated.
    entry : Series, optional
        ``tte``: by ID, day from which a patient was under observation (left truncation).
    cuts : tuple of float, optional
        ``tte``, piecewise: days since the infusion on which the hazard changes; by default quartiles of event times.
    cause : int
        ``tte``: the code of the event; patients with another one are censored by it (a cause-specific hazard).
    draws : int
        Of the posterior.
    """

    missing: str = "refuse"
    outcome_day: pd.Series | float | None = None
    treated_day: pd.Series | None = None
    clock: str = "landmark"
    entry: pd.Series | None = None
    cuts: tuple[float, ...] | None = None
    cause: int = 1
    draws: int = DRAWS

    def __post_init__(self) -> None:
        """Refuse draws that are too few to sum up."""
        if self.draws < FEWEST_DRAWS:
            raise ModelError(f"options: draws = {self.draws!r} must be {FEWEST_DRAWS} or more.")

    def known(self, patients: Patients) -> pd.Series | float | None:
        """The outcome's day, of these patients."""
        if not isinstance(self.outcome_day, pd.Series):
            return self.outcome_day
        days = self.outcome_day.copy()
        days.index = pd.Index([str(i) for i in days.index])
        lacking = [i for i in patients.ids if i not in days.index or not np.isfinite(float(days[i]))]
        if lacking:
            raise DataError(f"outcome_day has no day of patients {listed(lacking)}.")
        return days.loc[list(patients.ids)]


def begun(seed: int, options: ResponseOptions | None) -> ResponseOptions:
    """The options, after a look at the seed."""
    refuse_seed(seed)
    return options or ResponseOptions()


def warn(findings: Iterable[tuple[str, str]]) -> None:
    """Give findings that change the meaning of the result as warnings too; all are in ``check()``."""
    for name, reason in findings:
        if name in ("point", "immortal time"):
            warnings.warn(f"{name}: {reason}", FitWarning, stacklevel=3)
