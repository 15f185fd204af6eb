"""Sections of a report: whether the fit ran well, its parameters, its data, its model, and the record of the run."""

import json
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd

from carkinetics import plots
from carkinetics.findings import listed
from carkinetics.fit_result import Fit
from carkinetics.forest import covariate_effects
from carkinetics.inputs import baseline
from carkinetics.model_text import describe
from carkinetics.page_parts import Section, Table, Text, cell, pictured, tabulated

DOSE = "dose record"  # what the reader calls rows that were never meant to be samples
_OF_PATIENTS = ("solver_error_subject", "solver_failed", "solver_unsolved", "around_failed", "approximation")
_NUMBERS = {
    "rhat": "largest R-hat",
    "ess_bulk": "smallest bulk ESS",
    "ess_tail": "smallest tail ESS",
    "renewals": "smallest number of independent looks at a patient",
    "solver_error": "largest error of the fast solver in ln level, beside the reference",
    "solver_failed": "curves that the solver could not compute",
    "solver_unsolved": "curves that the reference could not compute",
    "around_failed": "starts around the posterior without a density",
    "last_move": "last move of the search, posterior SDs",
    "sigma": "smallest residual SD",
    "draws": "draws",
    "divergences": "divergent transitions",
    "ebfmi": "smallest E-BFMI",
    "deepest": "trajectories cut at the largest tree depth",
}


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
    tables = [tabulated(fit.parameters().drop(columns=["method"], errors="ignore"), _about_parameters(fit))]
    if fit.model.covariates:
        effects = covariate_effects(fit)
        figures.append(pictured(plots.forest(effects), "Covariate effects on exposure, with a band of no effect."))
    return Section("parameters", "Parameters", (), tables, figures)


def _about_parameters(fit: Fit) -> str:
    caption = (
        "TV: typical value. Contraction: share of the prior's variance that the data have taken; near 0 the posterior "
        "is the prior. Intervals are 95 %, equal-tailed."
    )
    return f"{caption} {fit.label}: no R-hat and ESS." if fit.label else caption


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
    tables = [tabulated(pd.DataFrame(rows), "Samples in the likelihood.", index=False)]
    tables.append(tabulated(_people(fit), "Patients.", index=False))
    none = [s for i, s in enumerate(data.subjects) if not (data.subject == i).any()]
    lines = [f"Source: {data.source}. SHA-256 of content and policies: {data.sha256}."]
    lines += [f"Patients without a sample: {listed(none)}."] if none else []
    lines += [f"{'Warning' if note.warned else 'Note'}: {note.message}" for note in data.report.notes]
    return Section("data", "Data", lines, tables + _left_out(data.report.excluded))


def _people(fit: Fit) -> pd.DataFrame:
    """Follow-up, samples, doses and the model's covariates, over patients."""
    data, summary = fit.data, fit.data.summary()
    doses = data.doses().groupby("ID")["AMT"].sum().reindex(list(data.subjects))
    numbers = {
        "samples": summary["N"],
        "last sample (day)": summary["LAST"],
        f"dose, all infusions ({data.units.get('AMT') or 'cells'})": doses,
    }
    rows = []
    for column in dict.fromkeys(c.column for c in fit.model.covariates):
        x = baseline(data, column)
        if x.dtype == object:
            shares = ", ".join(f"{v} {n}" for v, n in pd.Series(x).fillna("unknown").value_counts().items())
            rows.append({"of a patient": column, "known": int(pd.notna(x).sum()), "categories": shares})
        else:
            numbers[column] = pd.Series(x)
    found = [
        {"of a patient": name, "known": int(x.notna().sum()), "median": x.median(), "least": x.min(), "most": x.max()}
        for name, x in numbers.items()
        if x.notna().any()
    ]
    return pd.DataFrame([*found, *rows])


def _left_out(excluded: pd.DataFrame) -> list[Table]:
    """Rows that are not samples, counted; each of those that might have been one."""
    if not len(excluded):
        return []
    why = excluded["REASON"].value_counts().rename_axis("reason").rename("rows").reset_index()
    tables = [tabulated(why, "Rows of the table that are not in the likelihood, and why.", index=False)]
    samples = excluded[excluded["REASON"] != DOSE]
    if len(samples):
        tables.append(tabulated(samples, "Each of them that is no dose record.", index=False))
    return tables


def of_model(fit: Fit) -> Section:
    """Equations, parameters, priors, sources."""
    model = fit.model
    lines = [line for line in (model.label, f"{model.reference} doi:{model.doi}" if model.doi else "") if line]
    table = tabulated(
        model.table().drop(columns=["label"]),
        "Parameters before the fit; omega is the between-patient SD on the transformed scale.",
    )
    texts = [Text("Equations, assays, sources", describe(model)), Text("Model file (TOML)", model.toml)]
    return Section("model", "Model and priors", lines, [table], texts=texts)


def of_record(fit: Fit, *, single: bool) -> Section:
    """What was run, on what, with which versions; nothing of single patients unless ``single``."""
    left_out = ("model_toml", "notes", *(() if single else _OF_PATIENTS))
    kept = {k: v for k, v in fit.tree.attrs.items() if k not in left_out}
    kept["model_sha256"] = sha256(fit.model.toml.encode()).hexdigest()
    frame = pd.DataFrame({"value": {k: text for k, v in kept.items() if (text := _flat(v))}}).rename_axis("record")
    return Section(
        "record", "Record", ["Same data, settings, seed and machine give the same draws."], [tabulated(frame)]
    )


def _flat(value: Any) -> str:
    """JSON as words."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return cell(value)
    return ", ".join(f"{k} {cell(v)}" for k, v in found.items()) if isinstance(found, dict) else cell(found)
