"""Sources to text: a CSV or TSV file, a Parquet file or a DataFrame becomes one table of text cells.

``read_table`` turns every source into rows of text with the line of each row, and refuses what is not
a table. ``map_columns`` then gives the columns our names. From here on a source no longer matters, so
the same defect gives the same message. Cells stay text until ``checks`` reads them: nothing guesses
that ``001`` is a number or that ``NA`` is missing.
"""

import codecs
import csv
import datetime
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from carkinetics.errors import DataError
from carkinetics.findings import NUMBER, Findings, Note, hint, listed, nearest, placed, shown

CANONICAL = ("ID", "TIME", "DV", "AMT", "EVID", "DVID", "MDV", "CENS", "LIMIT")
REQUIRED = ("ID", "TIME", "DV")
LABELS = ("VISIT", "NOMINAL")  # read where they are there; for the review, not for the likelihood
RESERVED = ("LINE", "USED")
MISSING = ("", ".", "NA")
UNITS_ROW = ("d", "day", "days", "h", "hr", "hour", "hours", "week", "weeks", "min", "minutes")
_CODE = re.compile("[+-]?0[0-9]")  # a number with leading zeros names something
MAX_COLUMNS = 10_000
MAX_BYTES = 2**29
MAGIC = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file (its name must end in .parquet)",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 or NetCDF file",
}


@dataclass(frozen=True)
class ReadOptions:
    """How a table is read, and which policy applies where the data leave a choice.

    ``duplicates`` says what to do with several observations of one patient, time and assay: refuse them,
    average them, keep the first line, or keep all as replicates. ``predose="exclude"`` leaves measurable
    values before the infusion out. ``after`` (day) leaves every sample at or before it out: ``after=0`` where a
    model cannot describe the infusion itself. ``separator=None`` is a tab for ``.tsv`` and ``.tab``, else a comma.
    Raises ``DataError`` for a value that is not known.
    """

    duplicates: Literal["error", "mean", "geomean", "first", "replicate"] = "error"
    predose: Literal["error", "exclude"] = "error"
    after: float | None = None
    separator: str | None = None
    decimal: Literal[".", ","] = "."
    encoding: str = "utf-8"
    max_rows: int = 1_000_000
    max_field_length: int = 20_000

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("duplicates", "predose", "decimal"):
            if (got := getattr(self, name)) not in (choices := get_args(hints[name])):
                raise DataError(f"ReadOptions: {name}={got!r} is not known. Use {' | '.join(choices)}.")
        if self.after is not None and not math.isfinite(self.after):
            raise DataError(f"ReadOptions: after={self.after!r} must be a finite day.")
        if self.separator is not None and (len(self.separator) != 1 or self.separator in "\r\n\"'"):
            raise DataError(f"ReadOptions: separator={self.separator!r} must be one character.")
        if self.separator == self.decimal:
            raise DataError(f"ReadOptions: separator and decimal are both {self.decimal!r}.")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise DataError(f"ReadOptions: encoding={self.encoding!r} is not known. Use utf-8.") from None
        # The csv module's own limit is global state, which a library must leave alone.
        if not 1 <= self.max_field_length <= csv.field_size_limit() or self.max_rows < 1:
            limit = csv.field_size_limit()
            raise DataError(f"ReadOptions: max_rows must be at least 1, max_field_length 1 to {limit}.")


@dataclass(frozen=True)
class RawTable:
    """Text cells as they came; the index of ``cells`` is the line (file) or row (DataFrame, from 1)."""

    name: str
    word: str
    head: str
    cells: pd.DataFrame
    notes: tuple[Note, ...]


