"""Prediction discrepancies and normalised prediction distribution errors: where samples lie among simulated ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special, stats

from carkinetics.dataset import Dataset
from carkinetics.errors import ModelError
from carkinetics.fit_result import Fit
from carkinetics.model import Model
from carkinetics.model_parts import nearest_or_raise
from carkinetics.replication import Replicated, replicated

Decorrelation = Literal["cholesky", "inverse"]

REPLICATES = 1000
_SHAPIRO_MAX = 5000  # values; beyond it the p-value of Shapiro and Wilk's test is not accurate
_FLOOR = 1e-10  # of the largest eigenvalue: below it a covariance is one of values that always move together


@dataclass(frozen=True, eq=False)
class PredictionErrors:
    """Errors of the predictions of a model; of the right model they are standard normal.

    Attributes
    ----------
    rows : DataFrame
        By sample, in the order of the data: ``ID TIME DVID DV CENS PRED NPD NPDE``.
    replicates : int
        Simulated trials in which the samples' places were looked up.
    decorrelation : str
    units : mapping
        Of every assay's ``DV`` and ``PRED``.
    label : str
        How the fit was made, where that has to be said.
    """

    rows: pd.DataFrame
    replicates: int
    decorrelation: str
    units: Mapping[str, str]
    label: str = ""

    @staticmethod
    def quantiles(n: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Where ``n`` ordered standard normal numbers lie: median, and 95 % interval of each by itself."""
        k = np.arange(1, n + 1)
        low, middle, high = (special.ndtri(special.betaincinv(k, n + 1 - k, q)) for q in (0.025, 0.5, 0.975))
        return middle, low, high

    def table(self) -> pd.DataFrame:
        """Tests of ``NPDE`` against a standard normal, one row an assay.

        Returns
        -------
        DataFrame
            By DVID: ``N``, ``MEAN`` and ``P MEAN`` (Wilcoxon's signed ranks), ``VARIANCE`` and ``P VARIANCE`` (Fisher),
            ``P NORMAL`` (Shapiro and Wilk; Kolmogorov and Smirnov with more than 5,000), and ``P``: the smallest of the
            three, times three. Of a fit's own data the errors are a little too small, as it was fitted to them.

        References
        ----------
        Comets E, Brendel K, Mentre F, Comput Methods Programs Biomed 2008;90:154-166, doi:10.1016/j.cmpb.2007.12.002.
        """
        rows = [{"DVID": assay} | _tests(part["NPDE"].to_numpy()) for assay, part in self.rows.groupby("DVID")]
        return pd.DataFrame(rows).set_index("DVID")


def _tests(x: Float[np.ndarray, " n"]) -> dict[str, float]:
    n, found = len(x), {"N": len(x), "MEAN": float(x.mean())}
    if n < 3:
        return found | dict.fromkeys(("P MEAN", "VARIANCE", "P VARIANCE", "P NORMAL", "P"), np.nan)
    mean, variance = float(np.asarray(stats.wilcoxon(x))[1]), float(x.var(ddof=1))
    side = float(stats.chi2.cdf((n - 1) * variance, n - 1))
    normal = stats.shapiro(x) if n <= _SHAPIRO_MAX else stats.kstest(x, "norm")
    p = (mean, 2 * min(side, 1 - side), float(normal.pvalue))
    found |= {"P MEAN": p[0], "VARIANCE": variance, "P VARIANCE": p[1], "P NORMAL": p[2]}
    return found | {"P": min(1.0, 3 * min(p))}


