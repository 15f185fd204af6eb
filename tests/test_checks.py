"""Rules about ids, times and values: one small table each, through CSV, Parquet and DataFrame."""

# pandas' own annotations call ``frame[mask]`` a Series or an array, and ``outcomes`` may be None.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from carkinetics.dataset import ReadOptions, read_dataset
from carkinetics.errors import DataError, DataWarning

HEADER = ["patient_id", "time_day", "copies_per_ug"]
COLUMNS = {"ID": "patient_id", "TIME": "time_day", "DV": "copies_per_ug"}
TIMES = [0, 3, 7, 10, 14, 21, 28, 60, 90, 180]
SHAPE = [60, 300, 9000, 20000, 12000, 5000, 2500, 900, 600, 200]
ID, TIME, DV = HEADER


def table(edits=None, extra=None, drop=()):
    """Four patients of ten rows (lines 2 to 41) as text; ``edits`` are {(line, column): text}."""
    rows = [
        {ID: f"P{i:02d}", TIME: str(t), DV: str(v * i), **(extra or {})}
        for i in range(1, 5)
        for t, v in zip(TIMES, SHAPE, strict=True)
    ]
    for (line, column), text in (edits or {}).items():
        rows[line - 2][column] = text
    return pd.DataFrame([row for i, row in enumerate(rows) if i + 2 not in drop], dtype=object)


def read(source, **arguments) -> tuple[Any, list[str]]:
    """What comes out: a Dataset or the error's text; and the texts of the warnings."""
    arguments = {"columns": COLUMNS, "units": {"DV": "copies/ug"}, **arguments}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = read_dataset(source, **arguments)
        except DataError as error:
            result = str(error)
    assert all(w.category is DataWarning for w in caught)
    return result, [str(w.message) for w in caught]


def in_lines(text):
    """A message about rows of a DataFrame as one about lines of trial.csv: row 1 stands on line 2."""

    def shift(match):
        return "line" + match[1] + " " + re.sub(r"\d+", lambda n: str(int(n[0]) + 1), match[2])

    text = re.sub(r"\brow(s?) (\d+(?:(?:, | and )\d+\b(?! more))*)", shift, text)
    return re.sub(r"DataFrame|trial\.parquet", "trial.csv", text)


def read_all(frame, tmp_path, **arguments):
    """The same from CSV, Parquet and DataFrame; returns the one from CSV."""
    frame.to_csv(tmp_path / "trial.csv", index=False)
    frame.to_parquet(tmp_path / "trial.parquet")
    result, texts = read(tmp_path / "trial.csv", **arguments)
    for source in (tmp_path / "trial.parquet", frame):
        other, others = read(source, **arguments)
        assert [in_lines(text) for text in others] == texts
        if isinstance(result, str):
            assert in_lines(other) == result
        else:
            assert other.sha256 == result.sha256
    return result, texts


