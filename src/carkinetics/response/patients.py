"""Exposure, covariates and outcome of the same patients, in one order, and who was left out."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from carkinetics.errors import DataError, ModelError
from carkinetics.findings import listed
from carkinetics.metric import Metric
from carkinetics.model_parts import nearest_or_raise
from carkinetics.response.encoding import Encoder, absent, encoder_of

Exposed = Metric | pd.Series | np.ndarray  # draws of every patient, or a number of each
MISSING = ("refuse", "drop")
UNKNOWN_WINDOW = (np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Patients:
    """Who a response model is fitted to.

    Attributes
    ----------
    ids : tuple of str
    metric : Metric
        Of these patients, in this order; of a plain number a patient, with one draw and an unknown window.
    outcome, covariates : DataFrame
        Of the same patients.
    encoder : Encoder
    centre, scale : float
        Mean and SD over patients of ln of the exposure's median: exposure is ``(ln x - centre) / scale`` in the model.
    notes : tuple of str
        Who was left out, and why.
    """

    ids: tuple[str, ...]
    metric: Metric
    outcome: pd.DataFrame
    covariates: pd.DataFrame
    encoder: Encoder
    centre: float
    scale: float
    notes: tuple[str, ...]

    @property
    def u(self) -> Float[np.ndarray, "draw subject"]:
        """Draws of the standardised ln exposure."""
        return self.standardised(self.metric.draws)

    @property
    def z(self) -> Float[np.ndarray, "effect subject"]:
        """Covariates as numbers."""
        return self.encoder.numbers(self.covariates)

    @property
    def point(self) -> Float[np.ndarray, " subject"]:
        """Each patient's median of the standardised ln exposure."""
        return np.median(self.u, axis=0)

    @property
    def uncertain(self) -> bool:
        """Whether exposure has more than one draw."""
        return len(self.metric.draws) > 1

    def standardised(self, exposure: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """From the natural scale."""
        x = np.asarray(exposure, float)
        if not (x > 0).all() or not np.isfinite(x).all():
            raise ModelError(f"{self.metric.name}: exposures must be finite and above 0, as their logarithm is used.")
        return np.asarray((np.log(x) - self.centre) / self.scale)

    def only(self, keep: Bool[np.ndarray, " subject"], note: str) -> "Patients":
        """Some of them; the standardisation is theirs."""
        taken = _taken(self.metric, np.flatnonzero(keep))
        covariates = self.covariates[keep]
        centre, scale = _standard(taken)
        encoder = encoder_of(covariates)
        return Patients(
            taken.subjects, taken, self.outcome[keep], covariates, encoder, centre, scale, (*self.notes, note)
        )


def lined_up(
    exposure: Exposed, outcome: pd.DataFrame, covariates: pd.DataFrame | None, *, missing: str = "refuse"
) -> Patients:
    """The patients of whom exposure, outcome and covariates are known.

    Parameters
    ----------
    exposure : Metric, Series or array
        Natural scale. A Series is indexed by ID; an array is in the order of ``outcome``.
    outcome : DataFrame
        Indexed by ID.
    covariates : DataFrame, optional
        Indexed by ID. Numbers are standardised, text is categories.
    missing : {"refuse", "drop"}
        What happens to a patient of whom one of the three is not known.

    Raises
    ------
    DataError
        Somebody is missing and ``missing="refuse"``; nobody is left; all exposures are the same.
    """
    nearest_or_raise(missing, MISSING, "policy for missing values", "missing=")
    metric = _metric(exposure, outcome)
    outcome, metric_ids = _indexed(outcome, "outcome"), list(metric.subjects)
    z = pd.DataFrame(index=outcome.index) if covariates is None else _indexed(covariates, "covariates")
    everyone = list(dict.fromkeys([*metric_ids, *outcome.index]))
    known_x = {i for i, ok in zip(metric_ids, np.isfinite(metric.draws).all(axis=0), strict=True) if ok}
    known_y = set(outcome.index[~absent(outcome)])
    known_z = set(z.index[~absent(z)]) if z.shape[1] else set(everyone)
    notes = []
    for what, known in (("exposure", known_x), ("outcome", known_y), ("covariates", known_z)):
        lacking = [i for i in everyone if i not in known]
        if lacking:
            notes.append(f"{len(lacking)} patients have no {what} ({listed(lacking)})")
    if notes and missing == "refuse":
        text = "; ".join(notes)
        raise DataError(f"{metric.name}: {text}. Give what is missing, or leave them out with missing='drop'.")
    ids = [i for i in metric_ids if i in known_x & known_y & known_z]
    if not ids:
        raise DataError(f"{metric.name}: no patient has an exposure, an outcome and all covariates. Check the IDs.")
    metric = _taken(metric, np.array([metric_ids.index(i) for i in ids]))
    if not (metric.draws > 0).all():
        zero = [i for i, x in zip(ids, metric.draws.min(axis=0), strict=True) if x <= 0]
        raise DataError(
            f"{metric.name} is not above 0 in patients {listed(zero)}: its logarithm is used. Give a value below the "
            "limit, or an exposure from a fit, which is never 0."
        )
    centre, scale = _standard(metric)
    notes = tuple(f"left out: {n}" for n in notes)
    chosen = z.loc[ids]
    return Patients(tuple(ids), metric, outcome.loc[ids], chosen, encoder_of(chosen), centre, scale, notes)


def _metric(exposure: Exposed, outcome: pd.DataFrame) -> Metric:
    if isinstance(exposure, Metric):
        return exposure
    if isinstance(exposure, pd.Series):
        name, ids = str(exposure.name or "exposure"), [str(i) for i in exposure.index]
    else:
        name, ids = "exposure", [str(i) for i in outcome.index]
    values = np.asarray(exposure, float)
    if values.ndim != 1 or len(values) != len(ids):
        raise DataError(f"exposure has shape {values.shape}; give one number for each of {len(ids)} patients.")
    if len(set(ids)) < len(ids):
        raise DataError("exposure names a patient twice; give one number a patient.")
    n = len(ids)
    return Metric(name, "", tuple(ids), values[None], ("observed",) * n, ("",) * n, "", UNKNOWN_WINDOW)


def _indexed(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    found = frame.copy()
    found.index = pd.Index([str(i) for i in frame.index], name="ID")
    if found.index.has_duplicates:
        raise DataError(f"{what}: patients {listed(found.index[found.index.duplicated()])} stand there twice.")
    return found


def _taken(metric: Metric, at: np.ndarray) -> Metric:
    def some(items: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(items[k] for k in at)

    subjects, status, reason = some(metric.subjects), some(metric.status), some(metric.reason)
    return Metric(metric.name, metric.unit, subjects, metric.draws[:, at], status, reason, metric.assay, metric.window)


def _standard(metric: Metric) -> tuple[float, float]:
    ln = np.log(metric.value)
    if len(ln) < 3 or np.ptp(ln) < 1e-9:
        raise DataError(
            f"{metric.name}: {len(ln)} patients, and all with the same exposure or fewer than three; no relation can "
            "be told."
        )
    return float(ln.mean()), float(ln.std())
