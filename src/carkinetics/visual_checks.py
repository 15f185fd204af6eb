"""Visual predictive checks as tables: percentiles of the samples, and of simulated trials, over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from carkinetics.bins import Bins, make_bins
from carkinetics.dataset import Dataset
from carkinetics.fit_result import Fit
from carkinetics.inputs import baseline
from carkinetics.model import Model
from carkinetics.model_parts import nearest_or_raise
from carkinetics.parameter_table import INTERVAL
from carkinetics.prediction_errors import bounds
from carkinetics.replication import Replicated, reference_ln_pred, replicated

Correction = Literal["none", "prediction", "variability", "reference"]

PERCENTILES = (5.0, 50.0, 95.0)
REPLICATES = 500
_CATEGORIES = 5  # a covariate with more values than these is cut into thirds


@dataclass(frozen=True, eq=False)
class VisualCheck:
    """What the samples are, and what the model expects them to be.

    Attributes
    ----------
    percentiles : DataFrame
        By panel (``DVID STRATUM``), bin and percentile: ``BIN TIME`` (median day of its samples) ``FROM TO N
        PERCENTILE``, ``OBSERVED``, and over the simulated trials ``SIMULATED`` (median), ``LOW`` and ``HIGH`` (95 %).
        In the assay's unit; missing where it lies below the limit of quantification.
    blq : DataFrame
        By panel and bin: ``BIN TIME FROM TO N``, the share of samples below the limit, ``OBSERVED``, and over the
        simulated trials ``SIMULATED LOW HIGH``; ``LLOQ``, the commonest limit of these samples (missing without one).
    samples : DataFrame
        ``ID TIME DVID STRATUM BIN DV CENS``, in the data's order; ``DV`` corrected like the percentiles, and at the
        limit where it is censored.
    bins : dict
        Why the bins are what they are, by panel.
    correction : str
    replicates : int
        Simulated trials.
    units : dict
        Of every assay.
    label : str
        How the fit was made, where that has to be said.
    """

    percentiles: pd.DataFrame
    blq: pd.DataFrame
    samples: pd.DataFrame
    bins: dict[tuple[str, str], str]
    correction: str
    replicates: int
    units: dict[str, str]
    label: str = ""

    def outside(self) -> pd.DataFrame:
        """How many observed percentiles, and shares below the limit, lie outside their 95 % intervals.

        Returns
        -------
        DataFrame
            By ``DVID STRATUM`` and ``OF`` (a percentile, or ``BLQ``): ``BINS`` in which both can be told, ``OUTSIDE``,
            and the mean of their ``SIDE``: 1 where all lie above, -1 where all lie below.
        """
        every = [self.percentiles.rename(columns={"PERCENTILE": "OF"}), self.blq.assign(OF="BLQ")]
        rows = []
        for key, part in pd.concat([e.astype({"OF": object}) for e in every]).groupby(["DVID", "STRATUM", "OF"]):
            # A percentile below the limit lies below an interval that does not reach it, and the other way round.
            low, high, seen = (part[c].to_numpy() for c in ("LOW", "HIGH", "OBSERVED"))
            seen, low, high = (np.where(np.isnan(x), -np.inf, x) for x in (seen, low, high))
            known = ~(np.isinf(seen) & np.isinf(high))
            side = ((seen > high).astype(int) - (seen < low))[known]
            row = {"BINS": len(side), "OUTSIDE": int((side != 0).sum()), "SIDE": side.mean() if len(side) else 0.0}
            rows.append(dict(zip(("DVID", "STRATUM", "OF"), key, strict=True)) | row)  # pyright: ignore[reportArgumentType]
        return pd.DataFrame(rows).set_index(["DVID", "STRATUM", "OF"])


def vpc(
    source: Fit | Model,
    *,
    seed: int,
    n: int = REPLICATES,
    stratify: str | None = None,
    bins: str | int | Sequence[float] = "auto",
    correction: Correction = "none",
    data: Dataset | None = None,
) -> VisualCheck:
    """Compare percentiles of the samples with those of simulated trials.

    Every trial has new patients with the data's covariates, doses, days and limits, and population parameters of its
    own, a draw of the posterior: the interval of a percentile is that of a trial like this one, given what the fit
    knows (of a model: its own values). Both observed and simulated samples are censored with the same limits; what is
    below one counts as smaller than every number, what is above an upper limit as larger. Percentiles are interpolated
    linearly between the ordered natural logs.

    Parameters
    ----------
    n : int
        Simulated trials.
    stratify : str, optional
        A column of the table with one value a patient: panels by category, or by thirds of a number.
    bins : "auto", int or sequence of float
        Of the days, see :func:`carkinetics.bins.make_bins`; of every panel by itself.
    correction : {"none", "prediction", "variability", "reference"}
        ``prediction``: every value, observed or simulated, is multiplied by the median of ``PRED`` over its bin and
        divided by its own, so that differences of dose, covariates and days within a bin are no variability.
        ``variability``: then its log distance from that median is multiplied by the median over the bin of the SDs of
        corrected simulated logs, and divided by its row's own. ``reference``: ``PRED`` of its row is replaced by that
        of a patient with the median dose and every covariate at its centre on the same day, so that curves keep their
        shape. ``PRED`` is of the estimate. Limits act before the correction.
    data : Dataset, optional
        Samples to compare; the fit's own by default.

    Raises
    ------
    DataError
        The column is absent, or changes within a patient.

    References
    ----------
    Bergstrand M, Hooker AC, Wallin JE, Karlsson MO, AAPS J 2011;13:143-151, doi:10.1208/s12248-011-9255-z, eq. 1 and 2,
    with a lower bound of 0. Below the limit: Bergstrand M, Karlsson MO, AAPS J 2009;11:371-380,
    doi:10.1208/s12248-009-9112-5.
    """
    nearest_or_raise(correction, get_args(Correction), "correction", "vpc")
    trials = replicated(source, n=n, seed=seed, data=data)
    data = trials.data
    stratum = _strata(data, stratify)
    reference = reference_ln_pred(source, data) if correction == "reference" else None
    tables, blq, reasons = [], [], {}
    rows = _Rows(trials, stratum, np.zeros(data.n_obs, int), *_censored(trials))
    for panel in _panels(trials, stratum, stratify or ""):
        here = np.flatnonzero((trials.assay == panel[0]) & (stratum == panel[1]))
        found = make_bins(data.time[here], bins)
        rows.bin[here], reasons[panel] = found.of(data.time[here]), found.reason
        for k in np.unique(rows.bin[here]):
            at = here[rows.bin[here] == k]
            _correct(rows, at, correction, reference)
            where = _where(panel, found, int(k), data.time[at])
            tables.append(_percentiles_of(rows, at, where))
            blq.append(_below(rows, at, where))
    return VisualCheck(
        percentiles=pd.concat(tables, ignore_index=True),
        blq=pd.DataFrame(blq),
        samples=_samples(rows),
        bins=reasons,
        correction=correction,
        replicates=len(trials.ln_dv),
        units={a.name: a.unit for a in trials.model.assays},
        label=trials.label,
    )


class _Rows(NamedTuple):
    """Samples, observed and simulated, as natural logs; infinite beyond a limit."""

    trials: Replicated
    stratum: np.ndarray
    bin: Int[np.ndarray, " row"]
    observed: Float[np.ndarray, " row"]
    simulated: Float[np.ndarray, "replicate row"]
    at_limit: Float[np.ndarray, " row"]  # the observed value, or its limit


def _censored(trials: Replicated) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed and simulated values beyond limits as infinities, and observed ones at their limits."""
    data, limits = trials.data, trials.limits
    low, high = bounds(data)
    simulated = np.where(limits.below(trials.ln_dv), -np.inf, trials.ln_dv)
    simulated[limits.above(trials.ln_dv)] = np.inf
    observed = np.select([data.cens == 1, data.cens == -1], [-np.inf, np.inf], default=low)
    return observed, simulated, np.select([data.cens == 1, data.cens == -1], [high, low], default=low)


