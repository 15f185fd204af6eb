"""How well a model predicts patients, or samples, that it was not fitted to; from one fit, by importance weights.

Of every draw of the population the probability of a patient's samples is computed, with that patient's random effects
integrated out; its inverse weighs the draw as if the patient had not been fitted. So a new patient is asked for, not
a new sample of a known one. With ``after``, the patient's earlier samples count and those later are predicted.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float
from scipy.special import logsumexp

from carkinetics.dataset import Dataset
from carkinetics.density import ln_pred, log_likelihood, subject_log_likelihood
from carkinetics.errors import FitError
from carkinetics.fit_result import Fit
from carkinetics.fitting import fit as fit_again
from carkinetics.inference.chains import Settings
from carkinetics.inference.proposals import FREEDOM, Proposals, around, mixture
from carkinetics.inference.scouting import scouted
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_parts import nearest_or_raise
from carkinetics.observations import Observations, make_observations, row_positions
from carkinetics.population import Population, population
from carkinetics.replication import from_population, predictions
from carkinetics.residuals import RESIDUALS

DRAWS = 2000  # of the population, spread evenly over the chains
SETS = 512  # parameter sets per patient by which random effects are integrated out
ESS_MIN = 50.0  # of the weights that leave a patient out; below it the result is not to be believed
PER_DRAW = 4  # patients drawn from every draw of the population, for predictions
_BATCH = 20  # draws at once


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What the others say about each patient, and how well.

    Attributes
    ----------
    patients : DataFrame
        By ID: ``N`` and ``N_BLQ`` (samples that were predicted, those censored among them), ``ELPD`` (log predictive
        density of all of them together: of the natural log of a quantified value, of the probability of a censored
        one or of a count), ``ESS`` (draws that carry the weight), ``K`` (shape of the weights' tail: above 0.7 they
        are not reliable; NaN of a refit), ``SETS`` (sets that carry the weight in the integral over random effects,
        median over draws) and ``REFIT`` (fitted again without the patient).
    rows : DataFrame
        By sample: ``ID TIME DVID DV CENS``, and ``LOW`` and ``HIGH``, between which the predicted probability of a
        value no larger than the sample lies: equal where it is quantified, 0 and the probability of being below the
        limit where it is below it.
    """

    patients: pd.DataFrame
    rows: pd.DataFrame

    @property
    def elpd(self) -> float:
        """Sum over patients."""
        return float(self.patients["ELPD"].sum())

    def coverage(self, level: float) -> float:
        """Share of the samples inside their central predictive interval of this level.

        A censored sample counts with the share of what it may have been that lies inside, so that the coverage of
        predictions that are right is ``level``.
        """
        low, high = self.rows["LOW"].to_numpy(), self.rows["HIGH"].to_numpy()
        begin, end = (1 - level) / 2, (1 + level) / 2
        inside = np.minimum(high, end) - np.maximum(low, begin)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(high > low, np.maximum(inside, 0) / (high - low), (low >= begin) & (low <= end))
        return float(share.mean()) if len(share) else math.nan


def lopo(fit: Fit, *, seed: int, refit: bool = True, settings: Settings | None = None) -> pd.DataFrame:
    """Leave-one-patient-out log predictive density: :attr:`LeftOut.patients`.

    Parameters
    ----------
    refit : bool
        Fit again without every patient whose weights are carried by fewer than ``ESS_MIN`` draws.
    settings : Settings, optional
        Of those fits.
    """
    found = left_out(fit, seed=seed)
    weak = list(found.patients.index[~(found.patients["ESS"] >= ESS_MIN)])
    if refit and weak:
        found = left_out(fit, seed=seed, refit=weak, settings=settings)
    return found.patients


