"""One patient's samples of one assay as a profile: what counts as its level at any time, areas, the last decline.

Rules that a report has to state are in :class:`NcaRules`; this module does the arithmetic. A profile is what the
rules make of the samples: points between which the level is interpolated. Areas are integrals of the interpolated
level, exactly, so that adjacent windows add up to the whole.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from carkinetics.errors import ModelError
from carkinetics.model_parts import nearest_or_raise

LAMBDA_POINTS = 3  # samples after the peak that a terminal slope needs
LAMBDA_TOLERANCE = 1e-4  # of the adjusted R2: within it, more samples are better
_ALLOWED = {
    "method": ("linear_up_log_down", "linear"),
    "start": ("zero", "first", "refuse"),
    "before": ("zero", "drop", "half", "limit"),
    "between": ("drop", "zero", "half", "limit"),
    "after": ("half", "zero", "limit", "ignore"),
    "beyond": ("extrapolate", "nothing", "refuse"),
    "duplicates": ("geomean", "mean", "max", "error"),
}


@dataclass(frozen=True)
class NcaRules:
    """How samples become a profile, and what happens where they end.

    Attributes
    ----------
    method : {"linear_up_log_down", "linear"}
        Between two samples: a straight line where the level rises or either is zero, an exponential where it falls;
        or always a straight line. Areas and levels at the edge of a window follow it.
    start : {"zero", "first", "refuse"}
        The level on day 0, where no sample is of day 0: nothing; that of the first sample; or not known, so that a
        window that begins before the first sample has no area. Samples before day 0 are not used.
    before : {"zero", "drop", "half", "limit"}
        A sample below the limit before the first measurable one is zero, is dropped, half its limit, or at its limit.
        "Half" is the middle of what it may be: of ``LIMIT`` and ``DV`` where the table gives both.
    between : {"drop", "zero", "half", "limit"}
        The same between measurable samples.
    after : {"half", "zero", "limit", "ignore"}
        After the last measurable sample the first one below the limit has this level, once; from then on nothing is
        left. ``ignore``: samples after the last measurable one say nothing.
    beyond : {"extrapolate", "nothing", "refuse"}
        The part of a window behind the last point of the profile: by the terminal slope; it adds nothing; or the
        window has no area. Where nothing was left at the last point, nothing is added.
    duplicates : {"geomean", "mean", "max", "error"}
        Samples of one time, which a dataset has if it was read with ``duplicates="replicate"``. Measurable ones go
        before those below the limit; of these alone, the smallest limit counts.
    peak : (float, float)
        Days within which the largest sample is the peak: ``(1, inf)`` leaves out the infused cells themselves.
    split : float
        Infusions up to this day are parts of one dose. Samples after a later one are not used.
    r2_min : float
        Adjusted R2 below which a terminal slope is none; trials report half-lives from 0.75 or 0.8 on.
    """

    method: str = "linear_up_log_down"
    start: str = "zero"
    before: str = "zero"
    between: str = "drop"
    after: str = "half"
    beyond: str = "extrapolate"
    duplicates: str = "geomean"
    peak: tuple[float, float] = (0.0, math.inf)
    split: float = 7.0
    r2_min: float = 0.75

    def __post_init__(self) -> None:
        """Refuse a rule that is none with a :class:`ModelError` that names the nearest."""
        for name, allowed in _ALLOWED.items():
            nearest_or_raise(getattr(self, name), allowed, name, "rules of the analysis")
        if not 0 <= self.peak[0] < self.peak[1]:
            raise ModelError(f"rules of the analysis: peak = {self.peak} must be two days from 0 on, the first first.")


class Profile(NamedTuple):
    """Samples by the rules.

    ``time`` and ``level`` are the points between which the level is interpolated: from day 0 (or the first sample) to
    the last measurable sample, or to the first one below the limit after it. ``over`` says that nothing is left after
    the last point. ``sampled`` are days at which something was measured. ``measured`` are the measurable samples,
    ``capped`` those of them that stand for more than their value; ``below`` the days of those below the limit, with
    their limits. ``until`` is the end of the follow-up.
    """

    time: Float[np.ndarray, " point"]
    level: Float[np.ndarray, " point"]
    over: bool
    sampled: Float[np.ndarray, " sample"]
    measured: tuple[Float[np.ndarray, " measured"], Float[np.ndarray, " measured"]]
    capped: Bool[np.ndarray, " measured"]
    below: tuple[Float[np.ndarray, " below"], Float[np.ndarray, " below"]]
    until: float
    method: str

    @property
    def log_down(self) -> bool:
        """Whether falling levels are exponentials."""
        return self.method == "linear_up_log_down"


class Slope(NamedTuple):
    """A terminal slope: rate per day, adjusted R2, number of samples, and the first of them (day)."""

    rate: float
    r2: float
    n: int
    begin: float


def make_profile(
    time: Float[np.ndarray, " sample"],
    dv: Float[np.ndarray, " sample"],
    cens: Int[np.ndarray, " sample"],
    limit: Float[np.ndarray, " sample"],
    rules: NcaRules,
    *,
    place: str = "",
) -> Profile | None:
    """The profile of samples in any order, coded as in a :class:`~carkinetics.dataset.Dataset`; None without any.

    ``place`` names patient and assay in errors.
    """
    keep = np.flatnonzero(time >= 0)
    if not len(keep):
        return None
    order = keep[np.argsort(time[keep], kind="stable")]
    days = np.unique(time[order])
    # A quantified zero is no measurable level: it is below a limit of zero.
    none = (cens == 1) | (dv <= 0)
    level, low, upper, capped = (np.full(len(days), np.nan) for _ in range(4))
    for k, day in enumerate(days):
        here = order[time[order] == day]
        if len(here) > 1 and rules.duplicates == "error":
            raise ModelError(f"{place}: {len(here)} samples on day {day:g}. Use NcaRules(duplicates='geomean').")
        values = here[~none[here]]
        if len(values):
            level[k], capped[k] = _merged(dv[values], rules.duplicates), (cens[values] == -1).any()
        else:
            least = here[np.argmin(dv[here])]
            upper[k], low[k] = dv[least], np.nan_to_num(limit[least]) if cens[least] == 1 else 0.0
    seen = ~np.isnan(level)
    points, over = _points(days, level, (low, upper), rules)
    return Profile(
        *points,
        over=over,
        sampled=days,
        measured=(days[seen], level[seen]),
        capped=capped[seen] > 0,
        below=(days[~seen], upper[~seen]),
        until=float(days[-1]),
        method=rules.method,
    )


def _merged(values: Float[np.ndarray, " n"], rule: str) -> float:
    if len(values) == 1:
        return float(values[0])
    if rule == "geomean":
        return float(np.exp(np.log(values).mean()))
    return float(values.mean() if rule == "mean" else values.max())


def _points(days, level, interval, rules: NcaRules):
    """Points of the profile, and whether nothing is left after the last one."""
    low, upper = interval
    stands = {
        "zero": np.zeros(len(days)),
        "half": (low + upper) / 2,
        "limit": upper,
        "drop": np.full(len(days), np.nan),
    }
    seen = np.flatnonzero(~np.isnan(level))
    if not len(seen):
        return (np.zeros(0), np.zeros(0)), False
    first, last = seen[0], seen[-1]
    value, at = level.copy(), np.arange(len(days))
    for where, rule in ((at < first, rules.before), ((at > first) & (at < last), rules.between)):
        fill = where & np.isnan(level)
        value[fill] = stands[rule][fill]
    over = rules.after != "ignore" and last + 1 < len(days)
    value[last + 1 :] = np.nan
    if over:
        value[last + 1] = stands[rules.after][last + 1]
    here = ~np.isnan(value)
    time, found = days[here], value[here]
    if time[0] > 0 and rules.start != "refuse":
        time = np.append(0.0, time)
        found = np.append(0.0 if rules.start == "zero" else found[0], found)
    return (time, found), over


def area(profile: Profile, begin: float, end: float) -> float:
    """Integral of the interpolated level from ``begin`` to ``end`` (day), of the part within the profile's points."""
    time = profile.time
    begin, end = max(begin, time[0]), min(end, time[-1])
    if not begin < end:
        return 0.0
    cut = np.concatenate([[begin], time[(time > begin) & (time < end)], [end]])
    value = [level_at(profile, t) for t in cut]
    # Whether a piece is exponential is decided by the samples around it: a part of a line to zero stays a line.
    curved = _exponential(profile)[np.searchsorted(time, cut[1:]) - 1]
    pieces = zip(np.diff(cut), value[:-1], value[1:], curved, strict=True)
    return math.fsum(_piece(*piece) for piece in pieces)


