"""Tables that say how a fit and its data agree; :mod:`carkinetics.plots` draws them."""

import numpy as np
import pandas as pd

from carkinetics.fit_result import Fit


def gof(fit: Fit) -> pd.DataFrame:
    """The goodness-of-fit table, one row per observation, in the dataset's order.

    Returns
    -------
    DataFrame
        ``ID TIME DVID DV CENS PRED IPRED IWRES``. ``PRED`` is the prediction with all random effects at zero,
        ``IPRED`` the individual's: posterior medians, in the assay's unit. ``IWRES`` is the individual
        weighted residual on the log scale, ``(ln DV - ln IPRED) / sigma``; it is missing where the value is
        censored, since the residual of a limit is none.
    """
    data, posterior = fit.data, fit.tree["posterior"].to_dataset()
    pred = np.median(posterior["pred"].values, axis=(0, 1))
    ipred = np.median(posterior["ipred"].values, axis=(0, 1))
    assays = np.array(data.assays, dtype=object)[data.assay]
    sigma = posterior["sigma"].mean(("chain", "draw")).sel(assay=list(assays)).values
    residual = (np.log(data.dv) - np.log(ipred)) / sigma
    return pd.DataFrame(
        {
            "ID": np.array(data.subjects, dtype=object)[data.subject],
            "TIME": data.time,
            "DVID": assays,
            "DV": data.dv,
            "CENS": data.cens,
            "PRED": pred,
            "IPRED": ipred,
            "IWRES": np.where(data.cens == 0, residual, np.nan),
        }
    )
