"""Optional tables of a model file: what they become, and that what cannot be is refused with a reason."""

import numpy as np
import pytest

from carkinetics.errors import ModelError
from carkinetics.model_files import list_models, load_model, parse_model
from carkinetics.model_parts import UNKNOWN, Prior
from carkinetics.model_text import describe
from test_expansion_contraction import TYPICAL

PARAMETERS = "".join(
    f'[parameters.{name}]\nvalue = {value}\nunit = "x"\ntransform = "log"\nomega_sd = 0.5\n\n'
    for name, value in TYPICAL.items()
)
HEAD = 'schema = 1\nname = "mine"\nstructure = "expansion_contraction"\n\n'
ASSAY = """[assays.qpcr]
output = "level"
matrix = "PB"
unit = "copies/ug"
error = "lognormal"
sigma = 0.5
conversion = { regressor = "wbc", vcn = 2, pg_per_cell = 6.3 }
prior_sigma = { family = "lognormal", median = 0.4, scale = 0.3 }

"""
TABLES = """[treatments.tocilizumab]
column = "TOCI_DAY"
value = 1.2
unit = "1"
transform = "log"
no_iiv = true
prior_sd = 0.3

[regressors.wbc]
column = "WBC"
unit = "cells/uL"
interpolation = "nocb"
typical = 4000

[[covariates]]
column = "BURDEN"
on = "cmax"
form = "power"
center = 20
value = 0.4

[mixture]
on = "cmax"
value = 240
probability = 0.2
label = "poor expander"

[prior_correlation]
names = ["cmax", "omega cmax"]
matrix = [[1, 0.5], [0.5, 1]]

[[checks]]
quantity = "peak_level"
output = "level"
expected = 240
rel_tol = 0.01
where = { cmax = 240 }
source = "by hand"
"""
TEXT = HEAD + PARAMETERS + ASSAY + TABLES


