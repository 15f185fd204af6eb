"""What a report's page is made of: sections of words, tables, figures and texts that can be folded away."""

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from carkinetics import plots
from carkinetics.findings import readable

ROWS = 200  # of a table that are shown
_DPI = 105
_NUMBER = re.compile(r"[-<]?[\d,.]+(e[+-]?\d+)?( %)?|-?inf|")


@dataclass(frozen=True)
class Table:
    """A table as text; which columns are numbers, and how many rows are not shown."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    left_out: int = 0
    title: str = ""  # with one, the table is folded away under it

    @property
    def numeric(self) -> list[bool]:
        """Of every column."""
        return [all(_NUMBER.fullmatch(row[k]) for row in self.rows) for k in range(len(self.columns))]


@dataclass(frozen=True)
class Figure:
    """A PNG, in base64."""

    png: str
    caption: str


@dataclass(frozen=True)
class Text:
    """A long text that can be folded away."""

    title: str
    text: str
    open: bool = False


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    id: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    texts: Sequence[Text] = ()


def tabulated(frame: pd.DataFrame, caption: str = "", *, index: bool = True, title: str = "") -> Table:
    """A DataFrame as text: numbers to four digits, nothing where there is no value; no index that only counts."""
    frame = frame.reset_index() if index and not isinstance(frame.index, pd.RangeIndex) else frame
    shown = frame.head(ROWS)
    rows = [[cell(value) for value in row] for row in shown.itertuples(index=False, name=None)]
    return Table([str(c) for c in frame.columns], rows, caption, len(frame) - len(shown), title)


def pictured(axes: Any, caption: str) -> Figure:
    """The figure of these axes."""
    buffer = BytesIO()
    plots.save(np.atleast_1d(axes).ravel(), buffer, dpi=_DPI)
    return Figure(b64encode(buffer.getvalue()).decode(), caption)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else readable(float(value))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(cell(v) for v in value)
    return "" if value is None else str(value)


def between(middle: float, low: float, high: float) -> str:
    """An estimate with its interval, as ``0.52 (0.41 to 0.63)``."""
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"
