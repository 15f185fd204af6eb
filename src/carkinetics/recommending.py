"""From exposure and responses to a dose: new patients at every level, and how surely which level is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.endpoints import Given, Judged, judged
from carkinetics.errors import DataError, FitError, ModelError
from carkinetics.exposures import CurveRules
from carkinetics.findings import listed
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import baseline, inputs_of, per_patient
from carkinetics.model_parts import nearest_or_raise
from carkinetics.new_exposures import Wanted, new_exposures, wanted
from carkinetics.new_patients import WEIGHT, NewPatients, Pool, fitted_pool, given_pool, new_patients
from carkinetics.plan import RULES, Plan, PlanRules
from carkinetics.response.guards import CAUTION
from carkinetics.simulation import refuse_seed
from carkinetics.structure import Inputs

DRAWS = 500
SIMULATED = 200
_SPREAD = (0.05, 0.5, 0.95)


@dataclass(frozen=True, eq=False)
class DoseOptions:
    """Who is treated, by how many draws, and by what a dose is chosen.

    Attributes
    ----------
    patients : DataFrame, optional
        The population: one row a patient with every covariate of the model and of the responses, and ``WT`` where a
        dose per kg needs it. By default patients like the fitted ones.
    draws : int
        Of the population, each with draws of the responses.
    simulated : int
        New patients of every draw; the same at each level.
    per_kg : bool
        Levels are viable CAR+ cells per kg, otherwise in all; for structures that take the dose.
    curves : CurveRules, optional
        Those of :func:`carkinetics.exposure` where they were given to it.
    rules : PlanRules
    allow_failed : bool
        Also of a fit, or a response, whose check failed.
    """

    patients: pd.DataFrame | None = None
    draws: int = DRAWS
    simulated: int = SIMULATED
    per_kg: bool = True
    curves: CurveRules | None = None
    rules: PlanRules = RULES
    allow_failed: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers of nothing."""
        for name in ("draws", "simulated"):
            if getattr(self, name) < 2:
                raise ModelError(f"options: {name} = {getattr(self, name)!r} must be 2 or more.")


def recommend(
    fit: Fit,
    *,
    efficacy: Given,
    toxicity: Given,
    levels: Sequence[float],
    seed: int,
    dose_column: str = "",
    options: DoseOptions | None = None,
) -> Plan:
    """Which dose, how surely, and whether a higher one is better at all.

    New patients have covariates of the fitted ones and random effects of their own. At every draw of the population
    their exposure at each level is computed, then each response's probability, with a draw of that response's; the
    averages over patients are the rates of the plan.

    Parameters
    ----------
    efficacy, toxicity : response, Endpoint, or several
        Fitted to metrics of this fit. The first efficacy is what a higher dose must improve.
    levels : sequence of float
        Doses to choose among, from the lowest.
    dose_column : str
        The model's covariate that is the dose; then levels are in its unit. Not needed where the structure takes the
        dose.

    Raises
    ------
    ModelError
        Exposure does not depend on the dose; a level, an endpoint or a metric cannot be.
    DataError
        A covariate, or the weight, of new patients is not known.
    FitError
        The fit or a response failed its check.
    """
    options = options or DoseOptions()
    refuse_seed(seed)
    doses = _levels(levels)
    endpoints = judged(efficacy, toxicity)
    status = _status(fit, endpoints, allow_failed=options.allow_failed)
    column = _dose_column(fit, dose_column)
    metrics = {e.name: wanted(e.response.patients.metric, fit.model, options.curves) for e in endpoints}
    if options.patients is None:
        pool = fitted_pool(fit, endpoints, column)
    else:
        pool = given_pool(fit.model, options.patients, endpoints, column)
    random, phi = np.random.default_rng(seed), phi_draws(fit)
    phi = phi[np.unique(np.linspace(0, len(phi) - 1, options.draws).astype(int))]
    which = {e.name: random.integers(len(e.response.posterior.draws), size=len(phi)) for e in endpoints}
    people = new_patients(fit, pool, phi, options.simulated, random)
    of_level = []
    for dose in doses:
        cells = _cells(people, float(dose), per_kg=options.per_kg) if fit.model.structure.uses_dose else None
        values = people.parameters(fit.model, **({column: float(dose)} if column else {}))
        of_level.append(_at_level(fit, endpoints, metrics, people, which, people.inputs(cells), values))
    rates, means, spread = (_stacked([one[part] for one in of_level]) for part in range(3))
    unit = column or ("cells/kg" if options.per_kg else "cells")
    notes = (*_about(fit, pool, endpoints), CAUTION)
    known, priors = _doses_of(fit, column, per_kg=options.per_kg), _priors(fit, endpoints, column)
    return Plan(doses, unit, endpoints, rates, means, spread, known, options.rules, status, priors, notes)


def _stacked(of_level: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([one[name] for one in of_level], axis=-1) for name in of_level[0]}


def _levels(levels: Sequence[float]) -> Float[np.ndarray, " level"]:
    doses = np.asarray(levels, float)
    if doses.ndim != 1 or len(doses) < 2 or not (np.isfinite(doses).all() and (doses > 0).all()):
        raise ModelError(f"levels = {list(levels)}: give two doses or more, finite and above 0.")
    if not (np.diff(doses) > 0).all():
        raise ModelError(f"levels = {list(levels)}: give them from the lowest, each once.")
    return doses


