"""Response, yes or no, against exposure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.errors import DataError, ModelError
from carkinetics.model_parts import Prior, nearest_or_raise
from carkinetics.response.binary import Binary
from carkinetics.response.guards import after_treatment, of_binary, of_carrying, refuse_immortal
from carkinetics.response.options import ResponseOptions, begun, warn
from carkinetics.response.patients import Exposed, lined_up
from carkinetics.response.result import AbstractResponse, fitted
from carkinetics.response.terms import FORMS


@dataclass(frozen=True, eq=False, repr=False)
class LogisticResponse(AbstractResponse):
    """A fitted logistic model; see :class:`~carkinetics.response.result.AbstractResponse`."""

    @property
    def what(self) -> str:
        """The outcome's name."""
        return str(self.patients.outcome.columns[0])

    def asked(self, at: float | None) -> Float[np.ndarray, " k"]:
        """There is one question only."""
        if at is not None:
            raise ModelError(f"{self.what} is there or not: leave at= away.")
        return np.zeros(0)

    def observed(self, at: float | None) -> Float[np.ndarray, " n"]:
        """1 of responders."""
        self.asked(at)
        return (np.asarray(self.arrays.y["sign"]) + 1.0) / 2


def logistic(
    metric: Exposed,
    outcome: pd.Series,
    *,
    seed: int,
    form: str = "linear",
    covariates: pd.DataFrame | None = None,
    two_stage: str = "propagate",
    prior: Mapping[str, Prior] | str | None = None,
    allow_immortal_time: bool = False,
    options: ResponseOptions | None = None,
) -> LogisticResponse:
    """The probability of a response by exposure: ``logit p = intercept + exposure + covariates``.

    Parameters
    ----------
    metric : Metric, Series or array
        Exposure, natural scale; of a fit, with draws. Its natural log is used, standardised over patients.
    outcome : Series
        By ID: 1 or True of a responder, 0 or False of others.
    seed : int
        Of the draws.
    form : {"linear", "emax", "sigmoid_emax", "flat"}
        ``linear`` in ln exposure; ``emax x^hill / (x^hill + ec50^hill)``, with hill 1 or estimated; ``flat``: no
        effect of exposure, the null model.
    covariates : DataFrame, optional
        By ID, such as tumour burden; numbers are standardised (take logs before), text is categories.
    two_stage : {"propagate", "point", "joint"}
        How the uncertainty of exposure is carried; see :mod:`carkinetics.response.carrying`.
    prior : mapping or "flat", optional
        Normal priors by name of a parameter. By default N(0, 2.5) on the slope of one SD of ln exposure and on
        covariates, N(0, 5) on the intercept: they hold under separation.
    allow_immortal_time : bool
        Take a metric that reaches past ``options.outcome_day``, and say so in ``check()``.

    Raises
    ------
    DataError
        Patients or values are missing, or the outcome is no yes or no; the metric reaches past the outcome.
    ModelError
        An option is unknown.

    References
    ----------
    Gelman A et al. Ann Appl Stat 2008;2:1360-1383, doi:10.1214/08-AOAS191 (priors). Carroll RJ et al. Measurement
    Error in Nonlinear Models, 2006, doi:10.1201/9781420010138 (uncertain exposure).
    """
    options = begun(seed, options)
    nearest_or_raise(form, FORMS, "form", "logistic")
    name = str(outcome.name or "response")
    patients = lined_up(metric, outcome.to_frame(name), covariates, missing=options.missing)
    y = _yes_or_no(patients.outcome[name], name)
    terms = Binary(form, patients.encoder.effects).with_priors(prior)
    found = refuse_immortal(patients, options.known(patients), allow=allow_immortal_time, what=f"the day of {name}")
    found += of_binary(patients, y, len(terms.names) - 1, name)
    found += [*after_treatment(patients, options.treated_day), *of_carrying(patients, two_stage)]
    warn(found)
    arrays, posterior = fitted(
        terms, patients, {"sign": 2 * y - 1}, two_stage=two_stage, seed=seed, draws=options.draws
    )
    return LogisticResponse(terms, patients, arrays, posterior, two_stage, seed, tuple(found))


def _yes_or_no(outcome: pd.Series, name: str) -> Float[np.ndarray, " n"]:
    y = pd.to_numeric(outcome, errors="coerce").to_numpy(float)
    wrong = ~np.isin(y, (0.0, 1.0))
    if wrong.any():
        got = sorted({str(v) for v in outcome[wrong]})[:5]
        raise DataError(
            f"{name}: got {', '.join(got)} in {wrong.sum()} patients; give 1 of a responder and 0 of others."
        )
    return y
