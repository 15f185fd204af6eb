"""Exposure that was measured with a known error: what the values say of the exposure that there was."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from carkinetics.errors import DataError
from carkinetics.metric import Metric
from carkinetics.simulation import refuse_seed

DRAWS = 2000
_GRID = 400  # values of the SD between patients
_WIDEST = 5.0  # of them, in SDs of the values


def with_error(metric: Metric, sd: float | Float[np.ndarray, " subject"], *, seed: int, draws: int = DRAWS) -> Metric:
    """Draws of the true exposure, given values that scatter around it: for ``two_stage="propagate"``.

    A measured value has a normal error of its natural log, with a known SD; true ln exposures are normal between
    patients, with a mean and an SD that are estimated (flat priors). Their draws are shrunk to the mean by as much as
    the errors ask for. A slope on the values themselves is attenuated by the share of their variance that is error.
    Each draw has its own mean and SD between patients, so what patients share is in it.

    Parameters
    ----------
    metric : Metric
        With one draw, such as an observed peak.
    sd : float or array
        SD of ln value around ln exposure, of all or of each patient; ``0.8 * ln(10)`` for 0.8 log10.

    Returns
    -------
    Metric
        The same with ``draws`` draws; its statuses and window are those of the values.

    Raises
    ------
    DataError
        The metric has draws already; a value is not above 0; an SD is not above 0.

    References
    ----------
    Carroll RJ et al. Measurement Error in Nonlinear Models, 2nd ed., 2006, doi:10.1201/9781420010138: chapter 4.
    """
    refuse_seed(seed)
    error = np.broadcast_to(np.asarray(sd, float), (len(metric.subjects),))
    if len(metric.draws) != 1:
        raise DataError(f"{metric.name} has {len(metric.draws)} draws: its uncertainty is in them already.")
    if not (np.isfinite(error).all() and (error > 0).all()):
        raise DataError(f"{metric.name}: the SD of its error must be finite and above 0.")
    known = np.isfinite(metric.draws[0])
    if not (metric.draws[0][known] > 0).all() or known.sum() < 3:
        raise DataError(f"{metric.name}: give three values above 0 or more.")
    w, variance = np.log(metric.draws[0][known]), np.square(error[known])
    between = np.linspace(0, _WIDEST * w.std(), _GRID + 1)[1:]  # SD of true exposures
    precision = 1 / (variance[:, None] + np.square(between))
    total = precision.sum(axis=0)
    mean = (precision * w[:, None]).sum(axis=0) / total
    log_p = 0.5 * np.log(precision).sum(axis=0) - 0.5 * (precision * np.square(w[:, None] - mean)).sum(axis=0)
    log_p -= 0.5 * np.log(total)
    p = np.exp(log_p - log_p.max())
    random = np.random.default_rng(seed)
    at = random.choice(_GRID, draws, p=p / p.sum())
    mu = mean[at] + random.standard_normal(draws) / np.sqrt(total[at])
    square = np.square(between[at])[:, None]
    shrunk = (square * w + variance * mu[:, None]) / (square + variance)
    width = np.sqrt(square * variance / (square + variance))
    ln = np.full((draws, len(known)), np.nan)
    ln[:, known] = shrunk + width * random.standard_normal(shrunk.shape)
    return replace(metric, draws=np.exp(ln))
