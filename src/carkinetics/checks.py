"""The rules about ids, times and records: text cells in, numbers and findings out.

Each function reads one thing or checks one rule, for all rows at once, and adds what it finds to a
``Findings``: the problems (all of them, so that one error lists them) and the notes. ``cells`` is the text
as it came, ``rows`` the same rows in our terms: ID, TIME (days), DV, DVID, CENS, LIMIT, AMT, EVID, MDV, OBS
(is an observation) and REASON (why a row is not). Both carry the source's line as index.
"""

# pandas' own annotations call ``frame[mask]`` a Series or an array: these rules would flag every line.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

import unicodedata
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from carkinetics.findings import Findings, shown
from carkinetics.tables import CANONICAL, LABELS, MISSING, parse_numbers
from carkinetics.values import DEFAULT_ASSAY, read_column, refuse_text

DAYS = {"day": 1.0, "hour": 1.0 / 24.0, "week": 7.0}
MAX_ID = 200  # characters
MAX_TIME = 36_525.0  # days; nobody is followed for 100 years
PLAUSIBLE_TIME = 20 * 365.25  # days; the first CAR-T patients were infused in 2010
# A CAR-T peak stands between days 5 and 30, whatever the follow-up; the same times in hours are above 120.
PLAUSIBLE_TMAX = 60.0
NEAR_TIME = 1e-6  # days
# 1 ug of DNA is about 3e5 haploid genomes, so 1e8 copies/ug would be hundreds of copies in every cell.
PLAUSIBLE_DV = 1e8
MAX_LOG10_GAP = 4.0
LOG10_RANGE, MIN_RANGE_ROWS = 9.0, 10
DATE = r"[0-9]{1,4}[-/.][0-9A-Za-z]{1,3}[-/.][0-9]{1,4}(?:[T ].*)?"


def read_ids(cells: pd.DataFrame, found: Findings) -> pd.Series:
    """IDs as text without blanks at the ends; one patient is one spelling, in one study."""
    raw = cells["ID"]
    ids = raw.str.strip()
    found.error(ids == "", "ID", "the ID is empty", "Write the patient of the row, or delete the row.")
    _refuse_spellings(raw, "ID", found)
    controls = ids.str.contains("[\x00-\x1f\x7f-\x9f]")
    found.error(
        (ids.str.len() > MAX_ID) | controls,
        "ID",
        "the ID is too long or holds a line break or control character",
        f"Use at most {MAX_ID} printing characters.",
    )
    for column in cells.columns:
        if str(column).upper() in ("STUDY", "SITE"):
            several = cells[column].groupby(ids).transform("nunique") > 1
            found.error(
                several & (ids != ""),
                column,
                "one ID in several, got {got}",
                f'Pass columns={{"ID": ["{column}", "{found.columns["ID"]}"]}}; if it is one patient, '
                f"rename column {column}.",
            )
    return ids


def read_assays(cells: pd.DataFrame, found: Findings) -> pd.Series:
    """The assay of each row, as text; the default one where there is no DVID column."""
    if "DVID" not in cells:
        return pd.Series(DEFAULT_ASSAY, index=cells.index, dtype=object)
    _refuse_spellings(cells["DVID"], "DVID", found)
    return cells["DVID"].str.strip()


def _refuse_spellings(raw: pd.Series, column: str, found: Findings) -> None:
    """Refuse texts that differ only by blanks, case or Unicode form: to a reader they are one."""
    spellings = pd.Series(raw.unique(), dtype=object)
    plain = spellings.map(lambda text: unicodedata.normalize("NFKC", text).strip().casefold())
    twice = spellings[plain.duplicated(keep=False) & (plain != "")]
    found.error(raw.isin(twice), column, "differ only by blanks or case, got {got}", "Write each one way.")


