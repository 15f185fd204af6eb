"""Predictive checks of what is reported of a trial: its highest levels, their days, the last ones, the share below."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.dataset import Dataset
from carkinetics.fit_result import Fit
from carkinetics.parameter_table import INTERVAL
from carkinetics.prediction_errors import bounds
from carkinetics.replication import Replicated, Source, replicated

REPLICATES = 500
STATISTICS = {
    "cmax": "median over patients of the highest level",
    "cmax_sd": "SD over patients of the natural log of the highest level",
    "tmax": "median over patients of the day of the highest level",
    "t_last": "median over patients of the day of the last level above the limit",
    "last": "median over patients of the level of the last sample",
    "blq": "share of samples below the limit",
}
_FROM: tuple[Source, ...] = ("posterior", "prior")


def predictive_checks(fit: Fit, *, seed: int, n: int = REPLICATES, data: Dataset | None = None) -> pd.DataFrame:
    """Statistics of the trial among those of simulated trials, of the posterior and of the priors.

    Every simulated trial has new patients with the data's covariates, doses, days and limits. A value below the limit
    counts as the limit; a patient without a value above it has no ``t_last``.

    Parameters
    ----------
    n : int
        Simulated trials from each.
    data : Dataset, optional
        Samples to check; the fit's own by default.

    Returns
    -------
    DataFrame
        By ``DVID``, ``STATISTIC`` and ``FROM`` (posterior, prior): ``OBSERVED``; ``SIMULATED`` (median), ``LOW`` and
        ``HIGH`` (95 %) over the simulated trials; ``P``, two-sided: twice the share of them that lie on the side of the
        observed one on which fewer do, ties counted half. ``ABOUT`` says what the statistic is, ``UNIT`` its unit. A
        small P from the priors says that they do not expect this trial; from the posterior, that the model does not.

    References
    ----------
    Gelman A, Meng XL, Stern H, Stat Sin 1996;6:733-760. Box GEP, J R Stat Soc A 1980;143:383-430, doi:10.2307/2982063.
    """
    tables = []
    for population in _FROM:
        trials = replicated(fit, n=n, seed=seed, data=data, population=population)
        tables += [_checked(trials, k, population) for k in range(len(trials.data.assays))]
    order = pd.MultiIndex.from_product([fit.data.assays if data is None else data.assays, STATISTICS, _FROM])
    return pd.concat(tables).set_index(["DVID", "STATISTIC", "FROM"]).loc[order.tolist()]


def _checked(trials: Replicated, k: int, population: str) -> pd.DataFrame:
    data = trials.data
    rows = np.flatnonzero(data.assay == k)
    low, high = bounds(data)
    observed = np.where(data.cens == 1, -np.inf, np.where(data.cens == -1, low, high))
    simulated = np.where(trials.limits.below(trials.ln_dv), -np.inf, np.minimum(trials.ln_dv, trials.limits.uloq))
    subject, time, floor = data.subject[rows], data.time[rows], trials.limits.lloq[rows]
    seen = {s: v[0] for s, v in statistics(observed[None, rows], subject, time, floor).items()}
    drawn = statistics(simulated[:, rows], subject, time, floor)
    assay = data.assays[k]
    unit = next(a.unit for a in trials.model.assays if a.name == assay)
    units = {"cmax": unit, "cmax_sd": "ln", "tmax": "day", "t_last": "day", "last": unit, "blq": "1"}
    found = []
    for name, about in STATISTICS.items():
        values = drawn[name][~np.isnan(drawn[name])]
        row = {"DVID": assay, "STATISTIC": name, "FROM": population, "OBSERVED": seen[name]}
        tails = np.quantile(values, (0.5, *INTERVAL)) if len(values) else np.full(3, np.nan)
        row |= dict(zip(("SIMULATED", "LOW", "HIGH"), tails, strict=True))
        found.append(row | {"P": two_sided(values, seen[name]), "UNIT": units[name], "ABOUT": about})
    return pd.DataFrame(found)


def two_sided(simulated: Float[np.ndarray, " n"], observed: float) -> float:
    """Twice the share of simulated values on the side of the observed one on which fewer lie; ties count half."""
    if np.isnan(observed) or not len(simulated):
        return np.nan
    above = float(np.mean(simulated > observed) + 0.5 * np.mean(simulated == observed))
    return 2 * min(above, 1 - above)


def statistics(
    ln_dv: Float[np.ndarray, "trial row"],
    subject: np.ndarray,
    time: Float[np.ndarray, " row"],
    floor: Float[np.ndarray, " row"],
) -> dict[str, Float[np.ndarray, " trial"]]:
    """:data:`STATISTICS` of trials whose samples below their limit are minus infinity; ``floor``: ln of the limits."""
    trials = len(ln_dv)
    each = {name: [] for name in ("cmax", "tmax", "t_last", "last")}
    held = np.maximum(ln_dv, np.where(np.isfinite(floor), floor, -700.0))
    for i in np.unique(subject):
        rows = np.flatnonzero(subject == i)
        rows = rows[np.argsort(time[rows], kind="stable")]
        mine, days = held[:, rows], time[rows]
        each["cmax"].append(mine.max(axis=1))
        each["tmax"].append(days[mine.argmax(axis=1)])
        above = ~np.isneginf(ln_dv[:, rows])
        final = len(rows) - 1 - above[:, ::-1].argmax(axis=1)
        each["t_last"].append(np.where(above.any(axis=1), days[final], np.nan))
        each["last"].append(mine[:, -1])
    stacked = {name: np.stack(values) for name, values in each.items()}  # (patient, trial)
    some = ~np.isnan(stacked["t_last"]).all(axis=0)
    t_last = np.full(trials, np.nan)
    t_last[some] = np.nanmedian(stacked["t_last"][:, some], axis=0)
    several = len(stacked["cmax"]) > 1
    return {
        "cmax": np.exp(np.median(stacked["cmax"], axis=0)),
        "cmax_sd": stacked["cmax"].std(axis=0, ddof=1) if several else np.full(trials, np.nan),
        "tmax": np.median(stacked["tmax"], axis=0),
        "t_last": t_last,
        "last": np.exp(np.median(stacked["last"], axis=0)),
        "blq": np.isneginf(ln_dv).mean(axis=1),
    }
