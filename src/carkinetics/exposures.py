"""Model-based exposure: metrics of every patient's fitted curve, as posterior draws with unit and status."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from carkinetics.errors import FitError, ModelError
from carkinetics.findings import listed
from carkinetics.fit_result import Fit
from carkinetics.inputs import baseline, inputs_of
from carkinetics.layout import make_layout
from carkinetics.metric import Exposure, Metric
from carkinetics.model import Model
from carkinetics.model_parts import Assay, nearest_or_raise
from carkinetics.noncompartmental import one_assay, window_name
from carkinetics.structure import Inputs
from carkinetics.trajectories import REFINE, Answer, Question, answered

METRICS = ("cmax", "tmax", "auc_0_28", "auc_0_90", "t_last")
DRAWS = 1000  # of the posterior, spread evenly over the chains
_SHOWN = ("auc_<from>_<to>", "c_<day>", "c<day>_cmax", "cmax_per_<COLUMN>")
_LN2 = math.log(2.0)
# What needs slopes, the lowest level or crossings of a limit; areas, levels and peaks do not.
FURTHER = (
    "auc_inf", "t_last", "time_above", "doubling_time", "fold_expansion", "contraction_half_life",
    "persistence_half_life",
)  # fmt: skip


@dataclass(frozen=True)
class CurveRules:
    """How far curves are followed, and where their peak is.

    Attributes
    ----------
    horizon : float
        Day at which curves end. Metrics of the whole curve end there, and persistence beyond it is censored.
    peak : (float, float)
        Days within which the maximum is the peak: ``(1, 90)`` leaves out the infused cells themselves.
    limit : float, optional
        Level above which cells persist, in the assay's unit; the assay's lower limit of quantification by default.
    refine : int
        Divides the pieces that curves are solved in. With 2 most areas are right to 1e-6; with 1 to 1e-3, in less time.
    """

    horizon: float = 365.0
    peak: tuple[float, float] = (0.0, 90.0)
    limit: float | None = None
    refine: int = REFINE

    def __post_init__(self) -> None:
        """Refuse rules that cannot be."""
        if not 0 <= self.peak[0] < self.peak[1] <= self.horizon < math.inf:
            raise ModelError(f"curves: peak = {self.peak} must lie within day 0 and horizon = {self.horizon:g}.")
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise ModelError(f"curves: limit = {self.limit!r} must be a level above 0.")
        if self.refine < 1:
            raise ModelError(f"curves: refine = {self.refine!r} must be 1 or more.")


RULES = CurveRules()


class _Known(NamedTuple):
    """What is known of every patient beside the curve.

    ``last`` is the day of the last sample (-inf without any), ``measured`` that of the last measurable one (NaN).
    """

    fit: Fit
    assay: Assay
    rules: CurveRules
    last: Float[np.ndarray, " subject"]
    measured: Float[np.ndarray, " subject"]
    below: np.ndarray  # all samples below the limit
    again: Float[np.ndarray, "infusion subject"]


class _Found(NamedTuple):
    """Draws of one metric; ``until`` is the last day, per patient, of what it uses; ``share`` of draws censored."""

    draws: Float[np.ndarray, "draw subject"]
    unit: str
    window: tuple[float, float]
    until: Float[np.ndarray, " subject"]
    censored: Float[np.ndarray, " subject"] | None = None
    why_none: str = "no value"


def exposure(
    fit: Fit,
    metrics: Sequence[str] = METRICS,
    *,
    assay: str | None = None,
    draws: int = DRAWS,
    rules: CurveRules = RULES,
    allow_failed: bool = False,
) -> Exposure:
    """Exposure metrics of every patient's fitted curve, one value per posterior draw.

    The curve is what the assay would read without residual error, at the patient's own parameters.

    ========================= ==========================================================================================
    ``cmax``, ``tmax``        the largest level within ``rules.peak``, and its day
    ``auc_a_b``, ``auc_inf``  area from day ``a`` to ``b``; ``auc_inf`` follows the curve's slope at the horizon for
                              ever, and does not exist where the curve does not fall there
    ``c_d``, ``cd_cmax``      level on day ``d`` (``c_28``), and its ratio to ``cmax`` (``c28_cmax``)
    ``c_last``                level on the day of the patient's last measurable sample
    ``t_last``                last day on which the curve is at ``rules.limit`` or above; 0 if it never is, censored at
                              the horizon
    ``time_above``            time at the limit or above, up to the horizon
    ``doubling_time``         ln 2 over the steepest rise of ln level before the peak
    ``fold_expansion``        ``cmax`` over the lowest level before the peak
    ``contraction_half_life`` ln 2 over the steepest fall of ln level after the peak
    ``persistence_half_life`` ln 2 over the mean fall of ln level in the second half of the horizon
    ``cmax_per_COLUMN``       ``cmax`` over a column of the table, such as the tumour burden
    ========================= ==========================================================================================

    Parameters
    ----------
    metrics : sequence of str
        Names as above; ``auc_0_28`` and the like for any days.
    assay : str, optional
        Assay whose readings are meant; needed where the model has several, which are never pooled.
    draws : int
        Posterior draws that are used, spread evenly over the chains: the same for every metric and call.
    rules : CurveRules
    allow_failed : bool
        Also of a fit whose check failed.

    Returns
    -------
    Exposure
        ``status`` is ``model`` where the patient's samples cover what the metric uses, ``extrapolated`` where they end
        before, ``censored`` where most draws reach the horizon, ``not_estimable`` where a draw has no value.

    Raises
    ------
    ModelError
        A metric, or an assay, that is unknown; a limit that is needed and not known.
    FitError
        The fit failed its check.
    """
    check = fit.check()
    if check.status == "failed" and not allow_failed:
        raise FitError(f"{fit.model.name}: the fit failed, so no exposure: {check.reasons[0]} allow_failed=True does.")
    chosen = _assay(fit.model, assay)
    wanted = list(dict.fromkeys(metrics))
    if isinstance(metrics, str) or not wanted:
        raise ModelError(f"metrics = {metrics!r} must be a sequence of names, such as {list(METRICS)}.")
    recipes = {name: _recipe(name, fit) for name in wanted}
    windows = [r.window for r in recipes.values() if r.window is not None]
    days = [r.day for r in recipes.values() if r.day is not None]
    late = [name for name, r in recipes.items() if max((r.window or (0, 0))[1], r.day or 0) > rules.horizon]
    if late:
        raise ModelError(f"{listed(late)}: later than the curves' end. Use CurveRules(horizon=...).")
    x = inputs_of(fit.model, fit.data)
    known = _known(fit, chosen, rules, np.asarray(x.later_day))
    need_limit = any(r.limit for r in recipes.values())
    own = np.concatenate([np.repeat(np.array(days)[:, None], len(known.last), axis=1), known.measured[None]])
    own = np.where(own > rules.horizon, np.nan, own)
    ln_limit = math.log(_limit(chosen, rules)) if need_limit else -math.inf
    further = any(name in FURTHER for name in wanted)
    question = Question(tuple(windows), own, rules.peak, rules.horizon, ln_limit, further)
    answer = _answer(fit, chosen, x, question, draws, rules.refine)
    found = {}
    for name, recipe in recipes.items():
        at = windows.index(recipe.window) if recipe.window is not None else 0
        at = days.index(recipe.day) if recipe.day is not None else at
        found[name] = _metric(name, recipe.made(answer, known, at, recipe, rules.horizon), known)
    source = f"{fit.model.name}, {fit.label or 'posterior'}, fit {check.status}"
    return Exposure(found, source)


class _Recipe(NamedTuple):
    """How a metric follows from the answers, and what has to be asked for it."""

    made: Callable[[Answer, _Known, int, "_Recipe", float], _Found]
    window: tuple[float, float] | None = None
    day: float | None = None
    column: str = ""
    limit: bool = False


def _recipe(name: str, fit: Fit) -> _Recipe:
    number = r"(\d+(?:\.\d+)?)"
    if hit := re.fullmatch(f"auc_{number}_{number}", name):
        begin, end = float(hit[1]), float(hit[2])
        if not begin < end:
            raise ModelError(f"{name}: the window must begin before it ends. Use {window_name(*sorted((begin, end)))}.")
        return _Recipe(_area, window=(begin, end))
    if hit := re.fullmatch(f"c_{number}", name):
        return _Recipe(_level, day=float(hit[1]))
    if hit := re.fullmatch(f"c{number}_cmax", name):
        return _Recipe(_ratio, day=float(hit[1]))
    if hit := re.fullmatch("cmax_per_(.+)", name):
        return _Recipe(
            _per, column=nearest_or_raise(hit[1], [str(c) for c in fit.data.table], "column", fit.data.source)
        )
    if name in _SHOWN:
        raise ModelError(f"{fit.model.name}: metric {name!r} is a pattern. Use a number, such as auc_0_28.")
    known = [*_RECIPES, *(n for n in METRICS if n.startswith("auc")), *_SHOWN]
    return _RECIPES[nearest_or_raise(name, known, "metric", fit.model.name)]


def _assay(model: Model, name: str | None) -> Assay:
    chosen = one_assay([a.name for a in model.assays], name, model.name)
    return next(a for a in model.assays if a.name == chosen)


def _limit(assay: Assay, rules: CurveRules) -> float:
    limit = rules.limit if rules.limit is not None else assay.lloq
    if limit is None:
        raise ModelError(f"assay {assay.name} has no lloq: give CurveRules(limit=...), in {assay.unit}.")
    return limit


def _known(fit: Fit, assay: Assay, rules: CurveRules, again: Float[np.ndarray, "infusion subject"]) -> _Known:
    data = fit.data
    mine = np.array([a == assay.name for a in data.assays])[data.assay] if data.n_obs else np.zeros(0, bool)
    last, measured = np.full(data.n_subjects, -np.inf), np.full(data.n_subjects, np.nan)
    np.maximum.at(last, data.subject[mine], data.time[mine])
    seen = mine & (data.cens != 1) & (data.time >= 0)
    np.fmax.at(measured, data.subject[seen], data.time[seen])
    return _Known(fit, assay, rules, last, measured, np.isfinite(last) & np.isnan(measured), again)


def _answer(fit: Fit, assay: Assay, x: Inputs, question: Question, draws: int, refine: int) -> Answer:
    """Answers of evenly spread posterior draws."""
    posterior = fit.tree["posterior"].to_dataset()["individual"].stack(sample=("chain", "draw"))
    keep = np.unique(np.linspace(0, posterior.sizes["sample"] - 1, draws).astype(int))
    values = posterior.isel(sample=keep).transpose("parameter", "sample", "subject").values.astype(float)
    ratio = make_layout(fit.model).ratios[fit.model.assays.index(assay)]
    found = answered(fit.model.structure, assay, values, x, question, ratio=ratio, refine=refine)
    return jax.tree.map(np.asarray, found)


def _metric(name: str, found: _Found, known: _Known) -> Metric:
    """With every patient's status and reason."""
    draws = np.where(np.isfinite(found.draws), found.draws, np.nan)
    none = np.isnan(draws).mean(axis=0)
    facts = [_status(found, known, i, none[i]) for i in range(draws.shape[1])]
    return Metric(
        name=name,
        unit=found.unit,
        subjects=known.fit.data.subjects,
        draws=draws,
        status=tuple(s for s, _ in facts),
        reason=tuple(r for _, r in facts),
        assay=known.assay.name,
        window=found.window,
    )


