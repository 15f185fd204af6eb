"""Trials like the one that was run: what its assays might have reported of other patients, row by row.

The patients of a replicate are new: their covariates, doses, days and limits are the data's, their random effects and
residuals are drawn. :mod:`carkinetics.prediction_errors` and :mod:`carkinetics.visual_checks` compare them with data.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from carkinetics import replicates
from carkinetics.dataset import Dataset
from carkinetics.density import ln_pred
from carkinetics.errors import FitError, ModelError
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import resolved
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_parts import nearest_or_raise
from carkinetics.observations import Observations, make_observations, row_positions
from carkinetics.population import population
from carkinetics.priors import prior_phi
from carkinetics.residuals import RESIDUALS
from carkinetics.simulation import refuse_seed

Source = Literal["posterior", "estimate", "prior"]

LOST_MAX = 0.01  # share of replicates without a finite curve, beyond which the rest are no fair sample
VALUES_MAX = 2.5e8  # of replicates times rows: 2 GB
_BATCH = 20  # replicates whose curves are solved at once
_LOWEST = -700.0  # ln of the least value that is told from 0


@dataclass(frozen=True, eq=False)
class Limits:
    """Between which limits every row's assay gives numbers, as natural logs; infinite where there is no limit.

    Attributes
    ----------
    lod, lloq, uloq : Float[" row"]
        Below ``lod`` nothing is detected, from it to ``lloq`` something is and not quantified, and from ``uloq`` on a
        value is only known to be as large.
    """

    lod: Float[np.ndarray, " row"]
    lloq: Float[np.ndarray, " row"]
    uloq: Float[np.ndarray, " row"]

    def below(self, ln_dv: Float[np.ndarray, "*n row"]) -> Bool[np.ndarray, "*n row"]:
        """Whether a value would be reported as below the limit of quantification."""
        return ln_dv < self.lloq

    def above(self, ln_dv: Float[np.ndarray, "*n row"]) -> Bool[np.ndarray, "*n row"]:
        """Whether a value would be reported as above the upper limit."""
        return ln_dv >= self.uloq


@dataclass(frozen=True, eq=False)
class Replicated:
    """Replicates of a trial at the rows of its data.

    Attributes
    ----------
    ln_dv : Float["replicate row"]
        Natural logs of simulated values, with residual error and not censored; ``-inf`` for 0. Rows are the data's.
    ln_pred : Float[" row"]
        Of the typical patient with each row's covariates and dose, at the estimate; of the first class of a mixture.
    limits : Limits
    model : Model
    data : Dataset
    lost : int
        Replicates in which a curve was not finite; they are left out.
    label : str
        How the fit was made, where that has to be said.
    """

    ln_dv: Float[np.ndarray, "replicate row"]
    ln_pred: Float[np.ndarray, " row"]
    limits: Limits
    model: Model
    data: Dataset
    lost: int = 0
    label: str = ""

    @property
    def assay(self) -> np.ndarray:
        """Name of every row's assay."""
        return np.array(self.data.assays, dtype=object)[self.data.assay]


def replicated(
    source: Fit | Model, *, n: int, seed: int, data: Dataset | None = None, population: Source = "posterior"
) -> Replicated:
    """Simulate trials with the patients' covariates, doses and sampling days, of the data of a fit or of other data.

    Parameters
    ----------
    source : Fit or Model
        Of a model ``data`` must be given.
    n : int
        Replicates.
    population : {"posterior", "estimate", "prior"}
        Population parameters: a draw of the posterior in every replicate; the posterior's mean on the sampler's scale
        in all of them; or a draw from the priors. A model has its own values in the place of the first two.

    Raises
    ------
    ModelError
        An argument is out of range, or so many values do not fit into memory.
    FitError
        More than 1 % of the replicates have a curve that is not finite.
    """
    model, data = _model_and_data(source, data)
    _refuse(n, data)
    refuse_seed(seed)
    nearest_or_raise(population, get_args(Source), "population", "replicated")
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        phi, estimate = _populations(source, model, n, seed, population)
        x = from_population(model, obs, jnp.asarray(phi), jax.random.key(seed), each=1)
        curves, residual = predictions(model, obs, jnp.asarray(phi), x)
        back = row_positions(model, data)
        curves, pred = np.asarray(curves)[:, 0, back], typical_ln_pred(model, obs, estimate)[back]
    ln_dv = _reported(model, data, curves, np.asarray(residual), np.random.default_rng([seed, 4]))
    whole = ~np.isnan(ln_dv).any(axis=1)
    lost = int(n - whole.sum())
    if lost > (LOST_MAX if population != "prior" else 0.5) * n:
        raise FitError(
            f"{model.name}: {lost} of {n} simulated trials have a curve that is not finite. "
            "See carkinetics.stress_test for the patients and parameters in which that happens."
        )
    label = source.label if isinstance(source, Fit) else ""
    return Replicated(ln_dv[whole], pred, limits_of(model, data), model, data, lost, label)