def _strata(data: Dataset, column: str | None) -> np.ndarray:
    """Of every row, in words; empty without a column."""
    if column is None:
        return np.full(data.n_obs, "", dtype=object)
    x = baseline(data, column)
    if x.dtype == object:
        return np.array([f"{column} {v or 'unknown'}" for v in x], dtype=object)[data.subject]
    known = np.unique(x[~np.isnan(x)])
    words = np.array([f"{column} {v:g}" for v in x], dtype=object)
    if len(known) > _CATEGORIES:
        cuts = np.quantile(x[~np.isnan(x)], (0, 1 / 3, 2 / 3, 1))
        third = np.clip(np.searchsorted(cuts, x, side="right") - 1, 0, 2)
        words = np.array([f"{column} {cuts[k]:.3g} to {cuts[k + 1]:.3g}" for k in third], dtype=object)
    words[np.isnan(x)] = f"{column} unknown"
    return words[data.subject]


def _panels(trials: Replicated, stratum: np.ndarray, column: str) -> list[tuple[str, str]]:
    """Assays in the data's order, and of each its strata: numbers by size, words by the alphabet, unknown ones last."""

    def place(words: str) -> tuple:
        try:
            return (0, float(words.removeprefix(f"{column} ").split(" ")[0]), words)
        except ValueError:
            return (2 if words.endswith(" unknown") else 1, 0.0, words)

    found = set(zip(trials.assay, stratum, strict=True))
    return sorted(found, key=lambda panel: (trials.data.assays.index(panel[0]), *place(panel[1])))


