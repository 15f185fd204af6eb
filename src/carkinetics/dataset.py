"""The validated table: ``read_dataset`` turns a file or a DataFrame into a frozen ``Dataset``.

``tables`` reads text cells, ``checks`` turn them into numbers and findings, and this module joins them:
first every check runs, then one ``DataError`` lists all problems, or the warnings are given and the arrays
are built. Observations are sorted, so the order of the rows of the source changes nothing.
"""

# pandas' own annotations call ``frame[mask]`` a Series or an array: these rules would flag every line.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from carkinetics import checks, values
from carkinetics.errors import DataError, DataWarning
from carkinetics.findings import Findings, Note, hint, listed, shown
from carkinetics.tables import (
    CANONICAL,
    LABELS,
    RawTable,
    ReadOptions,
    map_columns,
    number_or_text,
    parse_numbers,
    read_table,
    without_units_row,
)

if TYPE_CHECKING:
    from carkinetics.review import Review

__all__ = ["DataReport", "Dataset", "Note", "ReadOptions", "read_dataset"]

UNKNOWN = "unknown"
DEFAULT_OPTIONS = ReadOptions()

Source = str | os.PathLike[str] | pd.DataFrame
Number = float | int | np.number  # a type checker at run time does not take an int for a float


@dataclass(frozen=True, eq=False)
class DataReport:
    """What the reader did: notes, and each row that is not in the likelihood, with the reason.

    Every row that was read is either an observation or in ``excluded`` (LINE, ID, TIME in days, DV as a number, NaN if
    it is none, VISIT and NOMINAL if the table has them, REASON).
    """

    notes: tuple[Note, ...]
    excluded: pd.DataFrame

    def __str__(self) -> str:
        lines = [f"{'warning' if note.warned else 'note'}: {note.message}" for note in self.notes]
        counts = self.excluded["REASON"].value_counts(sort=False)
        lines += [f"not in the likelihood: {count} rows: {reason}" for reason, count in counts.items()]
        return "\n".join(lines) or "nothing to report"


@dataclass(frozen=True, eq=False)
class Dataset:
    """The table of a study, checked, and its observations as flat read-only arrays.

    ``table`` has every kept row: ID, TIME (days since infusion), DV, DVID, CENS, LIMIT, AMT, EVID, MDV, VISIT
    (label) and NOMINAL (day) if the source has them, the covariates (numbers where all are), LINE (where the row
    stood in the source) and USED. The arrays hold the used rows sorted by subject, time, assay and value:
    ``subject`` and ``assay`` are indices into ``subjects`` and ``assays``; ``cens`` is 0 (quantified), 1
    (left-censored at ``dv``) or -1 (right-censored at ``dv``), and ``limit`` the other end of the interval, NaN
    where there is none. ``dv`` is in the unit ``units["DV"][assay]``. ``outcomes`` is indexed by ID in the order of
    ``subjects``. ``sha256`` identifies content and policies, not path or order of rows.
    """

    table: pd.DataFrame
    subjects: tuple[str, ...]
    assays: tuple[str, ...]
    subject: Int[np.ndarray, " obs"]
    assay: Int[np.ndarray, " obs"]
    time: Float[np.ndarray, " obs"]
    dv: Float[np.ndarray, " obs"]
    cens: Int[np.ndarray, " obs"]
    limit: Float[np.ndarray, " obs"]
    outcomes: pd.DataFrame | None
    report: DataReport
    source: str
    sha256: str
    units: Mapping[str, Any]

    @property
    def n_subjects(self) -> int:
        """Number of patients, with those that have no observation."""
        return len(self.subjects)

    @property
    def n_obs(self) -> int:
        """Number of observations in the likelihood."""
        return len(self.dv)

    def __repr__(self) -> str:
        counts = f"{self.n_subjects} subjects, {self.n_obs} observations"
        return f"Dataset({self.source}: {counts}, {listed(self.assays)})"

    def doses(self) -> pd.DataFrame:
        """One row per dose record: ID, TIME (days), AMT (as in the source), LINE; sorted by ID and time."""
        rows = self.table[self.table["EVID"].isin((1, 4))]
        return rows[["ID", "TIME", "AMT", "LINE"]].sort_values(["ID", "TIME", "AMT"], ignore_index=True)

    def review(self) -> "Review":
        """What deserves a look before a fit: unrecorded infusions, spikes, zeros, constants, units, late columns."""
        from carkinetics.review import review

        return review(self)

    def summary(self) -> pd.DataFrame:
        """One row per subject: N, N_BLQ, FIRST and LAST time (days) of the observations, and MAX_DV.

        MAX_DV is the largest quantified value, NaN if there is none; with several assays there is one column
        for each, ``MAX_DV_<assay>``, because their units may differ.
        """
        obs = pd.DataFrame({"ID": np.array(self.subjects, dtype=object)[self.subject], "TIME": self.time})
        obs["BLQ"], obs["DV"] = self.cens == 1, np.where(self.cens == 0, self.dv, np.nan)
        named = {
            "N": ("TIME", "size"),
            "N_BLQ": ("BLQ", "sum"),
            "FIRST": ("TIME", "min"),
            "LAST": ("TIME", "max"),
        }
        every = pd.Index(self.subjects, name="ID")
        table = obs.groupby("ID").agg(**named).reindex(every)
        table[["N", "N_BLQ"]] = table[["N", "N_BLQ"]].fillna(0).astype(int)
        for i, assay in enumerate(self.assays):
            name = f"MAX_DV_{assay}" if len(self.assays) > 1 else "MAX_DV"
            table[name] = obs[self.assay == i].groupby("ID")["DV"].max().reindex(every)
        return table


