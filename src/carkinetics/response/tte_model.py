"""Times to an event (progression, death, loss of persistence) against exposure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.errors import DataError, ModelError
from carkinetics.findings import listed
from carkinetics.model_parts import Prior, nearest_or_raise
from carkinetics.response.guards import Finding, after_treatment, few, of_carrying, of_exposure, refuse_immortal
from carkinetics.response.options import ResponseOptions, begun, warn
from carkinetics.response.patients import Exposed, Patients, lined_up
from carkinetics.response.result import AbstractResponse, fitted
from carkinetics.response.survival import DISTRIBUTIONS, EXACT, INTERVAL, RIGHT, Survival
from carkinetics.response.terms import FORMS

LANDMARK = 28.0  # day: by then Cmax and AUC0-28 are known
PIECES = 4
CLOCKS = ("landmark", "infusion")


@dataclass(frozen=True)
class Clock:
    """How days become the time of the model: ``(day - origin) / unit``, from ``since`` (a day) on."""

    origin: float
    since: float
    unit: float

    def time(self, day: float | Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """In the unit of the model."""
        return np.asarray((np.asarray(day, float) - self.origin) / self.unit)


@dataclass(frozen=True, eq=False, repr=False)
class TteResponse(AbstractResponse):
    """A fitted model of times; see :class:`~carkinetics.response.result.AbstractResponse`.

    Attributes
    ----------
    clock : Clock
    times : DataFrame
        By ID, in days since the infusion: ``TIME EVENT LAST ENTRY``; ``EVENT`` is 1 of the event that is modelled.
    """

    clock: Clock
    times: pd.DataFrame

    @property
    def what(self) -> str:
        """The outcome's name."""
        return str(self.patients.outcome.columns[0]).removesuffix("_TIME")

    def asked(self, at: float | None) -> Float[np.ndarray, " k"]:
        """The time ``at``, and that from which on patients count."""
        if at is None or not np.isfinite(at) or at < self.clock.since:
            raise ModelError(f"{self.what}: at = {at} must be a day from {self.clock.since:g} on.")
        return np.array([float(self.clock.time(float(at))), float(self.clock.time(self.clock.since))])

    def observed(self, at: float | None) -> Float[np.ndarray, " n"]:
        """1 without an event until ``at``, 0 with one, NaN where follow-up ended before."""
        self.asked(at)
        time, event = self.times["TIME"].to_numpy(float), self.times["EVENT"].to_numpy(float)
        return np.where(time > at, 1.0, np.where(event == 1, 0.0, np.nan))


def tte(
    metric: Exposed,
    outcomes: pd.DataFrame,
    *,
    seed: int,
    landmark: float | None = LANDMARK,
    distribution: str = "weibull",
    form: str = "linear",
    covariates: pd.DataFrame | None = None,
    two_stage: str = "propagate",
    prior: Mapping[str, Prior] | str | None = None,
    allow_immortal_time: bool = False,
    options: ResponseOptions | None = None,
) -> TteResponse:
    """Time to an event by exposure, of the patients without an event at a landmark.

    Parameters
    ----------
    metric, seed, form, covariates, two_stage, options
        As of :func:`carkinetics.logistic`.
    outcomes : DataFrame
        By ID: a column that ends in ``_TIME`` (days since the infusion, above 0), one that ends in ``_EVENT`` (1 at an
        event, 0 censored, other codes other causes), and, if visits are far apart, one that ends in ``_LAST``: the last
        day on which the patient was known to be without the event, which then lies in ``(LAST, TIME]``.
    landmark : float or None
        Day by which the exposure is known. Patients with an event or censored until then are left out and counted.
        None: everybody counts from day 0.
    distribution : {"weibull", "exponential", "piecewise", "lognormal", "loglogistic"}
        The first three have proportional hazards (``ln h = baseline + exposure + covariates``), the others accelerate
        time (``ln T = location + exposure + covariates + sigma error``).
    prior : mapping or "flat", optional
        By default N(0, 2.5) on the log rate or location, relative to the crude rate, and on effects; N(0, 1) on ln
        shape and ln sigma.
    allow_immortal_time : bool
        Take a metric that reaches past the landmark, and say so in ``check()``.

    Raises
    ------
    DataError
        Times or events are none; the metric reaches past the landmark; nobody is at risk at the landmark.
    ModelError
        An option is unknown.

    References
    ----------
    Anderson JR, Cain KC, Gelber RD. J Clin Oncol 1983;1:710-719, doi:10.1200/JCO.1983.1.11.710 (landmark). Kalbfleisch
    JD, Prentice RL. The Statistical Analysis of Failure Time Data, 2002, doi:10.1002/9781118032985.
    """
    options = begun(seed, options)
    nearest_or_raise(form, FORMS, "form", "tte")
    nearest_or_raise(distribution, DISTRIBUTIONS, "distribution", "tte")
    nearest_or_raise(options.clock, CLOCKS, "clock", "tte")
    since = 0.0 if landmark is None else float(landmark)
    patients, times = at_risk(metric, outcomes, covariates, since, options)
    # Without a landmark a metric may reach up to each patient's own last day, and not past it.
    known = since if landmark is not None else times["TIME"]
    found = refuse_immortal(patients, known, allow=allow_immortal_time, what="the landmark or the event")
    clock = clock_of(times, since, options.clock)
    cuts = cuts_of(times, clock, options.cuts) if distribution == "piecewise" else ()
    terms = Survival(form, patients.encoder.effects, distribution=distribution, cuts=cuts).with_priors(prior)
    name = str(patients.outcome.columns[0]).removesuffix("_TIME")
    found += [*few(int(times["EVENT"].sum()), len(terms.names) - len(terms.baseline), name), *of_exposure(patients)]
    found += [*after_treatment(patients, options.treated_day), *of_carrying(patients, two_stage), *pieces(times, cuts)]
    warn(found)
    arrays, posterior = fitted(
        terms, patients, arrays_of(times, clock), two_stage=two_stage, seed=seed, draws=options.draws
    )
    return TteResponse(terms, patients, arrays, posterior, two_stage, seed, tuple(found), clock, times)


