"""Endpoints from a few characters, ``CRS:cmax@3``, and from the outcome table: what the command line takes."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from carkinetics.dataset import Dataset
from carkinetics.endpoints import Endpoint
from carkinetics.errors import DataError, ModelError
from carkinetics.metric import Metric
from carkinetics.model_parts import nearest_or_raise
from carkinetics.response.logistic_model import logistic
from carkinetics.response.options import ResponseOptions
from carkinetics.response.ordinal_model import ordinal
from carkinetics.response.tte_model import tte


class Asked(NamedTuple):
    """An outcome, the metric it is related to, and the grade or day that is asked for."""

    outcome: str
    metric: str
    at: float | None


def asked_of(text: str) -> Asked:
    """``OUTCOME:METRIC`` or ``OUTCOME:METRIC@AT``.

    Raises
    ------
    ModelError
        It is written otherwise.
    """
    hit = re.fullmatch(r"([^:@]+):([^:@]+)(?:@(\d+(?:\.\d+)?))?", text)
    if hit is None:
        raise ModelError(
            f"{text}: write OUTCOME:METRIC, such as ORR:auc_0_28, or OUTCOME:METRIC@AT, such as CRS:cmax@3."
        )
    return Asked(hit[1], hit[2], float(hit[3]) if hit[3] else None)


def endpoint_of(asked: Asked, metric: Metric, data: Dataset, seed: int) -> Endpoint:
    """The response model that the outcome's values ask for: times, 0 and 1, or grades; patients without one left out.

    Raises
    ------
    DataError
        There are no outcomes, or none of that name.
    """
    if data.outcomes is None:
        raise DataError(f"{data.source}: the fit has no outcomes. Read its table with outcomes=..., and fit again.")
    table, options = data.outcomes, ResponseOptions(missing="drop")
    times = [f"{asked.outcome}_TIME", f"{asked.outcome}_EVENT"]
    if set(times) <= set(table):
        return Endpoint(tte(metric, table[times], seed=seed, options=options), asked.at)
    nearest_or_raise(asked.outcome, [str(c) for c in table], "outcome", data.source)
    column = table[asked.outcome]
    values = pd.to_numeric(column, errors="coerce").dropna().to_numpy(float)
    if np.isin(values, (0.0, 1.0)).all() and asked.at is None:
        return Endpoint(logistic(metric, column, seed=seed, options=options))
    return Endpoint(ordinal(metric, column, seed=seed, options=options), asked.at)