def read_times(cells: pd.DataFrame, unit: str, decimal: str, found: Findings) -> Float[np.ndarray, " row"]:
    """Times in days since the infusion; NaN only where a problem was found."""
    text = cells["TIME"]
    empty = text.isin(MISSING).to_numpy()
    days = parse_numbers(text, decimal) * DAYS[unit] + 0.0  # + 0.0 makes -0.0 a zero
    special = text.str.fullmatch("(?i)[+-]?(?:nan|inf|infinity)").to_numpy(dtype=bool)
    date = text.str.fullmatch(DATE).to_numpy(dtype=bool) & np.isnan(days)
    found.error(empty, "TIME", "the time is empty", "Write the days since the infusion, or delete the row.")
    found.error(
        special | (np.abs(days) > MAX_TIME),
        "TIME",
        "not a possible time, got {got}",
        f"Write a time within {MAX_TIME:g} days of the infusion.",
    )
    found.error(
        date,
        "TIME",
        "a date is ambiguous (day or month first, clock changes), got {got}",
        "Write the days since the infusion as a number.",
    )
    other = np.isnan(days) & ~empty & ~special & ~date
    refuse_text(cells, other, "TIME", found)
    return days


def read_records(cells: pd.DataFrame, decimal: str, found: Findings) -> pd.DataFrame:
    """AMT, EVID, MDV of each row, whether it is an observation (OBS), and if not, why (REASON)."""
    amount = read_column(cells, "AMT", decimal, found)
    found.error(amount < 0, "AMT", "a negative amount, got {got}", "AMT is the number of viable CAR+ cells.")
    event = read_column(cells, "EVID", decimal, found, (0, 1, 2, 3, 4))
    mdv = read_column(cells, "MDV", decimal, found, (0, 1))
    empty = cells["DV"].isin(MISSING).to_numpy()
    undeclared = np.isnan(event) & (amount > 0)
    found.error(
        undeclared & ~empty & (mdv != 1),
        "AMT",
        "AMT and DV on one row, without EVID",
        "Give EVID (0 sample, 1 dose), or rename the column if the dose is repeated as a covariate.",
    )
    dose = np.isin(event, (1, 4)) | ((amount > 0) & empty & ~np.isin(event, (2, 3))) | (undeclared & (mdv == 1))
    other = ~dose & np.isin(event, (2, 3))
    missing = ~dose & ~other & (mdv == 1)
    found.note("doses", dose, None, f"{dose.sum()} dose records, which are not observations")
    found.note("other-records", other, None, f"{other.sum()} rows with EVID 2 or 3 are not observations")
    found.note("missing", missing, None, f"{missing.sum()} rows with MDV=1 are not observations")
    event = np.where(dose & np.isnan(event) | dose & (event == 0), 1.0, np.nan_to_num(event))
    reason = np.select([dose, other, missing], ["dose record", "EVID 2 or 3: not an observation", "MDV=1"], "")
    obs = ~(dose | other | missing)
    return pd.DataFrame(
        {
            "AMT": amount,
            "EVID": event.astype(int),
            "MDV": (~obs).astype(int),
            "OBS": obs,
            "REASON": reason.astype(object),
        },
        index=cells.index,
    )


def read_labels(cells: pd.DataFrame, unit: str, decimal: str, found: Findings) -> pd.DataFrame:
    """The visit's label (VISIT, text) and its nominal day (NOMINAL, NaN where it has none), if they are there."""
    labels = pd.DataFrame(index=cells.index)
    if "VISIT" in cells:
        labels["VISIT"] = cells["VISIT"]
    if "NOMINAL" in cells:
        labels["NOMINAL"] = read_column(cells, "NOMINAL", decimal, found) * DAYS[unit]
    return labels


def check_predose(rows: pd.DataFrame, policy: Literal["error", "exclude"], found: Findings) -> None:
    """Leave samples from before the infusion out of the likelihood; measurable ones only if asked to."""
    before = rows["OBS"] & (rows["TIME"] < 0)
    blq = before & (rows["CENS"] == 1)
    found.warn(
        "predose-blq",
        blq,
        "TIME",
        f"{blq.sum()} samples before the infusion, below the limit: baseline, not in the likelihood",
    )
    seen = before & ~blq
    if policy == "error":
        found.error(
            seen,
            "DV",
            "measurable before the infusion (an earlier CAR-T, a wrong label?), got {got}",
            'Correct the time, or pass options=ReadOptions(predose="exclude").',
        )
    else:
        found.warn(
            "predose",
            seen,
            "DV",
            "measurable before the infusion, got {got}: not in the likelihood, as asked",
        )
    rows.loc[blq, "REASON"] = "before the infusion, below the limit"
    rows.loc[seen, "REASON"] = "before the infusion"
    rows.loc[before, "OBS"] = False