CENS = {"CENS": "0"}
ERRORS = {
    "I02": (table({(14, ID): ""}), {}, ["line 14", f"column {ID}", "ID is empty", "delete the row"]),
    "I03": (
        table({(5, ID): "P01 ", (7, ID): "p01"}), {},
        ["lines 2, 3, 4, 5, 6, 7, 8, 9, 10 and 11", f"column {ID}", '"P01 "', "blanks or case", "one way"],
    ),
    "I03 DVID": (
        table({(5, "DVID"): "pcr"}, {"DVID": "PCR"}), {}, ["column DVID", '"pcr"', "blanks or case",
            "(40 in all)"]
    ),
    "I07 long": (table({(9, ID): "x" * 10_000}), {}, ["line 9", "(10000 characters)", "at most 200"]),
    "I07 break": (table({(9, ID): "P\n1"}), {}, ["line 9", r"P\n1", "line break", "printing characters"]),
    "I08": (
        table({(i, "STUDY"): "B" for i in range(7, 12)}, {"STUDY": "A"}), {},
        ["lines 2, 3", "column STUDY", "patient P01", '"A" and "B"', '["STUDY", "patient_id"]'],
    ),
    "T01": (table({(6, TIME): ""}), {}, ["line 6", f"column {TIME}", "patient P01", "time is empty",
     "Write the days"]),
    "T02 D10": (table({(6, TIME): "D10"}), {}, ["line 6", "patient P01", 'not a number, got "D10"',
     "plain number"]),
    "T02 day": (table({(6, TIME): "Day 10"}), {}, ["line 6", "patient P01", 'not a number, got "Day 10"']),
    "T02 date": (table({(6, TIME): "2019-04-03"}), {}, ["line 6", 'a date is ambiguous', 'got "2019-04-03"',
     "days since the infusion"]),
    "T04": (
        table({(2, TIME): "-7"}), {},
        ["line 2", f"column {DV}", "patient P01", "measurable before the infusion", "got 60",
         'predose="exclude"'],
    ),
    "T05": (
        table({(6, TIME): "10"}), {},
        ["lines 5 and 6", "patient P01", "20000 and 12000", "duplicates=",
         "mean, geomean, first or replicate", "DVID"],
    ),
    "T09": (
        table({(6, TIME): "inf", (8, TIME): "1e308", (9, TIME): "nan"}), {},
        ["lines 6, 8 and 9", '"inf", 1e308 and "nan"', "36525 days"],
    ),
    "T12": (
        table({(6, TIME): "03/04/2019", (7, TIME): "2019-03-31 02:30"}), {},
        ["lines 6 and 7", "patient P01", '"03/04/2019" and "2019-03-31 02:30"', "ambiguous"],
    ),
    "V01": (table({(6, DV): "-5"}), {}, ["line 6", f"column {DV}", "patient P01", "a negative value, got -5",
     "CENS=1"]),
    "V02": (table({(6, DV): "0"}), {}, ["line 6", "patient P01", "not a quantified value", "got 0",
     "Pass lloq"]),
    "V03": (table({(6, DV): ""}, CENS), {}, ["line 6", "patient P01", "the value is empty", "MDV=1"]),
    "V05": (
        table({(3, DV): "700", (3, "CENS"): "1"}, CENS), {"lloq": 50},
        ["line 3", "patient P01", "CENS=1 with DV above lloq=50, got 700", "CENS=0"],
    ),
    "V07": (
        table({(i, DV): "BLQ" for i in range(7, 31)}), {},
        ["lines 7, 8,", "25, 26 and 4 more (24 in all)", "patients P01, P02 and P03", "24 rows", "Pass lloq"],
    ),
    "V07 CENS": (
        table({(7, DV): "0", (8, DV): "0", (7, "CENS"): "1", (8, "CENS"): "1"}, CENS), {},
        ["lines 7 and 8", "CENS=1 needs DV = LLOQ, got 0. Set DV to the assay's limit"],
    ),
    "V08": (table({(6, DV): "trace"}), {}, ["line 6", 'not a number, got "trace"', "plain number"]),
    "V08 CENS": (table({(6, DV): "<50"}, CENS), {}, ["line 6", 'contradict each other, got "<50"',
     "leave CENS empty"]),
    "V09": (table({(6, DV): "nan", (7, DV): "inf"}), {}, ["lines 6 and 7", '"nan" and "inf"', "MDV=1"]),
    "V11": (table({(i, DV): "<50" for i in range(2, 42)}), {}, ["all 40 observations",
     "nothing is measurable"]),
    "V14": (table({(6, DV): "1e30"}), {}, ["line 6", "patient P01", "above what can exist, got 1e30",
     "unit"]),
    "CENS code": (table({(6, "CENS"): "2"}, CENS), {}, ["line 6", "column CENS", "not a known code, got 2",
     "-1, 0 and 1"]),
    "LIMIT": (
        table({(6, "LIMIT"): "60", (6, DV): "50", (6, "CENS"): "1"}, {"CENS": "0", "LIMIT": ""}), {},
        ["line 6", "column LIMIT", "not the other end of the interval, got 60", "lower end"],
    ),
    "AMT": (table(extra={"AMT": "2e6"}), {}, ["column AMT", "AMT and DV on one row", "EVID", "(40 in all)"]),
    "DVID": (table({(6, "DVID"): ""}, {"DVID": "PCR"}), {}, ["line 6", "column DVID", "assay is empty"]),
    "mean": (
        table({(6, TIME): "10", (6, DV): "<50"}), {"options": ReadOptions(duplicates="mean")},
        ["lines 5 and 6", "cannot be averaged", "first"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_error_names_place_value_and_remedy(case, tmp_path):
    frame, arguments, parts = ERRORS[case]
    result, _ = read_all(frame, tmp_path, **arguments)
    assert isinstance(result, str)
    assert result.startswith("trial.csv")
    for part in parts:
        assert part in result
    assert "\n" not in result  # one defect, one problem


WARNINGS = {
    "T03": (
        table({(2, TIME): "-7", (2, DV): "<50", (12, TIME): "-3", (12, DV): "<50"}), {}, "predose-blq", (2,
            12), 38,
        ["lines 2 and 12", "patients P01 and P02", "2 samples before the infusion"],
    ),
    "T04": (
        table({(2, TIME): "-7"}), {"options": ReadOptions(predose="exclude")}, "predose", (2,), 39,
        ["line 2", "patient P01", "measurable before the infusion, got 60"],
    ),
    "T06": (
        table({(6, TIME): "10", (6, DV): "20000"}), {}, "identical", (6,), 39,
        ["line 6", "patient P01", "repeat an earlier row"],
    ),
    "T08 hours": (
        table({(12 * 0 + 2 + i + 10 * p, TIME): str(t * 24) for p in range(4) for i, t in enumerate(TIMES)}),
            {},
        "late-peak", None, 40, ["peaks on day 240", 'units={"TIME": "hour"}'],
    ),
    "T08 long": (table({(11, TIME): "8000"}), {}, "long-follow-up", (11,), 40, ["line 11", "P01",
     "7305 days"]),
    "V04": (
        table({(3, DV): "37", (3, "CENS"): "1"}, CENS), {"lloq": 50}, "value-ignored", (3,), 40,
        ["line 3", "patient P01", "left-censored at lloq"],
    ),
    "V06": (
        table({(3, DV): "20"}), {"lloq": 50}, "below-lloq", (3,), 40,
        ["line 3", f"column {DV}", "patient P01", "quantified below lloq, got 20"],
    ),
    "V10": (
        table({(i, DV): "<50" for i in range(12, 22)}), {}, "all-blq", tuple(range(12, 22)), 40,
        ["patient P02", "every value is below the limit", "cannot be estimated"],
    ),
    "V12": (
        table({(i, "MDV"): "1" for i in range(12, 22)}, {"MDV": "0"}), {}, "no-sample", tuple(range(12, 22)),
            30,
        ["patient P02", "no observation", "predicted"],
    ),
    "V13": (
        table({(i, DV): f"{v}e-6" for i, v in zip(range(12, 22), SHAPE, strict=True)}), {}, "other-scale",
        tuple(range(12, 22)), 40, ["patient P02", "4 log10", "unit"],
    ),
    "V14": (table({(6, DV): "2e9"}), {}, "implausible", (6,), 40, ["line 6", "P01",
     "above 1e+08 copies/ug, got 2e9", "unit"]),
    "V17": (
        table({(i, DV): "500" for i in range(2, 42)}), {}, "constant", tuple(range(2, 42)), 40,
        ["every value is 500", "no variation"],
    ),
    "V19": (
        table({(i, DV): str(2 + i % 5) for i in range(2, 42)}), {"units": None}, "log10", tuple(range(2, 42)),
            40,
        ["between 0 and 9", "units="],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_warning_is_given_and_recorded(case, tmp_path):
    frame, arguments, kind, lines, n_obs, parts = WARNINGS[case]
    data, texts = read_all(frame, tmp_path, **arguments)
    assert not isinstance(data, str), data
    assert len(texts) == 1
    for part in ["trial.csv", *parts]:
        assert part in texts[0]
    note = next(note for note in data.report.notes if note.kind == kind)
    assert note.warned
    assert note.message == texts[0]
    assert lines is None or note.lines == lines
    assert data.n_obs == n_obs
    assert data.n_subjects == 4
    assert len(data.report.excluded) + data.n_obs == 40


def test_i01_leading_zeros_stay_text(tmp_path):
    frame = table().replace({"P01": "001", "P02": "002", "P03": "1", "P04": "2"})
    outcomes = pd.DataFrame({"ID": ["001", "002", "1", "2"], "ORR": [1, 0, 1, 0]})
    data, texts = read_all(frame, tmp_path, outcomes=outcomes)
    assert data.subjects == ("001", "002", "1", "2")
    assert data.outcomes.loc["002", "ORR"] == 0
    assert texts == []


def test_i04_words_stay_ids(tmp_path):
    names = {"P01": "NA", "P02": "None", "P03": "nan", "P04": "1e5"}
    data, texts = read_all(table({(2, ID): "TRUE"}).replace(names), tmp_path)
    assert data.subjects == ("1e5", "NA", "None", "TRUE", "nan")
    assert texts == []


def test_i05_t07_order_of_rows_changes_nothing(tmp_path):
    control, _ = read_all(table(), tmp_path)
    for order in (slice(None, None, -1), np.argsort(np.arange(40) % 10, kind="stable")):
        data, texts = read_all(table().iloc[order], tmp_path)
        assert texts == []
        assert data.sha256 == control.sha256
        for name in ("subject", "assay", "time", "dv", "cens", "limit"):
            np.testing.assert_array_equal(getattr(data, name), getattr(control, name))


def test_i06_hostile_ids_load(tmp_path):
    names = ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "../../etc/passwd", "P\u202e04"]
    data, texts = read_all(table().replace(dict(zip(["P01", "P02", "P03", "P04"], names, strict=True))), tmp_path)
    assert data.subjects == tuple(sorted(names))
    assert texts == []
    result, _ = read(table({(41, DV): "x"}).replace({"P04": names[3]}))
    assert r"P\u202e04" in result  # a message must not be turned around by the ID that it names


def test_i07_emoji_and_200_characters_load():
    data, _ = read(table().replace({"P01": "\U0001f9ec", "P02": "x" * 200}))
    assert data.subjects == ("P03", "P04", "x" * 200, "\U0001f9ec")


def test_i08_composite_key_separates_studies(tmp_path):
    frame = table({(i, "STUDY"): "B" for i in range(7, 12)}, {"STUDY": "A"})
    data, _ = read_all(frame, tmp_path, columns={**COLUMNS, "ID": ["STUDY", ID]})
    assert data.subjects == ("A/P01", "A/P02", "A/P03", "A/P04", "B/P01")
    result, _ = read(frame.assign(STUDY=["A/P01", "A", *["A"] * 38], patient_id=["x", "P01/x",
        *frame[ID][2:]]),
                     columns={**COLUMNS, "ID": ["STUDY", ID]})  # fmt: skip
    assert "ambiguous" in result


def test_t05_several_matrices_are_no_duplicates():
    frame = table({(6, TIME): "10", (6, "specimen"): "BM"}, {"specimen": "PB"})
    data, _ = read(frame, columns={**COLUMNS, "DVID": "specimen"})
    assert data.assays == ("BM", "PB")


def test_t08_three_years_of_follow_up_and_declared_hours_are_fine(tmp_path):
    assert read(table({(11, TIME): "1100"}))[1] == []
    hours = table().assign(time_day=lambda t: [str(int(x) * 24) for x in t[TIME]])
    data, texts = read_all(hours, tmp_path, units={"TIME": "hour"})
    np.testing.assert_allclose(np.unique(data.time), TIMES)
    assert texts == []


def test_t09_minus_zero_is_zero():
    data, _ = read(table({(2, TIME): "-0.0"}))
    assert not np.signbit(data.time).any()
    assert data.n_obs == 40


def test_t10_near_times_are_kept_and_noted():
    data, texts = read(table({(6, TIME): "10.0000000001"}))
    assert data.n_obs == 40
    assert texts == []
    assert [note.lines for note in data.report.notes if note.kind == "near-times"] == [(5,)]


def test_t11_times_of_a_peak_or_lag_are_read_exactly():
    times = ["10.1", "0.1", "9.99999999999999911182158029987"]
    data, _ = read(table({(3, TIME): times[1], (5, TIME): times[0], (15, TIME): times[2]}))
    assert set(map(float, times)) <= set(data.time)


def test_v02_zero_is_below_a_declared_limit(tmp_path):
    data, texts = read_all(table({(6, DV): "0"}), tmp_path, lloq=50)
    assert texts == []
    assert [note.lines for note in data.report.notes if note.kind == "zero"] == [(6,)]
    assert data.cens.sum() == 1
    assert data.dv[data.cens == 1] == 50


def test_v04_v06_are_censored_at_the_declared_limit():
    frame = table({(2, DV): "20", (3, DV): "37", (3, "CENS"): "1"}, CENS)
    data, _ = read(frame, lloq=50)
    assert data.cens[:2].tolist() == [1, 1]
    assert data.dv[:2].tolist() == [50, 50]


@pytest.mark.parametrize(
    ("text", "lloq", "cens", "dv"),
    [("<50", None, 1, 50), ("< 50", None, 1, 50), ("BLQ", 30, 1, 30), ("bql", 30, 1, 30), ("ND", 30, 1, 30),
     ("< LLOQ", 30, 1, 30), ("<50", 30, 1, 50), (">1e6", None, -1, 1e6)],
)  # fmt: skip
def test_v08_text_forms(text, lloq, cens, dv, tmp_path):
    data, texts = read_all(table({(6, DV): text}), tmp_path, lloq=lloq)
    row = data.table.set_index("LINE").loc[6]
    assert (row["CENS"], row["DV"]) == (cens, dv)
    assert [note.lines for note in data.report.notes if note.kind == "text-forms"] == [(6,)]
    assert texts == []


def test_v12_dosed_without_a_sample():
    frame = table({(12, DV): "", (12, "AMT"): "2e6"}, {"AMT": ""}, drop=range(13, 22))
    data, texts = read(frame)
    assert data.subjects == ("P01", "P02", "P03", "P04")
    assert "patient P02" in texts[0]
    assert data.doses()[["ID", "TIME", "AMT"]].to_numpy().tolist() == [["P02", 0.0, 2e6]]
    assert data.summary().loc["P02", "N"] == 0


def test_v13_one_of_two_patients_in_another_unit():
    frame = table({(i, DV): f"{v}e-6" for i, v in zip(range(12, 22), SHAPE, strict=True)}, drop=range(22, 42))
    assert any("4 log10" in text for text in read(frame)[1])


def test_v15_limits_row_by_row():
    data, texts = read(table({(3, DV): "50", (3, "CENS"): "1", (13, DV): "10", (13, "CENS"): "1"}, CENS))
    assert data.dv[data.cens == 1].tolist() == [50, 10]
    assert texts == []
    two = table({(3, DV): "BLQ", (13, DV): "BLQ", (3, "DVID"): "flow"}, {"DVID": "pcr"})
    data, _ = read(two, lloq={"pcr": 10, "flow": 0.5}, units=None)
    assert data.dv[data.cens == 1].tolist() == [0.5, 10]


def test_v16_scientific_notation(tmp_path):
    data, _ = read_all(table({(6, DV): "1.2E+04"}), tmp_path)
    assert data.table["DV"][4] == 12000


@pytest.mark.parametrize("text", ["1_000", "0x1A", "1e", "٣", "1 000", "1.2.3", "1d4", "+-1", "5,200", "TRUE"])
def test_only_plain_numbers_are_numbers(text):
    assert "not a number" in read(table({(6, DV): text}))[0]


def test_v18_large_integers_do_not_wrap():
    frame = table().astype({DV: "int64", TIME: "int32"})
    frame.loc[4, DV] = 3_000_000_000
    data, _ = read(frame, units={"DV": "cells"})
    assert data.dv.max() == 3e9
    assert data.dv.dtype == np.float64


def test_samples_at_or_before_a_day_are_left_out_and_counted(tmp_path):
    """``after`` takes early samples out of the likelihood, never silently, and the digest tells the two apart."""
    path = tmp_path / "trial.csv"
    path.write_text("ID,TIME,DV\nA,0,500\nA,0.5,800\nA,3,900\nB,0,700\nB,7,600\n")
    data = read_dataset(path, options=ReadOptions(after=0.5))
    assert list(data.time) == [3.0, 7.0]
    assert sorted(data.report.excluded["LINE"]) == [2, 3, 5]
    assert "3 samples at or before day 0.5" in str(data.report)
    assert data.sha256 != read_dataset(path).sha256
    with pytest.raises(DataError, match="after"):
        ReadOptions(after=float("nan"))
