"""The sections of a report: what a fit, its responses and its dose plan say, as words, tables and figures."""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from carkinetics import plots
from carkinetics.diagnostics import gof
from carkinetics.findings import listed
from carkinetics.fit_result import Fit
from carkinetics.forest import covariate_effects
from carkinetics.model_text import describe

ROWS = 200  # of a table that are shown
INDIVIDUALS = 24  # of the printed figure; the browser has all
_DPI = 105
_NUMBERS = {
    "rhat": "largest R-hat",
    "ess_bulk": "smallest bulk ESS",
    "ess_tail": "smallest tail ESS",
    "renewals": "smallest number of independent looks at a patient",
    "solver_error": "largest error of the fast solver, beside the reference",
    "solver_failed": "curves that the solver could not compute",
    "solver_unsolved": "curves that the reference could not compute",
    "around_failed": "starts around the posterior without a density",
    "last_move": "last move of the search, posterior SDs",
}


@dataclass(frozen=True)
class Table:
    """A table as text, with the number of rows that are not shown."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Figure:
    """A PNG, in base64."""

    png: str
    caption: str


@dataclass(frozen=True)
class Text:
    """A long text that can be folded away."""

    title: str
    text: str
    open: bool = False


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    id: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    texts: Sequence[Text] = ()


def tabulated(frame: pd.DataFrame, caption: str = "", *, index: bool = True) -> Table:
    """A DataFrame as text: numbers to four digits, nothing where there is no value."""
    frame = frame.reset_index() if index else frame
    shown = frame.head(ROWS)
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False, name=None)]
    return Table([str(c) for c in frame.columns], rows, caption, len(frame) - len(shown))


def pictured(axes: Any, caption: str) -> Figure:
    """The figure of these axes."""
    buffer = BytesIO()
    plots.save(axes, buffer, dpi=_DPI)
    return Figure(b64encode(buffer.getvalue()).decode(), caption)


def of_model(fit: Fit) -> Section:
    """Equations, parameters, priors, sources."""
    table = fit.model.table().drop(columns=["label"])
    return Section(
        "model",
        "Model and priors",
        [
            line
            for line in (fit.model.label, f"{fit.model.reference} doi:{fit.model.doi}" if fit.model.doi else "")
            if line
        ],
        [tabulated(table, "Parameters before the fit; omega is the between-patient SD on the transformed scale.")],
        texts=[Text("Equations, assays, sources", describe(fit.model)), Text("Model file (TOML)", fit.model.toml)],
    )


def of_data(fit: Fit) -> Section:
    """Patients, samples, limits; what was left out, and why."""
    data = fit.data
    rows = []
    for k, name in enumerate(data.assays):
        cens = data.cens[data.assay == k]
        patients = len(np.unique(data.subject[data.assay == k]))
        unit = data.units["DV"][name] if isinstance(data.units.get("DV"), dict) else data.units.get("DV", "")
        counts = {"samples": len(cens), "below a limit": int((cens == 1).sum()), "above": int((cens == -1).sum())}
        rows.append({"assay": name, "unit": unit, "patients": patients} | counts)
    excluded = data.report.excluded
    tables = [tabulated(pd.DataFrame(rows), "Samples in the likelihood.", index=False)]
    if len(excluded):
        why = excluded["REASON"].value_counts().rename_axis("reason").rename("rows").reset_index()
        tables.append(tabulated(why, "Rows that are not in the likelihood, and why.", index=False))
        tables.append(tabulated(excluded, "Each of them.", index=False))
    none = [s for i, s in enumerate(data.subjects) if not (data.subject == i).any()]
    lines = [f"Source: {data.source}. SHA-256 of content and policies: {data.sha256}."]
    lines += [f"Patients without a sample: {listed(none)}."] if none else []
    lines += [f"{'Warning' if note.warned else 'Note'}: {note.message}" for note in data.report.notes]
    return Section("data", "Data", lines, tables)


def of_convergence(fit: Fit) -> Section:
    """The verdict, its reasons, its numbers."""
    check = fit.check()
    numbers = pd.DataFrame({"value": {_NUMBERS.get(k, k): v for k, v in check.numbers.items()}}).rename_axis("number")
    return Section(
        "convergence", "Can this fit be trusted?", [str(check).splitlines()[0], *check.reasons], [tabulated(numbers)]
    )


def of_parameters(fit: Fit) -> Section:
    """The parameter table, and its figure."""
    figures = [pictured(plots.posteriors(fit), "Prior (grey) and posterior of the population's parameters.")]
    if fit.model.covariates:
        effects = covariate_effects(fit)
        figures.append(pictured(plots.forest(effects), "Covariate effects on exposure, with a band of no effect."))
    caption = (
        "TV: typical value. Contraction: share of the prior's variance that the data have taken; near 0 the posterior "
        "is the prior. Intervals are 95 %, equal-tailed."
    )
    return Section("parameters", "Parameters", (), [tabulated(fit.parameters(), caption)], figures)


def of_figures(fit: Fit) -> Section:
    """Observed against predicted, individual fits."""
    table, unit = gof(fit), fit.model.assays[0].unit
    n = min(fit.data.n_subjects, INDIVIDUALS)
    shown = "" if n == fit.data.n_subjects else f" {n} of {fit.data.n_subjects} patients, spread over the table."
    return Section(
        "figures",
        "Fit and data",
        figures=[
            pictured(plots.observed_predicted(table, unit=unit, label=fit.label), "Observed against predicted."),
            pictured(plots.individuals(fit, n=n), f"Individual fits.{shown}"),
        ],
    )


def of_verb(identifier: str, title: str, found: Any) -> Section:
    """Anything that judges itself: its words, its tables; what it does not have is left out."""
    lines, tables = [], []
    if hasattr(found, "check"):
        lines += str(found.check()).splitlines()
    verdict = getattr(found, "verdict", None)
    if verdict is not None:
        lines += str(verdict() if callable(verdict) else verdict).splitlines()
    for name in ("table", "effects"):
        frame = getattr(found, name, None)
        frame = frame() if callable(frame) else frame
        if isinstance(frame, pd.DataFrame):
            tables.append(tabulated(frame, {"table": "", "effects": "Effects."}[name]))
    if isinstance(found, pd.DataFrame):
        tables.append(tabulated(found))
    return Section(identifier, title, lines, tables)


def of_record(fit: Fit) -> Section:
    """What was run, on what, with which versions."""
    kept = {k: v for k, v in fit.tree.attrs.items() if k not in ("model_toml", "notes")}
    frame = pd.DataFrame({"value": {k: _flat(v) for k, v in kept.items()}}).rename_axis("record")
    return Section(
        "record", "Record", ["Same data, settings, seed and machine give the same draws."], [tabulated(frame)]
    )


def _flat(value: Any) -> str:
    """JSON as words."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return _cell(value)
    return ", ".join(f"{k} {_cell(v)}" for k, v in found.items()) if isinstance(found, dict) else _cell(found)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return ""
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_cell(v) for v in value)
    return "" if value is None else str(value)
