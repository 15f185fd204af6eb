"""Simulation-based calibration: whether fits of a model to trials of a design know what they say they know."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from scipy import stats

from carkinetics.cohort import Cohort
from carkinetics.dataset import Dataset, read_dataset
from carkinetics.density import ln_pred, log_likelihood
from carkinetics.errors import DataError, FitError, ModelError
from carkinetics.fit_result import Fit
from carkinetics.fitting import fit, quick_fit
from carkinetics.inference.chains import Settings
from carkinetics.inference.tuning import Method
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations, make_observations
from carkinetics.population import population
from carkinetics.priors import prior_phi
from carkinetics.rank_statistics import coverage, ecdf, ecdf_band, leaves, ranks, thinned
from carkinetics.simulation import refuse_seed, simulate

REPLICATIONS = 200
DRAWS = 100  # nearly, that a truth is ranked among
INSIDE = 0.99  # probability with which right ranks of one quantity stay in their band
LEVELS = (0.5, 0.8, 0.95)  # of intervals whose coverage is shown
LOG_LIKELIHOOD = "log likelihood"
_ATTEMPTS = 200  # trials drawn for one with the samples below the limit that were asked for
SBC_SETTINGS = Settings(draws=500, max_draws=4000)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of what was true among the draws of fits that were told nothing of it.

    Attributes
    ----------
    ranks : DataFrame
        One row a trial, by the seed of its fit; one column a quantity: every population parameter as the sampler moves
        it, and the log likelihood. From 0 to ``draws``.
    draws : int
        Among which each truth was ranked.
    status : Series
        Of every fit; ``error`` where it raised, ``refused`` where the table held what cannot be: neither has ranks.
        That is a choice by the data alone, which keeps ranks uniform; many of them are priors that draw no real trials.
    method : str
    label : str
        The model's name.
    """

    ranks: pd.DataFrame
    draws: int
    status: pd.Series
    method: str
    label: str

    def table(self, *, inside: float = INSIDE) -> pd.DataFrame:
        """One row a quantity.

        Returns
        -------
        DataFrame
            ``MEAN`` (of rank over draws: above 0.5 where fits say too little), ``SPREAD`` (SD of the normal quantile of
            the rank: above 1 where intervals are too narrow), ``COVER 50 %`` and so on (share of truths in the central
            interval), ``OUTSIDE`` (the ranks leave the band in which uniform ones stay with probability ``inside``)
            and ``P`` (chi-squared of ten bins).
        """
        n, rows = len(self.ranks), []
        band = ecdf_band(n, self.draws, inside)
        for name in self.ranks:
            rank = self.ranks[name].to_numpy(int)
            u = (rank + 0.5) / (self.draws + 1)
            counts = np.histogram(u, bins=np.linspace(0, 1, 11))[0]
            expected = np.histogram((np.arange(self.draws + 1) + 0.5) / (self.draws + 1), bins=np.linspace(0, 1, 11))[0]
            row = {"QUANTITY": name, "MEAN": u.mean(), "SPREAD": stats.norm.ppf(u).std()}
            row |= {f"COVER {100 * c:g} %": coverage(rank, self.draws, c) for c in LEVELS}
            p = float(stats.chisquare(counts, expected * n / (self.draws + 1)).pvalue)
            rows.append(row | {"OUTSIDE": leaves(rank, self.draws, band), "P": p})
        return pd.DataFrame(rows).set_index("QUANTITY")

    @property
    def outside(self) -> list[str]:
        """Quantities whose ranks leave the band."""
        table = self.table()
        return [str(name) for name in table.index[table["OUTSIDE"]]]

    def ecdf(self, *, inside: float = INSIDE) -> pd.DataFrame:
        """What :func:`carkinetics.plots.sbc` draws: ``QUANTITY SHARE DIFFERENCE LOW HIGH``, of the ECDF of ranks."""
        n, at = len(self.ranks), np.arange(1, self.draws + 1) / (self.draws + 1)
        low, high = (b / n - at for b in ecdf_band(n, self.draws, inside))
        tables = []
        for name in self.ranks:
            seen = ecdf(self.ranks[name].to_numpy(int), self.draws) / n - at
            columns = {"QUANTITY": name, "SHARE": at, "DIFFERENCE": seen, "LOW": low, "HIGH": high}
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def __str__(self) -> str:
        counts = ", ".join(f"{k} {v}" for k, v in self.status.value_counts().items())
        out = ", ".join(self.outside) or "none"
        head = f"{len(self.ranks)} trials of {self.label}, {self.method} ({counts}); ranks outside their band: {out}"
        return f"{head}\n{self.table().round(2).to_string()}"


