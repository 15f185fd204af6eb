"""The exposure of patients who do not exist yet: the metric that a response was fitted to, of simulated curves."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from carkinetics.errors import ModelError
from carkinetics.exposures import FURTHER, RULES, CurveRules
from carkinetics.findings import listed
from carkinetics.layout import make_layout
from carkinetics.metric import Metric
from carkinetics.model import Model
from carkinetics.model_parts import nearest_or_raise
from carkinetics.structure import Inputs
from carkinetics.trajectories import Answer, Question, answered

Exposures = Float[np.ndarray, " lane"]
_NUMBER = r"(\d+(?:\.\d+)?)"
_PEAKED = ("cmax", "tmax", "doubling_time", "fold_expansion")
_PATTERNS = ("auc_<from>_<to>", "c_<day>", "c<day>_cmax", "cmax_per_<COLUMN>")


_OF_ANSWER: dict[str, Callable[[Answer], np.ndarray]] = {
    "cmax": lambda a: np.exp(a.ln_peak),
    "tmax": lambda a: np.asarray(a.peak_day),
    "t_last": lambda a: np.asarray(a.last_above),
    "time_above": lambda a: np.asarray(a.above),
    "doubling_time": Answer.doubling_time,
    "fold_expansion": Answer.fold_expansion,
}


@dataclass(frozen=True)
class Wanted:
    """One metric of one assay, by the rules that the fitted patients' values followed."""

    name: str
    assay: str
    rules: CurveRules

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.name} ({self.assay})"

    @property
    def area(self) -> tuple[float, float] | None:
        """The window of an area."""
        hit = re.fullmatch(f"auc_{_NUMBER}_{_NUMBER}", self.name)
        return (float(hit[1]), float(hit[2])) if hit else None

    @property
    def day(self) -> float | None:
        """The day of a level."""
        hit = re.fullmatch(f"c_?{_NUMBER}(?:_cmax)?", self.name)
        return float(hit[1]) if hit else None

    @property
    def peaked(self) -> bool:
        """Whether it depends on the days in which the peak is looked for."""
        return self.name in _PEAKED or bool(self.column) or self.name.endswith("_cmax")

    @property
    def persisting(self) -> bool:
        """Whether it depends on the day on which the curves end."""
        return self.name in ("t_last", "time_above")

    @property
    def column(self) -> str:
        """What a peak is divided by."""
        return self.name.removeprefix("cmax_per_") if self.name.startswith("cmax_per_") else ""


def wanted(metric: Metric, model: Model, rules: CurveRules | None) -> Wanted:
    """What has to be computed of new patients for a response to this metric.

    Parameters
    ----------
    rules : CurveRules, optional
        Those of :func:`carkinetics.exposure` where they differed from the default; days of the peak and of the end are
        in the metric's window, and so need not be told.

    Raises
    ------
    ModelError
        The metric is none of a curve that new patients have, or of an assay that the model does not have.
    """
    name, found = metric.name, Wanted(metric.name, metric.assay, rules or RULES)
    if not metric.assay:
        raise ModelError(
            f"{name}: the response was fitted to plain numbers, so what new patients have instead is not known. Fit it "
            "to a metric of carkinetics.exposure(fit, ...)."
        )
    nearest_or_raise(metric.assay, [a.name for a in model.assays], "assay", model.name)
    if not (name in _OF_ANSWER or found.area or found.column or found.day is not None):
        known = listed([*_OF_ANSWER, *_PATTERNS])
        raise ModelError(f"{name} is not computed of new patients; fit the response to one of {known}.")
    return Wanted(name, metric.assay, rules or _rules(found, metric.window))


def _rules(found: Wanted, window: tuple[float, float]) -> CurveRules:
    """Curves are followed no longer than the metric needs."""
    begin, end = window
    if found.area:
        return CurveRules(horizon=end, peak=(0.0, end))
    if found.name in _PEAKED or found.column:
        return CurveRules(horizon=end, peak=(begin, end))
    if found.day is not None and not found.name.endswith("cmax"):
        return CurveRules(horizon=max(found.day, 1.0), peak=(0.0, max(found.day, 1.0)))
    if found.day is not None:
        return CurveRules(horizon=max(found.day, RULES.peak[1]), peak=RULES.peak)
    return CurveRules(horizon=end, peak=(0.0, min(RULES.peak[1], end)))


def new_exposures(
    model: Model,
    metrics: Sequence[Wanted],
    values: Float[np.ndarray, "parameter lane"],
    x: Inputs,
    columns: Mapping[str, Float[np.ndarray, " lane"]],
) -> dict[Wanted, Exposures]:
    """Metrics of the curves of these individual parameters (natural scale) and inputs, natural scale.

    Parameters
    ----------
    columns : mapping
        Columns that a peak is divided by, of every patient.
    """
    found: dict[Wanted, Exposures] = {}
    for mine in _together(metrics):
        areas = [m.area for m in mine if m.area]
        days = [m.day for m in mine if m.day is not None]
        own = np.repeat(np.array(days, float)[:, None], values.shape[1], axis=1)
        horizon = max(m.rules.horizon for m in mine)
        peak = next((m.rules.peak for m in mine if m.peaked), (0.0, horizon))
        further = any(m.name in FURTHER for m in mine)
        question = Question(tuple(areas), own, peak, horizon, _ln_limit(model, mine), further)
        of = next(a for a in model.assays if a.name == mine[0].assay)
        ratio = make_layout(model).ratios[model.assays.index(of)]
        refine = max(m.rules.refine for m in mine)
        answer = answered(model.structure, of, values[:, None], x, question, ratio=ratio, refine=refine)
        answer = jax.tree.map(lambda a: np.asarray(a)[..., 0, :], answer)  # each patient has parameters of his own
        for m in mine:
            found[m] = _metric(m, answer, areas, days, columns)
    return found


def _together(metrics: Sequence[Wanted]) -> list[list[Wanted]]:
    """Metrics that the same curves answer: of one assay, with one peak, and one end where that is part of the metric.

    Solving is what costs; areas and levels of days are the same however far the curves go on.
    """
    groups: dict[tuple, list[Wanted]] = {}
    for m in sorted(dict.fromkeys(metrics), key=lambda m: not (m.peaked or m.persisting)):
        key = (m.assay, m.rules.peak if m.peaked else None, m.rules if m.persisting else None)
        if key[1:] == (None, None):
            key = next((k for k in groups if k[0] == m.assay and k[2] is None), key)
        groups.setdefault(key, []).append(m)
    return list(groups.values())


def _metric(m: Wanted, answer: Answer, areas: list, days: list, columns: Mapping[str, np.ndarray]) -> Exposures:
    if m.area:
        return np.exp(answer.ln_area[areas.index(m.area)])
    if m.day is not None:
        ln = np.asarray(answer.ln_level[days.index(m.day)])
        return np.exp(ln - answer.ln_peak if m.name.endswith("cmax") else ln)
    if m.column:
        return np.exp(answer.ln_peak) / columns[m.column]
    return np.asarray(_OF_ANSWER[m.name](answer))


def _ln_limit(model: Model, mine: Sequence[Wanted]) -> float:
    persisting = [m for m in mine if m.persisting]
    if not persisting:
        return -math.inf
    assay = next(a for a in model.assays if a.name == mine[0].assay)
    limit = persisting[0].rules.limit if persisting[0].rules.limit is not None else assay.lloq
    if limit is None:
        raise ModelError(f"assay {assay.name} has no lloq: give DoseOptions(curves=CurveRules(limit=...)).")
    return math.log(limit)
