"""What is a table and what is not: files, separators, encodings, headers, column names."""

# pandas' own annotations call ``frame[mask]`` a Series or an array, and ``outcomes`` may be None.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import errno
import io
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carkinetics.dataset import ReadOptions, read_dataset
from carkinetics.errors import DataError, DataWarning
from carkinetics.findings import Findings, listed, shown
from carkinetics.tables import parse_numbers, read_table

HEADER = "patient_id,time_day,copies_per_ug"
COLUMNS = {"ID": "patient_id", "TIME": "time_day", "DV": "copies_per_ug"}
TIMES = [0, 3, 7, 10, 14, 21, 28, 60, 90, 180]
SHAPE = [60, 300, 9000, 20000, 12000, 5000, 2500, 900, 600, 200]
ROWS = [f"P{i:02d},{t},{v * i}" for i in range(1, 5) for t, v in zip(TIMES, SHAPE, strict=True)]


def text(edits=None, header=HEADER):
    """The control file; ``edits`` are {line: text of the line}."""
    lines = [header, *ROWS]
    for line, content in (edits or {}).items():
        lines[line - 1] = content
    return "\n".join(lines) + "\n"


def write(tmp_path, content, name="trial.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(source, **arguments):
    return read_dataset(source, **{"columns": COLUMNS, "units": {"DV": "copies/ug"}, **arguments})


def refused(source, **arguments):
    with pytest.raises(DataError) as caught:
        read(source, **arguments)
    return str(caught.value)


def as_frame(content):
    rows = [line.split(",") for line in content.splitlines()]
    return pd.DataFrame(rows[1:], columns=pd.Index(rows[0]), dtype=object)


@pytest.fixture
def control(tmp_path):
    return read(write(tmp_path, text(), "control.csv"))


def test_f00_control_loads_without_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read(write(tmp_path, text()))
    assert (data.n_subjects, data.n_obs) == (4, 40)
    assert data.report.notes == ()
    assert data.report.excluded.empty
    assert data.source == "trial.csv"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_f01_empty_file(content, tmp_path):
    assert re.match(r"trial\.csv: the file is empty \(\d bytes\)", refused(write(tmp_path, content)))


def test_f02_header_without_rows(tmp_path):
    message = refused(write(tmp_path, HEADER + "\n"))
    assert message == "trial.csv: no observations: the table has a header and no rows. Add the records."
    assert refused(as_frame(HEADER)) == message.replace("trial.csv", "DataFrame")


def test_f03_required_column_absent(tmp_path):
    content = text(header="ID,TME,DV")
    message = refused(write(tmp_path, content), columns=None)
    assert message == (
        'trial.csv, line 1: no column TIME. Found: ID, TME and DV. Did you mean TME? Pass columns={"TIME": "TME"}.'
    )
    assert refused(as_frame(content), columns=None) == message.replace("trial.csv, line 1", "DataFrame, header")
    two = refused(write(tmp_path, text()), columns={"ID": "patient"})
    assert 'columns maps ID to "patient", which is absent' in two
    assert 'Did you mean "patient_id"?' in two
    assert "no column TIME" in two
    assert "no column DV" in two


def test_f03_unknown_key_of_columns(tmp_path):
    message = refused(write(tmp_path, text()), columns={**COLUMNS, "CEN": "x"})
    assert 'unknown name "CEN"' in message
    assert 'Did you mean "CENS"?' in message
    assert "twice" in refused(write(tmp_path, text()), columns={**COLUMNS, "DV": "time_day"})
    assert "Only ID" in refused(write(tmp_path, text()), columns={**COLUMNS, "DV": ["time_day", "copies_per_ug"]})


def test_f04_column_twice(tmp_path):
    content = text(header="patient_id,time_day,time_day")
    message = refused(write(tmp_path, content))
    assert message == "trial.csv, line 1: column time_day is there more than once. Rename or delete one."
    assert refused(as_frame(content)) == message.replace("trial.csv, line 1", "DataFrame, header")
    assert "columns dv and DV are all DV" in refused(write(tmp_path, text(header="ID,dv,DV")), columns=None)
    assert 'column "dv": the reader uses that name' in refused(
        write(
            tmp_path,
            "\n".join(f"{row},1" for row in text(header=HEADER).splitlines()).replace("ug,1", "ug,dv"),
        )
    )
    assert "a column has no name" in refused(write(tmp_path, text(header="patient_id,time_day,")))


def test_f05_bom_and_crlf(tmp_path, control):
    data = read(write(tmp_path, b"\xef\xbb\xbf" + text().replace("\n", "\r\n").encode()))
    assert data.sha256 == control.sha256
    np.testing.assert_array_equal(data.dv, control.dv)


def test_f06_semicolons_and_decimal_commas(tmp_path, control):
    european = text({6: "P01,14.5,12000"}).replace(",", ";").replace("14.5", "14,5")
    path = write(tmp_path, european)
    message = refused(path)
    assert "line 1: the separator looks like ';' and the decimal mark like ','" in message
    assert "ReadOptions(separator=';', decimal=',')" in message
    frame = pd.DataFrame({HEADER.replace(",", ";"): european.splitlines()[1:]})
    assert refused(frame) == message.replace("trial.csv, line 1", "DataFrame, header")
    data = read(path, options=ReadOptions(separator=";", decimal=","))
    assert data.time[data.dv == 12000].tolist() == [14.5]
    plain = write(tmp_path, text().replace(",", ";"))
    assert "decimal" not in refused(plain)
    assert read(plain, options=ReadOptions(separator=";")).sha256 == control.sha256
    assert read(write(tmp_path, text().replace(",", "\t"), "trial.tsv")).sha256 == control.sha256
    assert r"'\t'" in refused(write(tmp_path, text().replace(",", "\t")))


def test_f06_decimal_comma_in_one_cell(tmp_path):
    message = refused(write(tmp_path, text({6: 'P01,"12,5",900'})))
    assert 'line 6, column time_day, patient P01: not a number, got "12,5"' in message
    assert "decimal=','" in message


def test_f07_one_field_too_many(tmp_path):
    message = refused(write(tmp_path, text({7: ROWS[5] + ",x", 9: "P01,60"})))
    assert message == (
        "trial.csv, lines 7 and 9: 2 and 4 fields where the header has 3. Quote a field that holds the separator."
    )


def test_f08_thousands_separator(tmp_path):
    content = text({5: 'P01,10,"5,200"'})
    message = refused(write(tmp_path, content))
    assert message.startswith('trial.csv, line 5, column copies_per_ug, patient P01: not a number, got "5,200"')
    assert "without a thousands separator" in message


def test_f09_latin_1(tmp_path):
    content = text().replace("P02", "Pé2").encode("latin-1")
    message = refused(write(tmp_path, content))
    assert "trial.csv, lines 12, 13," in message
    assert "bytes that are not utf-8" in message
    assert 'ReadOptions(encoding="latin-1")' in message
    assert read(write(tmp_path, content), options=ReadOptions(encoding="latin-1")).subjects[3] == "Pé2"
    utf16 = write(tmp_path, text().encode("utf-16"))
    assert 'encoding="utf-16"' in refused(utf16)
    assert read(utf16, options=ReadOptions(encoding="utf-16")).n_obs == 40


def test_f10_nul_byte(tmp_path):
    message = refused(write(tmp_path, text({6: "P01,14,12\x00000"})))
    assert message.startswith("trial.csv, line 6: NUL bytes")
    assert refused(as_frame(text({6: "P01,14,12\x00000"}))) == message.replace("trial.csv, line 6", "DataFrame, row 5")


def test_f11_a_workbook_is_no_csv(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    assert "not a text CSV but an Excel workbook or a zip" in refused(write(tmp_path, buffer.getvalue()))
    as_frame(text()).to_parquet(tmp_path / "wrong.csv")
    assert "Parquet" in refused(tmp_path / "wrong.csv")
    assert "not a readable Parquet file" in refused(write(tmp_path, text(), "wrong.parquet"))


@pytest.mark.parametrize("header", [" ID ,time,Dv", "id, TIME ,dv"])
def test_f12_blanks_and_case_of_the_header(header, tmp_path, control):
    data = read(write(tmp_path, text(header=header)), columns=None)
    assert data.sha256 == control.sha256
    assert [note.kind for note in data.report.notes] == ["header-case"]


def test_f12_near_name_of_an_optional_column_is_named(tmp_path):
    content = "\n".join(row + (",0" if i else ",CESN") for i, row in enumerate(text().splitlines()))
    with pytest.warns(DataWarning, match="line 1: column CESN is kept as a covariate. If it is CENS"):
        data = read(write(tmp_path, content))
    assert "CESN" in data.table


def test_f13_blank_rows_are_counted(tmp_path, control):
    content = text() + "\n,,\n , ,\n"
    with pytest.warns(DataWarning, match="lines 42, 43 and 44: 3 blank, left out") as caught:
        data = read(write(tmp_path, content))
    assert len(caught) == 1
    assert data.report.notes[0].lines == (42, 43, 44)
    assert data.sha256 == control.sha256
    with pytest.warns(DataWarning, match="DataFrame, row 41: 1 blank"):
        read(pd.concat([as_frame(text()), pd.DataFrame([{"patient_id": np.nan}])]))


def test_f14_units_row(tmp_path):
    content = text().replace("ug\n", "ug\n,day,copies/ug\n", 1)
    message = refused(write(tmp_path, content))
    assert message.startswith('trial.csv, line 2, column time_day: not numeric, got "day": looks like a units row')
    assert refused(as_frame(content)) == message.replace("trial.csv, line 2", "DataFrame, row 1")


def test_f15_paths_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read(tmp_path / "absent.csv")
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet"):
        read(str(tmp_path / "absent.parquet"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.csv"):
        read(tmp_path / "folder.csv")

    def forbid(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = write(tmp_path, text())
    monkeypatch.setattr(Path, "read_bytes", forbid)  # a test that runs as root may read everything
    with pytest.raises(PermissionError, match=r"trial\.csv"):
        read(path)
    with pytest.raises((DataError, TypeError), match="source"):
        read([1, 2])


def test_lines_count_line_breaks_inside_quotes(tmp_path):
    content = text({3: 'P01,3,300,"a\nb"', 5: "P01,10,x,c"}, HEADER + ",NOTE")
    content = "\n".join(row + ",n" if row.count(",") == 2 else row for row in content.splitlines())
    content = content.replace('"a,n', '"a').replace('b",n', 'b"')
    assert "trial.csv, line 6, column copies_per_ug" in refused(write(tmp_path, content))


def test_quote_that_is_never_closed(tmp_path):
    assert "line 41: not a readable CSV record" in refused(write(tmp_path, text({41: 'P04,180,"800'})))


@pytest.mark.parametrize(
    ("options", "part"),
    [({"max_rows": 39}, "more than 39 rows"), ({"max_field_length": 4}, "more than 4 characters")],
)
def test_limits_of_size(options, part, tmp_path):
    for source in (write(tmp_path, text()), as_frame(text())):
        assert part in refused(source, options=ReadOptions(**options))
    as_frame(text()).to_parquet(tmp_path / "trial.parquet")
    assert "39" in refused(tmp_path / "trial.parquet", options=ReadOptions(max_rows=39))
    assert "field larger" in refused(write(tmp_path, text({6: "x" * 200_000 + ",1,2"})))


@pytest.mark.parametrize(
    "wrong",
    [{"duplicates": "median"}, {"predose": "keep"}, {"decimal": ";"}, {"separator": ",,"}, {"separator": "."},
     {"encoding": "utf-9"}, {"max_rows": 0}, {"max_field_length": 10**9}],
)  # fmt: skip
def test_options_are_checked(wrong):
    # A type checker that runs with the tests may be the first to refuse a name that is not known.
    with pytest.raises((DataError, TypeError), match="ReadOptions"):
        ReadOptions(**wrong)


def test_cells_of_every_type_become_the_text_of_a_csv():
    frame = pd.DataFrame({
        "a": [1.0, np.nan, 0.1, np.inf], "b": pd.array([1, None, 3, 4], dtype="Int64"), "c": [True, None, "x",
         2.5],
        "d": [pd.Timestamp("2019-04-03"), pd.NaT, pd.Timestamp("2019-04-03 02:30"), None],
         "e": pd.Categorical(list("wxyz")),
        "f": np.array([0.1, 1, 2, 3], dtype="float32"), "g": [1, 2, 3, 2**60],
    })  # fmt: skip
    cells = read_table(frame, ReadOptions()).cells
    assert cells.loc[1].tolist() == ["1", "1", "True", "2019-04-03", "w", "0.1", "1"]
    assert cells.loc[2].tolist() == ["", "", "", "", "x", "1", "2"]
    assert cells.loc[4, "g"] == str(2**60)
    assert cells.loc[3, "d"] == "2019-04-03 02:30:00"


def test_parse_numbers_is_exact():
    texts = ["0.1", "1e22", ".5", "5.", "-3", "1e400", "", "nan"]
    np.testing.assert_array_equal(parse_numbers(pd.Series(texts)), [0.1, 1e22, 0.5, 5, -3, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(parse_numbers(pd.Series(["1,5", "1.5"]), ","), [1.5, np.nan])


def test_messages_list_twenty_and_the_count():
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a and b"
    assert listed(range(33)).endswith("18, 19 and 13 more (33 in all)")
    assert shown("a\nb\u202e\ud800") == r"a\nb\u202e\ud800"
    cells = pd.DataFrame({"ID": ["a"] * 30}, index=range(2, 32))
    found = Findings("t.csv", "line", {}, cells)
    found.error(np.zeros(30, bool), "ID", "x", "y")
    assert found.errors == []
    found.error(np.ones(30, bool), "ID", "bad {got}", "Mend it.")
    assert found.errors[0].endswith('20, 21 and 10 more (30 in all), column ID, patient a: bad "a". Mend it.')