def _model_and_data(source: Fit | Model, data: Dataset | None) -> tuple[Model, Dataset]:
    if isinstance(source, Fit):
        return source.model, source.data if data is None else data
    if data is None:
        raise ModelError(f"{source.name}: a model has no data: give data=..., the trial that is to be simulated again.")
    return resolved(source, data)[0], data


def _refuse(n: int, data: Dataset) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 2:
        raise ModelError(f"n = {n!r} must be a whole number above 1.")
    if not data.n_obs:
        raise ModelError(f"{data.source}: there is no observation to simulate.")
    if n * data.n_obs > VALUES_MAX:
        most = int(VALUES_MAX // data.n_obs)
        raise ModelError(f"n = {n} replicates of {data.n_obs} rows need more than 2 GB. Use n = {most} at most.")


def _populations(
    source: Fit | Model, model: Model, n: int, seed: int, population: Source
) -> tuple[Float[np.ndarray, "replicate phi"], Float[np.ndarray, " phi"]]:
    """Population parameters of every replicate, and the estimate."""
    draws = phi_draws(source) if isinstance(source, Fit) else make_layout(model).start[None]
    estimate = draws.mean(axis=0)
    if population == "prior":
        return np.asarray(prior_phi(model, jax.random.fold_in(jax.random.key(seed), 5), n)), estimate
    if population == "estimate":
        return np.repeat(estimate[None], n, axis=0), estimate
    return draws[np.linspace(0, len(draws) - 1, n).astype(int)], estimate


@partial(jax.jit, static_argnames=("model", "each"))
def from_population(model: Model, obs: Observations, phis: Float[Array, "draw phi"], key, *, each: int):
    """Random parameters of new patients with these patients' covariates, ``each`` of every draw.

    Shape ``(draw, each, random, subject)``, transformed scale.
    """
    layout = make_layout(model)

    def of_one(phi, key):
        of = population(layout, phi, obs.design)
        for_class, for_z = jax.random.split(key)
        z = jax.random.normal(for_z, (each, len(layout.random), obs.n_subjects))
        if of.step is not None and of.log_odds is not None:
            second = jax.random.bernoulli(for_class, jax.nn.sigmoid(of.log_odds), (each, 1, obs.n_subjects))
            z = z + second * of.away[:, None]
        return jax.vmap(of.varying)(z)

    return jax.lax.map(lambda pair: of_one(*pair), (phis, jax.random.split(key, len(phis))))


@partial(jax.jit, static_argnums=0)
def predictions(model: Model, obs: Observations, phis: Float[Array, "draw phi"], x):
    """Natural log of every row's prediction, of every draw and patient drawn from it; and residual parameters."""
    layout = make_layout(model)

    def of_one(phi, x):
        of = population(layout, phi, obs.design)
        return jax.vmap(lambda x: ln_pred(layout, of.parameters(x), obs))(x), of.residual

    return jax.lax.map(lambda pair: of_one(*pair), (phis, x), batch_size=_BATCH)


def typical_ln_pred(model: Model, obs: Observations, phi: Float[np.ndarray, " phi"]) -> Float[np.ndarray, " obs"]:
    """Natural log of every row's prediction with all random effects at zero, in the density's order."""
    with jax.enable_x64(True):
        return np.asarray(_typical(model, obs, jnp.asarray(phi)))


@partial(jax.jit, static_argnums=0)
def _typical(model: Model, obs: Observations, phi: Float[Array, " phi"]):
    layout = make_layout(model)
    of = population(layout, phi, obs.design)
    centre = jnp.broadcast_to(of.centre(), (len(layout.random), obs.n_subjects))
    return ln_pred(layout, of.parameters(centre), obs)


def reference_ln_pred(source: Fit | Model, data: Dataset | None = None) -> Float[np.ndarray, " row"]:
    """The typical prediction at every row's day of one reference patient, natural log, in the data's order.

    Its covariates are at their centres, its dose is the median of the patients' (cells), and no treatment acts.
    """
    model, data = _model_and_data(source, data)
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        inputs = obs.inputs
        dose = jnp.where(jnp.isnan(inputs.dose), jnp.nan, jnp.nanmedian(inputs.dose))
        inputs = eqx.tree_at(lambda x: (x.dose, x.since), inputs, (dose, jnp.full_like(inputs.since, jnp.inf)))
        same = eqx.tree_at(lambda o: (o.design, o.inputs), obs, (jnp.zeros_like(obs.design), inputs))
        phi = phi_draws(source).mean(axis=0) if isinstance(source, Fit) else make_layout(model).start
        return typical_ln_pred(model, same, phi)[row_positions(model, data)]


def _reported(model: Model, data: Dataset, ln_ipred, residual, rng) -> Float[np.ndarray, "replicate row"]:
    """What the assays would report, with residual errors."""
    found, names = np.empty(ln_ipred.shape), [a.name for a in model.assays]
    for k, name in enumerate(data.assays):
        a, here = names.index(name), np.flatnonzero(data.assay == k)
        family, ln = RESIDUALS[model.assays[a].error], ln_ipred[:, here]
        parameters = [residual[:, j, a, None] for j in range(len(family.params))]
        if family.name == replicates.NAME:  # those of one sample share what happened to it
            taken = np.stack([data.subject[here], data.time[here]])
            found[:, here] = replicates.draw_together(rng, ln, parameters[0], parameters[1], taken)
        else:
            found[:, here] = family.draw(rng, ln, *parameters)
        if not family.counts and family.name != "combined":
            found[:, here] = np.maximum(found[:, here], _LOWEST)
    return found


def limits_of(model: Model, data: Dataset) -> Limits:
    """The limits of every row: its own where it is censored, else those that the table gives rows like it.

    A quantified row has the commonest limit of the patient's own censored rows of that assay, then of all patients',
    then the model's ``lloq``; never one above its own value, which was quantified.
    """
    left, right, interval = data.cens == 1, data.cens == -1, np.isfinite(data.limit)
    assays = {a.name: a for a in model.assays}
    lod, lloq, uloq = np.zeros(data.n_obs), np.zeros(data.n_obs), np.full(data.n_obs, np.inf)
    for k, name in enumerate(data.assays):
        here, model_assay = data.assay == k, assays[name]
        between = here & left & interval
        quantifying = between if between.any() else here & left
        lods = data.limit[between]
        if not between.any() and (data.dv[here & left] <= (model_assay.lod or 0.0)).any():
            lods = np.array([model_assay.lod])
        own = _commonest(data.dv[quantifying], model_assay.lloq or 0.0)
        lloq[here], lod[here] = own, min(_commonest(lods, 0.0), own)
        uloq[here] = _commonest(data.dv[here & right & ~interval], np.inf)
        for i in np.unique(data.subject[quantifying]):
            mine = here & (data.subject == i)
            lloq[mine] = _commonest(data.dv[mine & quantifying], own)
    quantified = data.cens == 0
    lloq[quantified] = np.minimum(lloq, data.dv)[quantified]
    uloq[quantified] = np.where(uloq > data.dv, uloq, np.inf)[quantified]
    plain, both = left & ~interval, left & interval
    # In a table with three states, what is not detected stands at the limit of detection.
    undetected = plain & (data.dv <= lod)
    lloq[plain & ~undetected], lod[undetected] = data.dv[plain & ~undetected], data.dv[undetected]
    lloq[both], lod[both] = data.dv[both], data.limit[both]
    uloq[right] = data.dv[right]
    lod = np.where(lod < lloq, lod, np.where(undetected, lod, 0.0))
    with np.errstate(divide="ignore"):
        return Limits(np.log(lod), np.log(np.maximum(lloq, lod)), np.log(uloq))


def _commonest(values: np.ndarray, otherwise: float) -> float:
    if not len(values):
        return otherwise
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)])