def _status(found: _Found, known: _Known, i: int, none: float) -> tuple[str, str]:
    last, until = known.last[i], found.until[i]
    notes = []
    if not np.isfinite(last):
        notes.append("no sample of this assay: what the population says")
    elif known.below[i]:
        notes.append("all samples are below the limit: largely what the population says")
    if none > 0:
        return "not_estimable", "; ".join([f"{found.why_none} in {100 * none:.3g} % of the draws", *notes])
    again = [day for day in known.again[:, i] if found.window[0] < day < min(until, found.window[1])]
    if again:
        notes.append(f"includes the infusion of day {again[0]:g}")
    share = 0.0 if found.censored is None else found.censored[i]
    if share >= 0.5:
        end = found.window[1]
        text = f"still at the limit or above on day {end:g} in {100 * share:.0f} % of the draws"
        return "censored", "; ".join([text, *notes])
    if until > last:
        if np.isfinite(last):
            notes.insert(0, f"the last sample is of day {last:g}")
        return "extrapolated", "; ".join(notes)
    return "model", "; ".join(notes)


def _everywhere(known: _Known, day: float) -> Float[np.ndarray, " subject"]:
    return np.full(len(known.last), day)


def _at_peak(answer: Answer, known: _Known) -> tuple[tuple[float, float], Float[np.ndarray, " subject"]]:
    return known.rules.peak, np.median(answer.peak_day, axis=0)