def _correct(rows: _Rows, at: Int[np.ndarray, " n"], correction: Correction, reference) -> None:
    """Correct the values of one bin in place."""
    if correction == "none":
        return
    pred = rows.trials.ln_pred[at]
    to = np.full(len(at), np.log(np.median(np.exp(pred)))) if reference is None else reference[at]
    with np.errstate(invalid="ignore"):
        shift = np.where(np.isfinite(to - pred), to - pred, 0.0)
    for values in (rows.observed, rows.at_limit):
        values[at] += shift
    rows.simulated[:, at] += shift
    if correction == "variability":
        # Of values as they were simulated, whatever a limit hides of them.
        free = rows.trials.ln_dv[:, at] + shift
        sd = np.nanstd(np.where(np.isfinite(free), free, np.nan), axis=0, ddof=1)
        factor = np.median(sd) / np.where(sd > 0, sd, np.median(sd))
        for values in (rows.observed, rows.at_limit):
            values[at] = to + (values[at] - to) * factor
        rows.simulated[:, at] = to + (rows.simulated[:, at] - to) * factor


def _where(panel: tuple[str, str], bins: Bins, k: int, time: Float[np.ndarray, " n"]) -> dict:
    days = {"TIME": float(np.median(time)), "FROM": float(bins.edges[k]), "TO": float(bins.edges[k + 1])}
    return {"DVID": panel[0], "STRATUM": panel[1], "BIN": k, **days, "N": len(time)}


def _percentiles_of(rows: _Rows, at: Int[np.ndarray, " n"], where: dict) -> pd.DataFrame:
    levels = np.array(PERCENTILES) / 100
    seen = quantile(rows.observed[at], levels)
    drawn = quantile(rows.simulated[:, at], levels)  # (replicate, percentile)
    low, middle, high = quantile(drawn.T, np.array([INTERVAL[0], 0.5, INTERVAL[1]])).T

    def level(ln):
        return np.exp(np.where(np.isfinite(ln), ln, np.nan))

    columns = {"OBSERVED": level(seen), "SIMULATED": level(middle), "LOW": level(low), "HIGH": level(high)}
    return pd.DataFrame({**where, "PERCENTILE": PERCENTILES, **columns})


def _below(rows: _Rows, at: Int[np.ndarray, " n"], where: dict) -> dict:
    share = np.isneginf(rows.simulated[:, at]).mean(axis=1)
    low, middle, high = np.quantile(share, (INTERVAL[0], 0.5, INTERVAL[1]))
    limits = rows.trials.limits.lloq[at]
    found, counts = np.unique(limits[np.isfinite(limits)], return_counts=True)
    lloq = float(np.exp(found[np.argmax(counts)])) if len(found) else np.nan
    numbers = {"OBSERVED": float(np.isneginf(rows.observed[at]).mean()), "SIMULATED": float(middle)}
    return {**where, **numbers, "LOW": float(low), "HIGH": float(high), "LLOQ": lloq}


def quantile(x: Float[np.ndarray, "*n m"], levels: Float[np.ndarray, " level"]) -> Float[np.ndarray, "*n level"]:
    """Quantiles along the last axis, linear between order statistics, of values that may be infinite."""
    ordered = np.sort(x, axis=-1)
    at = levels * (x.shape[-1] - 1)
    low, high = np.floor(at + 1e-12).astype(int), np.ceil(at - 1e-12).astype(int)
    a, b, part = ordered[..., low], ordered[..., high], at - low
    with np.errstate(invalid="ignore"):
        between = a + part * (b - a)
    # Next to minus infinity a quantile is below the limit; next to plus infinity beyond that one.
    between = np.where(np.isneginf(a), -np.inf, np.where(np.isposinf(b), np.inf, between))
    return np.where(low == high, a, between)


def _samples(rows: _Rows) -> pd.DataFrame:
    data = rows.trials.data
    return pd.DataFrame(
        {
            "ID": np.array(data.subjects, dtype=object)[data.subject],
            "TIME": data.time,
            "DVID": rows.trials.assay,
            "STRATUM": rows.stratum,
            "BIN": rows.bin,
            "DV": np.exp(rows.at_limit),
            "CENS": data.cens,
        }
    )
