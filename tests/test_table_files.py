"""Tables as files: what users wrote stays text, numbers keep their digits, and other readers read them."""

import csv
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from carkinetics.errors import ModelError
from carkinetics.table_files import escape_latex, safe, write_table

NASTY = pd.DataFrame(
    {
        "TV": [24000.4, 0.0032, np.nan, -1.5e-9, 0.0],
        "unit": ["copies/ug", '=HYPERLINK("x")', "<script>alert('1')</script>", "a & b_c 50 % $x$ \\n", "-0.5"],
        "N": [1, 2, 3, 4, 5],
        "@sum": ["+1+cmd|' /C calc'!A0", "@x", "\t=1", "–", "é"],
    },
    index=pd.Index(["cmax", "-beta", "=alpha", "fb", "+foldx"], name="parameter"),
)


class Cells(HTMLParser):
    """What a browser would show, and which tags it would see."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip("\n")


def test_a_csv_runs_nothing_and_keeps_every_digit(tmp_path):
    """If it fails, a patient's name or a parameter's starts a program in a spreadsheet, or numbers are rounded."""
    path = write_table(NASTY, tmp_path / "t.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["parameter", "TV", "unit", "N", "'@sum"]
    for row in rows:
        for cell in row:
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(cell)  # a number, and nothing else
    assert [r[0] for r in rows[1:]] == ["cmax", "'-beta", "'=alpha", "fb", "'+foldx"]
    assert [float(r[1]) if r[1] else np.nan for r in rows[1:]] == pytest.approx(
        NASTY["TV"].tolist(), nan_ok=True, rel=0
    )
    assert rows[5][2] == "-0.5"


def test_html_shows_texts_as_they_are(tmp_path):
    """If it fails, a name in the table becomes a script or a tag."""
    text = write_table(NASTY, tmp_path / "t.html", caption="a < b", note="Laplace & co").read_text(encoding="utf-8")
    page = Cells()
    page.feed(text)
    assert "script" not in page.tags
    assert page.rows[0] == ["parameter", "TV", "unit", "N", "@sum"]
    assert page.rows[3][2] == "<script>alert('1')</script>"
    assert [r[1] for r in page.rows[1:]] == ["24000", "0.00320", "", "-1.50e-09", "0"]
    assert "a &lt; b" in text and "Laplace &amp; co" in text
    assert text.count("<tr>") == 6


def test_latex_has_no_command_of_the_tables(tmp_path):
    """If it fails, a percent sign swallows a row, or a table runs what is written in it."""
    text = write_table(NASTY, tmp_path / "t.tex", caption="TV_1", note="100 %").read_text(encoding="utf-8")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 5
    for line in body:
        assert line.endswith(r" \\")
        assert line.replace(r"\&", "").count("&") == 4
    assert r"a \& b\_c 50 \% \$x\$ \textbackslash{}n" in text
    assert r"\caption{TV\_1}" in text and r"100 \%" in text
    assert r"\begin{tabular}{lrrrr}" in text
    assert escape_latex("\\input{x}^~#") == r"\textbackslash{}input\{x\}\textasciicircum{}\textasciitilde{}\#"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(24000.4, "24000"), (9.9996, "10.0"), (0.0123456, "0.0123"), (1.0, "1.00"), (123456789.0, "1.23e+08"),
     (-4.5, "-4.50"), (np.inf, "inf"), (7, "7"), (True, "True"), (None, ""), ("x", "x")],
)  # fmt: skip
def test_numbers_have_their_significant_digits(tmp_path, value, shown):
    """If it fails, a table of a paper shows too many digits, too few, or a number as another."""
    page = Cells()
    page.feed(write_table(pd.DataFrame({"x": pd.Series([value], dtype=object)}), tmp_path / "t.html").read_text())
    assert page.rows[1] == [shown]


def test_safe_cells_by_hand():
    """If it fails, numbers get apostrophes, or formulas get none."""
    assert [safe(x) for x in ("-1.5e3", "+2", "-beta", "=1", 5, None)] == ["-1.5e3", "+2", "'-beta", "'=1", 5, None]


def test_a_fits_table_can_be_written_in_every_form(small_fit, tmp_path):
    """If it fails, the table of a fit cannot be sent."""
    table = small_fit.parameters()
    for suffix in ("csv", "html", "tex"):
        assert "cmax" in write_table(table, tmp_path / f"parameters.{suffix}", note=small_fit.label).read_text()
    back = pd.read_csv(tmp_path / "parameters.csv", index_col="parameter")
    np.testing.assert_allclose(back["TV"], table["TV"], rtol=1e-12)


def test_another_suffix_is_refused(tmp_path):
    """If it fails, a table is written as something nobody asked for."""
    with pytest.raises(ModelError, match=r"\.csv"):
        write_table(NASTY, tmp_path / "t.xlsx")
