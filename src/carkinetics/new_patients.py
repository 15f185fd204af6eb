"""Patients who may come: covariates of those who were there, drawn anew, and individual parameters at every dose."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """New patients: as many slots as are simulated, each with the covariates of one source patient.

    Attributes
    ----------
    people : DataFrame
        What the kinetic model reads, one row a slot.
    x : Inputs
        Treatments and measured courses of every slot; its dose is replaced at every level.
    z : mapping
        Covariates of every response as numbers, (effect, slot), by the endpoint's name.
    source : array of shape (slot,)
        Which source patient a slot is like.
    certain : bool
        The source patients are the population; otherwise they are a sample of it.
    notes : tuple of str
    """

    people: pd.DataFrame
    x: Inputs
    z: Mapping[str, Float[np.ndarray, "effect slot"]]
    source: Int[np.ndarray, " slot"]
    certain: bool
    notes: tuple[str, ...]

    def weights(self, draws: int, random: np.random.Generator) -> Float[np.ndarray, "draw slot"]:
        """Share of every slot in the population of each draw; rows sum to 1.

        Where the source patients are a sample, each draw has shares of its own, uniform over the simplex (the Bayesian
        bootstrap): that the covariates of the next patients are known from some patients only, is in the intervals.

        References
        ----------
        Rubin DB. Ann Stat 1981;9:130-134, doi:10.1214/aos/1176345338.
        """
        n = int(self.source.max()) + 1
        share = np.full((draws, n), 1 / n) if self.certain else random.dirichlet(np.ones(n), draws)
        each = np.bincount(self.source, minlength=n)
        found = share[:, self.source] / each[self.source]
        return found / found.sum(axis=1, keepdims=True)


def fitted_pool(fit: Fit, endpoints: Sequence[Judged], slots: int, random: np.random.Generator, dose: str) -> Pool:
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
    source = _slots(len(ids), slots, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # further infusions: said at the fit, and replaced here
        x = inputs_of(model, data)
    chosen = at[source]
    z = {}
    for e in endpoints:
        frame = e.response.patients.covariates
        rows = frame.loc[[ids[k] for k in source]] if frame.shape[1] else pd.DataFrame(index=range(len(source)))
        z[e.name] = e.response.patients.encoder.numbers(rows)
    people = pd.DataFrame({c: v[chosen] for c, v in columns.items()}, index=range(len(source)))
    taken = jax.tree.map(lambda a: np.asarray(a)[..., chosen], x)
    _, source = np.unique(source, return_inverse=True)
    return Pool(people, taken, z, source, certain=False, notes=tuple(notes))


def given_pool(
    model: Model, given: pd.DataFrame, endpoints: Sequence[Judged], slots: int, random: np.random.Generator, dose: str
) -> Pool:
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
    source = _slots(len(given), slots, random)
    people = given.iloc[source].reset_index(drop=True)
    z = {e.name: e.response.patients.encoder.numbers(people) for e in endpoints}
    cohort = Cohort(n=len(people), times=(1.0,), dose=1.0, covariates=people)
    x = inputs_for(model, cohort, people.assign(DOSE=1.0))
    _, source = np.unique(source, return_inverse=True)
    return Pool(people, x, z, source, certain=True, notes=())


def _slots(n: int, slots: int, random: np.random.Generator) -> Int[np.ndarray, " slot"]:
    """Every source patient equally often, at least ``slots`` in all; of more sources than slots, some."""
    if n > slots:
        return np.sort(random.permutation(n)[:slots])
    return np.tile(np.arange(n), -(-slots // n))


@dataclass(frozen=True, eq=False)
class Individuals:
    """How new patients differ from one another: the same at every dose, so that doses are compared in the same people.

    Attributes
    ----------
    phi : array of shape (draw, phi)
    z : array of shape (random, draw, slot)
        Standard normal; each draw's own.
    u : array of shape (draw, slot)
        Uniform: which class of a mixture a patient is in.
    """

    phi: Float[np.ndarray, "draw phi"]
    z: Float[np.ndarray, "random draw slot"]
    u: Float[np.ndarray, "draw slot"]

    def parameters(self, model: Model, people: pd.DataFrame) -> Float[np.ndarray, "parameter draw slot"]:
        """Individual parameters on the natural scale, of patients with these covariates."""
        layout = make_layout(model)
        with jax.enable_x64(True):
            design = jnp.asarray(design_for(model, people))
            draws = (jnp.asarray(self.phi), jnp.asarray(self.z), jnp.asarray(self.u))
            found = jax.vmap(lambda p, z, u: _individual(layout, p, z, u, design), (0, 1, 0), 1)(*draws)
            return np.asarray(found)


def individuals(fit: Fit, phi: Float[np.ndarray, "draw phi"], slots: int, random: np.random.Generator) -> Individuals:
    """Random effects of every draw's patients: each effect evenly spread (a Latin hypercube), so that few are enough.

    References
    ----------
    McKay MD, Beckman RJ, Conover WJ. Technometrics 1979;21:239-245, doi:10.1080/00401706.1979.10489755.
    """
    shape = (len(make_layout(fit.model).random), len(phi), slots)
    place = random.permuted(np.broadcast_to(np.arange(slots), shape), axis=2)
    z = ndtri((place + random.random(shape)) / slots)
    return Individuals(phi, z, random.random(shape[1:]))


def _individual(
    layout: Layout, phi: Float[Array, " phi"], z: Float[Array, "random n"], u: Float[Array, " n"], design: Array
) -> Float[Array, "parameter n"]:
    of = population(layout, phi, design)
    x = of.varying(z)
    if of.step is not None and of.log_odds is not None:
        x = x + jnp.where(u < jax.nn.sigmoid(of.log_odds), of.step[:, None], 0.0)
    return natural(layout, of.parameters(x))


def at_dose(x: Inputs, cells: Float[np.ndarray, " slot"]) -> Inputs:
    """One infusion of these cells on day 0, and none later."""
    n = len(cells)
    with jax.enable_x64(True):
        none = jnp.zeros((0, n))
        return replace(x, dose=jnp.asarray(cells, float), later_day=none, later_dose=none)
