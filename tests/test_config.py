"""Options and the small TOML file become arguments of read_dataset; unknown ones are refused."""

from argparse import Namespace

import pytest

from carkinetics.config import table_settings
from carkinetics.dataset import ReadOptions
from carkinetics.errors import CarkineticsError


def arguments(**given) -> Namespace:
    empty = {"config": None, "column": [], "keep": [], "unit": [], "lloq": None, "duplicates": None, "predose": None}
    return Namespace(**empty | {"after": None} | given)


def test_options_become_settings():
    """Each option lands in its argument."""
    found = table_settings(
        arguments(column=["ID=patient"], keep=["specimen=PB", "specimen=BM"], unit=["TIME=hour"], lloq=10.0, after=0.0)
    )
    assert found == {
        "columns": {"ID": "patient"},
        "keep": {"specimen": ["PB", "BM"]},
        "units": {"TIME": "hour"},
        "lloq": 10.0,
        "options": ReadOptions(after=0.0),
    }


def test_options_win_over_the_file(tmp_path):
    """The file says what is always so, the command line what is so today."""
    path = tmp_path / "trial.toml"
    path.write_text(
        'lloq = 50\n[columns]\nID = "patient"\nTIME = "day"\n[options]\nduplicates = "first"\npredose = "exclude"\n'
    )
    found = table_settings(arguments(config=path, column=["TIME=hours"], lloq=25.0, duplicates="mean"))
    assert found["columns"] == {"ID": "patient", "TIME": "hours"}
    assert found["lloq"] == 25.0
    assert found["options"] == ReadOptions(duplicates="mean", predose="exclude")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colums = 1", "Did you mean 'columns'"),
        ("[options]\nduplicate = 'first'", "Did you mean 'duplicates'"),
        ("a = [", "not valid TOML"),
        ("#" + "x" * 200_000, "at most"),
    ],
)
def test_bad_files_are_refused(text, message, tmp_path):
    """A key that would be ignored is an error."""
    path = tmp_path / "trial.toml"
    path.write_text(text)
    with pytest.raises(CarkineticsError, match=message):
        table_settings(arguments(config=path))


def test_a_pair_without_a_sign_is_refused():
    """``--column ID`` maps nothing."""
    with pytest.raises(CarkineticsError, match="NAME=VALUE"):
        table_settings(arguments(column=["ID"]))
