"""What in a table deserves a look before it is fitted: ``data.review()``.

Reading refuses what cannot be used and reports what it did (``data.report``); a review says what can be used and may
still be wrong, with the choices, and changes nothing.
"""

# pandas' own annotations call ``frame[mask]`` a Series or an array: these rules would flag every line.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportReturnType=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from carkinetics.checks import MAX_LOG10_GAP
from carkinetics.columns import known_later, recurring
from carkinetics.courses import INFUSION_DAYS, Course, Oddity, lows, scatter, second_rise, spikes
from carkinetics.findings import listed, readable, shown
from carkinetics.tables import CANONICAL, LABELS, RESERVED
from carkinetics.visits import events, new_count, nominal_day

if TYPE_CHECKING:
    from carkinetics.dataset import Dataset

# A recorded dose this near to a suspected infusion is that infusion.
SAME_INFUSION = 7.0  # days
SAME_DAY = 1.0  # day
MIN_PAIRS = 3  # of two assays' samples on one day, to compare their units
# Notes of the reader that a review repeats, with choices: who prints both leaves these out.
TAKEN_OVER = ("all-blq", "other-scale")
CONTROLS = r"\b(?:hiv|gag|controls?|background|retest|blank|standard)\b"

_ROW_OUT = "leave the row out (MDV=1)"
_KEEP = "keep"


class Finding(NamedTuple):
    """One thing that deserves a look; without patients and lines it is about the whole table."""

    kind: str
    patients: tuple[str, ...]
    lines: tuple[int, ...]
    found: str
    choices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Review:
    """What in a table deserves a look, and the choices; ``str()`` is empty when nothing is suspected.

    ``table`` has one row for each finding: KIND, PATIENTS and LINES (tuples), FOUND (what, in words with numbers) and
    CHOICES (a tuple). Kinds are ``infusion``, ``nominal day``, ``second rise``, ``spike``, ``low``, ``zero``,
    ``control``, ``constant``, ``all below the limit``, ``no decline``, ``units`` and ``known later``.
    """

    table: pd.DataFrame
    source: str
    word: str

    def __str__(self) -> str:
        if self.table.empty:
            return ""
        who = {p for patients in self.table["PATIENTS"] for p in patients}
        lines = [
            f"{self.source}: to look at before a fit (nothing was changed): {len(self.table)}, {len(who)} patients"
        ]
        for row in self.table.to_dict("records"):
            where = [str(row["KIND"])]
            if row["PATIENTS"]:
                where.append(f"patient{'s' if len(row['PATIENTS']) > 1 else ''} {listed(map(shown, row['PATIENTS']))}")
            if row["LINES"]:
                where.append(f"{self.word}{'s' if len(row['LINES']) > 1 else ''} {listed(_runs(row['LINES']))}")
            lines.append(f"{', '.join(where)}: {row['FOUND']}\n    {' | '.join(row['CHOICES'])}")
        return "\n".join(lines)


def review(data: "Dataset") -> Review:
    """What in ``data`` deserves a look before it is fitted: suspicions, not verdicts.

    Levels are those of the rows in the likelihood, by patient and assay. Visit labels (column ``VISIT``), nominal days
    (``NOMINAL``) and samples of other matrices come from every row that was read: ``data.table``, and for the rows
    that ``keep`` left out ``data.report.excluded``.

    Parameters
    ----------
    data : Dataset
        Read with ``columns={"VISIT": ..., "NOMINAL": ...}`` where the table has them under other names.

    Returns
    -------
    Review
        One finding a row, those about infusions first; nothing in ``data`` changes.
    """
    rows = _every_row(data)
    found, infused = _infusions(data, rows)
    courses = _courses(data, infused)
    relabelled = {finding.patients[0] for finding in found if finding.kind == "infusion"}
    for assay in data.assays:
        mine = [course for course in courses if course.assay == assay]
        spread = scatter(mine)
        for course in mine:
            odd = [*spikes(course, spread), *lows(course, spread)]
            again = second_rise(course, spread) if course.subject not in relabelled else None
            found += [_finding(course, oddity, data, rows) for oddity in ([again] if again else []) + odd]
    found += _controls(data) + _constants(data) + _taken_over(data) + _no_decline(courses, data)
    found += _units_of_assays(data) + _known_later(data)
    table = pd.DataFrame(found, columns=["KIND", "PATIENTS", "LINES", "FOUND", "CHOICES"])
    return Review(table, data.source, _word(data))


