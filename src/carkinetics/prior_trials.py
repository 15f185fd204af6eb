"""What a model expects before it has seen the data: virtual patients from its priors, beside the samples."""

from dataclasses import replace

import numpy as np
import pandas as pd

from carkinetics.cohort import Cohort
from carkinetics.dataset import Dataset
from carkinetics.infusion import with_evidence
from carkinetics.inputs import baseline, resolved
from carkinetics.model import Model
from carkinetics.simulation import simulate

_TIMES = 60


def prior_predictive(
    model: Model, data: Dataset, *, seed: int, replicates: int = 200, interval: float = 0.90
) -> pd.DataFrame:
    """Quantiles of what the assays would report, over trials simulated from the model's priors.

    Each replicate has a population of its own, drawn from the priors, and as many patients as the data, with their
    covariates, at the typical dose and with typical regressors.

    Parameters
    ----------
    data : Dataset
        Its patients, assays and follow-up are used, not its values.
    interval : float
        Of samples, equal-tailed.

    Returns
    -------
    DataFrame
        ``TIME DVID LOW MEDIAN HIGH`` in the assays' units: quantiles over patients and replicates, without limits.
    """
    model, _ = with_evidence(model, data)
    model, _ = resolved(model, data)
    last = float(data.time.max(initial=28.0))
    times = np.unique(np.concatenate([np.linspace(0, min(last, 28.0), _TIMES // 2), np.linspace(0, last, _TIMES)]))
    columns = {c.column: baseline(data, c.column) for c in model.covariates}
    people = pd.DataFrame(columns, index=range(data.n_subjects)) if columns else {}
    dose = None if np.isnan(model.typical_dose) else float(model.typical_dose)
    cohort = replace(Cohort(n=data.n_subjects, times=times.tolist(), covariates=people), dose=dose)
    simulation = simulate(model, cohort, seed=seed, replicates=replicates, uncertainty=True, limits=False)
    dv = simulation.samples["dv"].transpose("assay", "time", "replicate", "subject")
    tails = ((1 - interval) / 2, 0.5, (1 + interval) / 2)
    tables = []
    for assay in (a for a in dv["assay"].values if a in data.assays):
        values = dv.sel(assay=assay).values.reshape(len(times), -1)
        low, median, high = np.nanquantile(values, tails, axis=1)
        tables.append(pd.DataFrame({"TIME": times, "DVID": assay, "LOW": low, "MEDIAN": median, "HIGH": high}))
    return pd.concat(tables, ignore_index=True)