def at_risk(
    metric: Exposed, outcomes: pd.DataFrame, covariates: pd.DataFrame | None, since: float, options: ResponseOptions
) -> tuple[Patients, pd.DataFrame]:
    """Patients without an event at the landmark, and their times."""
    time, event, last = _columns(outcomes)
    given = outcomes[[c for c in (time, event, last) if c]]
    needed = given if last is None else given.assign(**{last: given[last].fillna(given[time])})
    patients = lined_up(metric, needed, covariates, missing=options.missing)
    seen = patients.outcome
    times = pd.DataFrame({"TIME": seen[time].astype(float), "EVENT": (seen[event] == options.cause).astype(float)})
    times["LAST"] = np.where(times["EVENT"] == 1, seen[last or time].astype(float), times["TIME"])
    times["ENTRY"] = since
    if options.entry is not None:
        entry = options.entry.copy()
        entry.index = pd.Index([str(i) for i in entry.index])
        times["ENTRY"] = np.maximum(entry.reindex(list(patients.ids)).to_numpy(float), since)
    _refuse(times, seen[event])
    late = (times["TIME"] > times["ENTRY"]).to_numpy()
    if late.all():
        return patients, times
    gone = times[~late]
    text = (
        f"left out: {len(gone)} patients were not at risk at day {since:g} or entry ({int(gone['EVENT'].sum())} with "
        f"an event, {int((1 - gone['EVENT']).sum())} censored: {listed(gone.index)})"
    )
    if not late.any():
        raise DataError(f"nobody is at risk after day {since:g}; {text}. Choose an earlier landmark.")
    return patients.only(late, text), times[late]


def _columns(outcomes: pd.DataFrame) -> tuple[str, str, str | None]:
    found = {end: [str(c) for c in outcomes if str(c).endswith(end)] for end in ("_TIME", "_EVENT", "_LAST")}
    if len(found["_TIME"]) != 1 or len(found["_EVENT"]) != 1 or len(found["_LAST"]) > 1:
        raise DataError(
            f"outcomes have the columns {listed(map(str, outcomes))}; give one that ends in _TIME and one in _EVENT, "
            "such as PFS_TIME and PFS_EVENT, and at most one in _LAST."
        )
    return found["_TIME"][0], found["_EVENT"][0], found["_LAST"][0] if found["_LAST"] else None


def _refuse(times: pd.DataFrame, codes: pd.Series) -> None:
    wrong = {
        "a time that is not above 0": ~(times["TIME"] > 0) | ~np.isfinite(times["TIME"]),
        "an event code that is no whole number from 0": ~codes.astype(float).isin(range(100)),
        "a last day without the event that is below 0 or after its time": ~times["LAST"].between(0, times["TIME"]),
        "no day of entry": ~np.isfinite(times["ENTRY"]),
    }
    said = [f"{what}: patients {listed(times.index[bad])}" for what, bad in wrong.items() if bad.any()]
    if said:
        raise DataError(f"outcomes have {'; '.join(said)}. Correct them; days count from the infusion.")


def clock_of(times: pd.DataFrame, since: float, kind: str) -> Clock:
    """From the landmark or the infusion, in units of the crude mean time to an event."""
    total = float((times["TIME"] - times["ENTRY"]).sum())
    return Clock(since if kind == "landmark" else 0.0, since, total / max(float(times["EVENT"].sum()), 1.0))


def arrays_of(times: pd.DataFrame, clock: Clock) -> dict[str, np.ndarray]:
    """What the likelihood reads."""
    entry = clock.time(times["ENTRY"].to_numpy(float))
    end, last = (clock.time(times[c].to_numpy(float)) for c in ("TIME", "LAST"))
    event = times["EVENT"].to_numpy(float) == 1
    between = event & (last < end)
    kind = np.where(between, INTERVAL, np.where(event, EXACT, RIGHT))
    return {"t1": np.where(between, np.maximum(last, entry), end), "t2": end, "entry": entry, "kind": kind}


def cuts_of(times: pd.DataFrame, clock: Clock, given: tuple[float, ...] | None) -> tuple[float, ...]:
    """In the model's time; quartiles of the events unless given."""
    if given is not None:
        days = np.asarray(given, float)
        if list(days) != sorted(set(days)) or not (days > clock.since).all():
            raise ModelError(f"cuts = {list(given)} must be days after {clock.since:g}, from the first, each once.")
    else:
        events = times["TIME"][times["EVENT"] == 1]
        quartiles = np.quantile(events, np.arange(1, PIECES) / PIECES) if len(events) else np.zeros(0)
        days = np.unique(quartiles)
    return tuple(float(t) for t in clock.time(days))


def pieces(times: pd.DataFrame, cuts: tuple[float, ...]) -> list[Finding]:
    """Too few events for the pieces of a hazard."""
    events = int(times["EVENT"].sum())
    if cuts and events < 2 * (len(cuts) + 1):
        return [("few events", f"{events} events for {len(cuts) + 1} pieces of the hazard: give fewer cuts.")]
    return []