def read_table(source: str | os.PathLike[str] | pd.DataFrame, options: ReadOptions) -> RawTable:
    """Text cells of a CSV, TSV or Parquet file or of a DataFrame (its index is not read).

    Raises ``DataError`` for what is not a table, and the operating system's own error (``FileNotFoundError``,
    ``IsADirectoryError``, ``PermissionError``), which names the path.
    """
    if isinstance(source, pd.DataFrame):
        parts = [source.iloc[:, i] for i in range(source.shape[1])]
        # A float32 that becomes a Python float shows digits that nobody wrote.
        columns = [list(p.to_numpy()) if p.dtype.kind == "f" else p.astype(object).tolist() for p in parts]
        header = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in source.columns]
        return _from_columns("DataFrame", header, columns, options)
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"The source is a {type(source).__name__}. Pass a path or a pandas DataFrame.")
    path = Path(source)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path.name}: {size} bytes; a table may have {MAX_BYTES}. Split it.")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _from_parquet(path, options)
    text = _decode(path.name, path.read_bytes(), options.encoding)
    separator = options.separator or ("\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
    return _table(path.name, "line", _records(path.name, text, separator, options), separator, options)


def _decode(name: str, data: bytes, encoding: str) -> str:
    if not data.strip():
        raise DataError(f"{name}: the file is empty ({len(data)} bytes). Export the table again.")
    for magic, what in MAGIC.items():
        if data.startswith(magic):
            raise DataError(f"{name}: this is not a text CSV but {what}. Save it as CSV (UTF-8) or Parquet.")
    # A byte-order mark is not part of the first column's name.
    codec = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    try:
        text = data.decode(codec)
    except UnicodeError:
        lines = data.decode(codec, "surrogateescape" if codec[:3] == "utf" else "replace").splitlines()
        at = placed("line", [i for i, line in enumerate(lines, 1) if re.search("[\udc80-\udcff\ufffd]", line)])
        other = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        do = f'Save the file as UTF-8, or pass options=ReadOptions(encoding="{other}") if it is that.'
        raise DataError(f"{name}, {at}: bytes that are not {encoding}. {do}") from None
    _refuse_broken(name, "line", text.splitlines(), 1)
    return text


def _refuse_broken(name: str, word: str, rows: Iterable[str], start: int) -> None:
    broken = [i for i, row in enumerate(rows, start) if re.search("[\0\ud800-\udfff]", row)]
    if broken:
        raise DataError(f"{name}, {placed(word, broken)}: NUL bytes or broken characters. Export the data again.")


def _records(name: str, text: str, separator: str, options: ReadOptions) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            rows.append(row)
            lines.append(start)  # a quoted field may hold line breaks: a record stands where it starts
            start = reader.line_num + 1
            if len(rows) > options.max_rows + 1:
                break
    except csv.Error as error:
        do = "Look for a quote that is never closed or a field without end."
        raise DataError(f"{name}, line {start}: not a readable CSV record ({error}). {do}") from None
    return rows, lines


def _from_parquet(path: Path, options: ReadOptions) -> RawTable:
    with path.open("rb") as stream:  # the operating system's error, not Arrow's, for a path that fails
        try:
            parquet = pq.ParquetFile(stream)
            size = parquet.metadata.num_rows
            # Looked at before anything is allocated: the header may declare any number.
            if size > options.max_rows or parquet.metadata.num_columns > MAX_COLUMNS:
                what = f"{size} rows and {parquet.metadata.num_columns} columns"
                raise DataError(f"{path.name}: {what}; the limits are {options.max_rows} and {MAX_COLUMNS}.")
            # An index without a name that pandas stored is no column of the study.
            table = parquet.read([n for n in parquet.schema_arrow.names if not n.startswith("__index_level_")])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path.name}: not a readable Parquet file ({str(error)[:100]}).") from None
    columns = [column.to_pylist() for column in table.columns]
    return _from_columns(path.name, list(table.column_names), columns, options)


def _from_columns(name: str, header: list[str], columns: list[list[Any]], options: ReadOptions) -> RawTable:
    texts = [[cell if type(cell) is str else _text(cell) for cell in column] for column in columns]
    rows = [header, *(list(row) for row in zip(*texts, strict=True))]
    _refuse_broken(name, "row", ("".join(row) for row in rows), 0)
    return _table(name, "row", (rows, list(range(len(rows)))), None, options)


def _text(cell: Any) -> str:
    """The text that a CSV would hold: missing is empty, 1.0 is 1, midnight is only a date."""
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float | np.floating) and math.isnan(cell)):
        return ""
    if isinstance(cell, datetime.datetime | datetime.date):
        return str(cell).removesuffix(" 00:00:00")
    return str(cell).removesuffix(".0") if isinstance(cell, float | np.floating) else str(cell)