def npde(
    source: Fit | Model,
    *,
    seed: int,
    n: int = REPLICATES,
    data: Dataset | None = None,
    decorrelation: Decorrelation = "cholesky",
    uncertainty: bool = False,
) -> PredictionErrors:
    """Normalised prediction distribution errors of the samples of a fit, or of a model or a fit on other data.

    ``NPD`` says where a sample lies among the simulated ones of its row: the rank of its value among ``n`` simulated
    ones and itself, drawn uniformly within the range of ties, divided by ``n + 1`` and put through the normal quantile
    function. It is exactly standard normal if the model is right, whatever ``n``, the residual and the random effects,
    but samples of one patient are correlated. For ``NPDE`` the values of a patient's samples of one assay, observed and
    simulated, are first freed of the simulated ones' mean and covariance, and ranked then.

    Values are compared as natural logs; those of counts as ``ln(1 + DV)``, and of a combined residual as ``ln(additive
    SD + DV)``, since they can be 0. Neither rank nor test depends on that, only what decorrelation leaves.

    A censored sample has the rank of a value drawn uniformly among the simulated ones on its side of the limit (or
    between its limits). It is then replaced by that value, and simulated values on that side are likewise exchanged
    with one another before mean and covariance are computed, since what a limit hides of an observed sample it must
    hide of a simulated one.

    Parameters
    ----------
    n : int
        Simulated trials.
    data : Dataset, optional
        Samples to judge; the fit's own by default.
    decorrelation : {"cholesky", "inverse"}
        By the inverse of the covariance's Cholesky factor, in the order of time, so that every sample is judged given
        those before it; or by the inverse of its symmetric square root, in which all days count alike.
    uncertainty : bool
        Every simulated trial has a draw of the posterior; without, as in the definition, all have the estimate.

    References
    ----------
    Brendel K, Comets E, Laffont C, Laveille C, Mentre F, Pharm Res 2006;23:2036-2049, doi:10.1007/s11095-006-9067-5.
    Censored samples: Nguyen THT, Comets E, Mentre F, J Pharmacokinet Pharmacodyn 2012;39:499-518,
    doi:10.1007/s10928-012-9264-2.
    """
    nearest_or_raise(decorrelation, get_args(Decorrelation), "decorrelation", "npde")
    trials = replicated(source, n=n, seed=seed, data=data, population="posterior" if uncertainty else "estimate")
    npd, errors = errors_of(trials, *bounds(trials.data), seed=seed, decorrelation=decorrelation)
    data = trials.data
    rows = {
        "ID": np.array(data.subjects, dtype=object)[data.subject],
        "TIME": data.time,
        "DVID": trials.assay,
        "DV": data.dv,
        "CENS": data.cens,
        "PRED": np.exp(trials.ln_pred),
        "NPD": npd,
        "NPDE": errors,
    }
    units = {a.name: a.unit for a in trials.model.assays}
    return PredictionErrors(pd.DataFrame(rows), len(trials.ln_dv), decorrelation, units, trials.label)


