"""Ordered grades, as of cytokine release syndrome and neurotoxicity, against exposure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from carkinetics.errors import DataError, ModelError
from carkinetics.findings import listed
from carkinetics.model_parts import Prior, nearest_or_raise
from carkinetics.parameter_table import INTERVAL
from carkinetics.response.grades import Graded
from carkinetics.response.guards import (
    FEW,
    Finding,
    after_treatment,
    of_carrying,
    of_exposure,
    refuse_immortal,
    separation,
)
from carkinetics.response.options import ResponseOptions, begun, warn
from carkinetics.response.patients import Exposed, Patients, lined_up
from carkinetics.response.result import AbstractResponse, fitted
from carkinetics.response.sampling import sample
from carkinetics.response.terms import FORMS

HIGHEST = 5  # grade of toxicities


@dataclass(frozen=True, eq=False, repr=False)
class OrdinalResponse(AbstractResponse):
    """A fitted model of grades; see :class:`~carkinetics.response.result.AbstractResponse`.

    Attributes
    ----------
    levels : tuple of int
        The grades, from the lowest.
    """

    levels: tuple[int, ...]

    @property
    def what(self) -> str:
        """The outcome's name."""
        return str(self.patients.outcome.columns[0])

    def asked(self, at: float | None) -> Float[np.ndarray, " k"]:
        """The place of the grade ``at``."""
        if at not in self.levels:
            raise ModelError(f"{self.what}: at = {at} must be one of the grades {listed(self.levels)}.")
        return np.array([float(self.levels.index(int(at)))])

    def observed(self, at: float | None) -> Float[np.ndarray, " n"]:
        """1 of patients with a grade of at least ``at``."""
        return (np.asarray(self.arrays.y["grade"]) >= self.asked(at)[0]).astype(float)

    def proportionality(self) -> pd.DataFrame:
        """Whether one slope serves all thresholds: the partial model, in which every threshold has its own.

        Returns
        -------
        DataFrame
            By threshold (grade at least ``GRADE``): ``SLOPE``, ``DEPARTURE`` from the first threshold's with ``LOW``
            and ``HIGH`` of the departure (95 %) and ``P``, twice the smaller posterior probability of either sign. In
            ``attrs["ln_bayes_factor"]`` the log evidence for departures against proportional odds (priors N(0, 1)).

        Raises
        ------
        ModelError
            There are two grades only, or exposure does not act linearly.

        References
        ----------
        After Brant R. Biometrics 1990;46:1171-1178, doi:10.2307/2532457, with shrunk departures in the place of
        separate regressions.
        """
        if len(self.levels) < 3 or self.terms.form != "linear":
            raise ModelError(f"{self.what}: proportionality is asked of three grades or more, and of form='linear'.")
        assert isinstance(self.terms, Graded)
        terms = replace(self.terms, proportional=False)
        partial = sample(terms, self.arrays, seed=self.seed)
        slope = partial.draws[:, terms.names.index("slope")]
        rows = [{"GRADE": self.levels[1], "SLOPE": np.median(slope), "DEPARTURE": 0.0}]
        for k in range(2, len(self.levels)):
            d = partial.draws[:, terms.names.index(f"departure_{k}")]
            low, high = np.quantile(d, INTERVAL)
            p = 2 * min((d > 0).mean(), (d < 0).mean())
            found = {"DEPARTURE": np.median(d), "LOW": low, "HIGH": high, "P": p}
            rows.append({"GRADE": self.levels[k], "SLOPE": np.median(slope + d)} | found)
        table = pd.DataFrame(rows, columns=["GRADE", "SLOPE", "DEPARTURE", "LOW", "HIGH", "P"])
        table.attrs["ln_bayes_factor"] = partial.log_evidence - self.posterior.log_evidence
        return table