def _area(answer, known, at, recipe, horizon):
    until = _everywhere(known, recipe.window[1])
    return _Found(np.exp(answer.ln_area[at]), f"{known.assay.unit} day", recipe.window, until)


def _whole(answer, known, at, recipe, horizon):
    rest = answer.ln_end - np.log(np.where(answer.last_slope < 0, -answer.last_slope, np.nan))
    never = "the curve does not fall at the horizon"
    total = np.exp(np.logaddexp(answer.ln_total, rest))
    return _Found(total, f"{known.assay.unit} day", (0.0, math.inf), _everywhere(known, math.inf), why_none=never)


def _level(answer, known, at, recipe, horizon):
    until = _everywhere(known, recipe.day)
    return _Found(np.exp(answer.ln_level[at]), known.assay.unit, (0.0, recipe.day), until)


def _ratio(answer, known, at, recipe, horizon):
    window, peak = _at_peak(answer, known)
    until = np.maximum(peak, recipe.day)
    return _Found(np.exp(answer.ln_level[at] - answer.ln_peak), "1", (0.0, max(recipe.day, window[1])), until)


def _last_level(answer, known, at, recipe, horizon):
    seen = known.measured <= horizon
    draws = np.where(seen, np.exp(answer.ln_level[-1]), np.nan)
    until = np.where(seen, known.measured, 0.0)
    why = f"no measurable sample up to day {horizon:g}"
    return _Found(draws, known.assay.unit, (0.0, horizon), until, why_none=why)


