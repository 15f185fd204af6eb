"""Times to an event against the level of every day."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from carkinetics.errors import DataError
from carkinetics.model_parts import Prior, nearest_or_raise
from carkinetics.response.carrying import Carried
from carkinetics.response.followed import NODES, Course, Followed, steps_of
from carkinetics.response.guards import few, of_carrying
from carkinetics.response.options import ResponseOptions, begun, warn
from carkinetics.response.result import sample
from carkinetics.response.sampling import read_by_likelihood
from carkinetics.response.tte_model import TteResponse, at_risk, clock_of, cuts_of, pieces

FORMS = ("linear", "flat")


def tte_course(
    course: Course,
    outcomes: pd.DataFrame,
    *,
    seed: int,
    form: str = "linear",
    covariates: pd.DataFrame | None = None,
    two_stage: str = "propagate",
    prior: Mapping[str, Prior] | str | None = None,
    options: ResponseOptions | None = None,
) -> TteResponse:
    """Time to an event with the level of the day in the hazard: ``h(t) = h0(t) exp(slope u(t) + covariates)``.

    No landmark is needed, and there is no immortal time: a level acts while it is there. The baseline hazard is
    constant between ``options.cuts`` (by default quartiles of event times). The slope is of one SD between patients of
    their geometric mean level. Predictions are of a level that stays where it is.

    Parameters
    ----------
    course : Course
        ln levels on a grid of days that covers everybody's time at risk. Up to 100 draws of each are averaged over.
    outcomes, seed, covariates, prior, options
        As of :func:`carkinetics.tte`, without ``_LAST``.
    form : {"linear", "flat"}
    two_stage : {"propagate", "point"}

    Raises
    ------
    DataError
        Times or events are none, or the course does not cover them.
    """
    options = begun(seed, options)
    nearest_or_raise(form, FORMS, "form", "tte_course")
    nearest_or_raise(two_stage, ("propagate", "point"), "way to carry exposure", "two_stage=")
    if any(str(c).endswith("_LAST") for c in outcomes):
        raise DataError("tte_course takes no interval-censored times: leave the column _LAST away, or use tte.")
    column = next((c for c in outcomes if str(c).endswith("_TIME")), None)
    if column is None:
        raise DataError("outcomes need a column that ends in _TIME and one in _EVENT, such as OS_TIME and OS_EVENT.")
    ends = outcomes[column].copy()
    ends.index = pd.Index([str(i) for i in ends.index])
    patients, times = at_risk(course.mean(ends.astype(float)), outcomes, covariates, 0.0, options)
    clock = clock_of(times, 0.0, "infusion")
    cuts = cuts_of(times, clock, options.cuts)
    terms = Followed(form, patients.encoder.effects, cuts=cuts).with_priors(prior)
    found = [*few(int(times["EVENT"].sum()), len(terms.names) - len(terms.baseline), "the event")]
    found += [*of_carrying(patients, two_stage), *pieces(times, cuts)]
    warn(found)
    at = [course.subjects.index(i) for i in patients.ids]
    ln = course.ln[:, :, at]
    if two_stage == "point":
        ln = np.median(ln, axis=0)[None]
    every = np.unique(np.linspace(0, len(ln) - 1, NODES).astype(int))
    standardised = (ln[every] - patients.centre) / patients.scale
    y = steps_of(course, standardised, times, np.array(cuts) * clock.unit, clock.unit)
    base = standardised.mean(axis=1)
    none = np.zeros((0, len(at)))
    weight = np.full(base.shape, -np.log(len(base)))
    arrays = read_by_likelihood(Carried(base, weight, none), patients.z, patients.scale, y)
    posterior = sample(terms, arrays, seed=seed)
    return TteResponse(terms, patients, arrays, posterior, two_stage, seed, tuple(found), clock, times)
