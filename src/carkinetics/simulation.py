"""Virtual patients: individual parameters drawn from a model or a fit, their curves, and what an assay would give."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from carkinetics import solvers
from carkinetics.cohort import Cohort, cells, covariate_shift, draw_people, inputs_for, refuse_cohort
from carkinetics.errors import ModelError
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import ln_offset
from carkinetics.model import Model
from carkinetics.population import compiled_ln_curves, make_layout, natural, prior_phi, split_phi
from carkinetics.structure import AbstractStructure, Inputs
from carkinetics.transforms import TRANSFORMS

_TOGETHER = 2048  # patients that are solved at once: their states stay in a core's cache


@dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated patients.

    Attributes
    ----------
    curves : xarray.Dataset
        Every output of the structure, natural scale, by ``replicate``, ``subject`` and ``time`` (day): without
        residual error.
    samples : xarray.Dataset
        What every assay reports, by ``replicate``, ``subject``, ``time`` and ``assay``: ``dv`` (with residual error, at
        the limit where it is below it), ``below`` and ``ipred`` (without), each in the assay's unit.
    people : DataFrame
        Dose, weight, covariates and, of a mixture, ``CLASS``, one row per replicate and patient (``REP``, ``ID``).
    parameters : DataFrame
        Individual parameters, natural scale, in the same rows.
    population : DataFrame
        The population parameters of every replicate, by the names of the parameter table (``cmax``, ``omega cmax``,
        ``sigma qpcr``).
    """

    curves: xr.Dataset
    samples: xr.Dataset
    people: pd.DataFrame
    parameters: pd.DataFrame
    population: pd.DataFrame
    model: Model
    cohort: Cohort

    @property
    def individual(self) -> pd.DataFrame:
        """Individual parameters of the first replicate, one row a patient."""
        return self.parameters.loc[self.population.index[0]]

    @property
    def truth(self) -> dict[str, float]:
        """Population parameters of the first replicate."""
        return {str(k): float(v) for k, v in self.population.iloc[0].items()}

    @cached_property
    def table(self) -> pd.DataFrame:
        """What the study would record, one row per dose, sample and measured course.

        ``ID TIME DV AMT EVID DVID MDV CENS``, the columns of ``people``, and ``REP`` where there are several
        replicates: :func:`carkinetics.read_dataset` reads one replicate's rows.
        """
        tables = [self._table(k) for k in range(len(self.population))]
        if len(tables) == 1:
            return tables[0]
        return pd.concat(
            [t.assign(REP=r) for t, r in zip(tables, self.population.index, strict=True)], ignore_index=True
        )

    def _table(self, replicate: int) -> pd.DataFrame:
        people = (
            self.people.loc[self.population.index[replicate]].drop(columns=["CLASS"], errors="ignore").reset_index()
        )
        times, samples = self.samples["time"].values, self.samples.isel(replicate=replicate)
        at = people.loc[people.index.repeat(len(times))]
        records = [_infusions(self.cohort, people)]
        for assay in samples["assay"].values:
            of = samples.sel(assay=assay)
            row: dict[str, Any] = {"TIME": np.tile(times, len(people)), "DV": of["dv"].values.ravel()}
            records.append(
                at.assign(**row, AMT=0.0, EVID=0, DVID=assay, MDV=0, CENS=of["below"].values.ravel().astype(int))
            )
        courses = [_measured(self.cohort, r.column, people) for r in self.model.regressors]
        table = pd.concat([*records, *(c for c in courses if c is not None)], ignore_index=True)
        for regressor in self.model.regressors:
            if regressor.column not in table:
                table[regressor.column] = regressor.typical
        table = table.sort_values(
            ["ID", "TIME", "EVID"], ascending=[True, True, False], ignore_index=True, kind="stable"
        )
        first = ["ID", "TIME", "DV", "AMT", "EVID", "DVID", "MDV", "CENS"]
        return table[[*first, *(c for c in table if c not in first)]]


def _infusions(cohort: Cohort, people: pd.DataFrame) -> pd.DataFrame:
    """One record per infusion."""
    none: dict[str, Any] = {"DV": np.nan, "EVID": 1, "DVID": "", "MDV": 1, "CENS": 0}
    whole = cells(people)
    return pd.concat([people.assign(AMT=whole * share, TIME=float(day), **none) for day, share in cohort.infusions])


def _measured(cohort: Cohort, column: str, people: pd.DataFrame) -> pd.DataFrame | None:
    """One record per measurement of a course that changes."""
    if column not in cohort.courses:
        return None
    days, values = cohort.courses[column]
    none: dict[str, Any] = {"DV": np.nan, "AMT": 0.0, "EVID": 2, "DVID": "", "MDV": 1, "CENS": 0}
    return pd.concat(
        [people.assign(TIME=float(t), **{column: float(v)}, **none) for t, v in zip(days, values, strict=True)]
    )


class _Population(NamedTuple):
    """What replicates are drawn from; the leading axis is the replicate."""

    theta: Float[np.ndarray, "replicate parameter"]
    omega: Float[np.ndarray, "replicate parameter"]
    sigma: Float[np.ndarray, "replicate assay"]


