"""Observed exposure: non-compartmental analysis of every patient's samples, assay by assay.

No model, and no value without its unit, its status and, where it is not what it seems, the reason. The rules are
arguments (:class:`~carkinetics.profiles.NcaRules`); what they do to the samples is in :mod:`carkinetics.profiles`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from carkinetics.dataset import UNKNOWN, Dataset
from carkinetics.errors import ModelError
from carkinetics.inputs import baseline
from carkinetics.metric import Exposure, Metric
from carkinetics.model_parts import nearest_or_raise
from carkinetics.profiles import NcaRules, Profile, Slope, area, level_at, make_profile, terminal_slope

WINDOWS = ((0.0, 28.0), (0.0, 90.0))  # day: those that CAR-T trials report
RULES = NcaRules()
_COUNTED = ("observed", "interpolated", "extrapolated")  # statuses of values that a summary may average
_ABOUT = ("lambda_z_n", "lambda_z_r2", "auc_inf_extrapolated")  # say how good others are; no exposures


class Value(NamedTuple):
    """One metric of one patient and assay; ``covered`` is false where the samples end before the window does."""

    name: str
    value: float
    unit: str
    status: str
    reason: str = ""
    covered: bool = True


@dataclass(frozen=True, eq=False)
class Nca:
    """What :func:`nca` found.

    Attributes
    ----------
    values : DataFrame
        One row per patient, assay and metric: ``ID DVID METRIC VALUE UNIT STATUS REASON COVERED``. ``STATUS`` is one of
        :data:`carkinetics.metric.STATUSES`; of a censored one the value is a bound, of one that is not estimable NaN.
        ``COVERED`` is false where the patient's samples end before the metric's window does.
    patients : DataFrame
        One row per patient and assay: ``ID DVID UNIT N N_BLQ LAST CUT``: samples from day 0 on that were used, those
        below the limit among them, the last one's day, and the day of a further infusion at which they were cut.
    windows : tuple of (float, float)
    rules : NcaRules
    data : Dataset
    """

    values: pd.DataFrame
    patients: pd.DataFrame
    windows: tuple[tuple[float, float], ...]
    rules: NcaRules
    data: Dataset

    @property
    def table(self) -> pd.DataFrame:
        """One row per patient and assay: what is known of the samples, and a column for each metric.

        Beside every metric stands its status (``cmax_status``); units and reasons are in :attr:`values`.
        """
        wide = self.patients
        names = list(dict.fromkeys(self.values["METRIC"]))
        for name in names:
            rows = self.values[self.values["METRIC"] == name]
            found = rows[["ID", "DVID", "VALUE", "STATUS"]].set_axis(["ID", "DVID", name, f"{name}_status"], axis=1)
            wide = wide.merge(found, on=["ID", "DVID"], how="left")
        return wide

    def summary(self, by: str | None = None) -> pd.DataFrame:
        """Patients together: one row per assay, group and metric.

        Parameters
        ----------
        by : str, optional
            A column of the table that has one value per patient, such as the dose level; an empty one is a group.

        Returns
        -------
        DataFrame
            ``DVID``, the column ``by`` if there is one, ``METRIC UNIT N CENSORED NONE GEOMEAN GEOCV_PCT MEDIAN MIN
            MAX``: patients whose value counts, those with a bound only, and those without a value, neither of which
            is in what follows; geometric mean and CV, ``100 sqrt(exp(s^2) - 1)`` with the SD ``s`` of ln (NaN where a
            value is zero), median and range.
        """
        rows, group = self.values, ["DVID", "METRIC", "UNIT"]
        if by is not None:
            known = dict(zip(self.data.subjects, baseline(self.data, by), strict=True))
            rows, group = rows.assign(**{by: rows["ID"].map(known)}), ["DVID", by, "METRIC", "UNIT"]
        found = []
        for key, part in rows.groupby(group, sort=False, dropna=False):
            counts = part["STATUS"].value_counts()
            facts = dict(zip(group, key, strict=True))
            values = part["VALUE"][part["STATUS"].isin(_COUNTED)].to_numpy(float)
            missing = {"CENSORED": counts.get("censored", 0), "NONE": counts.get("not_estimable", 0)}
            found.append(facts | {"N": len(values)} | missing | _summary(values))
        order = [c for c in ("DVID", by) if c is not None]
        return pd.DataFrame(found).sort_values(order, kind="stable", ignore_index=True)

    def exposure(self, assay: str | None = None) -> Exposure:
        """The metrics of one assay, one draw each, in the order of the data's patients, for a response model.

        Raises
        ------
        ModelError
            There are several assays and none is named, or it is unknown.
        """
        name = one_assay(self.data.assays, assay, self.data.source)
        rows = self.values[self.values["DVID"] == name]
        found = {}
        for metric in dict.fromkeys(rows["METRIC"]):
            if metric in _ABOUT:
                continue
            mine = rows[rows["METRIC"] == metric].set_index("ID").loc[list(self.data.subjects)]
            found[metric] = Metric(
                name=metric,
                unit=str(mine["UNIT"].iloc[0]),
                subjects=self.data.subjects,
                draws=mine["VALUE"].to_numpy(float)[None],
                status=tuple(mine["STATUS"]),
                reason=tuple(mine["REASON"]),
                assay=name,
                window=_window_of(metric, self.windows, self.rules),
            )
        return Exposure(found, f"{self.data.source}, observed ({self.rules.method})")


def nca(
    data: Dataset, *, windows: Sequence[tuple[float, float]] = WINDOWS, rules: NcaRules = RULES, stop: bool = True
) -> Nca:
    """Non-compartmental analysis of every patient's samples; assays and matrices are never pooled.

    ======================== ===========================================================================================
    ``cmax``, ``tmax``       largest sample within ``rules.peak`` and its day; of equal ones the first
    ``t_last``, ``c_last``   last measurable sample: its day and its level; the day is censored if nothing followed it
    ``t_first_blq``          day of the first sample below the limit after the peak; censored if there is none
    ``auc_last``             area from day 0 to the last measurable sample
    ``auc_a_b``              area from day ``a`` to ``b``, for each of ``windows``
    ``auc_inf``              ``auc_last`` and what the terminal slope adds, ``c_last / lambda_z``
    ``auc_inf_extrapolated`` that part of it, in per cent
    ``lambda_z``             terminal slope, see :func:`carkinetics.profiles.terminal_slope`; ``lambda_z_n`` and
                             ``lambda_z_r2`` are its samples and its adjusted R2
    ``half_life``            ``ln 2 / lambda_z``
    ``fold_expansion``       ``cmax`` over the smallest level before it; censored, and a lower bound, where a sample
                             before the peak is below the limit
    ======================== ===========================================================================================

    A sample above an assay's upper limit counts with that limit; a peak that is one is censored.

    Parameters
    ----------
    windows : sequence of (float, float)
        Days of the partial areas.
    rules : NcaRules
        What is done with samples below the limit, duplicates, the beginning, the end; each has a default.
    stop : bool
        Do not use samples after a further infusion (later than ``rules.split``); they are another expansion.

    Returns
    -------
    Nca

    Raises
    ------
    ModelError
        A rule, or a window, that is none.

    References
    ----------
    Linear-up log-down areas and the terminal slope are those of Gabrielsson J, Weiner D, Methods Mol Biol
    2012;929:377-389, doi:10.1007/978-1-62703-050-2_16.
    """
    pairs = tuple((float(a), float(b)) for a, b in windows)
    for a, b in pairs:
        if not 0 <= a < b < math.inf:
            raise ModelError(f"windows: ({a:g}, {b:g}) must be two finite days from 0 on, the first first.")
    values, patients = [], []
    for name, assay, profile, cut in profiles_of(data, rules, stop=stop):
        unit, facts = data.units["DV"][assay], {"ID": name, "DVID": assay}
        values += [facts | _row(value, cut) for value in _metrics(profile, pairs, rules, unit)]
        counts = {"N": 0, "N_BLQ": 0, "LAST": np.nan}
        if profile is not None:
            blq = len(profile.below[0])
            counts = {"N": blq + len(profile.measured[0]), "N_BLQ": blq, "LAST": profile.until}
        patients.append(facts | {"UNIT": unit} | counts | {"CUT": cut})
    return Nca(pd.DataFrame(values), pd.DataFrame(patients), pairs, rules, data)


def profiles_of(
    data: Dataset, rules: NcaRules, *, stop: bool = True
) -> Iterator[tuple[str, str, Profile | None, float]]:
    """Patient, assay, profile, and the day of the infusion at which samples were cut (NaN where none were)."""
    cuts = _cuts(data, rules.split) if stop else np.full(data.n_subjects, np.inf)
    for i, name in enumerate(data.subjects):
        for k, assay in enumerate(data.assays):
            here = (data.subject == i) & (data.assay == k)
            used = np.flatnonzero(here & (data.time <= cuts[i]))
            cut = float(cuts[i]) if len(used) < here.sum() else math.nan
            arrays = (data.time[used], data.dv[used], data.cens[used], data.limit[used])
            yield name, assay, make_profile(*arrays, rules, place=f"{data.source}, patient {name}, {assay}"), cut


def one_assay(known: Sequence[str], assay: str | None, where: str) -> str:
    """The assay that is meant; :class:`ModelError` if that is not clear."""
    if assay is not None:
        return nearest_or_raise(assay, known, "assay", where)
    if len(known) != 1:
        raise ModelError(f"{where} has the assays {', '.join(known)}: name one, assay={known[0]!r}.")
    return known[0]


def window_name(begin: float, end: float) -> str:
    """``auc_0_28``."""
    return f"auc_{begin:g}_{end:g}"


def _cuts(data: Dataset, split: float) -> np.ndarray:
    """Day of every patient's first infusion that is no part of the first dose; inf without one."""
    rows = data.doses()
    days = rows[rows["TIME"] > split].groupby("ID")["TIME"].min()
    return np.array([float(days.get(i, np.inf)) for i in data.subjects])


