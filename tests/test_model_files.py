"""Model files: every number arrives as written, and everything else is refused by name."""

import math
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import stats

from carkinetics.errors import ModelError
from carkinetics.model_files import list_models, load_model, models_folder, parse_model
from carkinetics.model_parts import OMEGA_PRIOR_SD, SIGMA_PRIOR_SD, TYPICAL_PRIOR_SD, Prior
from carkinetics.structure import AbstractStructure


class Rates(NamedTuple):
    level: Float[Array, "*n"]
    loss: Float[Array, "*n"]


class State(NamedTuple):
    cells: Float[Array, "*n"]


class Decay(AbstractStructure[Rates, State]):
    """A user's own structure: one exponential."""

    name = "decay"
    parameters = Rates
    states = State
    outputs = ("blood", "marrow")

    def curve(self, t, p, x):
        blood = jnp.log(p.level) - p.loss * t
        return {"blood": blood, "marrow": blood - 0.37}

    def initial(self, p, x):
        return State(p.level)

    def rhs(self, t, y, p, x):
        return State(-p.loss * y.cells)

    def output(self, y, p):
        return {"blood": jnp.log(y.cells), "marrow": jnp.log(y.cells) - 0.37}


TEXT = """\
schema = 1
name = "mine"
label = "a decay"
structure = "decay"
notes = ["one", "two"]

[parameters.level]
value = 1000
unit = "copies/ug"
transform = "log"
omega_sd = 0.8
prior_sd = 1.25
source = "Table 2"

[parameters.loss]
value = 0.1
unit = "1/day"
transform = "logit"
no_iiv = true
fixed = true

[assays.qpcr]
output = "blood"
matrix = "PB"
unit = "copies/ug"
error = "lognormal"
sigma = 0.5
lloq = 50

[assays.biopsy]
output = "marrow"
matrix = "BM"
unit = "copies/ug"
error = "lognormal"
sigma = 0.7

[[checks]]
quantity = "level"
time = 10
expected = 368
rel_tol = 0.01
source = "by hand"
"""


def edited(*changes):
    """The text with parts replaced; each must occur once."""
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def parsed(*changes):
    return parse_model(edited(*changes), where="mine.toml", structures=[Decay()])


def refused(*changes):
    with pytest.raises(ModelError) as caught:
        parsed(*changes)
    assert str(caught.value).startswith("mine.toml")
    return str(caught.value)


def test_a_model_with_a_structure_of_ones_own_arrives_as_written():
    """If it fails, a number of the file ends up in another place, or private structures cannot be used."""
    model = parsed()
    assert (model.name, model.label, model.structure.name, model.notes) == ("mine", "a decay", "decay", ("one", "two"))
    level, loss = model.parameters
    assert (level.name, level.value, level.unit, level.transform) == ("level", 1000.0, "copies/ug", "log")
    assert (level.iiv, level.fixed, level.source) == (0.8, False, "Table 2")
    assert level.prior == Prior("normal", math.log(1000), 1.25)
    assert level.prior_omega == Prior("lognormal", math.log(0.8), OMEGA_PRIOR_SD)
    assert (loss.iiv, loss.fixed) == (0.0, True)
    assert loss.prior.loc == pytest.approx(math.log(0.1 / 0.9), rel=1e-14)
    assert loss.prior.scale == TYPICAL_PRIOR_SD
    qpcr, biopsy = model.assays
    assert (qpcr.name, qpcr.output, qpcr.matrix, qpcr.sigma, qpcr.lloq) == ("qpcr", "blood", "PB", 0.5, 50.0)
    assert (biopsy.name, biopsy.output, biopsy.lloq) == ("biopsy", "marrow", None)
    assert biopsy.prior == Prior("lognormal", math.log(0.7), SIGMA_PRIOR_SD)
    assert [(c.quantity, c.time, c.expected, c.rel_tol) for c in model.checks] == [("level", 10.0, 368.0, 0.01)]
    assert model.toml == TEXT


def test_a_structure_of_ones_own_is_known_only_where_it_is_given():
    """If it fails, loading one model changes what another one can load."""
    parsed()
    with pytest.raises(ModelError, match="unknown structure 'decay'"):
        parse_model(TEXT)


@pytest.mark.parametrize(
    ("line", "omega"),
    [
        ("omega_sd = 0.8", 0.8),
        ("omega_var = 0.64", 0.8),
        ("omega_sd = 2", 2.0),
        ("cv_pct = 50", None),
        ("cv_pct = 230", None),
    ],
)
def test_each_way_to_state_variability_gives_the_sd_of_the_log(line, omega):
    """If it fails, variances are read as SDs (the dispute about Stein's Table 1) or CVs as SDs."""
    found = parsed(("omega_sd = 0.8", line))["level"]
    if omega is None:
        mean, variance = stats.lognorm.stats(s=found.iiv, moments="mv")
        assert 100 * math.sqrt(variance) / mean == pytest.approx(float(line.split()[-1]), rel=1e-9)
    else:
        assert found.iiv == pytest.approx(omega, rel=1e-15)
    assert found.prior_omega.loc == pytest.approx(math.log(found.iiv), rel=1e-12)  # the prior's median is the omega