def simulate(
    source: Model | Fit,
    cohort: Cohort,
    *,
    seed: int,
    replicates: int = 1,
    uncertainty: bool = False,
    variability: bool = True,
    residual: bool = True,
    limits: bool = True,
    refine: int = 1,
) -> Simulation:
    """Simulate a cohort.

    Parameters
    ----------
    source : Model or Fit
        The population: a model's values, or the posterior of a fit (its mean on the transformed scale).
    seed : int
        The same seed gives the same patients; the first replicate is the same whatever their number.
    replicates : int
        Studies to simulate.
    uncertainty : bool
        Every replicate has population parameters of its own: a draw of the posterior, or of a model's priors.
    variability : bool
        Patients differ (random effects, classes of a mixture); without, each is typical of its covariates.
    residual, limits : bool
        Samples have residual error; samples below an assay's ``lloq`` are left-censored at it.
    refine : int
        Divides the steps of the fixed-grid solver.

    Raises
    ------
    ModelError
        The cohort cannot be, or a number that is needed is not known.
    """
    model = source.model if isinstance(source, Fit) else source
    times = refuse_cohort(cohort)
    refuse_seed(seed)
    model.refuse_unknown("this simulation", variability=variability and not isinstance(source, Fit), residual=residual)
    design = _Design(model, cohort, times, variability, residual, limits, refine)
    population = _population(source, model, replicates, seed, uncertainty=uncertainty)
    studies = []
    for r, drawn in enumerate(zip(*population, strict=True)):
        studies.append(_study(design, _Population(*drawn), np.random.default_rng([seed, r])))
    return _gather(design, population, studies)


class _Design(NamedTuple):
    """What all replicates have in common."""

    model: Model
    cohort: Cohort
    times: Float[np.ndarray, " time"]
    variability: bool
    residual: bool
    limits: bool
    refine: int


class _Study(NamedTuple):
    """One replicate."""

    people: pd.DataFrame
    parameters: Float[np.ndarray, "parameter subject"]
    ln_outputs: dict[str, Float[np.ndarray, "time subject"]]
    ln_ipred: Float[np.ndarray, "assay time subject"]
    ln_dv: Float[np.ndarray, "assay time subject"]


def _population(source: Model | Fit, model: Model, replicates: int, seed: int, *, uncertainty: bool) -> _Population:
    """The population parameters of every replicate."""
    layout = make_layout(model)
    if isinstance(source, Fit):
        phi = phi_draws(source)
        chosen = np.linspace(0, len(phi) - 1, replicates).astype(int)
        phi = phi[chosen] if uncertainty else np.repeat(phi.mean(axis=0)[None], replicates, axis=0)
    elif uncertainty:
        with jax.enable_x64(True):
            phi = np.asarray(prior_phi(model, jax.random.key(seed), replicates))
    else:
        one = _Population(*(np.array([x]) for x in _values(model)))
        return _Population(*(np.repeat(x, replicates, axis=0) for x in one))
    with jax.enable_x64(True):
        theta, random, sigma = (
            np.stack(x) for x in zip(*(split_phi(layout, jnp.asarray(p)) for p in phi), strict=True)
        )
    omega = np.zeros_like(theta)
    omega[:, list(layout.random)] = random
    return _Population(theta, omega, sigma)


def _values(model: Model) -> tuple[list[float], list[float], list[float]]:
    return [p.theta for p in model.parameters], [p.iiv for p in model.parameters], [a.sigma for a in model.assays]