def _row(value: Value, cut: float) -> dict:
    reason = value.reason
    if math.isfinite(cut) and (value.status == "censored" or not value.covered):
        reason += f"{'; ' if reason else ''}samples after the infusion on day {cut:g} are not used"
    row = {"METRIC": value.name, "VALUE": value.value, "UNIT": value.unit, "STATUS": value.status}
    return row | {"REASON": reason, "COVERED": value.covered}


def _window_of(metric: str, windows, rules: NcaRules) -> tuple[float, float]:
    """Days that a metric uses."""
    areas = {window_name(a, b): (a, b) for a, b in windows}
    return areas.get(metric, rules.peak if metric in ("cmax", "tmax") else (0.0, math.inf))


def _summary(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(("GEOMEAN", "GEOCV_PCT", "MEDIAN", "MIN", "MAX"), math.nan)
    mean = cv = math.nan
    if (values > 0).all():
        ln = np.log(values)
        mean = float(np.exp(ln.mean()))
        cv = 100 * math.sqrt(math.expm1(ln.var(ddof=1))) if len(values) > 1 else math.nan
    middle, low, high = np.median(values), values.min(), values.max()
    return {"GEOMEAN": mean, "GEOCV_PCT": cv, "MEDIAN": float(middle), "MIN": float(low), "MAX": float(high)}


def _metrics(profile: Profile | None, windows, rules: NcaRules, unit: str) -> Iterator[Value]:
    """All metrics of one patient and assay, in a fixed order."""
    by_day = UNKNOWN if unit == UNKNOWN else f"{unit} day"
    units = {"cmax": unit, "tmax": "day", "t_last": "day", "c_last": unit, "t_first_blq": "day", "auc_last": by_day}
    units |= {window_name(a, b): by_day for a, b in windows}
    units |= {"auc_inf": by_day, "auc_inf_extrapolated": "%", "lambda_z": "1/day", "lambda_z_n": "1"}
    units |= {"lambda_z_r2": "1", "half_life": "day", "fold_expansion": "1"}
    if profile is None or not len(profile.measured[0]):
        why = "no samples from day 0 on"
        if profile is not None:
            limits = sorted(set(profile.below[1]))
            bound = f"{limits[0]:g}" if len(limits) == 1 else f"{limits[0]:g} to {limits[-1]:g}"
            why = f"all {len(profile.below[0])} samples are below the limit ({bound} {unit})"
        yield from (Value(name, math.nan, u, "not_estimable", why, profile is not None) for name, u in units.items())
        return
    found = {v.name: v for v in _found(profile, windows, rules)}
    yield from (found[name]._replace(unit=u) for name, u in units.items())


def _found(p: Profile, windows, rules: NcaRules) -> Iterator[Value]:
    """As :func:`_metrics`, of a profile with measurable samples; without units."""
    t, y = p.measured
    inside = np.flatnonzero((t >= rules.peak[0]) & (t <= rules.peak[1]))
    at = int(inside[np.argmax(y[inside])]) if len(inside) else None
    yield from _peak(p, at, rules)
    last = float(t[-1])
    followed = p.until > last
    say = "" if followed else "still measurable in the last sample"
    yield Value("t_last", last, "", "observed" if followed else "censored", say)
    yield Value("c_last", float(y[-1]), "", "censored" if p.capped[-1] else "observed", _ABOVE if p.capped[-1] else "")
    slope = terminal_slope(p, float(t[at])) if at is not None else None
    if slope is not None and slope.r2 < rules.r2_min:
        why, slope = f"the terminal slope's adjusted R2 is {slope.r2:.3f}, below {rules.r2_min:g}", None
    else:
        why = "fewer than three measurable samples after the peak that decline"
    yield _area(p, 0.0, last, slope, rules, why)._replace(name="auc_last")
    for a, b in windows:
        yield _area(p, a, b, slope, rules, why)
    yield from _terminal(p, slope, why, rules)


_ABOVE = "above the assay's upper limit: at least this"


def _peak(p: Profile, at: int | None, rules: NcaRules) -> Iterator[Value]:
    """Everything about the largest sample, the ``at``-th measurable one."""
    names = ("cmax", "tmax", "t_first_blq", "fold_expansion")
    if at is None:
        why = f"no measurable sample from day {rules.peak[0]:g} to {rules.peak[1]:g}"
        yield from (Value(name, math.nan, "", "not_estimable", why) for name in names)
        return
    t, y = p.measured
    day, top = float(t[at]), float(y[at])
    status, why = ("censored", _ABOVE) if p.capped[at] else ("observed", "")
    yield Value("cmax", top, "", status, why)
    yield Value("tmax", day, "", status if p.capped[at] else "observed", why and "the level is above the upper limit")
    later = p.below[0][p.below[0] > day]
    if len(later):
        yield Value("t_first_blq", float(later[0]), "", "observed")
    else:
        say = f"no sample after the peak is below the limit up to day {p.until:g}"
        yield Value("t_first_blq", p.until, "", "censored", say)
    early, limits = y[:at], p.below[1][p.below[0] < day]
    if len(limits):
        least = min(limits.min(), early.min(initial=math.inf))
        if least > 0:
            yield Value("fold_expansion", top / least, "", "censored", "at least: a sample before the peak is below it")
            return
    if len(early) and not len(limits):
        yield Value("fold_expansion", top / float(early.min()), "", status, why)
        return
    yield Value("fold_expansion", math.nan, "", "not_estimable", "no sample before the peak has a level or a limit")


def _area(p: Profile, a: float, b: float, slope: Slope | None, rules: NcaRules, no_slope: str) -> Value:
    """Area from day ``a`` to ``b``."""
    name, end, covered = window_name(a, b), float(p.time[-1]), b <= p.until
    if a < p.time[0]:
        return Value(name, math.nan, "", "not_estimable", f"no sample before day {p.time[0]:g}", covered)
    within = area(p, a, b)
    if b <= end or (p.over and covered):
        at_samples = {a, b} <= set(p.sampled)
        assumed = p.time[0] < p.sampled[0] and a < p.sampled[0]
        reason = f"no sample before day {p.sampled[0]:g}: {_START[rules.start]}" if assumed else ""
        return Value(name, within, "", "observed" if at_samples and not assumed else "interpolated", reason, covered)
    if p.over:
        why = f"follow-up ends on day {p.until:g}, below the limit: nothing added"
        return Value(name, within, "", "extrapolated", why, covered)
    where = f"the last measurable sample is of day {end:g}" if covered else f"follow-up ends on day {p.until:g}"
    if rules.beyond == "nothing":
        return Value(name, within, "", "censored", f"{where}: the area up to day {end:g}", covered)
    if rules.beyond == "refuse" or slope is None:
        why = "" if rules.beyond == "refuse" else f", and there is no terminal slope: {no_slope}"
        return Value(name, math.nan, "", "not_estimable", where + why, covered)
    begin = max(a, end) - end
    rest = p.level[-1] * math.exp(-slope.rate * begin) * -math.expm1(-slope.rate * (b - end - begin)) / slope.rate
    why = f"{where}: {100 * rest / (within + rest):.0f} % of the area by the terminal slope"
    return Value(name, within + rest, "", "extrapolated", why, covered)


_START = {"zero": "nothing on day 0", "first": "its level from day 0 on", "refuse": ""}


def _terminal(p: Profile, slope: Slope | None, why: str, rules: NcaRules) -> Iterator[Value]:
    """The terminal slope, and what follows from it."""
    names = ("auc_inf", "auc_inf_extrapolated", "lambda_z", "lambda_z_n", "lambda_z_r2", "half_life")
    if slope is None:
        yield from (Value(name, math.nan, "", "not_estimable", why, name[:3] != "auc") for name in names)
        return
    last = float(p.measured[0][-1])
    rest = level_at(p, last) / slope.rate
    if p.time[0] > 0:
        say = f"no sample before day {p.time[0]:g}"
        yield from (Value(name, math.nan, "", "not_estimable", say, False) for name in names[:2])
    else:
        whole = area(p, 0.0, last) + rest
        say = f"{100 * rest / whole:.0f} % of the area by the terminal slope"
        yield Value("auc_inf", whole, "", "extrapolated", say, False)
        yield Value("auc_inf_extrapolated", 100 * rest / whole, "", "extrapolated", say, False)
    say = f"{slope.n} samples from day {slope.begin:g} to {last:g}, adjusted R2 {slope.r2:.3f}"
    span = (last - slope.begin) * slope.rate / math.log(2)
    if span < 1:
        say += f"; they span {span:.2f} half-lives"
    yield Value("lambda_z", slope.rate, "", "observed", say)
    yield Value("lambda_z_n", float(slope.n), "", "observed")
    yield Value("lambda_z_r2", slope.r2, "", "observed")
    yield Value("half_life", math.log(2) / slope.rate, "", "observed", say)