def leave_out_early(rows: pd.DataFrame, after: float, found: Findings) -> None:
    """Leave samples at or before day ``after`` out of the likelihood, and count them."""
    early = rows["OBS"] & (rows["TIME"] <= after)
    found.note("early", early, "TIME", f"{early.sum()} samples at or before day {after:g}: left out, as asked")
    rows.loc[early, "REASON"] = f"at or before day {after:g}"
    rows.loc[early, "OBS"] = False


def check_plausible(rows: pd.DataFrame, units: Mapping[str, str], found: Findings) -> None:
    """Warn where numbers look like another unit: hours, log10, another scale in one patient."""
    used = rows["OBS"] & (rows["CENS"] == 0) & (rows["DV"] > 0)
    late = rows["TIME"].abs() > PLAUSIBLE_TIME
    found.warn("long-follow-up", late, "TIME", f"more than {PLAUSIBLE_TIME:.0f} days: hours?", "Pass units=.")
    peaks = rows[used].sort_values(["DV", "TIME"], ascending=[False, True]).drop_duplicates("ID")
    if len(peaks) and (tmax := peaks["TIME"].median()) > PLAUSIBLE_TMAX:
        found.warn(
            "late-peak",
            rows.index.isin(peaks.index),
            "TIME",
            f"the median patient peaks on day {tmax:g}: hours?",
            'Pass units={"TIME": "hour"} if so.',
        )
    for assay, part in rows[used].groupby("DVID"):
        mine = used & (rows["DVID"] == assay)
        dv, unit = part["DV"].to_numpy(), units.get(str(assay), "unknown")
        if unit in ("unknown", "copies/ug"):
            much = mine & (rows["DV"] > PLAUSIBLE_DV)
            found.warn("implausible", much, "DV", f"above {PLAUSIBLE_DV:g} copies/ug, got {{got}}", "Check the unit.")
        if len(dv) >= MIN_RANGE_ROWS and unit == "unknown" and dv.max() <= LOG10_RANGE:
            text = f"all values of assay {shown(str(assay))} are between 0 and 9: log10?"
            found.warn("log10", mine, None, text, "Give natural values, or declare the unit with units=.")
        if len(dv) >= MIN_RANGE_ROWS and dv.min() == dv.max():
            found.warn("constant", mine, "DV", "no variation: every value is {got}", "Check the export.")
        medians = np.log10(part.groupby("ID")["DV"].median()).sort_values(kind="stable")
        apart = medians.index[np.abs(medians.to_numpy() - _median_of_others(medians.to_numpy())) > MAX_LOG10_GAP]
        found.warn(
            "other-scale",
            mine & rows["ID"].isin(apart),
            "DV",
            f"values more than {MAX_LOG10_GAP:g} log10 away from the other patients'",
            "Another unit?",
        )