def _study(design: _Design, population: _Population, random: np.random.Generator) -> _Study:
    model, cohort, shape = design.model, design.cohort, (len(design.model.parameters), design.cohort.n)
    z = random.standard_normal(shape)
    people = draw_people(cohort, random)
    z = np.tile(z, len(people) // cohort.n)
    theta = population.theta[:, None] + covariate_shift(model, people)
    if model.mixture is not None:
        theta, people = _with_classes(design, theta, people, random)
    x = inputs_for(model, cohort, people)
    with jax.enable_x64(True):
        transformed = theta + population.omega[:, None] * z if design.variability else theta
        values = np.asarray(natural(make_layout(model), jnp.asarray(transformed)))
    ln_outputs = solve(model.structure, design.times, values, x, refine=design.refine)
    with jax.enable_x64(True):
        offsets = [np.asarray(ln_offset(a, x, design.times[:, None])) for a in model.assays]
    ln_ipred = np.stack([ln_outputs[a.output] + o for a, o in zip(model.assays, offsets, strict=True)])
    ln_dv = ln_ipred
    if design.residual:
        ln_dv = ln_ipred + population.sigma[:, None, None] * random.standard_normal(ln_ipred.shape)
    return _Study(people, values, ln_outputs, ln_ipred, ln_dv)


def _with_classes(design: _Design, theta, people: pd.DataFrame, random: np.random.Generator):
    """Typical values of every patient's class, and the class in ``people``; without variability, the first one."""
    mixture = design.model.mixture
    assert mixture is not None
    second = random.uniform(size=design.cohort.n) < mixture.probability if design.variability else np.zeros(1, bool)
    second = np.resize(second, len(people))
    changed, first = design.model.with_values({mixture.on: mixture.value})[mixture.on], design.model[mixture.on]
    row = [p.name for p in design.model.parameters].index(mixture.on)
    theta = theta.copy()
    theta[row] += np.where(second, changed.theta - first.theta, 0.0)
    return theta, people.assign(CLASS=np.where(second, mixture.label, "reference"))


def solve(
    structure: AbstractStructure,
    times: Float[np.ndarray, " time"],
    values: Float[np.ndarray, "parameter subject"],
    x: Inputs,
    *,
    refine: int = 1,
) -> dict[str, Float[np.ndarray, "time subject"]]:
    """Natural log of every output of any number of patients, some at a time, on all cores."""
    n, x = values.shape[1], jax.tree.map(np.asarray, x)
    width = min(_TOGETHER, n)
    found = {name: np.empty((len(times), n)) for name in structure.outputs}
    schedule, shared = np.repeat(times[:, None], width, axis=1), None
    if solvers.one_schedule(x):
        shared = solvers.make_grid(structure, schedule, jax.tree.map(lambda a: a[..., :width], x), refine=refine)

    def some(begin: int) -> None:
        here = np.minimum(np.arange(begin, begin + width), n - 1)  # the last ones fill their program up
        with jax.enable_x64(True):  # a thread of its own has JAX's default
            of = jax.tree.map(lambda a: a[..., here], x)
            grid = shared or solvers.make_grid(structure, schedule, of, refine=refine)
            ln = compiled_ln_curves(structure, grid, values[:, here], of)
            for name, curve in ln.items():
                found[name][:, begin : begin + width] = np.asarray(curve)[:, : n - begin]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(some, range(0, n, width)))
    return found


def _gather(design: _Design, population: _Population, studies: list[_Study]) -> Simulation:
    """The replicates side by side, labelled."""
    model, replicates = design.model, np.arange(1, len(studies) + 1)
    ids = _ids(design.cohort)
    coords = {"replicate": replicates, "subject": ids, "time": design.times}
    dims = ("replicate", "time", "subject")
    curves = {name: (dims, np.exp([s.ln_outputs[name] for s in studies])) for name in model.structure.outputs}
    limit = np.array([a.lloq or 0.0 if design.limits else 0.0 for a in model.assays])[:, None, None]
    dv, ipred = (np.exp([getattr(s, name) for s in studies]) for name in ("ln_dv", "ln_ipred"))
    below = dv < limit
    by = ("replicate", "assay", "time", "subject")
    samples = {"dv": (by, np.where(below, limit, dv)), "below": (by, below), "ipred": (by, ipred)}
    rows = pd.MultiIndex.from_product([replicates, ids], names=["REP", "ID"])
    names = pd.Index([p.name for p in model.parameters])
    truth = [_named(model, _Population(*drawn)) for drawn in zip(*population, strict=True)]
    return Simulation(
        curves=xr.Dataset(curves, coords).transpose("replicate", "subject", "time"),
        samples=xr.Dataset(samples, coords | {"assay": [a.name for a in model.assays]}).transpose(
            "replicate", "subject", "time", "assay"
        ),
        people=pd.concat([s.people for s in studies]).set_index(rows),
        parameters=pd.DataFrame(np.concatenate([s.parameters.T for s in studies]), rows, names),
        population=pd.DataFrame(truth, index=pd.Index(replicates, name="REP")),
        model=model,
        cohort=design.cohort,
    )


def _ids(cohort: Cohort) -> list[str]:
    width = len(str(cohort.n))
    ids = [f"V{i + 1:0{width}d}" for i in range(cohort.n)]
    return [f"{i}L{k + 1}" for k in range(len(cohort.levels)) for i in ids] or ids


def _named(model: Model, population: _Population) -> dict[str, float]:
    """One replicate's population parameters, by the names of the parameter table."""
    names = [p.name for p in model.parameters]
    at = zip(model.parameters, population.theta, strict=True)
    with jax.enable_x64(True):  # the model's own value comes back to the last digit
        typical = {p.name: p.value if x == p.theta else float(TRANSFORMS[p.transform].inverse(x)) for p, x in at}
    omegas = {f"omega {n}": float(w) for n, w in zip(names, population.omega, strict=True) if w > 0}
    return typical | omegas | {f"sigma {a.name}": float(s) for a, s in zip(model.assays, population.sigma, strict=True)}


def refuse_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number from 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ModelError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")


def truth_of(model: Model) -> dict[str, float]:
    """The population parameters that a model draws from, by the names of the parameter table."""
    truth = {p.name: p.value for p in model.parameters}
    truth |= {f"omega {p.name}": p.iiv for p in model.parameters if p.iiv}
    return truth | {f"sigma {a.name}": a.sigma for a in model.assays}