def _status(fit: Fit, endpoints: Sequence[Judged], *, allow_failed: bool) -> dict[str, str]:
    checks = {f"fit of {fit.model.name}": fit.check()} | {e.name: e.response.check() for e in endpoints}
    failed = [name for name, check in checks.items() if check.status == "failed"]
    if failed and not allow_failed:
        reason = checks[failed[0]].reasons[0]
        raise FitError(f"{listed(failed)} failed, so no dose: {reason} DoseOptions(allow_failed=True) gives one.")
    return {name: f"{c.status}{f' ({c.reasons[0]})' if c.reasons else ''}" for name, c in checks.items()}


def _dose_column(fit: Fit, column: str) -> str:
    """The covariate that is the dose, if the levels mean anything to this model."""
    model = fit.model
    columns = list(dict.fromkeys(c.column for c in model.covariates))
    if column:
        if column not in columns:
            nearest_or_raise(column, columns or ["none"], "covariate", model.name)
        return column
    if model.structure.uses_dose:
        return ""
    like = [c for c in columns if "DOSE" in c.upper() or c.upper().startswith("AMT")]
    remedy = (
        f"Is {like[0]} the dose? Say dose_column={like[0]!r}."
        if like
        else 'Fit it again with model.with_covariates(ck.Covariate("DOSE_PER_KG", on="cmax", form="power")), where the '
        'table has that column, and say dose_column="DOSE_PER_KG"; or use a structure that takes the dose.'
    )
    raise ModelError(
        f"{model.name}: exposure does not depend on the dose in this model, so all levels would be alike. {remedy}"
    )


def _cells(people: NewPatients, dose: float, *, per_kg: bool) -> Float[np.ndarray, " lane"]:
    """Viable CAR+ cells of every new patient at a level."""
    if not per_kg:
        return np.full(people.source.size, dose)
    if WEIGHT not in people.pool.people:
        raise DataError(f"levels are per kg, and new patients have no {WEIGHT}. Give it, or DoseOptions(per_kg=False).")
    weight = people.pool.people[WEIGHT].to_numpy(float)
    if not (weight > 0).all():
        raise DataError(f"{WEIGHT} is missing or not above 0 in {(~(weight > 0)).sum()} of {len(weight)} patients.")
    return dose * people.column(WEIGHT)


def _at_level(
    fit: Fit,
    endpoints: Sequence[Judged],
    metrics: Mapping[str, Wanted],
    people: NewPatients,
    which: Mapping[str, np.ndarray],
    x: Inputs,
    values: Float[np.ndarray, "parameter lane"],
) -> tuple[dict, dict, dict]:
    """Rates and ln geometric means of exposure, by draw; percentiles of exposure."""
    columns = {m.column: people.column(m.column) for m in metrics.values() if m.column}
    exposures = new_exposures(fit.model, list(dict.fromkeys(metrics.values())), values, x, columns)
    found = {m: one.reshape(people.source.shape) for m, one in exposures.items()}
    rates = {}
    for e in endpoints:
        u = e.response.patients.standardised(found[metrics[e.name]])
        rates[e.name] = e.rates(u, people.covariates(e.name), which[e.name]).mean(axis=1)
    means = {m.label: np.log(one).mean(axis=1) for m, one in found.items()}
    return rates, means, {m.label: np.quantile(one, _SPREAD) for m, one in found.items()}


def _doses_of(fit: Fit, column: str, *, per_kg: bool) -> Float[np.ndarray, " patient"]:
    """Doses of the fitted patients in the unit of the levels, those that are known."""
    if column:
        doses = np.asarray(baseline(fit.data, column), float)
    elif per_kg and WEIGHT not in fit.data.table:
        doses = np.zeros(0)
    else:
        doses = np.asarray(inputs_of(fit.model, fit.data).dose)
        doses = doses / per_patient(fit.data, WEIGHT) if per_kg else doses
    return doses[np.isfinite(doses) & (doses > 0)]


def _about(fit: Fit, pool: Pool, endpoints: Sequence[Judged]) -> list[str]:
    """Numbers of patients, and what was taken as known, in words."""
    kinetics = f"kinetics of {fit.data.n_subjects} patients ({fit.data.n_obs} samples)"
    counts = ", ".join(f"{e.name} of {len(e.response.patients.ids)}" for e in endpoints)
    notes = [f"It rests on {kinetics}; {counts}.", *pool.notes]
    if fit.label:
        notes.append(f"The fit: {fit.label}.")
    seen = [e.name for e in endpoints if not e.response.patients.uncertain]
    if seen:
        notes.append(f"{listed(seen)}: fitted to one value of exposure a patient, taken as known exactly.")
    return notes


def _priors(fit: Fit, endpoints: Sequence[Judged], column: str) -> pd.DataFrame:
    """Of the effects of the dose, and of the responses."""
    rows = []
    for c in fit.model.covariates:
        if c.column == column:
            for e in c.effects:
                text = "known" if e.fixed else f"Normal({e.prior.loc:.3g}, {e.prior.scale:.3g})"
                rows.append({"OF": "dose on exposure", "PARAMETER": e.name, "PRIOR": text})
    for e in endpoints:
        for name, text in e.response.table()["PRIOR"].items():
            shares = text == "flat" and not e.response.terms.is_flat  # thresholds: their prior is not one of each
            rows.append({"OF": e.name, "PARAMETER": name, "PRIOR": "uniform shares of grades" if shares else text})
    return pd.DataFrame(rows, columns=["OF", "PARAMETER", "PRIOR"])
