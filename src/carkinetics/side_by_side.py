"""Observed and model-based exposure of the same patients side by side, and how long the cells persisted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carkinetics.dataset import Dataset
from carkinetics.exposures import DRAWS, CurveRules, exposure
from carkinetics.exposures import RULES as CURVES
from carkinetics.fit_result import Fit
from carkinetics.metric import Metric
from carkinetics.noncompartmental import RULES, WINDOWS, nca, one_assay, profiles_of
from carkinetics.profiles import NcaRules, Profile

COMPARED = ("cmax", "auc_0_28")
APART = 3.0  # -fold; where observed and model-based exposure differ more, one of them deserves a look
_FEW = 3  # pairs; a correlation of fewer says nothing


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Observed and model-based exposure.

    Attributes
    ----------
    table : DataFrame
        One row per metric and patient: ``METRIC ID UNIT OBSERVED OBSERVED_STATUS OBSERVED_REASON MODEL LOW HIGH
        MODEL_STATUS MODEL_REASON RATIO APART``. ``MODEL`` is the posterior median with its 95 % interval, ``RATIO``
        the observed over it, ``APART`` true where they differ more than threefold.
    summary : DataFrame
        By metric: ``PATIENTS``, ``N`` (with both values, above zero, neither of them a bound), ``R2`` (squared
        correlation of the logs), ``RATIO`` (geometric mean of observed over model-based), ``RATIO_CV_PCT``, ``APART``,
        and ``ONLY_MODEL`` and ``ONLY_OBSERVED``, of whom one of the two says nothing or gives a bound.
    source : str
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    source: str

    def failures(self) -> pd.DataFrame:
        """How often the observed value is missing, a bound, or far from the model's, and why.

        Returns
        -------
        DataFrame
            ``METRIC WHY N``, most frequent first; numbers in the reasons are left out, so that alike ones count
            together.
        """
        rows = self.table
        text = rows["OBSERVED_REASON"].str.replace(r"\b[0-9]+(?:\.[0-9]+)?\b", "..", regex=True)
        bad = rows["OBSERVED_STATUS"].isin(("censored", "not_estimable"))
        why = np.where(bad, text, np.where(rows["APART"], f"more than {APART:g}-fold from the model's", ""))
        told = rows.assign(WHY=why)[why != ""]
        found = told.groupby(["METRIC", "WHY"], sort=False).size().rename("N").reset_index()
        return found.sort_values(["METRIC", "N"], ascending=[True, False], kind="stable", ignore_index=True)


def compare_exposure(
    fit: Fit,
    metrics: Sequence[str] = COMPARED,
    *,
    assay: str | None = None,
    observed: NcaRules = RULES,
    curves: CurveRules = CURVES,
    draws: int = DRAWS,
    allow_failed: bool = False,
) -> SideBySide:
    """Observed (:func:`carkinetics.nca`) and model-based (:func:`carkinetics.exposure`) metrics of a fit's patients.

    Parameters
    ----------
    metrics : sequence of str
        Names that both have: ``cmax tmax t_last c_last fold_expansion auc_inf`` and ``auc_a_b``.
    assay : str, optional
        Needed where there are several.
    observed, curves : NcaRules, CurveRules
        Rules of the one and of the other.
    draws, allow_failed
        As in :func:`carkinetics.exposure`.

    Raises
    ------
    ModelError
        A metric that one of them does not have.
    FitError
        The fit failed its check.
    """
    name = one_assay([a.name for a in fit.model.assays], assay, fit.model.name)
    modelled = exposure(fit, metrics, assay=name, draws=draws, rules=curves, allow_failed=allow_failed)
    windows = tuple(dict.fromkeys((*WINDOWS, *(m.window for m in modelled.values() if _is_area(m)))))
    seen = nca(fit.data, windows=windows, rules=observed).exposure(name)
    tables = [_beside(seen[m], modelled[m]) for m in modelled]
    table = pd.concat(tables, ignore_index=True)
    return SideBySide(table, pd.DataFrame([_summary(t) for t in tables]), modelled.source)


def _is_area(metric: Metric) -> bool:
    return metric.name.startswith("auc_") and bool(np.isfinite(metric.window[1]))


def _beside(seen: Metric, modelled: Metric) -> pd.DataFrame:
    model = modelled.table()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = seen.value / modelled.value
        apart = np.abs(np.log(ratio)) > np.log(APART)
    return pd.DataFrame(
        {
            "METRIC": modelled.name,
            "ID": modelled.subjects,
            "UNIT": modelled.unit,
            "OBSERVED": seen.value,
            "OBSERVED_STATUS": seen.status,
            "OBSERVED_REASON": seen.reason,
            "MODEL": model["VALUE"],
            "LOW": model["LOW"],
            "HIGH": model["HIGH"],
            "MODEL_STATUS": modelled.status,
            "MODEL_REASON": modelled.reason,
            "RATIO": ratio,
            "APART": apart,
        }
    )


def _summary(table: pd.DataFrame) -> dict:
    known = {
        side: ~table[f"{side}_STATUS"].isin(("censored", "not_estimable")) & (table[side] > 0)
        for side in ("OBSERVED", "MODEL")
    }
    both = table[known["OBSERVED"] & known["MODEL"]]
    found = {"METRIC": table["METRIC"].iloc[0], "PATIENTS": len(table), "N": len(both)}
    r2 = ratio = spread = np.nan
    if len(both) >= _FEW:
        ln = np.log(both[["OBSERVED", "MODEL"]].to_numpy(float))
        r2 = float(np.corrcoef(ln.T)[0, 1] ** 2) if (ln.std(axis=0) > 0).all() else np.nan
        off = ln[:, 0] - ln[:, 1]
        ratio, spread = float(np.exp(off.mean())), float(100 * np.sqrt(np.expm1(off.var(ddof=1))))
    return found | {
        "R2": r2,
        "RATIO": ratio,
        "RATIO_CV_PCT": spread,
        "APART": int(both["APART"].sum()),
        "ONLY_MODEL": int((known["MODEL"] & ~known["OBSERVED"]).sum()),
        "ONLY_OBSERVED": int((known["OBSERVED"] & ~known["MODEL"]).sum()),
    }


def persistence(data: Dataset, *, rules: NcaRules = RULES) -> pd.DataFrame:
    """How long each patient's cells were measurable, as an interval: what a time-to-event analysis needs.

    Loss happened after the last measurable sample and not later than the first sample below the limit that follows it.
    Samples after a further infusion (later than ``rules.split``) are not used. The model's own answer is the metric
    ``t_last`` of :func:`carkinetics.exposure`.

    Returns
    -------
    DataFrame
        One row per patient and assay: ``ID DVID LOWER UPPER STATUS REASON`` (days). ``STATUS``: ``interval``; ``right``
        (censored: measurable in the last sample, ``UPPER`` is infinite); ``left`` (never measurable: ``LOWER`` is 0 and
        ``UPPER`` the first sample); ``none`` (no sample: NaN).
    """
    rows = []
    for name, assay, profile, cut in profiles_of(data, rules):
        low, high, status, why = _interval(profile)
        if not np.isnan(cut):
            why += f"{'; ' if why else ''}samples after the infusion on day {cut:g} are not used"
        rows.append({"ID": name, "DVID": assay, "LOWER": low, "UPPER": high, "STATUS": status, "REASON": why})
    return pd.DataFrame(rows, columns=["ID", "DVID", "LOWER", "UPPER", "STATUS", "REASON"])


def _interval(profile: Profile | None) -> tuple[float, float, str, str]:
    """Bounds of the day of loss, what kind of interval it is, and why."""
    if profile is None:
        return np.nan, np.nan, "none", "no samples from day 0 on"
    below = profile.below[0]
    if not len(profile.measured[0]):
        return 0.0, float(below[0]), "left", f"all {len(below)} samples are below the limit"
    last = float(profile.measured[0][-1])
    later = below[below > last]
    if len(later):
        return last, float(later[0]), "interval", ""
    return last, np.inf, "right", "still measurable in the last sample"