def left_out(
    fit: Fit,
    *,
    seed: int,
    after: float | None = None,
    draws: int = DRAWS,
    refit: Collection[str] = (),
    settings: Settings | None = None,
) -> LeftOut:
    """Each patient's samples, predicted from the other patients; or from them and its own earlier samples.

    Parameters
    ----------
    seed : int
        Of everything random.
    after : float, optional
        Day up to which a patient's own samples are known; those later are predicted.
    draws : int
        Of the population, at most.
    refit : collection of str
        Patients for whom the model is fitted again without what is predicted, in the place of weights.
    settings : Settings, optional
        Of those fits.

    Raises
    ------
    FitError
        The fit is an approximation, or no sample is left to predict.

    References
    ----------
    Vehtari A, Gelman A, Gabry J, Stat Comput 2017;27:1413-1432, doi:10.1007/s11222-016-9696-4. Integrated importance
    weights: Merkle EC, Furr D, Rabe-Hesketh S, Psychometrika 2019;84:802-829, doi:10.1007/s11336-019-09679-0.
    """
    data = fit.data
    asked = data.time > (-np.inf if after is None else after)
    if fit.method == "laplace" or not asked.any():
        why = "it is a Laplace approximation" if fit.method == "laplace" else f"no sample is later than day {after:g}"
        raise FitError(f"{fit.model.name}: patients cannot be left out of this fit: {why}. Use method='importance'.")
    for name in refit:
        nearest_or_raise(name, data.subjects, "patient", data.source)
    with jax.enable_x64(True):
        question = _question(fit, asked, jax.random.key(seed))
        answers = _answers(question, _thinned(fit, draws))
        log_weights, k = _smoothed(answers.given - answers.every)
        found = _judged(question, answers, log_weights, k)
        for name in refit:
            i = data.subjects.index(name)
            without = fit_again(
                fit.model,
                _only(data, ~(asked & (data.subject == i))),
                seed=seed,
                method="nuts" if fit.method == "nuts" else "importance",
                settings=settings or Settings(),
                infusion_phase=False,  # the model has the phase already, or is asked for without one
                progress=False,
            )
            again = _answers(question, _thinned(without, draws))
            flat = np.full(again.every.shape, -np.log(len(again.every)))
            found = _replaced(found, name, _judged(question, again, flat, np.full(len(data.subjects), np.nan)))
    return found


class _Question(NamedTuple):
    """What is predicted from what."""

    fit: Fit
    asked: Bool[np.ndarray, " row"]
    every: Observations
    given: Observations | None  # a patient's own samples that are known
    of_every: Proposals
    of_given: Proposals | None
    key: Array


class _Answers(NamedTuple):
    """Of every draw of the population and patient.

    ``every`` and ``given`` are log probabilities of all samples and of the known ones; ``x`` patients that the draw
    and the known samples allow, ``sets`` how many parameter sets carry the integral.
    """

    phi: Float[np.ndarray, "draw phi"]
    every: Float[np.ndarray, "draw subject"]
    given: Float[np.ndarray, "draw subject"]
    sets: Float[np.ndarray, "draw subject"]
    x: Float[np.ndarray, "draw each random subject"]


def _thinned(fit: Fit, draws: int) -> Float[np.ndarray, "draw phi"]:
    phi = np.asarray(fit.tree["posterior"].to_dataset()["phi"])
    phi = phi.reshape(-1, phi.shape[-1])
    return phi[np.unique(np.linspace(0, len(phi) - 1, draws).astype(int))]


def _only(data: Dataset, rows: Bool[np.ndarray, " row"]) -> Dataset:
    """The same patients with fewer samples."""
    arrays = {name: getattr(data, name)[rows] for name in ("subject", "assay", "time", "dv", "cens", "limit")}
    return replace(data, **arrays, sha256=sha256(data.sha256.encode() + rows.tobytes()).hexdigest())


def _question(fit: Fit, asked: Bool[np.ndarray, " row"], key: Array) -> _Question:
    model, data, layout = fit.model, fit.data, make_layout(fit.model)
    every = make_observations(model, data)
    names = [model.parameters[i].name for i in layout.random]
    values = fit.tree["posterior"].to_dataset()["individual"].stack(draws=("chain", "draw")).sel(parameter=names)
    natural = values.transpose("draws", "parameter", "subject").values.astype(float)
    x = np.stack([model.parameters[i].forward(natural[:, k]) for k, i in enumerate(layout.random)], axis=1)
    x = x[np.isfinite(x).all((1, 2))]
    phi = _thinned(fit, DRAWS).mean(0)
    omega = np.asarray(population(layout, jnp.asarray(phi), every.design).omega)
    # Covariances of the patients' draws; a little of the population's stands in where they hardly move.
    spread = np.stack([np.cov(x[:, :, i].T) for i in range(x.shape[2])]).reshape(-1, len(names), len(names))
    spread = spread + np.diag(1e-4 * omega**2)
    own = mixture(x, np.full((len(x), x.shape[2]), 1 / len(x)), spread)
    of_every = scouted(model, every, own, spread, phi, x)
    if asked.all():
        return _Question(fit, asked, every, None, of_every, None, key)
    given = make_observations(model, _only(data, ~asked))
    wide = around(x.mean(0), spread + np.diag(0.25 * omega**2))
    return _Question(fit, asked, every, given, of_every, scouted(model, given, wide, spread, phi), key)