def _word(data: "Dataset") -> str:
    """What the reader calls a place in this source."""
    return "row" if data.source == "DataFrame" or data.source.endswith((".parquet", ".pq")) else "line"


def _runs(lines: tuple[int, ...]) -> list[str]:
    """Lines that follow one another as ``620 to 631``."""
    runs: list[list[int]] = []
    for line in sorted(lines):
        if runs and line == runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    return [text for run in runs for text in (map(str, run) if len(run) < 3 else (f"{run[0]} to {run[-1]}",))]


def _every_row(data: "Dataset") -> pd.DataFrame:
    """ID, TIME, DV, LINE, VISIT, NOMINAL, DVID and USED of every row that was read, in the order of time."""
    left_out = data.report.excluded
    left_out = left_out[~left_out["LINE"].isin(data.table["LINE"])]
    rows = pd.concat([data.table, left_out]) if len(left_out) else data.table
    rows = rows.reindex(columns=["ID", "TIME", "DV", "LINE", "VISIT", "NOMINAL", "DVID", "CENS", "USED"])
    rows["VISIT"] = rows["VISIT"].astype(object).where(rows["VISIT"].notna(), "").astype(str)
    rows["USED"] = rows["USED"].eq(True)
    rows = rows[rows["TIME"].notna()]
    return rows.sort_values(["ID", "TIME", "LINE"], ignore_index=True)


def _used(data: "Dataset") -> pd.DataFrame:
    return data.table[data.table["USED"].astype(bool)]


def _infusions(data: "Dataset", rows: pd.DataFrame) -> tuple[list[Finding], dict[str, tuple[float, ...]]]:
    """What labels and nominal days say about unrecorded infusions; days of further infusions of every patient."""
    doses = data.doses()
    known = {str(i): tuple(part["TIME"]) for i, part in doses[doses["TIME"] > 0].groupby("ID")}
    found: list[Finding] = []
    for patient, part in rows.groupby("ID"):
        name, labels, time = str(patient), part["VISIT"].tolist(), part["TIME"].to_numpy(float)
        nominal = part["NOMINAL"].to_numpy(float)
        nominal = np.where(np.isnan(nominal), [nominal_day(label) for label in labels], nominal)
        count = new_count(time, nominal)
        suspected = []
        if count is not None:
            kind = "infusion" if count.again else "nominal day"
            suspected.append((kind, count.day, count.rows, _count_text(count.rows, labels, nominal, time, count.day)))
        for i, day in events(labels, time):
            text = f'the label "{shown(labels[i])}" on day {time[i]:g} counts from day {day:g}: an infusion?'
            suspected.append(("infusion", day, (i,), text))
        for kind, day, places, text in suspected:
            mine = known.get(name, ())
            if any(abs(day - other) <= SAME_INFUSION for other in mine):
                continue
            known[name] = (*mine, day)
            lines = tuple(int(line) for line in part["LINE"].iloc[list(places)])
            found.append(Finding(kind, (name,), lines, text, _infusion_choices(day, float(time[places[0]]))))
    return found, known


def _count_text(places: tuple[int, ...], labels: list[str], nominal: np.ndarray, time: np.ndarray, day: float) -> str:
    """What the labels of one patient do."""

    def named(i: int) -> str:
        return f'"{shown(labels[i])}"' if labels[i] else f"nominal day {nominal[i]:g}"

    first = places[0]
    before = [i for i in range(first) if not np.isnan(nominal[i]) and time[i] < time[first]]
    after = f", after {named(before[-1])} on day {time[before[-1]]:g}" if before else ""
    return f"{named(first)} stands at day {time[first]:g}{after}: counted from another infusion, about day {day:g}?"


def _infusion_choices(day: float, first: float) -> tuple[str, ...]:
    give = f"give a dose event (a row with EVID=1 and AMT on day {day:g})"
    return (f"cut at day {min(day, first):g}", give, "correct label or day", _KEEP)