def _exponential(profile: Profile) -> Bool[np.ndarray, " piece"]:
    """Which stretches between points are exponentials; the others are straight lines."""
    first, last = profile.level[:-1], profile.level[1:]
    return (last < first) & (last > 0) & profile.log_down


def _piece(length: float, first: float, last: float, curved: np.bool) -> float:
    """Area under one piece."""
    if not curved:
        return length * (first + last) / 2
    ratio = math.log(first / last)
    # (first - last) / ln(first / last) without the cancellation of nearly equal levels.
    return length * last * (math.expm1(ratio) / ratio if ratio > 0 else 1.0)


def level_at(profile: Profile, day: float) -> float:
    """The interpolated level; NaN before the first point, zero after the last one if nothing is left there."""
    time, level = profile.time, profile.level
    if not len(time) or day < time[0]:
        return math.nan
    if day > time[-1]:
        return 0.0 if profile.over and day <= profile.until else math.nan
    k = int(np.searchsorted(time, day))
    if time[k] == day:
        return float(level[k])
    share = (day - time[k - 1]) / (time[k] - time[k - 1])
    first, last = float(level[k - 1]), float(level[k])
    if _exponential(profile)[k - 1]:
        return first * (last / first) ** share
    return first + share * (last - first)


def terminal_slope(profile: Profile, after: float) -> Slope | None:
    """The slope of ln level over the last samples after the peak (day ``after``), with the best adjusted R2.

    Of all ends of the series with at least three measurable samples whose level falls, the one with the largest
    adjusted R2; of those within 1e-4 of it, the longest. Samples that stand for more than their value are not used.
    """
    exact = ~profile.capped & (profile.measured[0] > after)
    t, y = profile.measured[0][exact], np.log(profile.measured[1][exact])
    found = [s for n in range(LAMBDA_POINTS, len(t) + 1) if (s := _regression(t[-n:], y[-n:])) is not None]
    if not found:
        return None
    best = max(s.r2 for s in found)
    return max((s for s in found if s.r2 >= best - LAMBDA_TOLERANCE), key=lambda s: s.n)


def _regression(t: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Slope | None:
    x, z = t - t.mean(), y - y.mean()
    sxx, sxy, syy = float(x @ x), float(x @ z), float(z @ z)
    if sxy >= 0 or syy == 0:
        return None
    unexplained = max(1 - sxy**2 / (sxx * syy), 0.0)
    n = len(t)
    return Slope(-sxy / sxx, 1 - unexplained * (n - 1) / (n - 2), n, float(t[0]))
