"""Tables to be printed before a trial: boundaries by the number of patients, as DataFrame, HTML and CSV."""

import html
from pathlib import Path

import numpy as np
import pandas as pd

from carkinetics.design.base import AbstractDesign
from carkinetics.design.evidence import Evidence
from carkinetics.design.intervals import DOWN, UP, AbstractInterval
from carkinetics.design.rules import Elimination
from carkinetics.errors import DesignError

_STYLE = (
    "body{font-family:sans-serif;margin:2em;color:#222}table{border-collapse:collapse}caption{text-align:left;"
    "font-weight:bold;padding:.4em 0}th,td{border:1px solid #bbb;padding:.25em .6em;text-align:right}"
    "th{background:#eee}"
)


def boundaries(design: AbstractDesign, n: int = 36) -> pd.DataFrame:
    """When an interval design moves, by the number of patients at the current level.

    Parameters
    ----------
    design : BOIN, keyboard or mTPI-2
    n : int
        Largest number of patients at one level.

    Returns
    -------
    DataFrame
        One row a number ``N``: ``ESCALATE`` (at most so many patients with a toxicity), ``DEESCALATE`` and
        ``ELIMINATE`` (at least so many); missing where no number does.

    Raises
    ------
    DesignError
        The design's next level does not follow from the counts at the current one.
    """
    if not isinstance(design, AbstractInterval):
        raise DesignError(f"{design.name} has no table of boundaries; see design.paths for the next cohorts.")
    if n < 1:
        raise DesignError(f"boundaries: n = {n!r} must be at least 1.")
    rule = next((r for r in design.rules if isinstance(r, Elimination)), None)
    rows = []
    for treated in range(1, n + 1):
        y = np.arange(treated + 1.0)
        counts = np.full(len(y), float(treated))
        moves = design.moves(counts, y)
        row = {"N": treated, "ESCALATE": _last(moves == UP), "DEESCALATE": _first(moves == DOWN)}
        if rule is not None:
            none = np.zeros((len(y), 1))
            one = Evidence(counts[:, None], y[:, None], none, none, np.ones(len(y), int))
            row["ELIMINATE"] = _first(rule.cap(one, design.setting) == 0)
        rows.append(row)
    return pd.DataFrame(rows).astype("Int64")


def to_html(table: pd.DataFrame, title: str, note: str = "") -> str:
    """A table as one HTML page that needs nothing else; every text is escaped."""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(v))}</td>" for v in row) + "</tr>\n"
        for row in table.itertuples(index=False)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body><table>"
        f"<caption>{html.escape(title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"
        f"<p>{html.escape(note)}</p></body></html>\n"
    )


def write_table(table: pd.DataFrame, path: str | Path, *, title: str = "", note: str = "") -> Path:
    """Write a table as ``.csv`` or ``.html``, by the ending of the path.

    Raises
    ------
    DesignError
        The path ends otherwise.
    """
    path = Path(path)
    if path.suffix == ".csv":
        text = table.to_csv(index=False, lineterminator="\n")
    elif path.suffix == ".html":
        text = to_html(table, title or path.stem, note)
    else:
        raise DesignError(f"{path}: a table is written as .csv or .html.")
    path.write_text(text, encoding="utf-8")
    return path


def _first(found: np.ndarray) -> int | None:
    return int(found.argmax()) if found.any() else None


def _last(found: np.ndarray) -> int | None:
    return int(len(found) - 1 - found[::-1].argmax()) if found.any() else None


def _shown(value: object) -> str:
    if value is pd.NA or value is None or (isinstance(value, float) and np.isnan(value)):
        return "\u2013"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