@pytest.mark.parametrize(
    "lines",
    ["", "omega_sd = 0.8\nomega_var = 0.64", "cv_pct = 50\nomega_sd = 0.8", "omega_sd = 0.8\nno_iiv = true"],
)
def test_variability_is_stated_exactly_once(lines):
    """If it fails, one of two contradicting statements is dropped in silence."""
    message = refused(("omega_sd = 0.8\n", lines + "\n"))
    assert "[parameters.level]" in message
    assert "exactly one of omega_sd, omega_var, cv_pct or no_iiv" in message


@pytest.mark.parametrize("line", ["omega_sd = 0", "omega_sd = -0.2", "omega_var = 0.0", "cv_pct = -50"])
def test_variability_is_above_zero(line):
    """If it fails, a zero omega makes the density infinite instead of being written as no_iiv."""
    assert "no_iiv = true" in refused(("omega_sd = 0.8", line))


def test_a_cv_is_only_for_log_normal_parameters():
    """If it fails, a CV is taken for the SD of a logit."""
    assert "cv_pct is for transform = 'log'" in refused(("no_iiv = true", "cv_pct = 30"))


def test_no_iiv_that_is_not_true_is_refused():
    """If it fails, `no_iiv = false` is read as no variability."""
    assert "no_iiv" in refused(("no_iiv = true", "no_iiv = false"))


@pytest.mark.parametrize("value", ['"false"', "0.0", "1"])
def test_fixed_is_true_or_false_and_nothing_else(value):
    """If it fails, `fixed = "false"` is read as fixed."""
    assert "fixed" in refused(("fixed = true", f"fixed = {value}"))


@pytest.mark.parametrize(
    ("change", "key", "near"),
    [
        (("[[checks]]", "paramters = 1\n[[checks]]"), "paramters", ""),
        (("unit = \"1/day\"", "units = \"1/day\""), "units", "unit"),
        (("prior_sd = 1.25", "prior_sdd = 1.25"), "prior_sdd", "prior_sd"),
        (("lloq = 50", "llog = 50"), "llog", "lloq"),
        (("rel_tol = 0.01", "tol = 0.01"), "tol", "rel_tol"),
        (("label = \"a decay\"", "lable = \"a decay\""), "lable", "label"),
        (("[parameters.loss]", "[parameters.los]"), "los", "loss"),
        (("structure = \"decay\"", "structure = \"decai\""), "decai", "decay"),
        (("transform = \"logit\"", "transform = \"logitt\""), "logitt", "logit"),
        (("output = \"marrow\"", "output = \"marow\""), "marow", "marrow"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest_match(change, key, near):
    """If it fails, a misspelt key is ignored and its default used in silence."""
    message = refused(change)
    assert repr(key) in message
    if near:
        assert f"Did you mean {near!r}?" in message


@pytest.mark.parametrize(
    ("prior", "wanted"),
    [
        ('{family = "halfnormal", scale = 0.9}', Prior("halfnormal", 0.0, 0.9)),
        ('{family = "lognormal", median = 0.5, scale = 0.3}', Prior("lognormal", math.log(0.5), 0.3)),
    ],
)
def test_priors_on_omega_arrive_as_written(prior, wanted):
    """If it fails, the median of the file is used as its logarithm, or the family is another one."""
    assert parsed(("omega_sd = 0.8", f"omega_sd = 0.8\nprior_omega = {prior}"))["level"].prior_omega == wanted


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ('{family = "halfnormall", scale = 0.9}', "Did you mean 'halfnormal'"),
        ('{family = "normal", median = 0.5, scale = 0.9}', "unknown prior family 'normal'"),
        ('{family = "lognormal", scale = 0.9}', "median is missing"),
        ('{family = "lognormal", median = 0.5}', "scale is missing"),
        ('{family = "lognormal", median = 0.5, scale = 0.9, sd = 1}', "unknown key 'sd'"),
        ('{family = "lognormal", median = -0.5, scale = 0.9}', "median"),
        ('{family = "lognormal", median = 0, scale = 0.9}', "median"),
        ('{family = "lognormal", median = 0.5, scale = true}', "scale"),
        ('{family = "halfnormal", scale = 0.9, median = 0.5}', "median"),
    ],
)
def test_priors_on_omega_that_cannot_be_are_refused(prior, said):
    """If it fails, a prior is misread, or a mistake in it ends in a bare Python error."""
    assert said in refused(("omega_sd = 0.8", f"omega_sd = 0.8\nprior_omega = {prior}"))


@pytest.mark.parametrize("number", ["true", "nan", "inf", "-inf", '"1000"', "[1000]", "2024-01-01"])
@pytest.mark.parametrize("key", ["value = 1000", "omega_sd = 0.8", "sigma = 0.5", "lloq = 50", "expected = 368",
                                 "rel_tol = 0.01", "time = 10", "prior_sd = 1.25"])  # fmt: skip
def test_what_is_not_a_finite_number_is_refused(key, number):
    """If it fails, true is read as 1, or NaN reaches the density."""
    name = key.split()[0]
    assert name in refused((key, f"{name} = {number}"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("value = 1000", "value = 0"), "above 0"),
        (("value = 1000", "value = -3"), "above 0"),
        (("value = 0.1", "value = 1"), "between 0 and 1"),
        (("value = 0.1", "value = 0"), "between 0 and 1"),
        (("value = 0.1", "value = 1.5"), "between 0 and 1"),
        (("sigma = 0.5", "sigma = 0"), "above 0"),
        (("sigma = 0.5", "sigma = -0.5"), "above 0"),
        (("lloq = 50", "lloq = 0"), "above 0"),
        (("prior_sd = 1.25", "prior_sd = 0"), "above 0"),
        (("prior_sd = 1.25", "prior_sd = -1"), "above 0"),
        (("rel_tol = 0.01", "rel_tol = -0.01"), "rel_tol"),
        (("expected = 368", "expected = 0"), "expected"),
    ],
)
def test_numbers_outside_their_domain_are_refused(change, said):
    """If it fails, the logarithm of zero or a check that nothing can pass (or divides by zero) is loaded."""
    assert said in refused(change)