def sbc(
    model: Model,
    design: Cohort,
    *,
    seed: int,
    n: int = REPLICATIONS,
    method: Method | Literal["laplace", "quick"] = "importance",
    settings: Settings = SBC_SETTINGS,
    below: int | None = None,
) -> Calibration:
    """Draw populations from the model's priors, simulate a trial of each, fit it, and rank the truth among the draws.

    Over many trials a right posterior has uniform ranks, and its 95 % intervals hold the truth in 95 of 100: for this
    model, its priors and this design. What is found is a fault of density, simulation or sampler, or, with
    ``method="laplace"``, what the approximation costs. Priors much wider than what anybody would believe draw trials
    that are none; give the model narrower ones (:meth:`carkinetics.Model.with_priors`).

    Parameters
    ----------
    design : Cohort
    n : int
        Trials. Each is read, compiled for once as long as trials have about as many censored samples, and fitted.
    method : str
        As of :func:`carkinetics.fit`; or ``quick``, the shorter way to the Laplace approximation by which
        :func:`carkinetics.simulate_trials` analyses its trials.
    settings : Settings
        Of the fits.
    below : int, optional
        Use only trials with as many samples below the limit; by default limits are left out. A choice by the data
        alone keeps ranks uniform.

    Returns
    -------
    Calibration

    Raises
    ------
    ModelError
        No trial has as many samples below the limit; fewer than two of the fits gave a result.

    References
    ----------
    Talts S et al., arXiv:1804.06788. Functions of parameters and data: Modrak M et al., Bayesian Anal 2023,
    doi:10.1214/23-BA1404.
    """
    refuse_seed(seed)
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 2:
        raise ModelError(f"n = {n!r} must be a whole number above 1.")
    most = design.n * max(1, len(design.levels)) * len(design.times) * len(model.assays)
    if below is not None and not 0 <= below <= most:
        raise ModelError(f"below = {below!r} must be from 0 to the {most} samples of the design.")
    found, status, draws = {}, {}, 0
    for k in range(n):
        trial = _trial(model, design, _of(seed, k), below)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd trials are part of the prior
            try:
                data = read_dataset(trial.table, units={"TIME": "day", "DV": {a.name: a.unit for a in model.assays}})
                result = _fitted(model, data, _of(seed, k), method, settings)
            except (DataError, FitError) as error:
                status[k] = "refused" if isinstance(error, DataError) else "error"
                continue
        status[k] = str(result.check().status)
        found[k], draws = _ranked(result, trial)
    if len(found) < 2:
        raise ModelError(f"{model.name}: {len(found)} of {n} fits gave a result. Look at one of them by hand.")
    columns = [*make_layout(model).phi_names, LOG_LIKELIHOOD]
    table = pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("TRIAL")
    return Calibration(table, draws, pd.Series(status).rename_axis("TRIAL"), str(method), model.name)


def _fitted(model: Model, data: Dataset, seed: int, method: str, settings: Settings) -> Fit:
    """By one of the methods of :func:`sbc`."""
    if method == "quick":
        return quick_fit(model, data, seed=seed, kept=DRAWS)
    how: Any = method  # fit refuses what is none
    return fit(model, data, seed=seed, method=how, settings=settings, infusion_phase=False, progress=False)


def _of(seed: int, k: int) -> int:
    """The seed of one trial."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])


class _Trial(NamedTuple):
    """A trial of a population drawn from the priors."""

    phi: Float[np.ndarray, " phi"]
    table: pd.DataFrame
    individual: pd.DataFrame


def _trial(model: Model, design: Cohort, seed: int, below: int | None) -> _Trial:
    for attempt in range(_ATTEMPTS):
        at = _of(seed, attempt)
        trial = simulate(model, design, seed=at, uncertainty=True, limits=below is not None)
        if below is None or int((trial.table["CENS"] == 1).sum()) == below:
            with jax.enable_x64(True):
                phi = np.asarray(prior_phi(model, jax.random.key(at), 1))[0]  # what the simulation drew
            return _Trial(phi, trial.table, trial.individual)
    raise ModelError(f"{model.name}: none of {_ATTEMPTS} trials has {below} samples below the limit.")


def _ranked(result: Fit, trial: _Trial) -> tuple[Int[np.ndarray, " quantity"], int]:
    """Ranks of the truth, and among how many draws."""
    posterior = result.tree["posterior"].to_dataset()["phi"].values
    log_lik = result.tree["log_likelihood"].to_dataset()["dv"].values.astype(float).sum(-1)
    draws = np.concatenate([posterior, log_lik[..., None]], axis=-1)
    kept = thinned(draws, max(1, DRAWS // draws.shape[0]))
    return ranks(kept, np.append(trial.phi, true_log_likelihood(result, trial.phi, trial.individual))), len(kept)


def true_log_likelihood(result: Fit, phi: Float[np.ndarray, " phi"], individual: pd.DataFrame) -> float:
    """Of the fit's samples, at a population and its patients' parameters (natural scale, by ID)."""
    model, data = result.model, result.data
    values = individual.loc[list(data.subjects)]
    x = np.stack([np.asarray(p.forward(values[p.name].to_numpy(float))) for p in model.parameters])
    with jax.enable_x64(True):
        return float(_total(model, make_observations(model, data), jnp.asarray(phi), jnp.asarray(x)))


@partial(jax.jit, static_argnums=0)
def _total(model: Model, obs: Observations, phi: Float[Array, " phi"], x: Float[Array, "parameter subject"]):
    layout = make_layout(model)
    of = population(layout, phi, obs.design)
    rows = log_likelihood(ln_pred(layout, x, obs), of.residual, obs)
    return jax.ops.segment_sum(rows, obs.subject, obs.n_subjects).sum()  # what fills groups up belongs to no patient
