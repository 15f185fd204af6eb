"""A simulated trial analysed as a real one: kinetics, exposure, toxicity and response, and which dose."""

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from carkinetics.dataset import Dataset, read_dataset
from carkinetics.endpoints import Endpoint
from carkinetics.errors import CarkineticsError, DataWarning, FitWarning
from carkinetics.exposures import exposure
from carkinetics.fitting import quick_fit
from carkinetics.observations import Fill, group_sizes
from carkinetics.plan import Plan
from carkinetics.recommending import DoseOptions, recommend
from carkinetics.response.logistic_model import logistic
from carkinetics.response.options import ResponseOptions
from carkinetics.trials.parts import MONTH, Trial
from carkinetics.trials.simulation import SimulatedTrial, simulate_trial

DONE = "done"
PILOTS = 8  # trials whose numbers of samples say how long arrays are filled up
_ROOM = 4.0  # SDs of a count by which a trial may have more samples than the largest pilot, and the same program
_RESPONSE_DRAWS = 1000  # the plan uses some hundred
_GRAIN = 32


def outcome_of(found: SimulatedTrial) -> dict[str, Any]:
    """What happened in a trial, and what its design selects in the end, as numbers.

    Returns
    -------
    dict
        ``seed``, ``stopped``, ``selected`` (level, 0 for none), ``patients``, ``dlt``, ``orr``, ``pfs_events``,
        ``deaths``, ``dropouts``, ``months`` from the start to the cut of the data, ``samples``, ``below`` (share of
        samples below the limit); ``patients_<level>``, ``dlt_<level>``, ``orr_<level>``.
    """
    p, trial = found.patients, found.trial
    dlt, orr = p[trial.toxicity.name], p[trial.response.name]
    samples = found.table[found.table["EVID"] == 0]
    known: dict[str, Any] = {"seed": found.seed, "stopped": int(found.enrolled.stopped), "selected": _selected(found)}
    known |= {"patients": len(p), "dlt": int(dlt.sum()), "orr": int(orr.sum())}
    known |= {"pfs_events": int(p["PFS_EVENT"].sum()), "deaths": int(p["OS_EVENT"].sum())}
    known |= {"dropouts": int((p["OUT"] == "dropout").sum())}
    known["months"] = float((p["DAY"].max() + trial.follow_up.after) / MONTH)
    known |= {"samples": len(samples), "below": float((samples["CENS"] == 1).mean())}
    for k in range(1, len(trial.levels) + 1):
        here = p["LEVEL"] == k
        known |= {f"patients_{k}": int(here.sum()), f"dlt_{k}": int(dlt[here].sum()), f"orr_{k}": int(orr[here].sum())}
    return known


def _selected(found: SimulatedTrial) -> int | None:
    """By the design, of all patients; of a trial that it stopped none, of arms nothing is asked."""
    design, trial = found.trial.assignment.design, found.trial
    if design is None:
        return None
    if found.enrolled.stopped:
        return 0
    names = {trial.toxicity.name: "DLT", trial.response.name: "ORR"}
    known = found.patients.rename(columns=names).dropna(subset=["DLT"])
    if design.uses_response:
        known = known.assign(ORR=known["ORR"].fillna(0.0))
    columns = ["ID", "COHORT", "LEVEL", "DLT", "FOLLOW_UP", "ORR", "DAY"]
    return design.select(known[columns].reset_index(drop=True)).dose or 0


def analysed(found: SimulatedTrial, *, seed: int, fill: Fill | None = None) -> dict[str, Any]:
    """The trial's outcome, and the plan that follows from its kinetics, toxicity and response.

    Returns
    -------
    dict
        What :func:`outcome_of` says, and ``analysis`` (``done``, or why there is none); ``planned`` (level, 0: none),
        ``p_more`` and ``more`` (whether more is better, by the plan), ``last_move`` of the fit; of the effects of
        covariates ``<effect>``, ``_low``, ``_high`` (95 %); ``slope_dlt``, ``slope_orr`` (per SD of ln exposure);
        ``rate_dlt_<level>``, ``rate_orr_<level>`` with ``_low``, ``_high`` (90 %), ``p_best_<level>``.
    """
    known = outcome_of(found)
    reason = _unfit(found)
    if reason:
        return known | {"analysis": reason}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            warnings.simplefilter("ignore", FitWarning)
            return known | _planned(found, seed, fill) | {"analysis": DONE}
    except CarkineticsError as error:
        return known | {"analysis": f"{type(error).__name__}: {error}"}