def test_the_identity_transform_takes_any_finite_value():
    """If it fails, parameters that may be negative cannot be written."""
    model = parsed(("value = 0.1", "value = -3.5"), ('transform = "logit"', 'transform = "identity"'))
    assert model["loss"].theta == -3.5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('name = "mine"\n', "name is missing"),
        ('structure = "decay"\n', "structure is missing"),
        ("schema = 1\n", "schema = None"),
        ("value = 1000\n", "value is missing"),
        ('transform = "log"\n', "transform is missing"),
        ('output = "blood"\n', "output is missing"),
        ("sigma = 0.5\n", "sigma is missing"),
        ('source = "by hand"\n', "source is missing"),
        ("rel_tol = 0.01\n", "rel_tol is missing"),
    ],
)
def test_what_is_missing_is_named(line, said):
    """If it fails, a missing key ends in a KeyError or in a default that nobody asked for."""
    assert said in refused((line, ""))


def test_missing_parameters_assays_and_tables_are_named():
    """If it fails, a structure is run with a parameter that the file does not give."""
    start, end = TEXT.index("[parameters.loss]"), TEXT.index("[assays.qpcr]")
    with pytest.raises(ModelError, match="decay needs the parameters loss as well"):
        parse_model(TEXT[:start] + TEXT[end:], structures=[Decay()])
    start, end = TEXT.index("[assays.qpcr]"), TEXT.index("[[checks]]")
    with pytest.raises(ModelError, match="assays is missing"):
        parse_model(TEXT[:start] + TEXT[end:], structures=[Decay()])
    with pytest.raises(ModelError, match="assay"):
        parse_model(TEXT[:start] + "[assays]\n" + TEXT[end:], structures=[Decay()])


@pytest.mark.parametrize("schema", ["2", "0", '"1"', "true", "1.5"])
def test_another_schema_is_refused(schema):
    """If it fails, a file of a later version is read by the rules of this one."""
    assert "reads schema = 1" in refused(("schema = 1", f"schema = {schema}"))


@pytest.mark.parametrize(
    "text",
    [
        "schema = 1\nschema = 1",
        "[a]\n[a]",
        "name = 'x",
        "= 3",
        "\x00",
        TEXT.replace("[parameters.loss]", "[parameters.level]"),
        TEXT.replace("value = 1000", "value = 1000\nvalue = 1001"),
    ],
)
def test_what_is_not_toml_is_refused(text):
    """If it fails, a duplicate key is decided by chance, or the user sees a parser's traceback."""
    with pytest.raises(ModelError, match=r"mine\.toml: not valid TOML"):
        parse_model(text, where="mine.toml")


