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
from jaxtyping import Array, Float

from carkinetics import solvers
from carkinetics.cohort import Cohort, cells, design_for, draw_people, inputs_for, refuse_cohort
from carkinetics.density import compiled_ln_curves
from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import ln_offset
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.population import Population, class_sign, correlations, effects, natural, population
from carkinetics.priors import prior_phi
from carkinetics.residuals import RESIDUALS
from carkinetics.structure import AbstractStructure, Inputs

_FINEST = 256  # times the steps asked for
_BROKEN = 190.0  # ln of an output that only a state at the end of its range can have
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
        the limit where it is below it), ``below``, ``detected`` (false below an assay's ``lod``, at which ``dv`` then
        stands) and ``ipred`` (without residual error), each in the assay's unit.
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
            lod = next(a.lod for a in self.model.assays if a.name == assay)
            if lod is not None:  # detected and not quantified: between the two limits
                between = (of["below"] & of["detected"]).values.ravel()
                records[-1]["LIMIT"] = np.where(between, lod, np.nan)
        courses = [_measured(self.cohort, r.column, people) for r in self.model.regressors]
        table = pd.concat([*records, *(c for c in courses if c is not None)], ignore_index=True)
        for regressor in self.model.regressors:
            if regressor.column not in table:
                table[regressor.column] = regressor.typical
        for assay in self.model.assays:
            if assay.per and assay.per not in table:
                table[assay.per] = 1.0
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
        Samples have residual error; samples below an assay's ``lloq`` are left-censored at it, or lie between it and
        the ``lod`` of an assay that has one, or are left-censored at that.
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
    phi = _populations(source, model, replicates, seed, uncertainty=uncertainty)
    with jax.enable_x64(True):
        studies = [_study(design, jnp.asarray(x), np.random.default_rng([seed, r])) for r, x in enumerate(phi)]
    return _gather(design, phi, studies)


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


def _populations(
    source: Model | Fit, model: Model, replicates: int, seed: int, *, uncertainty: bool
) -> Float[np.ndarray, "replicate phi"]:
    """The population parameters of every replicate, as the sampler moves them."""
    if isinstance(source, Fit):
        phi = phi_draws(source)
        if uncertainty:
            return phi[np.linspace(0, len(phi) - 1, replicates).astype(int)]
        return np.repeat(phi.mean(axis=0)[None], replicates, axis=0)
    if uncertainty:
        with jax.enable_x64(True):
            return np.asarray(prior_phi(model, jax.random.key(seed), replicates))
    return np.repeat(make_layout(model).start[None], replicates, axis=0)