def _median_of_others(ranked: Float[np.ndarray, " subject"]) -> Float[np.ndarray, " subject"]:
    """For each of the sorted values, the median of the others; NaN for a value alone."""
    left = len(ranked) - 1
    if left < 1:
        return np.full(len(ranked), np.nan)
    place = np.arange(len(ranked))
    lower, upper = (np.where(k < place, ranked[k], ranked[k + 1]) for k in ((left - 1) // 2, left // 2))
    return 0.5 * (lower + upper)


def find_identical(cells: pd.DataFrame, rows: pd.DataFrame, policy: str, found: Findings) -> Bool[np.ndarray, " row"]:
    """True for samples and doses that repeat an earlier row in every column, unless rows are replicates."""
    if policy == "replicate":
        return np.zeros(len(rows), dtype=bool)
    active = (rows["OBS"] | (rows["REASON"] == "dose record")).to_numpy()
    content = pd.concat([rows, cells.drop(columns=cells.columns.intersection([*CANONICAL, *LABELS]))], axis=1)
    twice = active & content.duplicated().to_numpy()
    found.warn("identical", twice, None, f"{twice.sum()} rows repeat an earlier row in every column: dropped")
    return twice


def resolve_duplicates(rows: pd.DataFrame, policy: str, found: Findings) -> None:
    """Apply ``duplicates``: one observation of a patient, time and assay stays, except as replicates."""
    key = ["ID", "TIME", "DVID"]
    # Rows with a problem of their own would only add a second one here.
    obs = rows[rows["OBS"] & rows["TIME"].notna() & rows["DV"].notna() & (rows["ID"] != "")]
    ordered = obs.sort_values(key, kind="stable")
    gap = ordered["TIME"].diff().where(ordered["ID"].eq(ordered["ID"].shift()))
    gap = gap.where(ordered["DVID"].eq(ordered["DVID"].shift()))
    near = rows.index.isin(ordered.index[(gap > 0) & (gap < NEAR_TIME)])
    found.note("near-times", near, "TIME", f"less than {NEAR_TIME:g} days after another sample; both are kept")
    group = obs[obs.duplicated(key, keep=False)]
    if group.empty or policy == "replicate":
        return
    mask = rows.index.isin(group.index)
    if policy == "error":
        found.error(
            mask,
            "DV",
            "several values of one patient, time and assay, got {got}",
            'Correct the times, name the matrix or assay with columns={"DVID": ...}, or choose '
            "options=ReadOptions(duplicates=...): mean, geomean, first or replicate.",
        )
        return
    first = ~group.duplicated(key)
    if policy != "first":
        _average(rows, group, policy, found)
    rows.loc[group.index[~first], "REASON"] = f'duplicate, duplicates="{policy}"'
    rows.loc[group.index[~first], "OBS"] = False
    found.note("duplicates", mask, None, f'several values of one time, merged by duplicates="{policy}"')


def _average(rows: pd.DataFrame, group: pd.DataFrame, policy: str, found: Findings) -> None:
    key = ["ID", "TIME", "DVID"]
    censored = group.groupby(key)["CENS"].transform(lambda c: (c != 0).any())
    differ = group.groupby(key)[["DV", "CENS", "LIMIT"]].transform(lambda c: c.nunique(dropna=False) > 1).any(axis=1)
    found.error(
        rows.index.isin(group.index[censored & differ]),
        "DV",
        "values and censored values cannot be averaged, got {got}",
        'Pass options=ReadOptions(duplicates="first") or "replicate".',
    )
    # Sorted, so that the sum does not depend on the order of the rows.
    part = group[~censored].sort_values([*key, "DV"])
    values = np.log(part["DV"]) if policy == "geomean" else part["DV"]
    mean = values.groupby([part[k] for k in key]).transform("mean")
    rows.loc[part.index, "DV"] = np.exp(mean) if policy == "geomean" else mean


def check_population(rows: pd.DataFrame, found: Findings) -> None:
    """Patients without a sample, patients and studies without a measurable value."""
    obs = rows["OBS"]
    if not obs.any():
        found.errors.append(f"{found.name}: no observations: no row can be used. Check MDV, EVID, TIME and keep.")
        return
    if (rows["CENS"][obs] == 1).all():
        text = f"{found.name}: all {obs.sum()} observations are below the limit: nothing is measurable"
        found.errors.append(text + ", so no model is identified. Check lloq, the unit and keep.")
        return
    count = obs.groupby(rows["ID"]).transform("sum")
    blq = (obs & (rows["CENS"] == 1)).groupby(rows["ID"]).transform("sum")
    found.warn("no-sample", count == 0, None, "no observation; kept, and predicted from the population")
    found.warn(
        "all-blq",
        (count > 0) & (blq == count),
        None,
        "every value is below the limit; kept",
        "Individual Cmax is below the limit; Tmax and half-life cannot be estimated.",
    )