def _answers(question: _Question, phi: Float[np.ndarray, "draw phi"]) -> _Answers:
    model, for_every, for_given = question.fit.model, *jax.random.split(question.key)
    every, sets, _ = _integrated(model, question.every, question.of_every, jnp.asarray(phi), for_every)
    if question.given is None or question.of_given is None:
        x = from_population(model, question.every, jnp.asarray(phi), for_given, each=PER_DRAW)
        return _Answers(phi, np.asarray(every), np.zeros(every.shape), np.asarray(sets), np.asarray(x))
    given, fewer, x = _integrated(model, question.given, question.of_given, jnp.asarray(phi), for_given)
    return _Answers(phi, *(np.asarray(a) for a in (every, given, jnp.minimum(sets, fewer), x)))


@partial(jax.jit, static_argnums=0)
def _integrated(model: Model, obs: Observations, proposals: Proposals, phis: Float[Array, "draw phi"], key):
    """Log probability of every patient's samples at every draw, sets that carry it, and patients of that draw.

    All draws weigh the same sets: what is random in them is the same for all, and cancels in comparisons of draws.
    """
    layout = make_layout(model)
    for_sets, for_choice = jax.random.split(key)
    sets = proposals.sample(for_sets, SETS)
    proposed = proposals.log_density(sets)
    # Curves follow from the sets alone unless a parameter without variability is estimated.
    names = [layout.parameters[i].name for i in layout.random]
    moves = any(i not in layout.random for i in layout.estimated) or any(e.on not in names for e in layout.effects)
    first = population(layout, phis[0], obs.design)
    curves = jax.lax.map(lambda x: ln_pred(layout, first.parameters(x), obs), jnp.moveaxis(sets, 1, 0))

    def fits(of: Population):  # (set, subject)
        if moves:
            return jax.lax.map(lambda x: subject_log_likelihood(layout, of, x, obs), jnp.moveaxis(sets, 1, 0))
        rows = jax.vmap(lambda curve: log_likelihood(curve, of.residual, obs))(curves)
        return jax.vmap(lambda row: jax.ops.segment_sum(row, obs.subject, obs.n_subjects))(rows)

    def of_one(phi, key):
        of = population(layout, phi, obs.design)
        weights = fits(of) + of.log_density(sets) - proposed
        weights = jnp.where(jnp.isfinite(weights), weights, -jnp.inf)
        total = jax.scipy.special.logsumexp(weights, axis=0)
        carried = jnp.exp(2 * total - jax.scipy.special.logsumexp(2 * weights, axis=0))
        chosen = jax.random.categorical(key, weights, axis=0, shape=(PER_DRAW, obs.n_subjects))
        x = jnp.take_along_axis(sets, jnp.broadcast_to(chosen, (len(sets), *chosen.shape)), axis=1)
        return total - math.log(SETS) + _constant(len(sets)), carried, jnp.moveaxis(x, 1, 0)

    keys = jax.random.split(for_choice, len(phis))
    return jax.lax.map(lambda each: of_one(*each), (phis, keys), batch_size=_BATCH)


def _constant(k: int) -> float:
    """What the densities of a population and of proposals leave out, in ``k`` dimensions."""
    t = math.lgamma((FREEDOM + k) / 2) - math.lgamma(FREEDOM / 2) - 0.5 * k * math.log(FREEDOM * math.pi)
    return -0.5 * k * math.log(2 * math.pi) - t


def _smoothed(log_ratios: Float[np.ndarray, "draw subject"]):
    """Pareto-smoothed log weights of sum one, and the shapes of their tails, by patient."""
    from arviz_stats.base.array import array_stats

    flat = np.ptp(log_ratios, axis=0) < 1e-9  # a patient without samples; a tail cannot be fitted to that
    log_weights, k = np.full(log_ratios.shape, -np.log(len(log_ratios))), np.zeros(log_ratios.shape[1])
    for i in np.flatnonzero(~flat):
        log_weights[:, i], k[i] = array_stats.psislw(-log_ratios[:, i])  # it takes log likelihoods
    return log_weights, k


