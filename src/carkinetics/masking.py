"""Identifiers of patients in words that are to leave the building, replaced by numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from carkinetics.page_parts import Figure, Section, Table

_PATIENT = r"([Pp]atients?(?:\(s\))? )"
_COUNT = r"(?: and \d+ more \(\d+ in all\))?"


class Mask:
    """What takes identifiers out of a text.

    An identifier with a letter is replaced wherever it stands as a word. One that is a number could be any number: it
    is replaced in lists that are said to be of patients, or that fill a pair of brackets, and in columns called ID.

    Parameters
    ----------
    subjects : sequence of str
        Identifiers; the first becomes 1.
    """

    def __init__(self, subjects: Sequence[str]):
        self.names: Mapping[str, str] = {s: str(k + 1) for k, s in enumerate(subjects)}
        longest = sorted(self.names, key=len, reverse=True)
        self._word = _word([s for s in longest if not re.fullmatch(r"[\d.,\s-]*", s)])
        one = _word(longest)
        item = rf"(?:{one.pattern})(?: \([^()]*\))?"
        several = rf"{item}(?:(?:, | and ){item})*"
        self._one = one
        self._lists = (re.compile(_PATIENT + f"({several})"), re.compile(rf"(\()((?:{several}){_COUNT})(?=\))"))

    def text(self, text: str) -> str:
        """The text without them."""
        for pattern in self._lists:
            text = pattern.sub(lambda m: m[1] + self._items(m[2]), text)
        return self._word.sub(self._other, text)

    def section(self, section: Section) -> Section:
        """A section without them."""
        masked = map(self.text, section.lines)
        figures = [Figure(f.png, self.text(f.caption)) for f in section.figures]
        return replace(section, lines=list(masked), tables=[self._table(t) for t in section.tables], figures=figures)

    def _items(self, text: str) -> str:
        parts = re.split(r"( \([^()]*\)|, | and )", text)
        return "".join(self.names.get(p, p) for p in parts)

    def _other(self, found: re.Match) -> str:
        return self.names[found[0]]

    def _table(self, table: Table) -> Table:
        who = [k for k, c in enumerate(table.columns) if c.upper() == "ID"]
        rows = [[self._cell(c, k in who) for k, c in enumerate(row)] for row in table.rows]
        return replace(table, rows=rows, caption=self.text(table.caption))

    def _cell(self, text: str, who: bool) -> str:
        return self.names.get(text, "") if who else self.text(text)


def _word(words: Sequence[str]) -> re.Pattern:
    """Any of these words, where it is a word of its own."""
    either = "|".join(map(re.escape, words)) or r"(?!)"
    return re.compile(rf"(?<![\w.])(?:{either})(?!\w)(?!\.\d)")
