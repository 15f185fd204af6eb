"""Late samples that CAR-T kinetics cannot explain: a rise when all that is left declines.

Such a rise may be a relapse by transduced leukaemia, or an infusion that no record tells of.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.diagnostics import weighted_residuals
from carkinetics.fit_result import Fit

LATE = 60.0  # day
SUSPECT = 0.05  # posterior predictive p-value
TENFOLD = np.log(10.0)  # the rise whose detection the power is of
_DRAWS = 1000


def late_rise(fit: Fit, *, after: float = LATE) -> pd.DataFrame:
    """Whose late samples lie above what the fitted kinetics allow.

    The statistic is the largest, over consecutive pairs of a patient's samples after ``after``, of the smaller of the
    two weighted residuals: two samples in a row that are too high, not one outlier. A sample below the limit is no
    evidence of a rise. Its p-value is the share of posterior draws in which a replicate of the samples, of the same
    curve with new residuals, has a larger statistic; as the curve was fitted to these samples, it is conservative.

    Parameters
    ----------
    after : float
        Day from which samples are late.

    Returns
    -------
    DataFrame
        One row a patient and assay with late samples: ``ID DVID SAMPLES`` (late ones), ``P``, ``FLAG`` (P below 0.05),
        and ``POWER``, the probability of a flag if the last two samples were ten times as high as they are expected
        (given the curve); 0, and no P, with one late sample.
    """
    data, tree = fit.data, fit.tree
    ipred = tree["posterior"].to_dataset()["ipred"].values.reshape(-1, data.n_obs).astype(float)
    again = tree["posterior_predictive"].to_dataset()["dv"].values.reshape(-1, data.n_obs).astype(float)
    keep = np.unique(np.linspace(0, len(ipred) - 1, _DRAWS).astype(int))
    ipred, again = ipred[keep], again[keep]
    observed, replicate = weighted_residuals(fit, ipred), weighted_residuals(fit, ipred, again)
    observed[:, data.cens == 1] = -np.inf
    lloq = {a.name: a.lloq or 0.0 for a in fit.model.assays}
    limit = np.where(data.cens == 1, data.dv, np.array([lloq[a] for a in data.assays])[data.assay])
    replicate[again < limit] = -np.inf
    sigma = tree["posterior"].to_dataset()["sigma"].mean(("chain", "draw"))
    rows = []
    for i, name in enumerate(data.subjects):
        for a, assay in enumerate(data.assays):
            here = np.flatnonzero((data.subject == i) & (data.assay == a) & (data.time > after))
            here = here[np.argsort(data.time[here], kind="stable")]
            if len(here):
                step = TENFOLD / float(sigma.sel(assay=assay))
                p, power = _tested(observed[:, here], replicate[:, here], step)
                row = {"ID": name, "DVID": assay, "SAMPLES": len(here), "P": p, "FLAG": p < SUSPECT, "POWER": power}
                rows.append(row)
    return pd.DataFrame(rows, columns=["ID", "DVID", "SAMPLES", "P", "FLAG", "POWER"])


def _tested(
    observed: Float[np.ndarray, "draw sample"], replicate: Float[np.ndarray, "draw sample"], step: float
) -> tuple[float, float]:
    """p-value, and the probability of a flag if the last two residuals were higher by ``step``."""
    if observed.shape[1] < 2:
        return np.nan, 0.0
    expected = _statistic(replicate)
    p = float(np.mean(expected >= _statistic(observed)))
    risen = replicate.copy()
    risen[:, -2:] += step
    return p, float(np.mean(_statistic(risen) > np.quantile(expected, 1 - SUSPECT, method="higher")))


def _statistic(residuals: Float[np.ndarray, "draw sample"]) -> Float[np.ndarray, " draw"]:
    return np.minimum(residuals[:, 1:], residuals[:, :-1]).max(axis=1)