def _table(
    name: str,
    word: str,
    content: tuple[list[list[str]], list[int]],
    separator: str | None,
    options: ReadOptions,
) -> RawTable:
    rows, lines = content
    if len(rows) > options.max_rows + 1:
        raise DataError(f"{name}: more than {options.max_rows} rows. Pass ReadOptions(max_rows=...).")
    filled = [i for i, row in enumerate(rows) if any(row) and not "".join(row).isspace()]
    if not filled:
        raise DataError(f"{name}: the file is empty: neither a header nor rows. Export the table again.")
    header = [cell.strip() for cell in rows[filled[0]]]
    head = f"{name}, line {lines[filled[0]]}" if word == "line" else f"{name}, header"
    index = [lines[i] for i in filled[1:]]
    body = [rows[i] for i in filled[1:]]
    _refuse_header(head, header, body, separator)
    long = [i for i, row in zip(index, body, strict=True) if max(map(len, row)) > options.max_field_length]
    if long:
        what = f"a field of more than {options.max_field_length} characters"
        raise DataError(f"{name}, {placed(word, long)}: {what}. Shorten it, or pass ReadOptions(max_field_length=...).")
    wrong = [i for i, row in zip(index, body, strict=True) if len(row) != len(header)]
    if wrong:
        counts = listed(sorted({len(row) for row in body} - {len(header)}))
        what = f"{counts} fields where the header has {len(header)}"
        raise DataError(f"{name}, {placed(word, wrong)}: {what}. Quote a field that holds the separator.")
    if not body:
        raise DataError(f"{name}: no observations: the table has a header and no rows. Add the records.")
    cells = pd.DataFrame(body, columns=pd.Index(header), index=pd.Index(index), dtype=object)
    blank = sorted(set(lines) - {lines[i] for i in filled})
    text = f"{name}, {placed(word, blank)}: {len(blank)} blank, left out." if blank else ""
    notes = (Note("blank-rows", text, tuple(blank), (), True),) if blank else ()
    return RawTable(name, word, head, cells, notes)


def _refuse_header(head: str, header: list[str], body: list[list[str]], separator: str | None) -> None:
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{head}: {len(header)} columns; the limit is {MAX_COLUMNS}.")
    other = max(sorted(set(";\t|,") - {separator}), key=header[0].count)
    if len(header) == 1 and header[0].count(other) >= len(REQUIRED) - 1:
        sample = "\n".join((separator or ",").join(row) for row in body[:1000])
        end = rf"\s*(?:{re.escape(other)}|$)"
        comma = other != "," and re.search(rf"(?:^|{re.escape(other)})\s*-?\d+,\d+{end}", sample, re.MULTILINE)
        what = f"the separator looks like {other!r}" + (" and the decimal mark like ','" if comma else "")
        option = f"separator={other!r}" + (", decimal=','" if comma else "")
        raise DataError(f"{head}: {what}. Pass options=ReadOptions({option}).")
    if "" in header:
        raise DataError(f"{head}: a column has no name. Name it, or delete it (look for a separator at the end).")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{head}: column {listed(map(shown, twice))} is there more than once. Rename or delete one.")


def map_columns(
    raw: RawTable,
    columns: Mapping[str, str | Sequence[str]] | None,
    known: Sequence[str] = (*CANONICAL, *LABELS),
    required: Sequence[str] = REQUIRED,
) -> tuple[pd.DataFrame, dict[str, str], list[Note]]:
    """Cells under our names (blanks stripped, but not in ID and DVID), our name -> theirs, and notes.

    A list of columns for ``ID`` is a composite key, joined with ``/``. Raises ``DataError`` that lists every
    column that is unknown, absent or there twice.
    """
    theirs, problems = _choose(raw, columns or {}, known)
    single = {t: name for name, t in theirs.items() if isinstance(t, str)}
    problems += _absent(raw, [n for n in required if n not in theirs and n not in (columns or {})], set(single))
    notes, cells = [], raw.cells.copy()
    for column in [str(c) for c in cells.columns if c not in single]:
        if column.upper() in theirs or column in RESERVED:
            problems.append(f'column "{shown(column)}": the reader uses that name itself. Rename it.')
        elif near := nearest(column, set(known) - {*theirs, *LABELS}, 0.75):
            text = f"{raw.head}: column {shown(column)} is kept as a covariate. If it is {near}, pass columns=."
            notes.append(Note("near-name", text, warned=True))
    if problems:
        raise DataError("\n- ".join([raw.head + ":", *problems]) if problems[1:] else f"{raw.head}: {problems[0]}")
    changed = [t for t, name in single.items() if t != name and t.upper() == name]
    if changed:
        notes.append(Note("header-case", f"{raw.head}: read without regard to case: {listed(changed)}."))
    cells = cells.rename(columns=single)
    if isinstance(parts := theirs.get("ID"), tuple):
        cells["ID"] = _composite(raw, cells[[single.get(p, p) for p in parts]])
        theirs["ID"] = " / ".join(parts)
    for name in cells.columns.difference(["ID", "DVID"]):
        cells[name] = cells[name].str.strip()
    return cells, {name: str(t) for name, t in theirs.items()}, notes