def _unfit(found: SimulatedTrial) -> str:
    """Why a trial is not analysed further; empty if it is."""
    if found.enrolled.stopped:
        return "stopped"
    if len(found.patients) < found.trial.analysis.minimum:
        return "few patients"
    return "one level" if found.patients["LEVEL"].nunique() < 2 else ""


def kinetic_data(found: SimulatedTrial) -> Dataset:
    """The trial's table as the analysis reads it: samples of the assays that its model has."""
    names = [a.name for a in found.trial.analysis.model.assays]
    table = found.table[(found.table["EVID"] != 0) | found.table["DVID"].isin(names)]
    units = {a.name: a.unit for a in found.trial.analysis.model.assays if (table["DVID"] == a.name).any()}
    return read_dataset(table, units={"DV": units})


def _planned(found: SimulatedTrial, seed: int, fill: Fill | None) -> dict[str, Any]:
    trial, by_id = found.trial, found.patients.set_index("ID")
    how = trial.analysis
    fit = quick_fit(how.model, kinetic_data(found), seed=seed, draws=how.draws, fill=fill)
    exposed = exposure(fit, [how.toxicity, how.response], assay=how.assay, draws=how.draws, rules=trial.curves)
    # Who cannot be told to have responded counts as one who did not; who has no known toxicity does not count.
    responded = by_id[trial.response.name].fillna(0.0)
    few = ResponseOptions(missing="drop", draws=_RESPONSE_DRAWS)
    toxic = logistic(exposed[how.toxicity], by_id[trial.toxicity.name], seed=seed, options=few)
    good = logistic(exposed[how.response], responded, seed=seed, options=replace(few, missing="refuse"))
    column = trial.dose_column if trial.dose_column in [c.column for c in how.model.covariates] else ""
    plan = recommend(
        fit,
        efficacy=Endpoint(good, target=trial.response.target, weight=trial.response.weight, name="ORR"),
        toxicity=Endpoint(toxic, target=trial.toxicity.target, weight=trial.toxicity.weight, name="DLT"),
        levels=trial.levels,
        seed=seed,
        dose_column=column,
        options=DoseOptions(draws=how.population, simulated=how.simulated, per_kg=trial.per_kg, curves=trial.curves),
    )
    known = _said(plan) | {"last_move": float(fit.check().numbers["last_move"])}
    if how.model.covariates:
        effects = fit.tree["posterior"].to_dataset()["beta"]
        for name in effects["effect"].values:
            low, middle, high = np.quantile(effects.sel(effect=name).values, (0.025, 0.5, 0.975))
            known |= {str(name): float(middle), f"{name}_low": float(low), f"{name}_high": float(high)}
    for name, response in (("dlt", toxic), ("orr", good)):
        known[f"slope_{name}"] = float(np.median(response.posterior.draws[:, 1]))
    return known


def _said(plan: Plan) -> dict[str, Any]:
    best = 0 if plan.best is None else int(np.flatnonzero(plan.levels == plan.best)[0]) + 1
    known: dict[str, Any] = {"planned": best, "p_more": plan.p_more, "more": int(plan.more_is_better)}
    for k, row in enumerate(plan.table.to_dict("records"), start=1):
        for name in ("DLT", "ORR"):
            for end in ("", "_LOW", "_HIGH"):
                known[f"rate_{name.lower()}_{k}{end.lower()}"] = float(row[f"{name}{end}"])
        known[f"p_best_{k}"] = float(row["P_BEST"])
    return known


def fill_of(trial: Trial) -> Fill:
    """Sizes of arrays that hold nearly every trial's samples, from some trials with seeds of their own."""
    largest: Counter[tuple[str, str]] = Counter()
    depth = 0
    for seed in range(PILOTS):
        found = simulate_trial(trial, seed=seed)
        if _unfit(found):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            data = kinetic_data(found)
        largest |= Counter(group_sizes(trial.analysis.model, data))
        times = pd.DataFrame({"subject": data.subject, "time": data.time}).drop_duplicates()
        depth = max(depth, int(times["subject"].value_counts().max()))
    groups = tuple((*key, -(-int(n + _ROOM * n**0.5) // _GRAIN) * _GRAIN) for key, n in sorted(largest.items()))
    return Fill(groups, depth)