@pytest.mark.parametrize(
    "change",
    [
        ("[parameters.level]\n", "[parameters]\nlevel = 3\n[parameters.levels]\n"),
        ('notes = ["one", "two"]', 'notes = ["one", "two"]\nassays = 3'),
        ('name = "mine"', "name = 3"),
        ('unit = "1/day"', "unit = 3"),
        ('label = "a decay"', "label = 3"),
        ('notes = ["one", "two"]', 'notes = "one"'),
        ('notes = ["one", "two"]', "notes = [1]"),
        ('structure = "decay"', "structure = 3"),
        ('structure = "decay"', 'structure = ["decay"]'),
        ('transform = "log"', "transform = 1"),
        ('matrix = "BM"', "matrix = 1"),
        ('source = "by hand"', "source = 1"),
        ('quantity = "level"', "quantity = 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(change):
    """If it fails, a number where text belongs gives a Python traceback, or a note is cut into its letters."""
    text = TEXT.replace(*change)
    assert text != TEXT
    with pytest.raises(ModelError):
        parse_model(text, where="mine.toml", structures=[Decay()])


def test_tables_that_are_no_tables_are_refused():
    """If it fails, `parameters = 3` or `checks = 3` ends in a TypeError."""
    head = 'schema = 1\nname = "m"\nstructure = "decay"\n'
    for text in (head + "parameters = 3\nassays = {}", head + "parameters = {level = 3, loss = 4}\nassays = {}"):
        with pytest.raises(ModelError):
            parse_model(text, structures=[Decay()])
    for bad in ("checks = 3", "checks = [3]"):
        with pytest.raises(ModelError):
            parse_model(bad + "\n" + TEXT[: TEXT.index("[[checks]]")], structures=[Decay()])


def test_files_are_read_by_path_and_refused_by_name(tmp_path):
    """If it fails, a user's own file cannot be loaded, or an unreadable one ends in a traceback."""
    good = tmp_path / "mine.toml"
    good.write_text(TEXT, encoding="utf-8")
    assert load_model(good, structures=[Decay()]).name == "mine"
    assert load_model(str(good), structures=[Decay()]).name == "mine"
    with pytest.raises(ModelError, match="there is no such file"):
        load_model(tmp_path / "absent.toml")
    with pytest.raises(ModelError, match="there is no such file"):
        (tmp_path / "folder.toml").mkdir()
        load_model(tmp_path / "folder.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(TEXT.replace("a decay", "une décroissance").encode("latin-1"))
    with pytest.raises(ModelError, match=r"latin\.toml: not UTF-8"):
        load_model(latin)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ModelError, match=r"large\.toml: 1000001 bytes"):
        load_model(large)
    just = tmp_path / "just.toml"
    just.write_bytes(TEXT.encode() + b"#" * (1_000_000 - len(TEXT.encode())))
    assert load_model(just, structures=[Decay()]).name == "mine"


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_written_on_windows_are_read(tmp_path, newline, mark):
    """If it fails, a file saved by Notepad (CRLF, byte-order mark) is no model."""
    path = tmp_path / "mine.toml"
    path.write_bytes((mark + TEXT.replace("\n", newline)).encode())
    assert load_model(path, structures=[Decay()])["level"].value == 1000


def test_an_unknown_published_model_is_refused_with_the_nearest_match():
    """If it fails, a misspelt model name ends in FileNotFoundError."""
    with pytest.raises(ModelError, match=r"Did you mean 'stein_2019_tisagenlecleucel'\?"):
        load_model("stein_2019_tisagenlecleucl")


@pytest.mark.parametrize("name", ["../pyproject", "/etc/passwd", "stein_2019_tisagenlecleucel.txt", ""])
def test_a_name_is_no_way_out_of_the_models_folder(name):
    """If it fails, a model's name reads a file elsewhere on the machine."""
    with pytest.raises(ModelError, match="unknown model"):
        load_model(name)


def test_list_models_names_every_file():
    """If it fails, a published model cannot be found."""
    table = list_models()
    assert table.index.tolist() == sorted(p.stem for p in models_folder().glob("*.toml"))
    assert "stein_2019_tisagenlecleucel" in table.index
    assert re.fullmatch(r"10\.\d+/.+", table.loc["stein_2019_tisagenlecleucel", "doi"])


def test_values_of_the_published_model_are_those_of_the_paper():
    """If it fails, the first model that users load has other numbers than Stein's Table 1."""
    model = load_model("stein_2019_tisagenlecleucel")
    paper = {"foldx": 3900, "tmax": 9.3, "cmax": 24000, "alpha": 0.16, "fb": 0.0079, "beta": 0.0032}
    variances = {"foldx": 2.4, "tmax": 0.38, "cmax": 0.65, "alpha": 0.91, "fb": 0.80, "beta": 0.86}
    assert {p.name: p.value for p in model.parameters} == paper
    np.testing.assert_allclose([p.iiv**2 for p in model.parameters], list(variances.values()), rtol=1e-12)
    assert model.assays[0].sigma == 0.56