def _courses(data: "Dataset", infused: dict[str, tuple[float, ...]]) -> list[Course]:
    """Samples of every patient in every assay; replicates are one sample, their geometric mean."""
    rows = _used(data).sort_values(["ID", "DVID", "TIME", "LINE"])
    rows = pd.DataFrame({name: rows[name] for name in ("ID", "DVID", "TIME", "DV", "CENS", "LINE")})
    rows["LN"], rows["SEEN"] = np.log(rows["DV"].astype(float)), rows["CENS"] != 1
    one = rows.groupby(["ID", "DVID", "TIME"], as_index=False).agg({"LN": "mean", "SEEN": "any", "LINE": "first"})
    courses = []
    for (patient, assay), part in one.groupby(["ID", "DVID"]):
        arrays = {"time": part["TIME"], "ln": part["LN"], "seen": part["SEEN"], "line": part["LINE"]}
        values: dict[str, Any] = {name: column.to_numpy() for name, column in arrays.items()}
        courses.append(Course(str(patient), str(assay), **values, infused=infused.get(str(patient), ())))
    return courses


def _finding(course: Course, odd: Oddity, data: "Dataset", rows: pd.DataFrame) -> Finding:
    """What is said about one odd sample, and the choices."""
    around = [_sample(course, i) for i in odd.around]
    here, factor = _sample(course, odd.at, _unit(data, course.assay)), f"{odd.factor:,.0f}"
    lines = (int(course.line[odd.at]),)
    choices = (_ROW_OUT, "correct it", _KEEP)
    if odd.kind == "second rise":
        peak, low, next_low, high = around
        what = f"from {peak} down to {low} and {next_low}, then {factor} times that again, {here} and {high}"
        what += ": an unrecorded infusion, or cells that expand again?"
        lines = (*lines, int(course.line[odd.around[-1]]))
        give = "give a dose event (a row with EVID=1 and AMT) on the day it was given"
        choices = (f"cut at day {course.time[odd.around[2]]:g}", give, _KEEP)
    elif odd.kind == "spike":
        what = f"{here} is {factor} times the higher of its neighbours: {' and '.join(around)}"
        choices = (_ROW_OUT, "correct it", "keep, with a residual that has heavy tails")
    elif len(around) > 1:
        what = f"{here}; the lower of its neighbours is {factor} times that: {' and '.join(around)}"
    else:
        days = course.time[odd.at] - course.time[odd.around[0]]
        what = f"{here}, only {days:g} days after a level {factor} times that: {around[0]}"
    what += _same_day(course, odd, data, rows) if odd.kind == "zero" else ""
    return Finding(odd.kind, (course.subject,), lines, what, choices)


def _same_day(course: Course, odd: Oddity, data: "Dataset", rows: pd.DataFrame) -> str:
    """What other matrices, also those that are not in the likelihood, had on the day of a zero."""
    day = (rows["ID"] == course.subject) & ((rows["TIME"] - course.time[odd.at]).abs() <= SAME_DAY)
    seen = rows[day & ~(rows["USED"] & (rows["DVID"] == course.assay)) & (rows["DV"] > 0) & (rows["CENS"] != 1)]
    texts = [f"{readable(v)} ({_word(data)} {n})" for v, n in zip(seen["DV"], seen["LINE"], strict=True)]
    return f"; other samples of that day: {listed(texts)}" if texts else ""


def _unit(data: "Dataset", assay: str) -> str:
    unit = str(data.units["DV"].get(assay, "unknown"))
    of = f" ({shown(assay)})" if len(data.assays) > 1 else ""
    return of if unit == "unknown" else f" {unit}{of}"


def _sample(course: Course, i: int, unit: str = "") -> str:
    below = "" if course.seen[i] else "below "
    return f"{below}{readable(float(np.exp(course.ln[i])))}{unit} on day {course.time[i]:g}"


def _controls(data: "Dataset") -> list[Finding]:
    """Rows in the likelihood whose label names a control or a repetition."""
    if "VISIT" not in data.table:
        return []
    rows = _used(data)
    named = rows[rows["VISIT"].astype(str).str.casefold().str.contains(CONTROLS, regex=True)]
    choices = (_ROW_OUT, "rename the visit", _KEEP)
    return [
        Finding(
            "control", (str(i),), (int(line),), f'the label "{shown(str(v))}" names a control or a repetition', choices
        )
        for i, line, v in zip(named["ID"], named["LINE"], named["VISIT"], strict=True)
    ]