def _absent(raw: RawTable, names: Sequence[str], taken: set[str]) -> list[str]:
    problems = []
    for name in names:
        near = nearest(name, set(raw.cells.columns) - taken)
        mean = f"Did you mean {shown(near)}? " if near else ""
        do = f'{mean}Pass columns={{"{name}": "{shown(near or "...")}"}}.'
        problems.append(f"no column {name}. Found: {listed(map(shown, raw.cells.columns))}. {do}")
    return problems


def _choose(raw: RawTable, columns: Mapping[str, Any], known: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    header = [str(column) for column in raw.cells.columns]
    theirs: dict[str, Any] = {}
    problems = []
    for name, wanted in columns.items():
        if name not in known:
            use = f"Use {listed(known)}.{hint(str(name), known)}"
            problems.append(f'columns has the unknown name "{shown(str(name))}". {use}')
            continue
        parts = [wanted] if isinstance(wanted, str) else list(wanted)
        absent = [part for part in parts if part.strip() not in header]
        for part in absent:
            there = f"Found: {listed(map(shown, header))}.{hint(part, header)}"
            problems.append(f'columns maps {name} to "{shown(part)}", which is absent. {there}')
        if len(parts) > 1 and name != "ID":
            problems.append(f"columns gives {len(parts)} columns for {name}. Only ID may be a composite key.")
        elif not absent and parts:
            theirs[name] = parts[0].strip() if len(parts) == 1 else tuple(part.strip() for part in parts)
    used = list(theirs.values())
    problems += [f'columns uses "{shown(str(t))}" twice.' for t in dict.fromkeys(used) if used.count(t) > 1]
    for name in known:
        match = [column for column in header if column.upper() == name and column not in used]
        if len(match) > 1:
            problems.append(f"columns {listed(match)} are all {name}. Rename or delete all but one.")
        if match and name not in columns:
            theirs[name] = match[0]
    return theirs, problems


def _composite(raw: RawTable, parts: Any) -> pd.Series:
    clean = parts.apply(lambda column: column.str.strip())
    joined = clean.iloc[:, 0].str.cat(clean.iloc[:, 1:], sep="/")
    joined = joined.where(clean.ne("").all(axis=1), "")
    if joined[joined != ""].nunique() < len(clean[joined != ""].drop_duplicates()):
        raise DataError(f'{raw.head}: the composite ID is ambiguous, because a part holds "/". Replace it.')
    return joined


def without_units_row(cells: pd.DataFrame, found: Findings) -> pd.DataFrame:
    """Name a second header line that holds units as a problem, and spare the other checks that line."""
    plain = cells["TIME"].iloc[:1].str.strip(" ()[]").str.lower()
    mask = np.arange(len(cells)) < int(plain.isin(UNITS_ROW).sum())
    found.error(mask, "TIME", "not numeric, got {got}: looks like a units row", "Delete it and pass units=.")
    return cells.loc[~mask]


def parse_numbers(text: Any, decimal: str = ".") -> Float[np.ndarray, " row"]:
    """Numbers where the whole text is one (``1.2E+04``), else NaN (``5,200``, ``1_000``, ``inf``)."""
    pattern = re.compile(NUMBER if decimal == "." else NUMBER.replace(r"\.", ","))
    where, texts = pd.factorize(text)  # columns repeat what they hold
    # float() of each text is exact to the last bit; pandas' own parser is not.
    numbers = [float(t.replace(",", ".")) if pattern.fullmatch(t) else np.nan for t in texts]
    return np.array([*numbers, np.nan])[where]  # what is missing is at -1


def number_or_text(column: Any) -> pd.Series:
    """Numbers if every entry that is not empty is one; a code with leading zeros is text."""
    empty = column.eq("")
    numbers = parse_numbers(column)
    if empty.all() or (np.isnan(numbers) & ~empty).any() or any(_CODE.match(t) for t in column.unique()):
        return column
    return pd.Series(numbers, index=column.index)
