"""The published models: every file loads, names its sources, and reproduces the facts of its paper."""

import tomllib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from carkinetics import model_checks
from carkinetics.errors import ModelError
from carkinetics.model_checks import run_checks, typical_curve
from carkinetics.model_files import load_model, models_folder
from carkinetics.model_parts import Check
from tiers import tiered

FILES = sorted(models_folder().glob("*.toml"))
STEIN = load_model("stein_2019_tisagenlecleucel")


def test_there_are_models():
    """If it fails, the folder is not found and every other test here passes on nothing."""
    assert len(FILES) >= 1
    assert sum(len(load_model(p.stem).checks) for p in FILES) >= len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_file_loads_under_its_own_name(path):
    """If it fails, the model cannot be loaded by the name that its file has."""
    model = load_model(path.stem)
    assert model.name == path.stem
    assert load_model(path) == model
    assert model.toml == path.read_text(encoding="utf-8")
    assert model.label
    assert model.reference
    assert model.doi.startswith("10.")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_number_has_a_source(path):
    """If it fails, a number stands in a published model and nobody can say where it is from."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, table in [*raw["parameters"].items(), *raw["assays"].items()]:
        assert table.get("source", "").strip(), name
        assert table.get("confidence", "").strip(), name  # memory must be called memory
        assert table.get("unit", "").strip(), name
    for check in raw["checks"]:
        assert check["source"].strip()
        assert check.get("unit", "").strip()
        assert 0 < check["rel_tol"] <= 0.1  # a wider check can hardly fail


# Of stiff structures another file's are in the fast tier.
facts_of = pytest.mark.parametrize(
    "name",
    tiered([p.stem for p in FILES], thorough={"hardiansyah_2019_upn1", "hardiansyah_2019_upn3", "barros_2021_hdlm2"}),
)


@cache
def checked(name):
    return run_checks(load_model(name))


@facts_of
def test_the_typical_patient_reproduces_the_facts(name):
    """If it fails, equations and numbers together are not the published model."""
    table = checked(name)
    assert len(table) == len(load_model(name).checks)
    assert table["ok"].all(), table.to_string()


@facts_of
def test_the_checks_can_fail(name, monkeypatch):
    """If it fails, a check of this file passes whatever the expected value is."""
    model, found = load_model(name), checked(name)["found"]
    for sign in (1, -1):
        wrong = [replace(c, expected=c.expected * (1 + sign * 2.1 * c.rel_tol)) for c in model.checks]
        values = iter(found)
        monkeypatch.setattr(model_checks, "_quantity", lambda model, check, values=values: next(values))
        assert not run_checks(replace(model, checks=tuple(wrong)))["ok"].any()


@pytest.mark.parametrize("name", [p.name for p in STEIN.parameters if p.name != "fb"])
def test_a_wrong_number_in_the_file_is_noticed(name):
    """If it fails, a typing error of 30 % in a value of Stein's table goes through all its checks."""
    wrong = tuple(replace(p, value=p.value * 1.3) if p.name == name else p for p in STEIN.parameters)
    assert not run_checks(replace(STEIN, parameters=wrong))["ok"].all()


def test_the_quantities_are_what_they_are_called():
    """If it fails, a check compares a paper's number with another quantity."""

    def found(quantity, time=None):
        check = Check(quantity, 1.0, 0.1, time)
        return float(run_checks(replace(STEIN, checks=(check,)))["found"].iloc[0])

    rho = np.log(3900) / 9.3
    assert found("doubling_time", 5.0) == pytest.approx(np.log(2) / rho, rel=1e-6)
    assert found("half_life", 1500.0) == pytest.approx(np.log(2) / 0.0032, rel=1e-6)
    assert found("half_life", 5.0) == pytest.approx(-np.log(2) / rho, rel=1e-6)
    assert found("level", 0.0) == pytest.approx(24000 / 3900, rel=1e-12)
    s = 30 - 9.3
    level = 24000 * ((1 - 0.0079) * np.exp(-0.16 * s) + 0.0079 * np.exp(-0.0032 * s))
    assert found("level", 30.0) == pytest.approx(level, rel=1e-12)
    assert found("peak_level") == pytest.approx(24000, rel=1e-9)
    assert found("peak_time") == pytest.approx(9.3, abs=0.01)
    np.testing.assert_allclose(np.exp(typical_curve(STEIN, np.array([0.0, 30.0]))), [24000 / 3900, level], rtol=1e-12)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (Check("half_lives", 1.0, 0.1, 3.0), "unknown quantity 'half_lives'"),
        (Check("level", 1.0, 0.1), "level needs a time"),
        (Check("half_life", 1.0, 0.1), "half_life needs a time"),
    ],
)
def test_a_check_that_cannot_be_computed_is_refused(check, said):
    """If it fails, a misspelt check is counted as passed, or ends in a traceback."""
    with pytest.raises(ModelError, match=said):
        run_checks(replace(STEIN, checks=(check,)))


def test_a_quantity_that_is_not_finite_does_not_pass():
    """If it fails, a model whose curve is NaN passes every check."""
    broken = tuple(replace(p, value=float("nan")) if p.name == "cmax" else p for p in STEIN.parameters)
    table = run_checks(replace(STEIN, parameters=broken))
    assert not table[table["quantity"].isin(["level", "peak_level"])]["ok"].any()