def _constants(data: "Dataset") -> list[Finding]:
    """Quantified values that recur too often to be measured."""
    found, rows = [], _used(data)
    for assay in data.assays:
        part = rows[(rows["DVID"] == assay) & (rows["CENS"] == 0)]
        for value in recurring(part["DV"].to_numpy(float)):
            same = part[part["DV"] == value]
            who, every = tuple(dict.fromkeys(same["ID"])), part["ID"].nunique()
            of = f"{len(who)} of {every} patients" if len(who) > 1 else "1 patient"
            what = f"{value:.10g}{_unit(data, assay)} occurs {len(same)} times in {of}"
            if value == part["DV"].min():
                what += ", and is the smallest value: a limit that is not marked?"
                choices = ("write CENS=1 in these rows", f"pass lloq above {value:.10g}", _KEEP)
            else:
                what += ": imputed, or carried forward?"
                choices = ("leave the rows out (MDV=1)", "write what was measured (CENS and LIMIT if a range)", _KEEP)
            found.append(Finding("constant", tuple(map(str, who)), tuple(map(int, same["LINE"])), what, choices))
    return found


def _taken_over(data: "Dataset") -> list[Finding]:
    """What the reader found already, patient by patient and with choices."""
    found, rows = [], _used(data)
    for note in (n for n in data.report.notes if n.kind in TAKEN_OVER):
        for patient, part in rows[rows["LINE"].isin(note.lines)].groupby("ID"):
            lines, n = tuple(map(int, part["LINE"])), len(part)
            if note.kind == "all-blq":
                what = f"all {n} samples are below the limit: Cmax is low, and only other patients tell Tmax and rates"
                choices = (_KEEP, "correct unit or limit", "leave the patient out, and say so")
                found.append(Finding("all below the limit", (str(patient),), lines, what, choices))
                continue
            level = f"a median of {readable(float(part['DV'].median()))}{_unit(data, str(part['DVID'].iloc[0]))}"
            what = f"{level}, more than {MAX_LOG10_GAP:g} log10 away from the other patients' median: another unit?"
            found.append(Finding("units", (str(patient),), lines, what, ("convert DV", _KEEP)))
    return found


def _no_decline(courses: list[Course], data: "Dataset") -> list[Finding]:
    """Patients in whom no assay has a sample after the highest one; of other matrices there is often one sample."""
    found = []
    for patient in data.subjects:
        mine = [(c, c.peak()) for c in courses if c.subject == patient]
        ends = [(c, peak) for c, peak in mine if peak is not None]
        if not ends or any(peak < len(c.ln) - 1 for c, peak in ends):
            continue
        course, peak = max(ends, key=lambda end: len(end[0].ln))
        since = f" from day {INFUSION_DAYS:g} on" if course.time[peak] >= INFUSION_DAYS else ""
        what = f"no sample after the highest one{since}, {_sample(course, peak, _unit(data, course.assay))}"
        choices = ("keep: the prior decides how it falls", "add later samples", "leave the patient out, and say so")
        found.append(Finding("no decline", (patient,), (int(course.line[peak]),), what, choices))
    return found


def _units_of_assays(data: "Dataset") -> list[Finding]:
    """Assays that were declared in one unit and lie too far apart on the same days of the same patients."""
    rows, found = _used(data), []
    rows = rows[rows["CENS"] == 0].assign(DAY=lambda r: r["TIME"].round())
    for k, one in enumerate(data.assays):
        for other in data.assays[k + 1 :]:
            unit = data.units["DV"].get(one, "unknown")
            if unit == "unknown" or unit != data.units["DV"].get(other):
                continue
            pairs = rows[rows["DVID"] == one].merge(rows[rows["DVID"] == other], on=["ID", "DAY"])
            apart = float(np.median(np.log10(pairs["DV_x"] / pairs["DV_y"]))) if len(pairs) >= MIN_PAIRS else 0.0
            if abs(apart) > MAX_LOG10_GAP:
                what = (
                    f"{shown(one)} and {shown(other)} are both in {unit}, and {len(pairs)} pairs of one day are a "
                    f"factor of {10 ** abs(apart):.2g} apart: another unit?"
                )
                found.append(Finding("units", (), (), what, ("convert DV", "declare units={'DV': {...}}", _KEEP)))
    return found


def _known_later(data: "Dataset") -> list[Finding]:
    """Columns that would be covariates and were known only after the infusion."""
    found = []
    for name, values in known_later(data.table, (*CANONICAL, *LABELS, *RESERVED)):
        what = f"column {shown(name)} ({listed(map(shown, values[:6]))}) seems to be known only after the infusion"
        choices = ("give it in outcomes=, and never as a covariate", "rename it if it was known before")
        found.append(Finding("known later", (), (), what, choices))
    return found
