"""Late samples that CAR-T kinetics cannot explain: a rise when all that is left declines.

Such a rise may be a relapse by transduced leukaemia, or an infusion that no record tells of.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from carkinetics.diagnostics import weighted_residuals
from carkinetics.fit_result import Fit

LATE = 60.0  # day
SUSPECT = 0.05  # posterior predictive p-value
TENFOLD = np.log(10.0)  # the rise whose detection the power is of
_DRAWS = 1000


def late_rise(fit: Fit, *, after: float = LATE) -> pd.DataFrame:
    """Whose late samples lie above what the fitted kinetics allow.

    The statistic is the largest, over consecutive pairs of a patient's samples after ``after``, of the smaller of the
    two weighted residuals, less the mean of the late ones before them where that is below zero: two samples in a row
    that are too high, not one outlier, for what was there or after samples that were too low. The second is what a fit
    leaves of a rise, as its curve goes between the low samples and the high ones. A sample below the limit is no
    evidence of a rise; before one it counts as at the limit, and never as high. The p-value is the share of posterior
    draws in which a replicate of the samples, of the same curve with new residuals, has a larger statistic, the samples
    themselves counted as one more replicate: so it is never 0. As the curve was fitted to these samples, it is
    conservative.

    Parameters
    ----------
    after : float
        Day from which samples are late.

    Returns
    -------
    DataFrame
        One row a patient and assay with late samples: ``ID DVID SAMPLES`` (late ones), ``P``, ``FLAG`` (P below 0.05),
        and ``POWER``, the probability of a flag if the last two samples were ten times as high as they are expected,
        and the curve were known; a curve that was fitted to them has less. 0, and no P, with one late sample.

    References
    ----------
    Phipson B, Smyth GK, Stat Appl Genet Mol Biol 2010;9:39, doi:10.2202/1544-6115.1585 (p-values that are never 0).
    """
    data, tree = fit.data, fit.tree
    ipred = tree["posterior"].to_dataset()["ipred"].values.reshape(-1, data.n_obs).astype(float)
    again = tree["posterior_predictive"].to_dataset()["dv"].values.reshape(-1, data.n_obs).astype(float)
    keep = np.unique(np.linspace(0, len(ipred) - 1, _DRAWS).astype(int))
    ipred, again = ipred[keep], again[keep]
    lloq = {a.name: a.lloq or 0.0 for a in fit.model.assays}
    limit = np.where(data.cens == 1, data.dv, np.array([lloq[a] for a in data.assays])[data.assay])
    observed = _Residuals(weighted_residuals(fit, ipred), np.broadcast_to(data.cens == 1, ipred.shape))
    replicate = _Residuals(weighted_residuals(fit, ipred, np.maximum(again, limit)), again < limit)
    sigma = tree["posterior"].to_dataset()["sigma"].mean(("chain", "draw"))
    rows = []
    for i, name in enumerate(data.subjects):
        for a, assay in enumerate(data.assays):
            here = np.flatnonzero((data.subject == i) & (data.assay == a) & (data.time > after))
            here = here[np.argsort(data.time[here], kind="stable")]
            if len(here):
                step = TENFOLD / float(sigma.sel(assay=assay))
                p, power = _tested(observed.of(here), replicate.of(here), step)
                row = {"ID": name, "DVID": assay, "SAMPLES": len(here), "P": p, "FLAG": p < SUSPECT, "POWER": power}
                rows.append(row)
    return pd.DataFrame(rows, columns=["ID", "DVID", "SAMPLES", "P", "FLAG", "POWER"])


class _Residuals(NamedTuple):
    """Weighted residuals by draw and sample, at the limit where a sample is below it; and which are."""

    values: Float[np.ndarray, "draw sample"]
    below: Bool[np.ndarray, "draw sample"]

    def of(self, here: Int[np.ndarray, " some"]) -> "_Residuals":
        """Of some samples."""
        return _Residuals(self.values[:, here], self.below[:, here])

    def risen(self, step: float) -> "_Residuals":
        """With the last two samples higher by ``step``."""
        values = self.values.copy()
        values[:, -2:] += step
        return self._replace(values=values)


def _tested(observed: _Residuals, replicate: _Residuals, step: float) -> tuple[float, float]:
    """p-value, and the probability of a flag if the last two residuals were higher by ``step``."""
    if observed.values.shape[1] < 2:
        return np.nan, 0.0
    expected = _statistic(replicate)
    p = float((1 + np.sum(expected >= _statistic(observed))) / (1 + len(expected)))
    least = np.quantile(expected, 1 - SUSPECT, method="higher")
    return p, float(np.mean(_statistic(replicate.risen(step)) > least))


def _statistic(residuals: _Residuals) -> Float[np.ndarray, " draw"]:
    high = np.where(residuals.below, -np.inf, residuals.values)
    low = np.where(residuals.below, np.minimum(residuals.values, 0.0), residuals.values)
    mean = np.cumsum(low, axis=1) / np.arange(1, low.shape[1] + 1)
    before = np.concatenate([np.zeros((len(mean), 1)), mean[:, :-2]], axis=1)  # nothing before the first pair
    return (np.minimum(high[:, 1:], high[:, :-1]) - np.minimum(before, 0.0)).max(axis=1)
