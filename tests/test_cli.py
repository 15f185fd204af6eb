"""The command line: exit codes, one clear message, silence where nobody watches."""

import subprocess
import sys
from pathlib import Path

import pytest

from carkinetics import cli


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "carkinetics", *arguments], capture_output=True, text=True, check=False
    )


def test_models_and_one_model(capsys):
    """The list names every model; one model shows its equations' text, its numbers and its notes."""
    assert cli.main(["models"]) == 0
    assert "stein_2019_tisagenlecleucel" in capsys.readouterr().out
    assert cli.main(["models", "stein_2019_tisagenlecleucel"]) == 0
    out = capsys.readouterr().out
    assert "cmax" in out
    assert "10.1002/psp4.12388" in out


def test_unknown_model_is_a_user_error(capsys):
    """A typo gives the nearest name and exit code 1, no traceback."""
    assert cli.main(["models", "stein_2019"]) == 1
    err = capsys.readouterr().err
    assert "Did you mean 'stein_2019_tisagenlecleucel'" in err
    assert "Traceback" not in err


def test_missing_file_is_a_user_error(capsys):
    """A path that does not exist names itself."""
    assert cli.main(["fit", "nowhere.csv"]) == 1
    assert "nowhere.csv" in capsys.readouterr().err


def test_bad_table_lists_every_problem(tmp_path, capsys):
    """The command line says what read_dataset says: file, line, column, patient, remedy."""
    path = tmp_path / "trial.csv"
    path.write_text("ID,TIME,DV\nP01,1,-5\nP01,x,700\n")
    assert cli.main(["fit", str(path)]) == 1
    err = capsys.readouterr().err
    assert "line 2" in err
    assert "line 3" in err
    assert "Traceback" not in err


def test_a_bug_is_told_from_a_mistake(monkeypatch, capsys):
    """An unexpected exception gives its traceback and exit code 2."""
    import carkinetics.model_files as model_files

    def broken():
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(model_files, "list_models", broken)
    assert cli.main(["models"]) == 2
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "bug" in err


def test_check_a_table_and_a_model(tmp_path, capsys, small_trial):
    """``check`` reads without fitting: a table's report, a model's facts."""
    path = tmp_path / "trial.csv"
    small_trial.table.to_csv(path, index=False)
    assert cli.main(["check", str(path)]) == 0
    assert "12 subjects" in capsys.readouterr().out
    assert cli.main(["check", str(path), "--model", "stein_2019_tisagenlecleucel"]) == 0
    assert "non-finite gradient: 0 % of draws" in capsys.readouterr().out
    model = Path(__file__).parents[1] / "models" / "stein_2019_tisagenlecleucel.toml"
    assert cli.main(["check", str(model)]) == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(model.read_text().replace("value = 9.3\n", "value = 12.3\n"))
    assert cli.main(["check", str(wrong)]) == 1
    assert "checks fail" in capsys.readouterr().err


@pytest.mark.thorough
def test_fit_writes_its_results(tmp_path, capsys, small_trial):
    """A mapped table on the command line ends in a table, a verdict, figures and a fit file."""
    path, out = tmp_path / "trial.csv", tmp_path / "out"
    table = small_trial.table.rename(columns={"ID": "patient", "DV": "copies"}).drop(columns="CENS")
    table["specimen"] = "PB"
    table.to_csv(path, index=False)
    options = ["--column", "ID=patient", "--column", "DV=copies", "--keep", "specimen=PB", "--lloq", "50"]
    code = cli.main(["fit", str(path), *options, "--max-draws", "100", "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "R-hat" in captured.out
    assert "ESS" in captured.out
    files = {"fit.nc", "parameters.csv", "gof.csv", "individual_fits.png", "observed_predicted.png", "posteriors.png"}
    assert {p.name for p in out.iterdir()} == files
    assert "\x1b" not in captured.err  # no progress bar where stderr is not a terminal


def test_module_and_help():
    """``python -m carkinetics`` is the same command."""
    result = run("--help")
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert run("nonsense").returncode == 2  # argparse's own


def test_a_model_is_shown_with_its_curve(tmp_path, capsys, monkeypatch):
    """``models NAME`` has equations, sources and a figure; one without numbers says which are absent."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["models", "chaudhury_2020_first_order"]) == 0
    out = capsys.readouterr().out
    assert "doi:" in out
    assert (tmp_path / "carkinetics-models" / "chaudhury_2020_first_order.png").stat().st_size > 5000
    assert cli.main(["models", "paixao_2022"]) == 0
    assert "No figure: these numbers are not known" in capsys.readouterr().out


def test_a_simulated_trial_can_be_read(tmp_path, capsys):
    """``simulate`` writes what ``check`` reads."""
    path = tmp_path / "trial.csv"
    options = ["--patients", "7", "--days", "1", "7", "14", "--dose-per-kg", "2e6", "--out", str(path)]
    assert cli.main(["simulate", "stein_2019_tisagenlecleucel", *options]) == 0
    assert "7 virtual patients, 21 samples" in capsys.readouterr().out
    assert cli.main(["check", str(path)]) == 0
    assert "7 subjects, 21 observations" in capsys.readouterr().out
    assert cli.main(["simulate", "wu_2025_idecabtagene", "--out", str(path)]) == 1
    assert "numbers that are not known" in capsys.readouterr().err
