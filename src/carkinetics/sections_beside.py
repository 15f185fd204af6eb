"""Sections of a report beside the fit: exposure, responses, doses, and tables that were given."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from carkinetics import plots
from carkinetics.endpoints import GRADE
from carkinetics.metric import Exposure
from carkinetics.page_parts import Figure, Section, between, pictured, tabulated
from carkinetics.plan import Plan
from carkinetics.response.logistic_model import LogisticResponse
from carkinetics.response.ordinal_model import OrdinalResponse
from carkinetics.response.result import AbstractResponse
from carkinetics.response.survival import Survival
from carkinetics.response.tte_model import TteResponse

WORST = ("failed", "warning", "approximation", "ok")
_COUNTED = ("observed", "interpolated", "model", "extrapolated")  # statuses of values that are no bounds


def status_of(found: Any) -> tuple[str, str]:
    """What a part says of itself, and its first reason; nothing where it does not judge itself."""
    if isinstance(found, Plan):  # as good as the worst of what it rests on
        name = min(found.status, key=lambda of: badness(found.status[of].split(" ")[0]))
        status = found.status[name].split(" ")[0]
        return status, "" if status == "ok" else f"{name}: {found.status[name]}"
    if not hasattr(found, "check"):
        return "", ""
    check = found.check()
    return str(check.status), next(iter(check.reasons), "")


def badness(status: str) -> int:
    """The less the worse; a word that is not known counts as a warning."""
    return WORST.index(status) if status in WORST else WORST.index("warning")


def beside(identifier: str, title: str, found: Any, *, single: bool) -> Section:
    """Whatever was given; single patients only if ``single``."""
    if isinstance(found, Exposure):
        return of_exposure(identifier, title, found, single=single)
    if isinstance(found, Plan):
        return of_plan(identifier, title, found)
    return of_verb(identifier, title, found)


def of_exposure(identifier: str, title: str, found: Exposure, *, single: bool) -> Section:
    """Metrics over patients; and of every patient, one row each."""
    rows, wide = [], {}
    for metric in found.values():
        table = metric.table()
        counted = table[table["STATUS"].isin(_COUNTED)]["VALUE"]
        low, middle, high = counted.quantile([0.05, 0.5, 0.95])
        counts = ", ".join(f"{name} {n}" for name, n in table["STATUS"].value_counts().items())
        row = {"METRIC": metric.name, "ASSAY": metric.assay, "UNIT": metric.unit, "N": len(counted), "MEDIAN": middle}
        rows.append(row | {"5 %": low, "95 %": high, "STATUS OF PATIENTS": counts})
        cells = [between(*v) for v in table[["VALUE", "LOW", "HIGH"]].itertuples(index=False, name=None)]
        marks = [
            f"{c} {s}" if s not in ("model", "observed") else c for c, s in zip(cells, table["STATUS"], strict=True)
        ]
        wide[f"{metric.name} ({metric.unit})"] = dict(zip(table["ID"], marks, strict=True))
    caption = "Of patients' medians. Bounds (censored) and patients without a value are counted, and not among them."
    tables = [tabulated(pd.DataFrame(rows), caption)]
    if single:
        each = pd.DataFrame(wide).rename_axis("ID")
        tables.append(tabulated(each, "Median with its 95 % interval.", title="Exposure of every patient"))
    return Section(identifier, title, [f"Source: {found.source}."] if found.source else [], tables)


def of_plan(identifier: str, title: str, plan: Plan) -> Section:
    """The recommendation: rates by level, the gain of more, sensitivity, limits."""
    table, level = plan.table, f"{100 * plan.rules.level:g} %"
    rows = pd.DataFrame({f"DOSE ({plan.unit})": [f"{d:g}" for d in plan.levels], "PATIENTS": table["PATIENTS"]})
    for e in plan.endpoints:
        columns = [table[e.name], table[f"{e.name}_LOW"], table[f"{e.name}_HIGH"]]
        rows[e.name] = [between(*v) for v in zip(*columns, strict=True)]
        rows[f"P({e.name} {'<=' if e.toxic else '>'} {e.target:g})"] = table[f"{e.name}_P"]
    rows["UTILITY"] = [
        between(*v) for v in zip(table["UTILITY"], table["UTILITY_LOW"], table["UTILITY_HIGH"], strict=True)
    ]
    rows = pd.concat([rows, table[["P_BEST", "ADMISSIBLE", "EXTRAPOLATED", "BEST"]]], axis=1)
    weights = ", ".join(f"{e.name} {e.weight:+g}" for e in plan.endpoints)
    status = pd.DataFrame({"STATUS": dict(plan.status)}).rename_axis("OF")
    tables = [
        tabulated(rows, f"Rates of new patients with {level} intervals. Utility: {weights}."),
        tabulated(plan.higher, f"The highest level against the lowest, {level} intervals."),
        tabulated(plan.exposure, "Exposure of new patients."),
        tabulated(plan.sensitivity, "The best level with the weights of toxicities multiplied by FACTOR."),
        tabulated(status, "What it rests on."),
        tabulated(plan.priors, "Priors."),
    ]
    figures = [pictured(plots.utility(plan), "Expected utility, and the probability of being the best level.")]
    if any(e.toxic for e in plan.endpoints) and any(not e.toxic for e in plan.endpoints):
        figures.insert(0, pictured(plots.pareto(plan), "Benefit against harm."))
    lines = [*plan.verdict.splitlines(), *plan.notes]
    return Section(identifier, title, lines, tables, figures)


def of_verb(identifier: str, title: str, found: Any) -> Section:
    """Anything that judges itself: its words, its tables; what it does not have is left out."""
    lines, tables = [], []
    if hasattr(found, "check"):
        lines += [line.removeprefix("- ") for line in str(found.check()).splitlines()]
    verdict = getattr(found, "verdict", None)
    if verdict is not None:
        lines += str(verdict() if callable(verdict) else verdict).splitlines()
    for name in ("table", "effects"):
        frame = getattr(found, name, None)
        frame = frame() if callable(frame) else frame
        if isinstance(frame, pd.DataFrame):
            tables.append(tabulated(frame, _caption(found, name)))
    if isinstance(found, pd.DataFrame):
        tables.append(tabulated(found))
    figures = list(_figures(found)) if isinstance(found, AbstractResponse) else []
    return Section(identifier, title, lines, tables, figures)


def _caption(found: Any, name: str) -> str:
    if not isinstance(found, AbstractResponse):
        return {"table": "", "effects": "Effects."}[name]
    if name == "table":
        n, of = len(found.patients.ids), found.patients.metric.name
        return (
            f"{found.what} by {of}, {n} patients; seed {found.seed}. Slope: of one SD of ln exposure between patients."
        )
    return "Ratios, with 95 % intervals; ABOVE_1: probability of being above 1."


def _figures(found: AbstractResponse) -> Iterator[Figure]:
    """Curve and calibration of what has a yes or no; survival of times."""
    if isinstance(found, TteResponse):
        if isinstance(found.terms, Survival):
            yield pictured(plots.survival(found), f"{found.what} by halves of exposure, and what the model expects.")
    elif isinstance(found, LogisticResponse | OrdinalResponse):
        at = None if isinstance(found, LogisticResponse) else float(min(GRADE, max(found.levels)))
        yield pictured(plots.exposure_response(found, at=at), f"{found.what} by exposure.")
        yield pictured(plots.calibration(found, at=at), f"{found.what}: predicted and observed, patients left out.")
    if len(found.effects()):
        yield pictured(plots.ratios(found), f"{found.what}: effects.")
