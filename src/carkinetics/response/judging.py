"""How a response model agrees with what was seen: exact shares by quantile, calibration, AUROC, Brier, Kaplan-Meier."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from scipy.special import logsumexp

from carkinetics.errors import ModelError
from carkinetics.response.guards import BINS, bins_of
from carkinetics.response.result import AbstractResponse
from carkinetics.response.survival import Survival
from carkinetics.response.tte_model import TteResponse
from carkinetics.simulation import refuse_seed

RESAMPLES = 1000  # of the Bayesian bootstrap
_SOME = 400


def clopper_pearson(events: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share.

    References
    ----------
    Clopper CJ, Pearson ES. Biometrika 1934;26:404-413, doi:10.1093/biomet/26.4.404.
    """
    tail = (1 - level) / 2
    low = 0.0 if events == 0 else float(stats.beta.ppf(tail, events, n - events + 1))
    high = 1.0 if events == n else float(stats.beta.isf(tail, events + 1, n - events))
    return low, high


def quantile_table(
    response: AbstractResponse, *, bins: int = BINS, at: float | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Observed shares by quantile of exposure (each patient's median), with exact intervals.

    Returns
    -------
    DataFrame
        ``BIN FROM TO VALUE`` (smallest, largest and median exposure), ``N EVENTS SHARE LOW HIGH``. For ``tte`` patients
        whose follow-up ended before ``at`` are not counted.
    """
    y, x = response.observed(at), response.patients.metric.value
    which = bins_of(response.patients.point, bins)
    rows = []
    for k in np.unique(which):
        mine = (which == k) & ~np.isnan(y)
        if not mine.any():
            continue
        n, events = int(mine.sum()), int(y[mine].sum())
        low, high = clopper_pearson(events, n, level)
        row = {"BIN": int(k) + 1, "FROM": x[mine].min(), "TO": x[mine].max(), "VALUE": np.median(x[mine])}
        rows.append(row | {"N": n, "EVENTS": events, "SHARE": events / n, "LOW": low, "HIGH": high})
    return pd.DataFrame(rows)


def patient_probabilities(
    response: AbstractResponse, *, at: float | None = None, every: int = 1
) -> Float[np.ndarray, "draw subject"]:
    """Each patient's probability, averaged over his exposure given the kinetics alone, of every (``every``-th) draw."""
    base, weight = np.asarray(response.arrays.base), np.exp(np.asarray(response.arrays.log_weight))
    z = np.tile(response.patients.z, len(base))
    p = response.chances(base.reshape(-1), z, at=at, every=every)
    return (p.reshape(len(p), *base.shape) * weight).sum(axis=1)


def left_out_weights(
    log_lik: Float[np.ndarray, "draw subject"],
) -> tuple[Float[np.ndarray, "draw subject"], Float[np.ndarray, " subject"]]:
    """Log weights, summing to one, that leave each patient out, and the shapes of their tails (``k``).

    References
    ----------
    Vehtari A, Gelman A, Gabry J. Stat Comput 2017;27:1413-1432, doi:10.1007/s11222-016-9696-4.
    """
    from arviz_stats.base.array import array_stats

    found, k = np.full(log_lik.shape, -np.log(len(log_lik))), np.zeros(log_lik.shape[1])
    for i in np.flatnonzero(np.ptp(log_lik, axis=0) > 1e-12):
        log_weight, k[i] = array_stats.psislw(log_lik[:, i])
        found[:, i] = np.asarray(log_weight) - np.asarray(logsumexp(log_weight))
    return found, k


def loo(response: AbstractResponse) -> pd.DataFrame:
    """Leave-one-patient-out log predictive density of every patient: ``ELPD`` and ``K`` by ID.

    Above ``K`` = 0.7 a patient's value is not reliable. The outcome of a patient is predicted from his exposure and
    from the other patients' outcomes.
    """
    log_lik = response.log_lik
    log_weight, k = left_out_weights(log_lik)
    elpd = np.asarray(logsumexp(log_weight + log_lik, axis=0))
    return pd.DataFrame({"ELPD": elpd, "K": k}, index=pd.Index(response.patients.ids, name="ID"))


def calibration(response: AbstractResponse, *, bins: int = BINS, at: float | None = None) -> pd.DataFrame:
    """Observed shares by quantile of the predicted probability, each patient left out of his own prediction.

    Returns
    -------
    DataFrame
        ``BIN PREDICTED`` (mean), ``N EVENTS SHARE LOW HIGH`` (exact 95 % interval).
    """
    y, p = response.observed(at), _left_out(response, at)
    which = bins_of(p, bins)
    rows = []
    for k in np.unique(which):
        mine = (which == k) & ~np.isnan(y)
        if mine.any():
            n, events = int(mine.sum()), int(y[mine].sum())
            low, high = clopper_pearson(events, n)
            row = {"BIN": int(k) + 1, "PREDICTED": float(p[mine].mean()), "N": n, "EVENTS": events}
            rows.append(row | {"SHARE": events / n, "LOW": low, "HIGH": high})
    return pd.DataFrame(rows)


def _left_out(response: AbstractResponse, at: float | None) -> Float[np.ndarray, " subject"]:
    every = max(1, len(response.posterior.draws) // _SOME)
    log_weight, _ = left_out_weights(response.log_lik[::every])
    return (np.exp(log_weight) * patient_probabilities(response, at=at, every=every)).sum(axis=0)


def performance(response: AbstractResponse, *, seed: int, at: float | None = None, level: float = 0.95) -> pd.DataFrame:
    """Area under the ROC curve and Brier score, of the patients fitted and of each patient left out.

    Returns
    -------
    DataFrame
        Index ``auroc``, ``brier``; ``IN_SAMPLE``, ``LEFT_OUT``, and ``LOW HIGH`` of ``LEFT_OUT`` over a Bayesian
        bootstrap of patients. In sample a model looks better than it is.

    Raises
    ------
    ModelError
        All patients have the same outcome.

    References
    ----------
    Rubin DB. Ann Stat 1981;9:130-134, doi:10.1214/aos/1176345338 (Bayesian bootstrap).
    """
    refuse_seed(seed)
    y = response.observed(at)
    known = ~np.isnan(y)
    if len(set(y[known])) < 2:
        raise ModelError(f"{response.what}: all patients have the same outcome; there is nothing to tell apart.")
    every = max(1, len(response.posterior.draws) // _SOME)
    inside = patient_probabilities(response, at=at, every=every).mean(axis=0)[known]
    outside, y = _left_out(response, at)[known], y[known]
    even = np.full((1, len(y)), 1 / len(y))
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(y)), RESAMPLES)
    rows = {}
    for name, score in (("auroc", auroc), ("brier", _brier)):
        low, high = np.quantile(score(outside, y, weights), [(1 - level) / 2, (1 + level) / 2])
        found = {"IN_SAMPLE": float(score(inside, y, even)[0]), "LEFT_OUT": float(score(outside, y, even)[0])}
        rows[name] = found | {"LOW": float(low), "HIGH": float(high)}
    return pd.DataFrame.from_dict(rows, orient="index")


def auroc(
    p: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]
) -> Float[np.ndarray, " b"]:
    """Weighted probability that an event was given the higher ``p``; equal ones count half."""
    over = (p[:, None] > p[None]) + 0.5 * (p[:, None] == p[None])
    with_event, without = weights * (y == 1), weights * (y == 0)
    return np.einsum("bi,ij,bj->b", with_event, over, without) / (with_event.sum(1) * without.sum(1))


def _brier(p, y, weights) -> Float[np.ndarray, " b"]:
    return weights @ np.square(p - y)


def kaplan_meier(times: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """The product-limit estimate, of patients who enter at ``ENTRY``; descriptive.

    Parameters
    ----------
    times : DataFrame
        ``TIME EVENT ENTRY``, as ``TteResponse.times``; an interval-censored event counts on the day it was seen.

    Returns
    -------
    DataFrame
        ``TIME AT_RISK EVENTS SURVIVAL LOW HIGH``, one row each time at which someone has an event or leaves;
        Greenwood's variance, on the scale of ln(-ln S).

    References
    ----------
    Kalbfleisch JD, Prentice RL. The Statistical Analysis of Failure Time Data, 2002, section 1.4.
    """
    t, event, entry = (times[c].to_numpy(float) for c in ("TIME", "EVENT", "ENTRY"))
    at = np.unique(t)
    risk = np.array([int(((entry < s) & (t >= s)).sum()) for s in at])
    deaths = np.array([int(event[t == s].sum()) for s in at])
    survival = np.cumprod(1 - deaths / risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(deaths / (risk * (risk - deaths)))
        width = stats.norm.isf((1 - level) / 2) * np.sqrt(greenwood) / np.log(survival)
        low, high = (survival ** np.exp(sign * width) for sign in (-1, 1))
    edge = (survival == 1) | (survival == 0)
    low, high = np.where(edge, survival, low), np.where(edge, survival, high)
    columns = {"TIME": at, "AT_RISK": risk, "EVENTS": deaths, "SURVIVAL": survival, "LOW": low, "HIGH": high}
    return pd.DataFrame(columns)


def survival_by_exposure(
    response: TteResponse, *, groups: int = 2, days: Float[np.ndarray, " day"] | None = None, level: float = 0.95
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Kaplan-Meier by group of exposure, which is descriptive, and what the model expects of the same patients.

    Returns
    -------
    DataFrame
        :func:`kaplan_meier` of every ``GROUP`` (1 has the lowest exposures).
    DataFrame
        ``GROUP TIME MEDIAN LOW HIGH``: survival averaged over the group's patients, given no event until the landmark.
    """
    if not isinstance(response.terms, Survival):
        raise ModelError("survival_by_exposure: exposure changes with time in this model, and no group keeps its own.")
    which = bins_of(response.patients.point, groups)
    last = float(response.times["TIME"].max())
    x = np.linspace(response.clock.since, last, 60) if days is None else np.asarray(days, float)
    every = max(1, len(response.posterior.draws) // _SOME)
    expected = np.stack([patient_probabilities(response, at=float(day), every=every) for day in x])
    seen, model = [], []
    for k in np.unique(which):
        mine = which == k
        seen.append(kaplan_meier(response.times[mine], level).assign(GROUP=int(k) + 1))
        mean = expected[:, :, mine].mean(axis=2)
        low, median, high = np.quantile(mean, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=1)
        columns = {"GROUP": int(k) + 1, "TIME": x, "MEDIAN": median, "LOW": low, "HIGH": high}
        model.append(pd.DataFrame(columns))
    return pd.concat(seen, ignore_index=True), pd.concat(model, ignore_index=True)


def cumulative_incidence(
    causes: dict[str, TteResponse], value: float, days: Float[np.ndarray, " day"], *, level: float = 0.95
) -> pd.DataFrame:
    """Probability of each cause by day, at one exposure: competing risks, of cause-specific hazards.

    A patient with an event of one cause cannot have another: ``F_k(t)`` is the integral of the hazard of ``k`` times
    the survival of all causes. Draws of different causes are independent given the data, as their likelihoods are.

    Parameters
    ----------
    causes : dict of str to TteResponse
        One fit of each cause (``ResponseOptions(cause=...)``), of the same patients and landmark.
    value : float
        Exposure, natural scale; covariates at their centre.
    days : array
        Since the infusion, from the landmark on, increasing.

    Returns
    -------
    DataFrame
        ``CAUSE TIME MEDIAN LOW HIGH``.
    """
    first = next(iter(causes.values()))
    if any(r.patients.ids != first.patients.ids or r.clock.since != first.clock.since for r in causes.values()):
        raise ModelError("cumulative_incidence: the causes have different patients or landmarks; fit them to the same.")
    grid = np.unique(np.concatenate([np.linspace(first.clock.since, float(days[-1]), 241), days]))
    draws = min(len(r.posterior.draws) for r in causes.values())
    alive = {}
    for name, r in causes.items():
        u = jnp.asarray(np.full(1, float(r.patients.standardised(np.array([value]))[0])))
        alive[name] = _survival(r, u, grid)[:draws]
    total = np.prod(list(alive.values()), axis=0)
    rows = []
    for name, s in alive.items():
        # On each step the causes' shares of all events are those of their cumulative hazards: exact where hazards are
        # proportional to each other within the step.
        with np.errstate(divide="ignore", invalid="ignore"):
            own = -np.diff(np.log(s), axis=1)
            share = np.nan_to_num(own / -np.diff(np.log(total), axis=1))
        reached = np.concatenate([np.zeros((draws, 1)), np.cumsum(-np.diff(total, axis=1) * share, axis=1)], axis=1)
        found = reached[:, np.searchsorted(grid, days)]
        low, median, high = np.quantile(found, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
        rows.append(pd.DataFrame({"CAUSE": name, "TIME": days, "MEDIAN": median, "LOW": low, "HIGH": high}))
    return pd.concat(rows, ignore_index=True)


def _survival(response: TteResponse, u, grid: Float[np.ndarray, " day"]) -> Float[np.ndarray, "draw day"]:
    """Survival at the days of a grid, of every draw, at mean covariates."""
    with jax.enable_x64(True):
        z, s = jnp.zeros((len(response.terms.covariates), 1)), jnp.asarray(response.patients.scale)
        start = float(response.clock.time(response.clock.since))
        at = jnp.stack([jnp.asarray(response.clock.time(grid)), jnp.full(len(grid), start)], axis=1)
        u = jnp.asarray(np.asarray(u, float))

        def of_one(theta):
            return jax.vmap(lambda t: response.terms.chance(theta, u, z, s, t)[0])(at)

        return np.asarray(jax.jit(jax.vmap(of_one))(jnp.asarray(response.posterior.draws)))