def bounds(data: Dataset) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Natural logs of the values between which every sample lies; equal where it is quantified."""
    low, high = data.dv.copy(), data.dv.copy()
    interval = np.isfinite(data.limit) & (data.cens != 0)
    low[data.cens == 1], high[data.cens == -1] = 0.0, np.inf
    low[interval] = np.minimum(data.dv, data.limit)[interval]
    high[interval] = np.maximum(data.dv, data.limit)[interval]
    with np.errstate(divide="ignore"):
        return np.log(low), np.log(high)


def errors_of(
    trials: Replicated,
    low: Float[np.ndarray, " row"],
    high: Float[np.ndarray, " row"],
    *,
    seed: int,
    decorrelation: Decorrelation = "cholesky",
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """NPD and NPDE of samples that lie between ``low`` and ``high`` (natural logs, equal where quantified)."""
    data, rng = trials.data, np.random.default_rng([seed, 6])
    scale = _Scale(trials)
    simulated, low, high = scale(trials.ln_dv), scale(low), scale(high)
    cuts = np.stack([scale(x) for x in (trials.limits.lod, trials.limits.lloq, trials.limits.uloq)])
    npd, errors = np.empty(data.n_obs), np.empty(data.n_obs)
    group = data.subject * len(data.assays) + data.assay
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        _refuse_few(len(simulated), len(rows), data)
        u = rng.uniform(size=(2, len(rows)))
        values, place, expected = imputed(simulated[:, rows], low[rows], high[rows], cuts[:, rows], u[0], rng)
        npd[rows] = special.ndtri(place)
        errors[rows] = special.ndtri(decorrelated(values, expected, u[1], decorrelation))
    return npd, errors


def _refuse_few(n: int, rows: int, data: Dataset) -> None:
    if n <= 2 * rows:
        raise ModelError(
            f"{data.source}: {n} simulated trials cannot tell how {rows} samples of one patient vary together. "
            f"Use n = {max(REPLICATES, 20 * rows)}."
        )


class _Scale:
    """What takes natural logs of values to a scale on which a value of 0 is finite where an assay can give one."""

    def __init__(self, trials: Replicated):
        assays = {a.name: a for a in trials.model.assays}
        self.added = np.full(trials.data.n_obs, -np.inf)  # ln of what is added to the value
        for row_assay in trials.data.assays:
            assay, here = assays[row_assay], trials.assay == row_assay
            self.added[here] = {"negative_binomial": 0.0, "combined": _ln(assay.second)}.get(assay.error, -np.inf)

    def __call__(self, ln: Float[np.ndarray, "*n row"]) -> Float[np.ndarray, "*n row"]:
        return np.logaddexp(self.added, ln)


def _ln(x: float) -> float:
    return float(np.log(x)) if x > 0 else 0.0


def imputed(
    simulated: Float[np.ndarray, "replicate m"],
    low: Float[np.ndarray, " m"],
    high: Float[np.ndarray, " m"],
    cuts: Float[np.ndarray, "3 m"],
    u: Float[np.ndarray, " m"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], Float[np.ndarray, "replicate m"]]:
    """Samples with a value drawn where a limit hides it, their places among simulated ones, and these, exchanged.

    Parameters
    ----------
    low, high : Float[" m"]
        Between which the observed values lie.
    cuts : Float["3 m"]
        Limits of detection, of quantification and from above.
    u : Float[" m"]
        Uniform: the place within ties, or beyond a limit.

    Returns
    -------
    tuple
        Observed values, their places in (0, 1), and the simulated values in which those between the same cuts, but for
        the quantified ones, have changed replicates at random.
    """
    n, known = len(simulated), low == high
    before = (simulated < low).sum(axis=0)
    until = np.where(known, (simulated <= high).sum(axis=0), (simulated < high).sum(axis=0))
    until = np.where(np.isposinf(high), n, until)
    place = (before + u * (until - before + 1)) / (n + 1)
    at = np.minimum(before + (u * (until - before)).astype(int), n - 1)
    hidden = np.flatnonzero(~known)
    values = low.copy()
    values[hidden] = np.sort(simulated[:, hidden], axis=0)[at[hidden], np.arange(len(hidden))]
    # Beyond a limit where nothing was simulated, the limit is all that is known.
    nowhere = until == before
    values = np.where(~known & nowhere, np.where(np.isfinite(high), high, low), values)
    exchanged = simulated.copy()
    for j in range(len(low)):
        lod, lloq, uloq = cuts[:, j]
        for inside in (simulated[:, j] < lod, (simulated[:, j] >= lod) & (simulated[:, j] < lloq)):
            exchanged[inside, j] = rng.permutation(simulated[inside, j])
        beyond = simulated[:, j] >= uloq
        exchanged[beyond, j] = rng.permutation(simulated[beyond, j])
    return values, place, exchanged


def decorrelated(
    values: Float[np.ndarray, " m"],
    simulated: Float[np.ndarray, "replicate m"],
    u: Float[np.ndarray, " m"],
    how: Decorrelation = "cholesky",
) -> Float[np.ndarray, " m"]:
    """Places in (0, 1) of samples of one patient among simulated ones, once both are freed of their covariance.

    Parameters
    ----------
    u : Float[" m"]
        Uniform: the place within ties.
    """
    mean = simulated.mean(axis=0)
    covariance = np.atleast_2d(np.cov(simulated, rowvar=False))
    white = _whitening(covariance, how)
    x, of = white @ (values - mean), (simulated - mean) @ white.T
    before, until = (of < x).sum(axis=0), (of <= x).sum(axis=0)
    return (before + u * (until - before + 1)) / (len(of) + 1)


def _whitening(covariance: Float[np.ndarray, "m m"], how: Decorrelation) -> Float[np.ndarray, "m m"]:
    """A matrix that takes vectors with this covariance to uncorrelated ones of variance one."""
    if how == "cholesky":
        try:
            return np.linalg.inv(np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError:  # values that always move together, to rounding
            largest = float(np.diag(covariance).max(initial=0.0)) or 1.0
            return np.linalg.inv(np.linalg.cholesky(covariance + _FLOOR * largest * np.eye(len(covariance))))
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, _FLOOR * max(float(values.max()), 1e-300))
    return (vectors / np.sqrt(values)) @ vectors.T
