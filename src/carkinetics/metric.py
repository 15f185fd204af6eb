"""An exposure metric of every patient, as draws: what passes from a fit, or from observed levels, to a response."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.model_parts import nearest_or_raise

# observed: of the samples themselves; model: of the curve within the patient's samples; extrapolated: of the curve
# beyond them; censored: not reached when the window ended; not_estimable: there is no value (draws are NaN).
STATUSES = ("observed", "interpolated", "model", "extrapolated", "censored", "not_estimable")


@dataclass(frozen=True, eq=False)
class Metric:
    """One exposure metric of all patients.

    Attributes
    ----------
    name, unit : str
    subjects : tuple of str
    draws : array of shape (draw, subject)
        On the natural scale; one draw for an observed metric. NaN where the metric cannot be told.
    status, reason : tuple of str
        One per patient: one of ``STATUSES``, and why (empty where there is nothing to say).
    assay : str
        Assay or output that it is of, as in the model or the table.
    window : (float, float)
        Days since the infusion that the metric uses; its end is infinite where it uses the whole curve.
    """

    name: str
    unit: str
    subjects: tuple[str, ...]
    draws: Float[np.ndarray, "draw subject"]
    status: tuple[str, ...]
    reason: tuple[str, ...]
    assay: str
    window: tuple[float, float]

    @property
    def value(self) -> Float[np.ndarray, " subject"]:
        """Median over draws, per patient; NaN where any draw is (a value in some draws only is none)."""
        return np.median(self.draws, axis=0)

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """One row per patient: ``ID METRIC ASSAY UNIT VALUE LOW HIGH STATUS REASON``; an equal-tailed interval."""
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(self.draws, tails, axis=0)
        return pd.DataFrame(
            {
                "ID": self.subjects,
                "METRIC": self.name,
                "ASSAY": self.assay,
                "UNIT": self.unit,
                "VALUE": self.value,
                "LOW": low,
                "HIGH": high,
                "STATUS": self.status,
                "REASON": self.reason,
            }
        )


@dataclass(frozen=True, eq=False)
class Exposure(Mapping[str, Metric]):
    """Exposure metrics by name, of the same patients and draws; ``exposure["auc_0_28"]``."""

    metrics: Mapping[str, Metric]
    source: str = ""

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[nearest_or_raise(name, self.metrics, "metric", self.source)]

    def __contains__(self, name: object) -> bool:
        return name in self.metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """The tables of all metrics, one below the other."""
        return pd.concat([m.table(level) for m in self.metrics.values()], ignore_index=True)
