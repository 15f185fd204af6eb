"""Sections of a report that judge the model: fit and data, predictive checks, and what the data told."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from carkinetics import plots
from carkinetics.diagnostics import gof, individual_fits
from carkinetics.fit_result import Fit
from carkinetics.information import identifiability, sensitivity, shrinkage
from carkinetics.late_samples import late_rise
from carkinetics.page_parts import Figure, Section, pictured, tabulated
from carkinetics.prediction_errors import PredictionErrors, npde
from carkinetics.summary_checks import predictive_checks
from carkinetics.visual_checks import VisualCheck, vpc

INDIVIDUALS = 24  # of the printed figure; the browser has all
_POINTS = 80  # of a patient's curve
_DRAWS = 500
_TRIALS = 500  # simulated ones
_OBSERVED = "Triangles: below the limit."
_WEIGHED = (
    "How far the posterior moves when prior or likelihood are raised to a power near 1, per doubling of the power; "
    "0.05 counts."
)
_VPC = (
    "Observed percentiles (lines) in the 95 % intervals of simulated trials (bands), and below them the share of "
    "samples below the limit."
)


class Judged(NamedTuple):
    """What the sections below show; all of it simulated with the fit's own seed."""

    curves: pd.DataFrame
    errors: PredictionErrors
    visual: VisualCheck
    checks: pd.DataFrame


def judged(fit: Fit) -> Judged:
    """Curves of every patient, prediction errors, and simulated trials."""
    seed, rows = int(fit.tree.attrs["seed"]), np.unique(fit.data.subject, return_counts=True)[1].max(initial=0)
    n = max(_TRIALS, 20 * int(rows))  # the same in all, so that one program serves
    return Judged(
        curves=individual_fits(fit, points=_POINTS, draws=_DRAWS),
        errors=npde(fit, seed=seed, n=n),
        visual=vpc(fit, seed=seed, n=n),
        checks=predictive_checks(fit, seed=seed, n=n),
    )


def of_figures(fit: Fit, found: Judged, *, single: bool) -> Section:
    """Goodness of fit, individual fits, late rises."""
    table, units = gof(fit, npde=found.errors), {a.name: a.unit for a in fit.model.assays}
    figures = [
        pictured(plots.gof(table, assay=a, unit=units[a], label=fit.label), f"Goodness of fit, {a}. {_OBSERVED}")
        for a in fit.data.assays
    ]
    tables, lines = [], []
    if single:
        names = [fit.data.subjects[k] for k in plots.spread(fit.data.n_subjects, INDIVIDUALS)]
        figures += [_individuals(fit, found.curves, a, names) for a in fit.data.assays]
        rises = late_rise(fit)
        tables = [tabulated(rises[rises["FLAG"]].reset_index(drop=True))] if rises["FLAG"].any() else []
        lines = [_risen(rises)] if len(rises) else []
    return Section("figures", "Fit and data", lines, tables, figures)


def _individuals(fit: Fit, curves: pd.DataFrame, assay: str, names: list[str]) -> Figure:
    n, total = len(names), fit.data.n_subjects
    shown = "" if n == total else f" {n} of {total} patients, spread over the table."
    axes = plots.individual_fits(curves, fit.data, assay=assay, subjects=names, label=fit.label)
    return pictured(axes, f"Individual fits, {assay}: curve, and bands of new samples of the same patient.{shown}")


def _risen(rises: pd.DataFrame) -> str:
    told = f"{int(rises['FLAG'].sum())} of {len(rises)} patients have late samples that their fitted decline does not"
    return f"Late rises: {told} allow; a tenfold rise would be found in {100 * rises['POWER'].mean():.0f} % of them."


def of_predictions(fit: Fit, found: Judged) -> Section:
    """VPC, NPDE, and statistics of the trial among simulated ones."""
    replicates = f"{found.visual.replicates} simulated trials, percentiles outside their 95 % interval."
    outside = found.visual.outside().reset_index()
    if not outside["STRATUM"].any():
        outside = outside.drop(columns=["STRATUM"])
    bins = [f"Bins of {assay}: {reason}." for (assay, _), reason in found.visual.bins.items()]
    seed = f"Simulated with the fit's seed, {fit.tree.attrs['seed']}."
    checks = found.checks.reset_index()
    statistics = checks.drop(columns=["ABOUT"]).assign(STATISTIC=checks["ABOUT"] + " (" + checks["UNIT"] + ")")
    tables = [
        tabulated(outside, f"{replicates} SIDE: 1 where all of them lie above, -1 where all lie below."),
        tabulated(
            found.errors.table(), f"NPDE: standard normal if the model is right. {found.errors.replicates} trials."
        ),
        tabulated(
            statistics.drop(columns=["UNIT"]), "The trial among simulated ones, of the posterior and of the priors."
        ),
    ]
    figures = [pictured(plots.vpc(found.visual), f"Visual predictive check. {_VPC}")]
    figures += [pictured(plots.npde(found.errors, assay=a), f"NPDE, {a}.") for a in fit.data.assays]
    return Section("predictions", "Does the model predict such a trial?", [seed, *bins], tables, figures)


def of_information(fit: Fit) -> Section:
    """Shrinkage, contraction, and whether the prior decides."""
    known = identifiability(fit, pairs=5)
    tables = [
        tabulated(shrinkage(fit), "Shrinkage."),
        tabulated(known.parameters, "How much of each prior's variance the data have taken, the least known first."),
        tabulated(known.pairs, "Parameters that are only known together: the largest posterior correlations."),
        tabulated(sensitivity(fit), _WEIGHED),
    ]
    return Section("information", "What the data told", (), tables)
