"""What the checks found, and how it is said: where, what came, what to do.

Every check adds to one ``Findings``; at the end it raises one error that lists all problems. Rows are named
by their line in the source, patients and values by their text, each at most twenty times.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from carkinetics.errors import DataError

MAX_LISTED = 20  # lines, patients or values that one message lists
MAX_SHOWN = 40  # characters of one cell that a message shows
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


@dataclass(frozen=True)
class Note:
    """One thing that the reader did or saw; ``warned`` where it was also given as a ``DataWarning``."""

    kind: str
    message: str
    lines: tuple[int, ...] = ()
    subjects: tuple[str, ...] = ()
    warned: bool = False


def shown(text: str) -> str:
    """One cell for a message: cut, and with every character that does not print escaped."""
    cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def readable(x: float) -> str:
    """Four digits, and whole thousands below ten million: 0.01234, 24,310."""
    return f"{x:,.0f}" if 1e3 <= abs(x) < 1e7 else f"{x:.4g}"


def listed(items: Iterable[Any]) -> str:
    """``a, b and c``; after twenty the count."""
    texts = [str(item) for item in items]
    if len(texts) > MAX_LISTED:
        rest = len(texts) - MAX_LISTED
        return f"{', '.join(texts[:MAX_LISTED])} and {rest} more ({len(texts)} in all)"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else "none"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is closest to ``name``, without regard to case and blanks, or None."""
    plain = {other.strip().casefold(): other for other in known}
    found = difflib.get_close_matches(name.strip().casefold(), list(plain), 1, cutoff)
    return plain[found[0]] if found else None


def hint(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known name; empty if none is close."""
    near = nearest(name, known)
    return f' Did you mean "{shown(near)}"?' if near else ""


def placed(word: str, places: Sequence[int]) -> str:
    """``line 3`` or ``lines 3 and 4``."""
    return f"{word}{'s' if len(places) > 1 else ''} {listed(places)}"


@dataclass
class Findings:
    """What the checks found. It grows, on purpose: every check runs, then one error lists all problems."""

    name: str
    word: str
    columns: Mapping[str, str]
    cells: pd.DataFrame
    errors: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def place(self, mask: Any, column: str | None) -> str:
        """File, lines, column and patients of the rows in ``mask``."""
        hit = self.cells[np.asarray(mask, dtype=bool)]
        text = f"{self.name}, {placed(self.word, hit.index.tolist())}"
        if column is not None:
            text += f", column {shown(self.columns.get(column, column))}"
        who = _patients(hit)
        return text + (f", patient{'s' if len(who) > 1 else ''} {listed(map(shown, who))}" if who else "")

    def got(self, mask: Any, column: str) -> str:
        """The different values of the offending cells; text in quotes."""
        values = dict.fromkeys(self.cells[column][np.asarray(mask, dtype=bool)])
        return listed(v if re.fullmatch(NUMBER, v) else f'"{shown(v)}"' for v in values)

    def error(self, mask: Any, column: str | None, what: str, do: str) -> None:
        """Add one problem if any row is in ``mask``; ``{got}`` in ``what`` becomes the values."""
        if np.any(mask):
            self.errors.append(self._message(mask, column, what, do))

    def note(self, kind: str, mask: Any, column: str | None, what: str, do: str = "") -> None:
        """Add a record to the report if any row is in ``mask``."""
        if np.any(mask):
            hit = self.cells[np.asarray(mask, dtype=bool)]
            lines = tuple(int(line) for line in hit.index)
            self.notes.append(Note(kind, self._message(mask, column, what, do), lines, tuple(_patients(hit))))

    def warn(self, kind: str, mask: Any, column: str | None, what: str, do: str = "") -> None:
        """Add a record to the report that is also given as a ``DataWarning``."""
        before = len(self.notes)
        self.note(kind, mask, column, what, do)
        self.notes[before:] = [Note(n.kind, n.message, n.lines, n.subjects, True) for n in self.notes[before:]]

    def raise_errors(self) -> None:
        """Raise one ``DataError`` that lists every problem found so far, if there is one."""
        if len(self.errors) == 1:
            raise DataError(self.errors[0])
        if self.errors:
            raise DataError("\n- ".join([f"{self.name}: {len(self.errors)} problems", *self.errors]))

    def _message(self, mask: Any, column: str | None, what: str, do: str) -> str:
        if column is not None and "{got}" in what:
            what = what.replace("{got}", self.got(mask, column))
        return f"{self.place(mask, column)}: {what}{'' if what.endswith('?') else '.'} {do}".rstrip()


def _patients(hit: Any) -> list[str]:
    return [text for text in dict.fromkeys(hit["ID"].str.strip()) if text]