def test_every_table_becomes_what_it_says():
    """If it fails, a part of a model file is read as something else, or dropped."""
    model = parse_model(TEXT)
    (treatment,) = model.treatments
    assert (treatment.name, treatment.column, treatment.factor.name) == ("tocilizumab", "TOCI_DAY", "f_tocilizumab")
    assert (treatment.factor.value, treatment.factor.iiv, treatment.factor.prior.scale) == (1.2, 0.0, 0.3)
    assert model.acting == ()
    assert [p.name for p in model.parameters] == list(TYPICAL)
    (wbc,) = model.regressors
    assert (wbc.name, wbc.column, wbc.unit, wbc.interpolation, wbc.typical) == ("wbc", "WBC", "cells/uL", "nocb", 4000)
    (burden,) = model.covariates
    assert (burden.column, burden.on, burden.form, burden.center, burden.value) == ("BURDEN", "cmax", "power", 20, 0.4)
    assert model.mixture is not None
    assert (model.mixture.on, model.mixture.value, model.mixture.probability) == ("cmax", 240, 0.2)
    assert model.prior_correlation is not None
    assert model.prior_correlation.matrix == ((1.0, 0.5), (0.5, 1.0))
    assert model.assays[0].prior == Prior("lognormal", np.log(0.4), 0.3)
    conversion = model.assays[0].conversion
    assert conversion is not None
    # 24,000 copies/ug at a white count of 1,000 and 2 copies per cell are 76 cells/uL
    assert 24000 / np.exp(conversion.ln_factor(1000.0)) == pytest.approx(75.6, rel=1e-3)
    (check,) = model.checks
    assert (check.output, check.where) == ("level", (("cmax", 240.0),))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('column = "TOCI_DAY"', 'colum = "TOCI_DAY"', "unknown key 'colum'. Did you mean 'column'"),
        ("prior_sd = 0.3", "prior_sdd = 0.3", "Did you mean 'prior_sd'"),
        ('interpolation = "nocb"', 'interpolation = "locb"', "unknown interpolation 'locb'"),
        ("typical = 4000", "typicall = 4000", "Did you mean 'typical'"),
        ("typical = 4000", 'typical = "many"', "must be a finite number"),
        ('on = "cmax"\nform', 'on = "cmaxx"\nform', "unknown parameter 'cmaxx'. Did you mean 'cmax'"),
        ('form = "power"', 'form = "powr"', "Did you mean 'power'"),
        ("center = 20", "centre = 20", "Did you mean 'center'"),
        ("[[covariates]]", "[covariates]", r"must be tables: write \[\[covariates\]\]"),
        ("probability = 0.2", "probability = 1.2", "must be between 0 and 1"),
        ('on = "cmax"\nvalue = 240', 'on = "cmin"\nvalue = 240', "unknown parameter 'cmin'"),
        ('label = "poor', 'labell = "poor', "Did you mean 'label'"),
        ("[[1, 0.5], [0.5, 1]]", "[[1, 0.5], [0.4, 1]]", "symmetric"),
        ("[[1, 0.5], [0.5, 1]]", '[[1, "a"], [0.5, 1]]', "must be a finite number"),
        ("names = [", "name = [", "Did you mean 'names'"),
        ('output = "level"\nexpected', 'output = "levl"\nexpected', "Did you mean 'level'"),
        ("where = { cmax = 240 }", "where = { cmx = 240 }", "Did you mean 'cmax'"),
        ("vcn = 2", "vcm = 2", "Did you mean 'vcn'"),
        ("vcn = 2", "vcn = -2", "must be above 0"),
        ('regressor = "wbc"', 'regressor = "wbcs"', "Did you mean 'wbc'"),
        ("[treatments.", "[treatment.", "Did you mean 'treatments'"),
        ("median = 0.4", "medain = 0.4", "Did you mean 'median'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_match(old, new, said):
    """If it fails, a misspelt key of a model file is ignored."""
    assert TEXT.count(old) == 1, old
    with pytest.raises(ModelError, match=said):
        parse_model(TEXT.replace(old, new))


def test_treatments_are_refused_where_they_do_not_act():
    """If it fails, a drug is in the model file and does nothing."""
    from carkinetics.structures import STRUCTURES

    immune = [s.name for s in STRUCTURES.values() if not s.treatable]
    model = load_model("stein_2019_tisagenlecleucel")
    with pytest.raises(ModelError, match="Did you mean 'tocilizumab'"):
        model.with_treatments("tocilizumb")
    with pytest.raises(ModelError, match="has no"):
        load_model("ogasawara_2021_lisocabtagene").with_treatments()
    assert immune == []  # of every published structure growth can be treated


def test_unknown_numbers_say_so():
    """If it fails, a number that nobody has published is read as a number."""
    text = TEXT.replace("value = 24000.0", 'value = "unknown"').replace("sigma = 0.5", 'sigma = "unknown"')
    model = parse_model(text.replace("omega_sd = 0.5", 'omega_sd = "unknown"', 1))
    assert model["cmax"].value is UNKNOWN
    assert model.unknown() == ["cmax", "omega.foldx", "sigma.qpcr"]
    assert parse_model(text) == parse_model(text)  # NaN is not equal to itself, these are
    with pytest.raises(ModelError, match="must be a finite number"):
        parse_model(TEXT.replace("value = 24000.0", 'value = "unknwon"'))


def test_a_model_in_words_has_all_its_parts():
    """If it fails, `carkinetics models NAME` leaves something out that changes the curves."""
    said = describe(parse_model(TEXT))
    for part in ("tocilizumab", "TOCI_DAY", "WBC", "nocb", "BURDEN", "poor expander", "20 %", "cmax", "Stein"):
        assert part in said, part


@pytest.mark.parametrize("name", list_models().index)
def test_every_published_model_in_words(name):
    """If it fails, a published model cannot be looked at."""
    model = load_model(name)
    said = describe(model)
    for p in model.parameters:
        assert f"\n{p.name} " in said
        assert p.source.split()[0] in said
    assert "References" in said
    assert model.doi in said
    assert max(map(len, said.splitlines())) <= 200


def test_the_list_says_what_is_known():
    """If it fails, a model without numbers looks like one that can be simulated."""
    table = list_models()
    assert table.loc["stein_2019_tisagenlecleucel", "numbers"] == "all"
    assert table.loc["kimmel_2021_axicabtagene", "numbers"] == "typical values"
    assert table.loc["wu_2025_idecabtagene", "numbers"] == "some"