def ordinal(
    metric: Exposed,
    outcome: pd.Series,
    *,
    seed: int,
    form: str = "linear",
    covariates: pd.DataFrame | None = None,
    two_stage: str = "propagate",
    proportional: bool = True,
    levels: Sequence[int] | None = None,
    prior: Mapping[str, Prior] | str | None = None,
    allow_immortal_time: bool = False,
    options: ResponseOptions | None = None,
) -> OrdinalResponse:
    """The probability of each grade by exposure: ``logit P(grade >= k) = exposure + covariates - c_k``.

    Parameters
    ----------
    metric, seed, form, covariates, two_stage, allow_immortal_time, options
        As of :func:`carkinetics.logistic`.
    outcome : Series
        By ID, grades: whole numbers from 0 to 5, or of ``levels``.
    proportional : bool
        One slope for all thresholds; otherwise each but the first has a departure from it, N(0, 1) a priori.
    levels : sequence of int, optional
        The grades that there are, from the lowest. By default from 0 to the highest that was seen.
    prior : mapping or "flat", optional
        As of :func:`carkinetics.logistic`. Thresholds have the prior of category probabilities that are uniform over
        the simplex at the mean exposure, so that an empty grade is possible.

    Raises
    ------
    DataError
        Patients or grades are missing or are none; the metric reaches past the outcome.
    ModelError
        An option is unknown.
    """
    options = begun(seed, options)
    nearest_or_raise(form, FORMS, "form", "ordinal")
    name = str(outcome.name or "grade")
    patients = lined_up(metric, outcome.to_frame(name), covariates, missing=options.missing)
    grade, known = _grades(patients.outcome[name], name, levels)
    terms = Graded(form, patients.encoder.effects, grades=len(known), proportional=proportional).with_priors(prior)
    found = refuse_immortal(patients, options.known(patients), allow=allow_immortal_time, what=f"the day of {name}")
    found += [*_of_grades(patients, grade, known, name), *of_exposure(patients)]
    found += [*after_treatment(patients, options.treated_day), *of_carrying(patients, two_stage)]
    warn(found)
    arrays, posterior = fitted(terms, patients, {"grade": grade}, two_stage=two_stage, seed=seed, draws=options.draws)
    return OrdinalResponse(terms, patients, arrays, posterior, two_stage, seed, tuple(found), known)


def _grades(
    outcome: pd.Series, name: str, levels: Sequence[int] | None
) -> tuple[Int[np.ndarray, " n"], tuple[int, ...]]:
    """Places of the grades, and the grades."""
    values = pd.to_numeric(outcome, errors="coerce").to_numpy(float)
    known = tuple(range(HIGHEST + 1)) if levels is None else tuple(int(k) for k in levels)
    if len(known) < 2 or list(known) != sorted(set(known)):
        raise ModelError(f"levels = {list(known)}: name two grades or more, from the lowest, each once.")
    wrong = ~np.isin(values, known)
    if wrong.any():
        who = listed(f"{i} ({v})" for i, v in outcome[wrong].items())
        raise DataError(f"{name}: patients {who} have grades that are none of {listed(known)}. Correct them.")
    if levels is None:
        known = tuple(range(max(int(values.max()), 1) + 1))
    return np.searchsorted(known, values), known


def _of_grades(patients: Patients, grade: Int[np.ndarray, " n"], levels: tuple[int, ...], name: str) -> list[Finding]:
    counts = np.bincount(grade, minlength=len(levels))
    found: list[Finding] = []
    if (counts == 0).any():
        empty = listed(level for level, n in zip(levels, counts, strict=True) if n == 0)
        found.append(("empty grade", f"nobody has {name} {empty}: its probability is the prior's share."))
    columns = np.column_stack([np.ones(len(grade)), patients.point, patients.z.T])
    above = [(levels[k], (grade >= k).astype(float)) for k in range(1, len(levels))]
    told = [(level, y) for level, y in above if 0 < y.sum() < len(y)]
    if told and all(separation(columns, y) for _, y in told):
        text = "exposure and covariates put patients into the order of their grades without an exception: the slope"
        found.append(("separation", f"{text} has no maximum likelihood, and its size comes from the prior."))
    rare = [f"{min(int(y.sum()), int((1 - y).sum()))} at {level}" for level, y in above if _rare(y)]
    if rare:
        text = f"on one side of some thresholds of {name} there are fewer than {FEW} patients ({listed(rare)})"
        found.append(("few events", f"{text}: what is said of these grades rests on the other thresholds."))
    return found


def _rare(y: Float[np.ndarray, " n"]) -> bool:
    return bool(min(y.sum(), (1 - y).sum()) < FEW)
