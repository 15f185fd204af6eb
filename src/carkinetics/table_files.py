"""Tables as files that can be sent: HTML (which Word opens), LaTeX and CSV, with whatever users wrote made harmless."""

import html
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from carkinetics.errors import ModelError
from carkinetics.findings import listed

DIGITS = 3  # significant ones, in HTML and LaTeX; a CSV has all
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet takes for the beginning of a formula
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}
_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse}caption{text-align:left;padding:.4em 0}"
    "th,td{padding:.2em .6em;text-align:right}th:first-child,td:first-child{text-align:left}"
    "thead th{border-top:1px solid;border-bottom:1px solid}tbody tr:last-child td{border-bottom:1px solid}"
)


def write_table(
    table: pd.DataFrame, path: str | os.PathLike[str], *, caption: str = "", note: str = "", digits: int = DIGITS
) -> Path:
    """Write a table, as ``fit.parameters()``, to a file whose suffix says how: ``.html``, ``.tex`` or ``.csv``.

    A named index becomes the first columns. Texts are escaped; a cell of a CSV that a spreadsheet would take for a
    formula (it begins with ``= + - @`` or a control character and is no number) gets an apostrophe before it. Word and
    LibreOffice open the HTML as a table.

    Parameters
    ----------
    caption, note : str
        Above and below the table; ``note=fit.label`` says how the fit was made. A CSV has neither.
    digits : int
        Significant digits in HTML and LaTeX; a CSV has all of them.

    Raises
    ------
    ModelError
        The suffix is none of these.
    """
    file = Path(path)
    writers: dict[str, Callable[[pd.DataFrame], str]] = {
        ".csv": _csv,
        ".html": lambda t: _html(t, caption, note, digits),
        ".tex": lambda t: _latex(t, caption, note, digits),
    }
    if file.suffix.lower() not in writers:
        raise ModelError(f"{file.name}: a table can be written to {listed(writers)}. Choose one of these suffixes.")
    flat = table.reset_index() if any(n is not None for n in table.index.names) else table
    file.write_text(writers[file.suffix.lower()](flat), encoding="utf-8", newline="\n")
    return file


def _number(x: object) -> bool:
    return isinstance(x, int | float | np.number) and not isinstance(x, bool | np.bool_)


def _shown(x: object, digits: int) -> str:
    """A cell in words: significant digits without an exponent where that is readable; empty where it is missing."""
    if not _number(x):
        return "" if x is None or x is pd.NA or x is pd.NaT else str(x)
    value = float(x)  # pyright: ignore[reportArgumentType]
    if np.isnan(value):
        return ""
    if isinstance(x, int | np.integer) or value == 0 or np.isinf(value):
        return f"{x}" if isinstance(x, int | np.integer) else f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")
    power = int(np.floor(np.log10(abs(rounded))))
    if -5 < power < 7:
        return f"{rounded:.{max(digits - 1 - power, 0)}f}"
    return f"{rounded:.{digits - 1}e}"


def safe(x: object) -> object:
    """A cell that no spreadsheet runs: a text that begins like a formula, and is no number, gets an apostrophe."""
    if not isinstance(x, str) or not x.startswith(_FORMULA):
        return x
    try:
        float(x)
    except ValueError:
        return f"'{x}"
    return x


def _csv(table: pd.DataFrame) -> str:
    cells = table.astype(object).map(safe)
    cells.columns = [safe(str(c)) for c in table.columns]
    return cells.to_csv(index=False, lineterminator="\n")


def _html(table: pd.DataFrame, caption: str, note: str, digits: int) -> str:
    def row(cells, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = [row((_shown(x, digits) for x in cells), "td") for cells in table.itertuples(index=False, name=None)]
    head = row(map(str, table.columns), "th")
    title = html.escape(caption)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{title or 'table'}</title><style>{_STYLE}</style></head><body>",
        f"<table>{f'<caption>{title}</caption>' if caption else ''}<thead>{head}</thead><tbody>",
        *body,
        f"</tbody></table>{f'<p>{html.escape(note)}</p>' if note else ''}</body></html>\n",
    ]
    return "\n".join(parts)


def escape_latex(text: str) -> str:
    """Text in which LaTeX reads no command."""
    return "".join(_LATEX.get(c, c) for c in text)


def _latex(table: pd.DataFrame, caption: str, note: str, digits: int) -> str:
    """A booktabs table, without the preamble."""

    def row(cells) -> str:
        return " & ".join(escape_latex(c) for c in cells) + r" \\"

    lines = [r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{escape_latex(caption)}}}")
    lines += [rf"\begin{{tabular}}{{l{'r' * (table.shape[1] - 1)}}}", r"\toprule", row(map(str, table.columns))]
    lines.append(r"\midrule")
    lines += [row(_shown(x, digits) for x in cells) for cells in table.itertuples(index=False, name=None)]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if note:
        lines.append(rf"\par\footnotesize {escape_latex(note)}")
    return "\n".join([*lines, r"\end{table}", ""])
