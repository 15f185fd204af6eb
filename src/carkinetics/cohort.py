"""Who is simulated: doses, weights, covariates, treatments; and what of it the structure and the table see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.model import Model
from carkinetics.structure import Course, Inputs

Range = tuple[float, float]
DAY_OF_DOSE = 0.0


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who is simulated.

    Attributes
    ----------
    n : int
        Patients; with ``levels``, at each of them.
    times : sequence of float
        Sampling days, the same for all.
    dose_per_kg : (float, float) or float
        Viable CAR+ cells per kg: a range from which doses are drawn uniformly on the log scale, or one dose for all.
    dose : float, optional
        Viable CAR+ cells whatever the weight, instead of ``dose_per_kg``.
    levels : sequence of float
        Dose levels in the place of ``dose_per_kg`` (or of ``dose``, if that is given): the same ``n`` virtual patients
        are simulated at each, with the same random effects.
    infusions : sequence of (float, float)
        Day and share of the dose of every infusion: ``((0, 0.1), (1, 0.3), (2, 0.6))`` for a split dose,
        ``((0, 1), (90, 1))`` for a second infusion.
    weight : (float, float)
        Range of the body weight in kg, drawn uniformly; a column ``WT`` of ``covariates`` goes before it.
    covariates : DataFrame or mapping
        Columns of the table: one row a patient, as they are if there are ``n`` rows, else drawn with replacement; or
        one number a column, for all. The model's covariates (without a column: at their centres), the day of the
        first dose of its treatments (without a column, or NaN: never), its regressors (without: typical).
    courses : mapping
        Regressors that change: ``{"WBC": (days, values)}``, the same for all, and read as the model interpolates.
    """

    n: int
    times: Sequence[float]
    dose_per_kg: Range | float = (1e6, 5e6)
    dose: float | None = None
    levels: Sequence[float] = ()
    infusions: Sequence[Range] = ((DAY_OF_DOSE, 1.0),)
    weight: Range = (40.0, 90.0)
    covariates: pd.DataFrame | Mapping[str, float] = field(default_factory=dict)
    courses: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


def refuse_cohort(cohort: Cohort) -> Float[np.ndarray, " time"]:
    """Sampling days, if the cohort can be simulated; :class:`ModelError` if not."""
    times = np.asarray(cohort.times, float)
    if isinstance(cohort.n, bool) or not isinstance(cohort.n, int | np.integer) or cohort.n < 1:
        raise ModelError(f"cohort: n = {cohort.n!r} must be a whole number above 0.")
    increasing = times.ndim == 1 and times.size > 0 and np.isfinite(times).all() and (np.diff(times) > 0).all()
    if not increasing or times[0] < 0:
        raise ModelError("cohort: times must be increasing, finite days from 0 on.")
    for name in ("dose_per_kg", "weight"):
        low, high = _range(getattr(cohort, name))
        if not 0 < low <= high < np.inf:
            raise ModelError(f"cohort: {name} = ({low:g}, {high:g}) must be a range above 0, the lower end first.")
    if not all(0 <= x < np.inf for x in (*cohort.levels, *(() if cohort.dose is None else (cohort.dose,)))):
        raise ModelError("cohort: doses must be finite and not negative.")
    days, shares = np.asarray(cohort.infusions, float).reshape(-1, 2).T
    if not (days.size and days[0] == DAY_OF_DOSE and (np.diff(days) > 0).all() and (shares > 0).all()):
        raise ModelError("cohort: infusions must be (day, share) pairs: day 0 first, days increasing, shares above 0.")
    if isinstance(cohort.covariates, pd.DataFrame) and not len(cohort.covariates):
        raise ModelError("cohort: covariates has no rows.")
    return times


def _range(given: Range | float) -> Range:
    low, high = given if isinstance(given, tuple) else (given, given)
    return float(low), float(high)


