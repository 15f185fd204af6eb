"""What fools people who relate exposure to response: each guard has a name and says why."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import linprog

from carkinetics.errors import DataError
from carkinetics.findings import listed
from carkinetics.response.patients import Patients

FEW = 5  # events, or patients without
PER_PARAMETER = 10
COLLINEAR = 0.9
BINS = 4
CAUTION = (
    "Exposure is measured after treatment: it is driven by the antigen that is there and by the response itself. What "
    "is estimated is an association, not what a higher exposure would do."
)

MILD = ("window", "known exposure")  # worth a word, and no warning

Finding = tuple[str, str]  # name, reason


def refuse_immortal(patients: Patients, known: pd.Series | float | None, *, allow: bool, what: str) -> list[Finding]:
    """Refuse a metric whose window reaches past the day on which the outcome was told.

    Parameters
    ----------
    known : Series or float or None
        Day from which on the outcome counts: of a landmark one, else one of each patient. None: not known.

    Raises
    ------
    DataError
        The window reaches further, and ``allow`` is false: patients had to be without an event to be measured.
    """
    end = patients.metric.window[1]
    if known is None or np.isnan(end):
        if np.isnan(end) and known is not None:
            return [("window", "the exposure has no window of days: whether it was known in time is unchecked.")]
        return []
    days = np.broadcast_to(np.asarray(known, float), (len(patients.ids),))
    late = days < end
    if not late.any():
        return []
    who = [i for i, wrong in zip(patients.ids, late, strict=True) if wrong]
    text = (
        f"{patients.metric.name} uses days up to {end:g}, past {what} (day {days[late].min():g} at the earliest) of "
        f"{len(who)} patients ({listed(who)}): a patient had to live through them to have it (immortal time)."
    )
    if not allow:
        raise DataError(f"{text} Use a metric with an earlier end, a later landmark, or allow_immortal_time=True.")
    return [("immortal time", text)]


def separation(design: Float[np.ndarray, "n p"], y: Float[np.ndarray, " n"]) -> bool:
    """Whether a combination of the columns separates responders from others, so that no maximum likelihood exists.

    A linear programme: is there ``b`` with ``(2 y - 1) (design b) >= 0`` everywhere and above it somewhere.

    References
    ----------
    Albert A, Anderson JA. Biometrika 1984;71:1-10, doi:10.1093/biomet/71.1.1.
    """
    signed = (2 * y - 1)[:, None] * design
    found = linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=(-1, 1), method="highs")
    return bool(found.status == 0 and -found.fun > 1e-7)


def of_binary(patients: Patients, y: Float[np.ndarray, " n"], parameters: int, what: str) -> list[Finding]:
    """Guards of an outcome that is there (1) or not (0)."""
    return [*_separated(patients, y, what), *few(int(y.sum()), parameters, what, int((1 - y).sum())),
            *_bins(patients, y, what), *of_exposure(patients)]  # fmt: skip


def _separated(patients: Patients, y: Float[np.ndarray, " n"], what: str) -> Iterator[Finding]:
    columns = np.column_stack([np.ones(len(y)), patients.point, patients.z.T])
    if 0 < y.sum() < len(y) and separation(columns, y):
        text = f"exposure and covariates tell patients with {what} from the others without an exception: the likelihood"
        yield "separation", f"{text} has no maximum, and how steep the curve is comes from the prior."


def few(events: int, parameters: int, what: str, others: int | None = None) -> Iterator[Finding]:
    """Too few events for what is estimated."""
    fewer = events if others is None else min(events, others)
    count = f"{events} patients with {what}" + ("" if others is None else f" and {others} without")
    if fewer < FEW:
        yield "few events", f"{count}: fewer than {FEW} of one kind say little; the prior says much."
    elif fewer < PER_PARAMETER * parameters:
        yield "few events", f"{count}: fewer than {PER_PARAMETER} for each of {parameters} effects."


def bins_of(u: Float[np.ndarray, " n"], bins: int = BINS) -> np.ndarray:
    """Quantile bin of each patient, from 0; equal exposures share a bin."""
    edges = np.quantile(u, np.arange(1, bins) / bins)
    return np.searchsorted(edges, u, side="left")


def _bins(patients: Patients, y: Float[np.ndarray, " n"], what: str) -> Iterator[Finding]:
    which = bins_of(patients.point)
    for k in np.unique(which):
        mine = y[which == k]
        if mine.min() == mine.max() and 0 < y.sum() < len(y):
            share = "all" if mine[0] else "none"
            text = f"{share} of the {len(mine)} patients in exposure bin {k + 1} of {BINS} have {what}"
            yield "uniform bin", f"{text}: the curve there rests on its form and on the prior."


def of_exposure(patients: Patients) -> Iterator[Finding]:
    """Guards of the exposure itself: covariates that say the same, and values that are not its own."""
    for name, values in zip(patients.encoder.effects, patients.z, strict=True):
        r = float(np.corrcoef(values, patients.point)[0, 1])
        if abs(r) > COLLINEAR:
            text = f"{name} and ln {patients.metric.name} have a correlation of {r:.2f}"
            yield "collinear", f"{text}: their effects cannot be told apart."
    for status in ("extrapolated", "censored"):
        who = [i for i, s in zip(patients.ids, patients.metric.status, strict=True) if s == status]
        if who:
            yield status, f"{patients.metric.name} is {status} in {len(who)} patients ({listed(who)})."


def collinear(named: dict[str, Patients]) -> list[Finding]:
    """Metrics of the same patients that say the same."""
    found, names = [], list(named)
    for k, a in enumerate(names):
        for b in names[k + 1 :]:
            x, y = named[a].point, named[b].point
            if len(x) == len(y) and named[a].metric.name != named[b].metric.name:
                r = float(np.corrcoef(x, y)[0, 1])
                if abs(r) > COLLINEAR:
                    text = f"ln {named[a].metric.name} and ln {named[b].metric.name} have a correlation of {r:.2f}"
                    found.append(("collinear", f"{text}: weights between them are of the noise."))
    return found


def after_treatment(patients: Patients, treated: pd.Series | None) -> Iterator[Finding]:
    """Exposure that was still being measured when toxicity was treated.

    Parameters
    ----------
    treated : Series, optional
        By ID, first day of tocilizumab, steroids or the like; missing where there was none.
    """
    if treated is None:
        return
    days = treated.copy()
    days.index = pd.Index([str(i) for i in days.index])
    days = days.reindex(list(patients.ids)).to_numpy(float)
    end = patients.metric.window[1]
    who = [i for i, d in zip(patients.ids, days, strict=True) if np.isfinite(d) and not end <= d]
    if who:
        text = f"{len(who)} patients were treated for toxicity before {patients.metric.name} was complete"
        yield (
            "after treatment",
            (f"{text} ({listed(who)}): the treatment may have changed it, and toxicity led to the treatment."),
        )


def of_carrying(patients: Patients, two_stage: str) -> Iterator[Finding]:
    """How exposure was carried, where that can mislead."""
    if two_stage == "point" and patients.uncertain:
        sd = float(np.median(patients.u.std(axis=0)))
        yield (
            "point",
            (
                f"exposures are taken as known, while a patient's median SD is {sd:.2f} of that between patients: the "
                "slope is attenuated and its interval too narrow; use two_stage='propagate'."
            ),
        )
    if not patients.uncertain:
        yield (
            "known exposure",
            ("exposures are taken as measured without error; see ck.with_error, or use the exposure of a fit."),
        )
