"""The Dataset: arrays, units, limits, rows kept, outcomes, report, hash and speed."""

# pandas' own annotations call ``frame[mask]`` a Series or an array, and ``outcomes`` may be None.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import csv
import dataclasses
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest

from carkinetics.dataset import Dataset, ReadOptions, read_dataset
from carkinetics.errors import DataError, DataWarning

TIMES = [0, 3, 7, 10, 14, 21, 28, 60, 90, 180]
SHAPE = [60, 300, 9000, 20000, 12000, 5000, 2500, 900, 600, 200]
UNITS = {"DV": "copies/ug"}


def table(**extra):
    rows = [{"ID": f"P{i:02d}", "TIME": t, "DV": v * i} for i in range(1, 5) for t, v in zip(TIMES, SHAPE, strict=True)]
    return pd.DataFrame(rows).assign(**extra)


def edited(edits, **extra):
    """The table with some cells replaced; ``edits`` are {(row from 0, column): value}."""
    frame = table(**extra).astype(object)
    for place, value in edits.items():
        frame.loc[place] = value
    return frame


def outcomes(ids=("P01", "P02", "P03", "P04")):
    return pd.DataFrame({"ID": list(ids), "ORR": range(len(ids)), "ARM": "A"})


def refused(*arguments, **options):
    with pytest.raises(DataError) as caught:
        read_dataset(*arguments, units=options.pop("units", UNITS), **options)
    return str(caught.value)