def _judged(question: _Question, answers: _Answers, log_weights: Float[np.ndarray, "draw subject"], k) -> LeftOut:
    data = question.fit.data
    total = np.asarray(logsumexp(log_weights, axis=0))
    elpd = np.asarray(logsumexp(log_weights + answers.every - answers.given, axis=0)) - total
    asked, n = data.subject[question.asked], data.n_subjects
    patients = pd.DataFrame(
        {
            "N": np.bincount(asked, minlength=n),
            "N_BLQ": np.bincount(asked, data.cens[question.asked] != 0, minlength=n).astype(int),
            "ELPD": elpd + np.bincount(asked, _to_ln(question), minlength=n),
            "ESS": 1 / np.exp(2 * (log_weights - total)).sum(0),
            "K": k,
            "SETS": np.median(answers.sets, axis=0),
            "REFIT": np.isnan(k),
        },
        index=pd.Index(data.subjects, name="ID"),
    )
    rows = _rows(question, answers, np.exp(log_weights - total))
    return LeftOut(patients[patients["N"] > 0], rows)


def _to_ln(question: _Question) -> Float[np.ndarray, " row"]:
    """From the density of a value to that of its natural log; counts have probabilities."""
    model, data = question.fit.model, question.fit.data
    families = {a.name: RESIDUALS[a.error] for a in model.assays}
    density = np.array([not families[a].counts for a in data.assays])[data.assay]
    return np.where(density & (data.cens == 0), np.log(data.dv), 0.0)[question.asked]


def _rows(question: _Question, answers: _Answers, weights: Float[np.ndarray, "draw subject"]) -> pd.DataFrame:
    """Where every asked sample lies in its predicted distribution."""
    model, data, asked = question.fit.model, question.fit.data, question.asked
    curves, residual = predictions(model, question.every, jnp.asarray(answers.phi), jnp.asarray(answers.x))
    at = np.flatnonzero(asked)
    curves = np.asarray(curves)[..., row_positions(model, data)[at]]
    weight = weights[:, data.subject[at]] / PER_DRAW  # (draw, row)
    upper, lower = np.maximum(data.dv, data.limit), np.minimum(data.dv, data.limit)
    low, high = np.zeros(len(at)), np.ones(len(at))
    for a, assay in enumerate(model.assays):
        mine = np.array(data.assays)[data.assay[at]] == assay.name
        family = RESIDUALS[assay.error]
        parameters = [np.asarray(residual)[:, j, a, None, None] for j in range(len(family.params))]

        def below(values, rows, family=family, parameters=parameters):
            with np.errstate(divide="ignore"):
                found = family.cdf(np.log(values), curves[..., rows], *parameters)
            return np.einsum("djr,dr->r", found, weight[:, rows])

        cens, interval = data.cens[at], np.isfinite(data.limit[at])
        for rows, value, side in (
            (mine & (cens == 0), data.dv[at], (low, high)),
            (mine & (cens == 1) & ~interval, data.dv[at], (high,)),
            (mine & (cens == -1) & ~interval, data.dv[at], (low,)),
            (mine & (cens != 0) & interval, upper[at], (high,)),
            (mine & (cens != 0) & interval, lower[at], (low,)),
        ):
            for end in side:
                # A count of 3 takes up what lies between the probabilities of at most 2 and of at most 3.
                step = 1.0 if family.counts and end is low else 0.0
                end[rows] = below(np.maximum(value[rows] - step, 0.0), rows)
    ids, assays = np.array(data.subjects, dtype=object), np.array(data.assays, dtype=object)
    return pd.DataFrame(
        {
            "ID": ids[data.subject[at]],
            "TIME": data.time[at],
            "DVID": assays[data.assay[at]],
            "DV": data.dv[at],
            "CENS": data.cens[at],
            "LOW": np.clip(low, 0, 1),
            "HIGH": np.clip(high, 0, 1),
        }
    )


def _replaced(found: LeftOut, name: str, by: LeftOut) -> LeftOut:
    """With one patient of another."""
    patients, rows = found.patients.copy(), found.rows.copy()
    patients.loc[name], here = by.patients.loc[name], rows["ID"] == name
    rows.loc[here] = by.rows.loc[here]
    return LeftOut(patients, rows)