def draw_people(cohort: Cohort, random: np.random.Generator) -> pd.DataFrame:
    """Columns of every patient: ``WT``, ``DOSE_PER_KG`` (or ``DOSE``), ``LEVEL`` if there are levels, covariates."""
    n = cohort.n
    weight = random.uniform(*cohort.weight, n).round(1)
    low, high = _range(cohort.dose_per_kg)
    per_kg = np.exp(random.uniform(np.log(low), np.log(high), n))
    per_kg = np.clip(_three_digits(per_kg), low, high)  # never outside the range
    people = pd.DataFrame({"WT": weight})
    if isinstance(cohort.covariates, pd.DataFrame):
        given = cohort.covariates
        rows = np.arange(n) if len(given) == n else random.integers(len(given), size=n)
        people = people.assign(**{str(c): given[c].to_numpy()[rows] for c in given})
    else:
        people = people.assign(**cohort.covariates)
    name, doses = ("DOSE_PER_KG", per_kg) if cohort.dose is None else ("DOSE", np.full(n, cohort.dose))
    if not cohort.levels:
        return people.assign(**{name: doses})
    return pd.concat([people.assign(**{name: level, "LEVEL": k}) for k, level in enumerate(cohort.levels)])


def _three_digits(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Three significant digits, as a protocol writes a dose."""
    power = np.floor(np.log10(x)) - 2
    up, down = 10.0 ** np.maximum(power, 0), 10.0 ** np.maximum(-power, 0)  # powers of ten that are exact
    return np.round(x / up * down) * up / down


def cells(people: pd.DataFrame) -> Float[np.ndarray, " subject"]:
    """The whole dose of every patient, viable CAR+ cells."""
    if "DOSE" in people:
        return people["DOSE"].to_numpy(float)
    return (people["DOSE_PER_KG"] * people["WT"]).to_numpy(float)


def inputs_for(model: Model, cohort: Cohort, people: pd.DataFrame) -> Inputs:
    """What is done to every patient, subject axis last.

    Raises
    ------
    ModelError
        The cohort has more infusions than the structure takes; a course that the model does not read.
    """
    n, dose = len(people), cells(people)
    days, shares = np.asarray(cohort.infusions, float).reshape(-1, 2).T
    if len(days) > 1 and not model.structure.repeatable:
        raise ModelError(f"{model.structure.name} takes one infusion; the cohort has {len(days)}.")
    most = model.structure.max_infusions
    if most is not None and len(days) > most:
        raise ModelError(f"{model.structure.name} takes {most} infusions; the cohort has {len(days)}.")
    unread = sorted(set(cohort.courses) - {r.column for r in model.regressors})
    if unread:
        raise ModelError(f"cohort: {model.name} reads no course {listed(unread)}.")
    since = [_column(people, t.column, np.inf) for t in model.acting]
    with jax.enable_x64(True):
        return Inputs(
            dose=jnp.asarray(dose * shares[0]),
            later_day=jnp.asarray(np.repeat(days[1:, None], n, axis=1)),
            later_dose=jnp.asarray(shares[1:, None] * dose),
            since=jnp.asarray(np.stack(since) if since else np.zeros((0, n))),
            factor=jnp.ones((len(since), n)),
            course={r.name: _course(cohort, people, r) for r in model.regressors},
        )


def _column(people: pd.DataFrame, column: str, otherwise: float) -> Float[np.ndarray, " subject"]:
    if column not in people:
        return np.full(len(people), otherwise)
    return people[column].fillna(otherwise).to_numpy(float)


def _course(cohort: Cohort, people: pd.DataFrame, regressor) -> Course:
    if regressor.column in cohort.courses:
        days, values = (np.asarray(x, float) for x in cohort.courses[regressor.column])
        time, value = (jnp.asarray(np.repeat(x[:, None], len(people), axis=1)) for x in (days, values))
    else:
        value = jnp.asarray(_column(people, regressor.column, regressor.typical))[None]
        time = jnp.zeros_like(value)
    return Course(time, value, regressor.interpolation)


def design_for(model: Model, people: pd.DataFrame) -> Float[np.ndarray, "effect subject"]:
    """What the effects of covariates act on; a covariate without a column is at its centre.

    Raises
    ------
    ModelError
        A value that an effect's form does not allow, a category that the model does not know.
    """
    rows: list[np.ndarray] = [np.zeros((0, len(people)))]
    for c in model.covariates:
        if c.column in people:
            rows.append(c.design(people[c.column].to_numpy()))
        else:
            rows.append(np.zeros((len(c.effects), len(people))))
    return np.concatenate(rows)