def test_arrays_are_sorted_read_only_and_float64():
    data = read_dataset(table(), units=UNITS)
    assert data.subjects == ("P01", "P02", "P03", "P04")
    assert data.assays == ("qpcr",)
    np.testing.assert_array_equal(data.subject, np.repeat(range(4), 10))
    np.testing.assert_array_equal(data.time, np.tile(np.array(TIMES, float), 4))
    np.testing.assert_array_equal(data.dv[:10], np.array(SHAPE, float))
    assert np.isnan(data.limit).all()
    for name in ("subject", "assay", "time", "dv", "cens", "limit"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(data, name)[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.source = "x"
    assert "4 subjects, 40 observations, qpcr" in repr(data)


def test_table_has_every_column_and_where_it_stood():
    data = read_dataset(table(WT=[70.5] * 40, ARM="007", SEX="F", EMPTY=""), units=UNITS)
    names = [
        "ID",
        "TIME",
        "DV",
        "AMT",
        "EVID",
        "DVID",
        "MDV",
        "CENS",
        "LIMIT",
        "WT",
        "ARM",
        "SEX",
        "EMPTY",
        "LINE",
        "USED",
    ]
    assert data.table.columns.tolist() == names
    assert data.table["WT"].dtype == np.float64
    assert data.table["ARM"].tolist() == ["007"] * 40  # a code with leading zeros is no number
    assert data.table["LINE"].tolist() == list(range(1, 41))
    assert data.table["USED"].all()


def test_covariates_may_have_the_names_that_the_reader_uses_inside():
    data = read_dataset(table(OBS=range(40), REASON="r", LLOQ=3), units=UNITS)
    assert data.table["OBS"].tolist() == list(range(40))
    assert 'column "LINE"' in refused(table(LINE=1))


def test_doses_and_other_records_are_no_observations():
    doses = pd.DataFrame({"ID": ["P02", "P01"], "TIME": [0, 0], "AMT": [3e6, 2e6], "EVID": 1})
    other = pd.DataFrame({"ID": ["P01"], "TIME": [5], "EVID": 2})
    data = read_dataset(pd.concat([table(EVID=0), doses, other]), units=UNITS)
    assert data.n_obs == 40
    assert data.doses()["AMT"].tolist() == [2e6, 3e6]
    assert data.report.excluded["REASON"].tolist() == ["dose record"] * 2 + ["EVID 2 or 3: not an observation"]
    assert "dose record" in str(data.report)
    implied = read_dataset(pd.concat([table(), doses.drop(columns="EVID")]), units=UNITS)
    assert implied.doses()["ID"].tolist() == ["P01", "P02"]
    with pytest.warns(DataWarning, match="repeat an earlier row"):
        twice = read_dataset(pd.concat([table(EVID=0), doses, doses]), units=UNITS)
    assert len(twice.doses()) == 2


def test_summary_has_one_row_per_subject():
    frame = table().astype({"DV": object})
    frame.loc[0, "DV"] = "<50"
    row = read_dataset(frame, units=UNITS).summary().loc["P01"]
    assert row.to_dict() == {"N": 10, "N_BLQ": 1, "FIRST": 0, "LAST": 180, "MAX_DV": 20000}
    two = pd.concat([table(DVID="pcr"), table(DVID="flow")])
    assert read_dataset(two, units={"DV": {"pcr": "copies/ug",
        "flow": "cells/uL"}}).summary().columns[-2:].tolist() == [
        "MAX_DV_flow", "MAX_DV_pcr"]  # fmt: skip


def test_units_are_converted_recorded_or_refused():
    data = read_dataset(table(TIME=TIMES * 4), units={"TIME": "hour", "DV": "copies/ug", "AMT": "cells"})
    assert data.time.max() == 7.5
    assert read_dataset(table(TIME=[t / 7 for t in TIMES] * 4), units={"TIME": "week"}).time.max() == pytest.approx(180)
    assert data.units["TIME"] == "day"
    assert data.units["DV"]["qpcr"] == "copies/ug"
    assert data.units["AMT"] == "cells"
    with pytest.raises(TypeError):
        data.units["TIME"] = "hour"
    assert read_dataset(table()).units["DV"]["qpcr"] == "unknown"
    message = refused(table(), units={"TIME": "hours"})
    assert "Use day, hour and week" in message
    assert 'Did you mean "hour"?' in message
    assert 'unknown name "TME"' in refused(table(), units={"TME": "day"})
    assert 'no assay "flow"' in refused(table(), units={"DV": {"flow": "x"}})


@pytest.mark.parametrize("lloq", [0, -1, np.nan, np.inf, True, {"qpcr": 0}])
def test_lloq_must_be_a_limit(lloq):
    assert "no limit" in refused(table(), lloq=lloq)


def test_keep_counts_what_it_leaves_out():
    frame = pd.concat([table(specimen="PB"), table(specimen="BM").assign(DV="oops")])
    data = read_dataset(frame, units=UNITS, keep={"specimen": "PB"})
    assert data.n_obs == 40
    assert data.report.excluded["REASON"].tolist() == ["keep: specimen is not PB"] * 40
    assert [note.kind for note in data.report.notes] == ["keep"]
    assert 'Did you mean "specimen"?' in refused(frame, keep={"specimens": ["PB"]})
    message = refused(frame, keep={"specimen": ["PB", "BMA"]})
    assert 'never holds "BMA"' in message
    assert "It holds BM and PB" in message


def test_keep_takes_our_name_or_theirs_and_names_patients_that_go():
    frame = pd.concat([table(specimen="PB"), table(specimen="BM")])
    for name in ("specimen", "DVID"):
        with pytest.warns(DataWarning, match="patients P03 and P04: no row left after keep"):
            data = read_dataset(frame, units=UNITS, columns={"DVID": "specimen"}, keep={name: ["PB"],
                "ID": ["P01", "P02"]},
                                outcomes=outcomes())  # fmt: skip
        assert data.assays == ("PB",)
        assert data.subjects == ("P01", "P02")
        assert data.outcomes.index.tolist() == ["P01", "P02"]
        assert "outcome-left-out" in [note.kind for note in data.report.notes]


def test_keep_that_leaves_nothing():
    frame = table(A=["x"] * 20 + ["y"] * 20, B=["x"] * 20 + ["y"] * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "no observations" in refused(frame, keep={"A": "x", "B": "y"})


def test_outcomes_are_joined_by_text(tmp_path):
    outcomes(["P04", "P02", "P01", "P03"]).to_csv(tmp_path / "outcomes.csv", index=False)
    data = read_dataset(table(), units=UNITS, outcomes=tmp_path / "outcomes.csv")
    assert data.outcomes["ORR"].to_dict() == {"P01": 2, "P02": 1, "P03": 3, "P04": 0}
    assert data.outcomes["ARM"].tolist() == ["A"] * 4
    assert data.outcomes.index.tolist() == list(data.subjects)


def test_outcomes_that_do_not_match():
    message = refused(table(), outcomes=outcomes(["P01", "P02", "P09"]))
    assert "without a row in DataFrame: P09" in message
    assert "without an outcome: P03 and P04" in message
    message = refused(table(), outcomes=outcomes(["P01", "P02", "P03", "P04", "P02"]))
    assert message == "DataFrame, rows 2 and 5, column ID, patient P02: more than one row of a patient. Keep one."
    assert "no column ID" in refused(table(), outcomes=pd.DataFrame({"subject": ["P01"]}))
    both = refused(table().assign(DV=-1), outcomes=outcomes(["P01"]))
    assert "negative" in both
    assert "without an outcome" in both


def test_outcomes_with_a_composite_key():
    frame, results = (part.assign(STUDY="A").rename(columns={"ID": "SUBJ"}) for part in (table(), outcomes()))
    data = read_dataset(frame, units=UNITS, columns={"ID": ["STUDY", "SUBJ"]}, outcomes=results)
    assert data.outcomes.index.tolist() == ["A/P01", "A/P02", "A/P03", "A/P04"]
    assert data.table["SUBJ"].tolist()[0] == "P01"


def test_hash_identifies_content_and_policy_not_order_or_path(tmp_path):
    table().to_csv(tmp_path / "a.csv", index=False)
    table().sample(frac=1, random_state=1)[["DV", "ID", "TIME"]].to_csv(tmp_path / "b.csv", index=False)
    one, two = (read_dataset(tmp_path / name, units=UNITS).sha256 for name in ("a.csv", "b.csv"))
    assert one == two == read_dataset(table(), units=UNITS).sha256
    changed = [
        read_dataset(table().assign(DV=lambda t: t["DV"] + 1e-9), units=UNITS),
        read_dataset(table(WT=70), units=UNITS),
        read_dataset(table()),
        read_dataset(table(), units=UNITS, outcomes=outcomes()),
        read_dataset(table(), units=UNITS, options=ReadOptions(predose="exclude")),
    ]
    assert len({one, *(data.sha256 for data in changed)}) == 6


def test_merged_duplicates_do_not_depend_on_the_order_of_rows():
    frame = pd.concat([table(), table().assign(DV=lambda t: t["DV"] * 1.1), table().assign(DV=lambda t: t["DV"] / 3)])
    options = ReadOptions(duplicates="mean")
    one, two = (read_dataset(f, units=UNITS, options=options) for f in (frame, frame.iloc[::-1]))
    assert one.n_obs == 40
    assert one.sha256 == two.sha256


def test_ids_of_a_frame_are_text():
    number = {"P01": 1, "P02": 2, "P03": 3, "P04": 4}
    for kind in (int, float, "Int64", object):
        frame = table()
        frame["ID"] = frame["ID"].map(number).astype(kind)
        assert read_dataset(frame, units=UNITS).subjects == ("1", "2", "3", "4")


def test_warnings_point_at_the_caller(tmp_path):
    table().to_csv(tmp_path / "trial.csv", index=False)
    caller = tmp_path / "caller.py"
    caller.write_text(
        "import sys, warnings\n"
        "from carkinetics.dataset import read_dataset\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    read_dataset(sys.argv[1], units={'DV': 'copies/ug'}, lloq=100)\n"
        "print(*(f'{w.category.__name__} {w.lineno} {w.filename}' for w in caught), sep='\\n')\n"
    )
    # A process of its own: here the tests' type checker stands between the reader and its caller.
    command = [sys.executable, str(caller), str(tmp_path / "trial.csv")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"DataWarning 5 {caller}"]


@pytest.mark.thorough
def test_ten_thousand_patients_load_in_five_seconds(tmp_path):
    """If it fails, a large table makes its reader wait.

    Five seconds where Python's own csv and float take 0.42 s, measured beside it: processors differ. It was 8
    to 9 times as long when this was written.
    """
    rng = np.random.default_rng(1)
    n, path = 10_000, tmp_path / "large.csv"
    frame = pd.DataFrame({
        "ID": np.repeat([f"S{i:05d}" for i in range(n)], 15),
        "TIME": np.tile(np.arange(15) * 2.5, n),
        "DV": np.exp(rng.normal(6, 2, 15 * n)),
        "AGE": np.repeat(rng.integers(3, 80, n), 15),
    })  # fmt: skip
    frame.to_csv(path, index=False)
    clock = [time.process_time()]  # whatever else the machine does meanwhile
    with path.open(newline="") as file:
        plain = [[float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    clock.append(time.process_time())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read_dataset(path, units=UNITS, lloq=10)
    clock.append(time.process_time())
    assert clock[2] - clock[1] < 12 * (clock[1] - clock[0])
    assert isinstance(data, Dataset)
    assert (data.n_subjects, data.n_obs) == (n, 15 * n) == (n, len(plain))


def test_options_are_plain_data():
    assert pickle.loads(pickle.dumps(ReadOptions(duplicates="mean"))) == ReadOptions(duplicates="mean")


@pytest.mark.parametrize(
    ("policy", "values"),
    [("mean", [16000]), ("geomean", [np.sqrt(2.4e8)]), ("first", [20000]), ("replicate", [12000, 20000])],
)
def test_policies_for_duplicates(policy, values):
    data = read_dataset(edited({(4, "TIME"): 10}), units=UNITS, options=ReadOptions(duplicates=policy))
    np.testing.assert_allclose(data.dv[(data.subject == 0) & (data.time == 10)], values)
    kinds = [note.kind for note in data.report.notes]
    assert kinds == ([] if policy == "replicate" else ["duplicates"])
    assert data.n_obs + len(data.report.excluded) == 40
    same = edited({(4, "TIME"): 10, (4, "DV"): 20000})
    assert read_dataset(same, units=UNITS, options=ReadOptions(duplicates="replicate")).n_obs == 40


def test_censored_duplicates_of_one_limit_are_one():
    frame = edited({(3, "DV"): "<50", (4, "TIME"): 10, (4, "DV"): "<50.0"}, VISIT=range(40))
    data = read_dataset(frame, units=UNITS, options=ReadOptions(duplicates="mean"), lloq=20)
    at = (data.subject == 0) & (data.time == 10)
    assert data.cens[at].tolist() == [1]
    assert data.dv[at].tolist() == [50]


def test_limit_is_the_other_end_of_the_interval():
    frame = table(CENS=[1, 1, -1, 0] + [0] * 36, LIMIT=[10, 0, 9e4, 5] + [np.nan] * 36)
    data = read_dataset(frame, units=UNITS)
    np.testing.assert_array_equal(data.limit[:4], [10, np.nan, 9e4, np.nan])
    assert data.cens[:4].tolist() == [1, 1, -1, 0]
    assert [note.kind for note in data.report.notes] == ["limit-unused"]


def test_every_problem_is_listed_at_once():
    edits = {(4, "TIME"): "", (5, "DV"): -5, (6, "DV"): "5,200", (12, "ID"): "", (18, "TIME"): "D10"}
    lines = refused(edited(edits)).splitlines()
    assert lines[0] == "DataFrame: 5 problems"
    assert len(lines) == 6
