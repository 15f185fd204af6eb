"""Patients who may come: covariates of those who were there, drawn anew, and individual parameters at every dose."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from scipy.special import ndtri

from carkinetics.cohort import Cohort, design_for, inputs_for
from carkinetics.endpoints import Judged
from carkinetics.errors import DataError, DataWarning
from carkinetics.findings import hint, listed
from carkinetics.fit_result import Fit
from carkinetics.inputs import baseline, inputs_of, per_patient
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.population import natural, population
from carkinetics.structure import Inputs

WEIGHT = "WT"


@dataclass(frozen=True, eq=False)
class Pool:
    """Patients whom new ones are like.

    Attributes
    ----------
    people : DataFrame
        What the kinetic model reads, one row a source patient.
    x : Inputs
        Their treatments and measured courses; the dose is replaced at every level.
    z : mapping
        Covariates of every response as numbers, (effect, source), by the endpoint's name.
    certain : bool
        They are the population; otherwise they are a sample of it.
    notes : tuple of str
    """

    people: pd.DataFrame
    x: Inputs
    z: Mapping[str, Float[np.ndarray, "effect source"]]
    certain: bool
    notes: tuple[str, ...]

    def resampled(self, draws: int, slots: int, random: np.random.Generator) -> Int[np.ndarray, "draw slot"]:
        """Which source every new patient is like.

        Where the sources are a sample, each draw has shares of its own, uniform over the simplex (the Bayesian
        bootstrap): that the covariates of the next patients are known from some patients only, is in the intervals.
        Within a draw sources come as often as their shares say, up to one (systematic resampling).

        References
        ----------
        Rubin DB. Ann Stat 1981;9:130-134, doi:10.1214/aos/1176345338.
        """
        n = len(self.people)
        share = np.full((draws, n), 1 / n) if self.certain else random.dirichlet(np.ones(n), draws)
        order = random.permuted(np.broadcast_to(np.arange(n), share.shape), axis=1)
        below = np.cumsum(np.take_along_axis(share, order, axis=1), axis=1)
        at = (np.arange(slots) + random.random((draws, 1))) / slots
        place = np.stack([np.searchsorted(b / b[-1], a, side="right") for b, a in zip(below, at, strict=True)])
        return np.take_along_axis(order, np.minimum(place, n - 1), axis=1)


def fitted_pool(fit: Fit, endpoints: Sequence[Judged], dose: str) -> Pool:
    """Patients like the fitted ones, with their treatments and courses; ``dose`` is the column that is a dose.

    Raises
    ------
    DataError
        No patient has all covariates.
    """
    model, data = fit.model, fit.data
    ids, notes = list(data.subjects), []
    for e in endpoints:
        if e.response.terms.covariates:
            known = set(e.response.patients.ids)
            lacking = [i for i in ids if i not in known]
            if lacking:
                notes.append(f"no new patient is like {listed(lacking)}: covariates of {e.name} are not known.")
            ids = [i for i in ids if i in known]
    if not ids:
        raise DataError(f"{data.source}: no patient of the fit has the covariates of all responses. Check the IDs.")
    wanted = [c for c in dict.fromkeys(c.column for c in model.covariates) if c != dose]
    columns = {c: baseline(data, c) for c in wanted}
    if WEIGHT in data.table and WEIGHT not in columns:
        columns[WEIGHT] = per_patient(data, WEIGHT)
    at = np.array([data.subjects.index(i) for i in ids])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # further infusions: said at the fit, and replaced here
        x = inputs_of(model, data)
    z = {}
    for e in endpoints:
        frame = e.response.patients.covariates
        rows = frame.loc[ids] if frame.shape[1] else pd.DataFrame(index=ids)
        z[e.name] = e.response.patients.encoder.numbers(rows)
    people = pd.DataFrame({c: v[at] for c, v in columns.items()}, index=range(len(ids)))
    return Pool(people, _taken(x, at), z, certain=False, notes=tuple(notes))


def given_pool(model: Model, given: pd.DataFrame, endpoints: Sequence[Judged], dose: str) -> Pool:
    """Patients of a table, one row each: together they are the population.

    Raises
    ------
    DataError
        The table has no rows, or lacks a column that the model or a response reads.
    """
    if not len(given):
        raise DataError("options.patients has no rows.")
    for column in dict.fromkeys(c.column for c in model.covariates if c.column != dose):
        if column not in given:
            raise DataError(f"options.patients lacks the column {column}.{hint(column, map(str, given))}")
    people = given.reset_index(drop=True)
    z = {e.name: e.response.patients.encoder.numbers(people) for e in endpoints}
    cohort = Cohort(n=len(people), times=(1.0,), dose=1.0, covariates=people)
    x = inputs_for(model, cohort, people.assign(DOSE=1.0))
    return Pool(people, x, z, certain=True, notes=())


def _taken(x: Inputs, at: Int[np.ndarray, " n"]) -> Inputs:
    with jax.enable_x64(True):
        return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[..., at]), x)


@dataclass(frozen=True, eq=False)
class NewPatients:
    """New patients of every draw of the population: the same at every dose, so that doses meet the same people.

    Attributes
    ----------
    pool : Pool
    phi : array of shape (draw, phi)
    source : array of shape (draw, slot)
    z : array of shape (random, draw, slot)
        Standard normal.
    u : array of shape (draw, slot)
        Uniform: which class of a mixture a patient is in.
    """

    pool: Pool
    phi: Float[np.ndarray, "draw phi"]
    source: Int[np.ndarray, "draw slot"]
    z: Float[np.ndarray, "random draw slot"]
    u: Float[np.ndarray, "draw slot"]

    def column(self, name: str) -> Float[np.ndarray, " lane"]:
        """A column of the sources, of every new patient."""
        return self.pool.people[name].to_numpy(float)[self.source.ravel()]

    def covariates(self, endpoint: str) -> Float[np.ndarray, "draw effect slot"]:
        """Of a response, as numbers."""
        return np.moveaxis(self.pool.z[endpoint][:, self.source], 0, 1)

    def inputs(self, cells: Float[np.ndarray, " lane"] | None) -> Inputs:
        """Of every new patient; with ``cells``, one infusion of these on day 0 and none later."""
        x = _taken(self.pool.x, self.source.ravel())
        if cells is None:
            return x
        with jax.enable_x64(True):
            none = jnp.zeros((0, len(cells)))
            return replace(x, dose=jnp.asarray(cells, float), later_day=none, later_dose=none)

    def parameters(self, model: Model, **changed: float) -> Float[np.ndarray, "parameter lane"]:
        """Individual parameters on the natural scale, with these columns ``changed``."""
        layout, people = make_layout(model), self.pool.people.assign(**changed)
        with jax.enable_x64(True):
            design = jnp.moveaxis(jnp.asarray(design_for(model, people))[:, self.source], 1, 0)
            draws = (jnp.asarray(self.phi), jnp.asarray(self.z), jnp.asarray(self.u), design)
            found = _individuals(model, *draws)
            return np.asarray(found).reshape(len(layout.parameters), -1)


def new_patients(
    fit: Fit, pool: Pool, phi: Float[np.ndarray, "draw phi"], slots: int, random: np.random.Generator
) -> NewPatients:
    """New patients; each random effect is evenly spread within a draw (a Latin hypercube), so that few are enough.

    References
    ----------
    McKay MD, Beckman RJ, Conover WJ. Technometrics 1979;21:239-245, doi:10.1080/00401706.1979.10489755.
    """
    shape = (len(make_layout(fit.model).random), len(phi), slots)
    place = random.permuted(np.broadcast_to(np.arange(slots), shape), axis=2)
    z = ndtri((place + random.random(shape)) / slots)
    u = (random.permuted(np.broadcast_to(np.arange(slots), shape[1:]), axis=1) + random.random(shape[1:])) / slots
    return NewPatients(pool, phi, pool.resampled(len(phi), slots, random), z, u)


@partial(jax.jit, static_argnums=0)
def _individuals(model: Model, phi: Array, z: Array, u: Array, design: Array) -> Float[Array, "parameter draw slot"]:
    """Of every draw's patients."""
    layout = make_layout(model)
    return jax.vmap(lambda *one: _individual(layout, *one), (0, 1, 0, 0), 1)(phi, z, u, design)


def _individual(
    layout: Layout, phi: Float[Array, " phi"], z: Float[Array, "random n"], u: Float[Array, " n"], design: Array
) -> Float[Array, "parameter n"]:
    of = population(layout, phi, design)
    x = of.varying(z) if layout.random else z
    if of.step is not None and of.log_odds is not None:
        x = x + jnp.where(u < jax.nn.sigmoid(of.log_odds), of.step[:, None], 0.0)
    return natural(layout, of.parameters(x))