def _cmax(answer, known, at, recipe, horizon):
    return _Found(np.exp(answer.ln_peak), known.assay.unit, *_at_peak(answer, known))


def _tmax(answer, known, at, recipe, horizon):
    return _Found(answer.peak_day, "day", *_at_peak(answer, known))


def _per(answer, known, at, recipe, horizon):
    column = baseline(known.fit.data, recipe.column)
    if not np.issubdtype(np.asarray(column).dtype, np.number):
        raise ModelError(f"cmax_per_{recipe.column}: column {recipe.column} has texts. Use one with numbers.")
    over = np.where(column > 0, column, np.nan)
    unit = f"{known.assay.unit} per {recipe.column}"
    why = f"{recipe.column} is not known or not above 0"
    return _Found(np.exp(answer.ln_peak) / over, unit, *_at_peak(answer, known), why_none=why)


def _persisting(answer: Answer, known: _Known, draws, horizon: float) -> _Found:
    ln_limit = math.log(_limit(known.assay, known.rules))
    still = np.mean(np.asarray(answer.ln_end) >= ln_limit, axis=0)
    return _Found(draws, "day", (0.0, horizon), np.median(answer.last_above, axis=0), still)


def _t_last(answer, known, at, recipe, horizon):
    return _persisting(answer, known, answer.last_above, horizon)


def _time_above(answer, known, at, recipe, horizon):
    return _persisting(answer, known, answer.above, horizon)


def _doubling(answer, known, at, recipe, horizon):
    why = "the curve does not rise before its peak"
    return _Found(answer.doubling_time(), "day", *_at_peak(answer, known), why_none=why)


def _fold(answer, known, at, recipe, horizon):
    return _Found(answer.fold_expansion(), "1", *_at_peak(answer, known), why_none="the peak is at the beginning")


def _contraction(answer, known, at, recipe, horizon):
    slope = np.where(answer.steepest_fall > 0, answer.steepest_fall, np.nan)
    _, peak = _at_peak(answer, known)
    return _Found(_LN2 / slope, "day", (0.0, horizon), peak, why_none="the curve does not fall after its peak")


def _persistence(answer, known, at, recipe, horizon):
    slope = np.where(answer.late_slope < 0, -answer.late_slope, np.nan)
    why = f"the curve does not fall from day {horizon / 2:g} to {horizon:g}"
    return _Found(_LN2 / slope, "day", (horizon / 2, horizon), _everywhere(known, horizon), why_none=why)


_RECIPES: dict[str, Any] = {
    "cmax": _Recipe(_cmax),
    "tmax": _Recipe(_tmax),
    "auc_inf": _Recipe(_whole),
    "c_last": _Recipe(_last_level),
    "t_last": _Recipe(_t_last, limit=True),
    "time_above": _Recipe(_time_above, limit=True),
    "doubling_time": _Recipe(_doubling),
    "fold_expansion": _Recipe(_fold),
    "contraction_half_life": _Recipe(_contraction),
    "persistence_half_life": _Recipe(_persistence),
}