def _study(design: _Design, phi: Float[Array, " phi"], random: np.random.Generator) -> _Study:
    model, cohort, layout = design.model, design.cohort, make_layout(design.model)
    z = random.standard_normal((len(model.parameters), cohort.n))
    people = draw_people(cohort, random)
    z = np.tile(z, len(people) // cohort.n)[list(layout.random)]
    of = population(layout, phi, jnp.asarray(design_for(model, people)))
    x = np.broadcast_to(np.asarray(of.centre()), z.shape)
    if model.mixture is not None:
        x, people = _with_classes(design, of, x, people, random)
    if design.variability:
        x = x + np.asarray(of.spread(jnp.asarray(z)))
    individual = of.parameters(jnp.asarray(x))
    values = np.asarray(natural(layout, individual))
    at = inputs_for(model, cohort, people)
    ln_outputs = solve(model.structure, design.times, values, at, refine=design.refine)
    offsets = [np.asarray(ln_offset(a, at, design.times[:, None])) for a in model.assays]
    ratios = [np.asarray(individual[r]) if r >= 0 else 0.0 for r in layout.ratios]
    per = [np.log(people[a.per].to_numpy(float)) if a.per in people else 0.0 for a in model.assays]
    parts = zip(model.assays, offsets, ratios, per, strict=True)
    ln_ipred = np.stack([ln_outputs[a.output] + o + r + c for a, o, r, c in parts])
    ln_dv = _reported(model, ln_ipred, np.asarray(of.residual), random) if design.residual else ln_ipred
    return _Study(people, values, ln_outputs, ln_ipred, ln_dv)


def _reported(model: Model, ln_ipred, residual, random: np.random.Generator) -> Float[np.ndarray, "assay time subject"]:
    """What the assays report, with their residual errors."""
    families = [RESIDUALS[a.error] for a in model.assays]
    return np.stack(
        [
            f.draw(random, ln, *residual[: len(f.params), k])
            for k, (f, ln) in enumerate(zip(families, ln_ipred, strict=True))
        ]
    )


def _with_classes(design: _Design, of: Population, x, people: pd.DataFrame, random: np.random.Generator):
    """Typical values of every patient's class, and the class in ``people``; without variability, the first one."""
    mixture = design.model.mixture
    assert mixture is not None and of.step is not None and of.log_odds is not None
    share = float(jax.nn.sigmoid(of.log_odds))
    second = random.uniform(size=design.cohort.n) < share if design.variability else np.zeros(1, bool)
    second = np.resize(second, len(people))
    x = x + np.where(second, np.asarray(of.step)[:, None], 0.0)
    return x, people.assign(CLASS=np.where(second, mixture.label, "reference"))


def solve(
    structure: AbstractStructure,
    times: Float[np.ndarray, " time"],
    values: Float[np.ndarray, "parameter subject"],
    x: Inputs,
    *,
    refine: int = 1,
) -> dict[str, Float[np.ndarray, "time subject"]]:
    """Natural log of every output of any number of patients, some at a time, on all cores.

    A step that is too long throws a state to the end of its range, e^200: such patients, and those without a curve, are
    solved by shorter ones; if none is short enough there is a :class:`ModelError`.
    """
    found = _solved(structure, times, values, x, refine)
    shorter = refine
    while lost := np.flatnonzero(~(np.stack(list(found.values())) < _BROKEN).all(axis=(0, 1))).tolist():
        if shorter >= _FINEST * refine:
            who = listed(f"{i + 1} (" + ", ".join(f"{v:.3g}" for v in values[:, i]) + ")" for i in lost)
            raise ModelError(f"{structure.name}: no curve for patient(s), with their parameters: {who}.")
        shorter *= 4
        again = _solved(structure, times, values[:, lost], jax.tree.map(lambda a: np.asarray(a)[..., lost], x), shorter)
        for name, curves in again.items():
            found[name][:, lost] = curves
    return found


def _solved(
    structure: AbstractStructure,
    times: Float[np.ndarray, " time"],
    values: Float[np.ndarray, "parameter subject"],
    x: Inputs,
    refine: int,
) -> dict[str, Float[np.ndarray, "time subject"]]:
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


def _gather(design: _Design, phi: Float[np.ndarray, "replicate phi"], studies: list[_Study]) -> Simulation:
    """The replicates side by side, labelled."""
    model, replicates = design.model, np.arange(1, len(studies) + 1)
    ids = _ids(design.cohort)
    coords = {"replicate": replicates, "subject": ids, "time": design.times}
    dims = ("replicate", "time", "subject")
    curves = {name: (dims, np.exp([s.ln_outputs[name] for s in studies])) for name in model.structure.outputs}
    limit = np.array([a.lloq or 0.0 if design.limits else 0.0 for a in model.assays])[:, None, None]
    dv, ipred = (np.exp([getattr(s, name) for s in studies]) for name in ("ln_dv", "ln_ipred"))
    counts = [RESIDUALS[a.error].counts and design.residual for a in model.assays]
    dv[:, counts] = np.round(dv[:, counts])  # whole numbers have no exact logarithms
    below = dv < limit
    lod = np.array([a.lod or 0.0 if design.limits else 0.0 for a in model.assays])[:, None, None]
    detected = dv >= np.minimum(lod, limit)
    by = ("replicate", "assay", "time", "subject")
    reported = np.where(below, np.where(detected, limit, lod), dv)
    samples = {"dv": (by, reported), "below": (by, below), "detected": (by, detected), "ipred": (by, ipred)}
    rows = pd.MultiIndex.from_product([replicates, ids], names=["REP", "ID"])
    names = pd.Index([p.name for p in model.parameters])
    truth = [_named(model, make_layout(model), x) for x in phi]
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


def _named(model: Model, layout: Layout, phi: Float[np.ndarray, " phi"]) -> dict[str, float]:
    """One replicate's population parameters, by the names of the parameter table; typical values on natural scale."""
    found = truth_of(model)
    with jax.enable_x64(True):
        for k, (component, x) in enumerate(zip(layout.components, phi, strict=True)):
            name = component.name
            if x == component.value and name in found:
                continue  # the model's own value, to the last digit
            if k < layout.typical.stop:
                found[name] = float(model[name].inverse(x))
            elif component.log:
                found[name] = float(np.exp(x))
        beta = np.asarray(effects(layout, jnp.asarray(phi)))
        found |= {e.name: float(b) for e, b in zip(layout.effects, beta, strict=True)}
        if model.correlation is not None:
            names, matrix = model.correlation.parameters, np.asarray(correlations(layout, jnp.asarray(phi)))
            at = list(layout.correlated)
            pairs = [(i, j) for i in range(1, len(at)) for j in range(i)]
            found |= {f"corr {names[j]} {names[i]}": float(matrix[at[i], at[j]]) for i, j in pairs}
        if model.mixture is not None:
            mixture, (step, odds) = model.mixture, phi[layout.classes]
            away = model[mixture.on].forward(found[mixture.on]) + class_sign(layout).sum() * np.exp(step)
            found[f"{mixture.on} {mixture.label}"] = float(model[mixture.on].inverse(away))
            found[f"share {mixture.label}"] = float(1 / (1 + np.exp(-odds)))
    return found


def refuse_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number from 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ModelError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")


def truth_of(model: Model) -> dict[str, float]:
    """The population parameters that a model draws from, by the names of the parameter table."""
    truth = {p.name: p.value for p in model.parameters}
    truth |= {f"omega {p.name}": p.iiv for p in model.parameters if p.iiv}
    return truth | {f"{RESIDUALS[a.error].params[0].name} {a.name}": a.sigma for a in model.assays}