def read_dataset(
    source: Source,
    *,
    outcomes: Source | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    units: Mapping[str, Any] | None = None,
    lloq: Number | Mapping[str, Number] | None = None,
    keep: Mapping[str, Any] | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Dataset:
    """Read and check a table of samples and doses.

    Parameters
    ----------
    source
        Path of a CSV, TSV or Parquet file, or a DataFrame. One row per record; ID, TIME and DV are required,
        AMT EVID DVID MDV CENS LIMIT are optional; so are VISIT (a visit's label) and NOMINAL (its nominal day, in the
        unit of TIME), which only the review reads; every other column is a covariate.
    outcomes
        The same for a table with one row per ID.
    columns
        Our name to theirs: ``{"TIME": "day"}``. A list for ID is a composite key: ``["STUDY", "SUBJ"]``.
    units
        ``TIME``: day (default), hour or week, converted to days. ``DV``: a unit, or one per assay; recorded,
        not converted. ``AMT``: recorded.
    lloq
        Limit for rows below it without a limit of their own, in the unit of DV; a number, or one per assay.
    keep
        Rows to keep: ``{"specimen": ["PB"]}``, equality of text.
    options
        Policies for duplicates, early samples and values before the infusion; separator, decimal mark, limits.

    Returns
    -------
    Dataset
        Times in days. What was done to the table is in its ``report``.

    Raises
    ------
    DataError
        The table cannot be used; the message lists every problem with its lines.
    FileNotFoundError, IsADirectoryError, PermissionError
        The path cannot be read.

    Warns
    -----
    DataWarning
        Something deserves a look; the same text is in ``report.notes``.
    """
    raw = read_table(source, options)
    cells, names, notes = map_columns(raw, columns)
    found = Findings(raw.name, raw.word, names, cells, notes=[*raw.notes, *notes])
    found.cells = cells = without_units_row(cells, found)
    declared = _units(units, cells)
    left_out = _keep(cells, keep, declared["TIME"], found)
    found.cells = cells[~cells.index.isin(left_out.index)]
    rows, repeats = _rows(declared["TIME"], values.lloq_per_assay(lloq, cells), options, found)
    policies = repr(
        (options.duplicates, options.predose, options.after, declared["TIME"], sorted(declared["DV"].items()))
    )
    # Before duplicates are merged: which of them stays must not change the digest.
    content = _digest(rows.drop(columns=["OBS", "REASON"]).join(_covariates(found.cells))) + policies.encode()
    checks.resolve_duplicates(rows, options.duplicates, found)
    checks.check_population(rows, found)
    checks.check_plausible(rows, declared["DV"], found)
    patients = set(rows["ID"]), set(left_out["ID"])
    results = None
    if outcomes is not None:
        results = _outcomes(read_table(outcomes, options), columns, patients, found)
    found.raise_errors()
    for note in found.notes:
        if note.warned:
            warnings.warn(note.message, DataWarning, stacklevel=2)
    report = DataReport(tuple(found.notes), _excluded(left_out, repeats, rows[~rows["OBS"]]))
    return _dataset(rows, results, report, declared, content, found)


def _dataset(
    rows: pd.DataFrame,
    results: pd.DataFrame | None,
    report: DataReport,
    declared: Mapping[str, Any],
    content: bytes,
    found: Findings,
) -> Dataset:
    """Build the Dataset from checked rows."""
    arrays = _arrays(rows)
    sha256 = _hash(
        content,
        *(array.tobytes() for array in arrays.values() if isinstance(array, np.ndarray)),
        _digest(results.reset_index()) if results is not None else b"",
    )
    known = {assay: declared["DV"].get(assay, UNKNOWN) for assay in arrays["assays"]}
    return Dataset(
        table=_table(rows, found.cells),
        outcomes=results,
        report=report,
        source=found.name,
        sha256=sha256,
        units=MappingProxyType({**declared, "TIME": "day", "DV": MappingProxyType(known)}),
        **arrays,
    )


def _rows(
    unit: str, lloq: Mapping[str, float], options: ReadOptions, found: Findings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows in our terms, from the cells of ``found``; and rows that repeat another, which are taken out."""
    cells = found.cells
    rows = pd.DataFrame({"ID": checks.read_ids(cells, found)}, index=cells.index)
    rows["DVID"] = checks.read_assays(cells, found)
    rows["TIME"] = checks.read_times(cells, unit, options.decimal, found)
    rows = rows.join(checks.read_records(cells, options.decimal, found))
    rows = rows.join(values.read_values(cells, rows, lloq, options.decimal, found))
    rows = rows.join(checks.read_labels(cells, unit, options.decimal, found))
    found.error(rows["OBS"] & (rows["DVID"] == ""), "DVID", "the assay is empty", "Name the sample's assay.")
    if options.after is not None:
        checks.leave_out_early(rows, options.after, found)
    checks.check_predose(rows, options.predose, found)
    twice = checks.find_identical(cells, rows, options.duplicates, found)
    found.cells = cells[~twice]
    return rows[~twice].copy(), rows[twice].assign(REASON="identical to an earlier row")


def _units(units: Mapping[str, Any] | None, cells: pd.DataFrame) -> dict[str, Any]:
    """The units as declared: TIME, DV (one per assay), and AMT where given."""
    if units is not None and not isinstance(units, Mapping):
        raise DataError(f'units={units!r} is no mapping. Use units={{"TIME": "day", "DV": "copies/ug"}}.')
    declared = {"TIME": "day", **(units or {})}
    for key in declared:
        if key not in ("TIME", "DV", "AMT"):
            raise DataError(f'units has the unknown name "{shown(str(key))}". Use TIME, DV and AMT.')
    if (unit := declared["TIME"]) not in checks.DAYS:
        near = hint(str(unit), checks.DAYS)
        raise DataError(f"units: TIME in {unit!r} is not known. Use {listed(checks.DAYS)}.{near}")
    return {**declared, "DV": values.per_assay("units", declared.get("DV"), cells)}


def _keep(cells: pd.DataFrame, keep: Mapping[str, Any] | None, unit: str, found: Findings) -> pd.DataFrame:
    """The rows that ``keep`` leaves out, with the reason."""
    ours = {theirs: name for name, theirs in found.columns.items()}
    stays = pd.Series(True, index=cells.index)
    reason = pd.Series("", index=cells.index, dtype=object)
    for key, wanted in (keep or {}).items():
        column = ours.get(key, key)
        if column not in cells:
            there = f"Found: {listed(map(shown, cells.columns))}.{hint(str(key), cells.columns)}"
            raise DataError(f'keep: no column "{shown(str(key))}". {there}')
        text = cells[column].str.strip()
        values = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Sequence | set) else list(wanted)
        texts = [str(v).removesuffix(".0") if isinstance(v, float) else str(v) for v in values]
        occurs = sorted(set(text))
        for value in texts:
            if value not in occurs:
                holds = f"It holds {listed(map(shown, occurs))}.{hint(value, occurs)}"
                raise DataError(f'keep: column {shown(key)} never holds "{shown(value)}". {holds}')
        out = stays & ~text.isin(texts)
        reason[out] = f"keep: {shown(key)} is not {listed(map(shown, texts))}"
        stays &= ~out
    gone = ~cells["ID"].str.strip().isin(cells["ID"][stays].str.strip())
    found.note("keep", ~stays, None, f"{(~stays).sum()} rows left out by keep")
    found.warn("keep-patient", gone, None, "no row left after keep; not in the population")
    left = cells[~stays]
    columns = {"ID": left["ID"].str.strip(), "TIME": parse_numbers(left["TIME"]) * checks.DAYS[unit]}
    columns |= {"DV": parse_numbers(left["DV"]), "REASON": reason[~stays]}
    if "VISIT" in left:
        columns["VISIT"] = left["VISIT"]
    if "NOMINAL" in left:
        columns["NOMINAL"] = parse_numbers(left["NOMINAL"]) * checks.DAYS[unit]
    return pd.DataFrame(columns, index=left.index)


def _outcomes(
    raw: RawTable, columns: Mapping[str, Any] | None, patients: tuple[set[str], set[str]], found: Findings
) -> pd.DataFrame:
    """Outcomes indexed by ID in the order of the subjects; both lists if the IDs differ."""
    kept, left_out = patients
    cells, names, notes = map_columns(raw, _outcome_id(raw, columns), ("ID",), ("ID",))
    found.notes += [*raw.notes, *notes]
    mine = Findings(raw.name, raw.word, names, cells, found.errors, found.notes)
    ids = checks.read_ids(cells, mine)
    mine.error(ids.duplicated(keep=False) & (ids != ""), "ID", "more than one row of a patient", "Keep one.")
    extra, absent = sorted(set(ids) - kept - left_out - {""}), sorted(kept - set(ids) - {""})
    if extra or absent:
        found.errors.append(
            f"{raw.name}: patients without a row in {found.name}: {listed(map(shown, extra))}; patients of "
            f"{found.name} without an outcome: {listed(map(shown, absent))}. Give each patient a row in both."
        )
    mine.note("outcome-left-out", ids.isin(left_out - kept), None, "outcomes of patients that keep left out")
    rest = cells.drop(columns="ID").set_axis(pd.Index(ids, name="ID"))[ids.isin(kept).to_numpy()]
    return rest.apply(number_or_text).sort_index()


def _outcome_id(raw: RawTable, columns: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The mapping of ID, if the outcome table has those columns; else it must have a column ID."""
    wanted = (columns or {}).get("ID")
    parts = [wanted] if isinstance(wanted, str) else list(wanted or [])
    return {"ID": wanted} if parts and all(part.strip() in raw.cells.columns for part in parts) else None


def _covariates(cells: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in cells.columns if name not in (*CANONICAL, *LABELS)]
    return cells[names].apply(number_or_text) if names else cells[[]]


def _table(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    table = rows[[*CANONICAL, *rows.columns.intersection(LABELS)]].join(_covariates(cells))
    table["LINE"], table["USED"] = rows.index.to_numpy(), rows["OBS"].to_numpy()
    return table.reset_index(drop=True)


def _excluded(*parts: pd.DataFrame) -> pd.DataFrame:
    names = ["ID", "TIME", "DV", *parts[-1].columns.intersection(LABELS), "REASON"]
    table = pd.concat([part[names] for part in parts if len(part)] or [parts[0][names]]).sort_index()
    table.insert(0, "LINE", table.index.to_numpy())
    return table.reset_index(drop=True)


def _arrays(rows: pd.DataFrame) -> dict[str, Any]:
    used = rows[rows["OBS"]].sort_values(["ID", "TIME", "DVID", "DV", "CENS", "LIMIT"], kind="stable")
    subjects, assays = sorted(set(rows["ID"])), sorted(set(used["DVID"]))
    arrays: dict[str, Any] = {
        "subject": pd.Index(subjects).get_indexer(used["ID"]),
        "assay": pd.Index(assays).get_indexer(used["DVID"]),
        "time": used["TIME"].to_numpy(dtype=float, copy=True),
        "dv": used["DV"].to_numpy(dtype=float, copy=True),
        "cens": used["CENS"].to_numpy(dtype=int, copy=True),
        "limit": used["LIMIT"].to_numpy(dtype=float, copy=True),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return {"subjects": tuple(subjects), "assays": tuple(assays), **arrays}


def _digest(table: pd.DataFrame) -> bytes:
    """Digest of the content, whatever the order of rows and columns."""
    table = table[sorted(table.columns)]
    table = table.sort_values(list(table.columns), kind="stable") if len(table.columns) else table
    parts = []
    for name in table.columns:
        values = table[name].tolist()
        texts = values if all(isinstance(v, str) for v in values) else map(repr, values)
        parts += [str(name).encode(), *(text.encode() for text in texts)]
    return _hash(*parts).encode()


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))  # so that moving a byte between parts changes the digest
        digest.update(part)
    return digest.hexdigest()
