"""The model's descriptions: priors, parameters, assays, and the new models that they give."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from carkinetics.errors import ModelError
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.model_parts import Assay, Prior, iiv_cv_pct, nearest_or_raise
from carkinetics.model_writing import to_toml

MODEL = load_model("stein_2019_tisagenlecleucel")
WIDE = Prior("normal", 2.0, 3.0)


def assay(**changes):
    given = {
        "name": "flow",
        "output": "level",
        "matrix": "PB",
        "unit": "cells/uL",
        "error": "lognormal",
        "sigma": 0.4,
        "prior": Prior("lognormal", np.log(0.4), 0.5),
    }
    return Assay(**(given | changes))


@pytest.mark.parametrize("omega", [0.05, 0.3, 0.91, 1.55, 2.8])
def test_cv_of_a_log_normal_is_scipys(omega):
    """If it fails, the IIV in the parameter table is not the coefficient of variation of a log-normal."""
    mean, variance = stats.lognorm.stats(s=omega, moments="mv")
    assert float(iiv_cv_pct(omega)) == pytest.approx(100 * np.sqrt(variance) / mean, rel=1e-10)


def test_theta_is_the_value_on_the_transformed_scale():
    """If it fails, the typical value of the file is not the centre of the population."""
    assert MODEL["cmax"].theta == pytest.approx(np.log(24000), rel=1e-15)
    logit = dataclasses.replace(MODEL["fb"], transform="logit")
    assert logit.theta == pytest.approx(np.log(0.0079 / (1 - 0.0079)), rel=1e-12)
    assert dataclasses.replace(MODEL["fb"], transform="identity").theta == 0.0079


@pytest.mark.parametrize("family", ["cauchy", "Normal", "uniform", ""])
def test_an_unknown_prior_family_is_refused(family):
    """If it fails, a misspelt prior is sampled as another one."""
    with pytest.raises(ModelError, match=r"prior family.*normal, lognormal or halfnormal"):
        unchecked(family, 0.0, 1.0)


@pytest.mark.parametrize(
    ("loc", "scale"), [(0.0, 0.0), (0.0, -1.0), (0.0, np.nan), (0.0, np.inf), (np.nan, 1.0), (np.inf, 1.0)]
)
def test_a_prior_needs_a_finite_place_and_a_positive_scale(loc, scale):
    """If it fails, the density is NaN everywhere and the sampler reports divergences instead of the cause."""
    with pytest.raises(ModelError, match="finite and above 0"):
        Prior("normal", loc, scale)


def unchecked(family, loc, scale):
    """A prior as a user without a type checker makes it."""
    prior = object.__new__(Prior)
    for name, value in (("family", family), ("loc", loc), ("scale", scale)):
        object.__setattr__(prior, name, value)
    prior.__post_init__()
    return prior


def test_priors_say_what_they_are():
    """If it fails, the model table shows another prior than the one that is used."""
    assert str(Prior("normal", 1.5, 0.25)) == "Normal(1.5, 0.25)"
    assert str(Prior("halfnormal", 0.0, 0.8)) == "HalfNormal(0.8)"
    assert str(Prior("lognormal", np.log(0.5), 0.7)) == "LogNormal(ln 0.5, 0.7)"  # the median, not its logarithm


def test_everything_is_frozen():
    """If it fails, a model can change between a fit and its report."""
    for thing, name in (
        (MODEL, "name"),
        (MODEL["cmax"], "value"),
        (MODEL.assays[0], "sigma"),
        (MODEL["cmax"].prior, "scale"),
        (MODEL.checks[0], "expected"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 1)


def test_with_priors_changes_a_copy_and_nothing_else():
    """If it fails, one prior too many is changed, or the published model itself."""
    before = load_model("stein_2019_tisagenlecleucel")
    omega, sigma = Prior("halfnormal", 0.0, 0.8), Prior("lognormal", np.log(0.3), 0.2)
    changed = MODEL.with_priors({"cmax": WIDE, "omega.tmax": omega, "sigma.qpcr": sigma})
    assert before == MODEL
    assert changed is not MODEL
    assert changed["cmax"] == dataclasses.replace(MODEL["cmax"], prior=WIDE)
    assert changed["tmax"] == dataclasses.replace(MODEL["tmax"], prior_omega=omega)
    assert changed.assays == (dataclasses.replace(MODEL.assays[0], prior=sigma),)
    for name in ("foldx", "alpha", "fb", "beta"):
        assert changed[name] == MODEL[name]
    assert [p.name for p in changed.parameters] == [p.name for p in MODEL.parameters]


def test_an_omega_of_zero_takes_the_variability_away(tmp_path):
    """If it fails, an eta cannot be dropped from a model, or what needs it goes on without it."""
    model = MODEL.with_values({"omega.beta": 0.0})
    assert model["beta"].iiv == 0
    assert model.table().loc["beta", "prior omega"] == "none"
    assert "omega beta" not in [c.name for c in make_layout(model).components]
    path = tmp_path / "model.toml"
    path.write_text(to_toml(model))
    assert load_model(path)["beta"] == model["beta"]
    assert model.with_values({"omega.beta": 0.7})["beta"].iiv == 0.7
    for tied in (MODEL.with_correlation("beta", "fb"), MODEL.with_mixture("beta", 0.5, 0.2)):
        with pytest.raises(ModelError, match="take that out of the model first"):
            tied.with_values({"omega.beta": 0.0})
    for wrong in (-0.1, np.inf, np.nan):
        with pytest.raises(ModelError, match="or 0 for no variability"):
            MODEL.with_values({"omega.beta": wrong})


@pytest.mark.parametrize(
    ("key", "prior", "message"),
    [
        ("cmaxx", WIDE, "Did you mean 'cmax'"),
        ("omega.tmx", Prior("halfnormal", 0.0, 1.0), "Did you mean 'tmax'"),
        ("sigma.qpc", Prior("halfnormal", 0.0, 1.0), "Did you mean 'qpcr'"),
        ("omega.cmax", WIDE, "choose lognormal or halfnormal"),
        ("sigma.qpcr", WIDE, "choose lognormal or halfnormal"),
        ("cmax", Prior("lognormal", 1.0, 1.0), "normal prior on its transformed scale"),
        ("cmax", Prior("halfnormal", 0.0, 1.0), "normal prior on its transformed scale"),
        ("theta.cmax", WIDE, "theta.cmax"),
        ("omegas.cmax", Prior("halfnormal", 0.0, 1.0), "omegas.cmax"),
    ],
)
def test_priors_that_cannot_be_are_refused(key, prior, message):
    """If it fails, a prior with a misspelt name is ignored, or a scale can become negative."""
    with pytest.raises(ModelError, match=message):
        MODEL.with_priors({key: prior})


def test_a_prior_on_a_variability_that_does_not_exist_is_refused():
    """If it fails, the user believes in a prior that nothing reads."""
    none = dataclasses.replace(
        MODEL, parameters=tuple(dataclasses.replace(p, iiv=0.0) if p.name == "beta" else p for p in MODEL.parameters)
    )
    with pytest.raises(ModelError, match="beta"):
        none.with_priors({"omega.beta": Prior("halfnormal", 0.0, 1.0)})


def test_fix_marks_typical_values_as_known_in_a_copy():
    """If it fails, a parameter that was fixed is still estimated, or its variability is lost."""
    fixed = MODEL.fix("beta", "fb")
    assert [p.name for p in fixed.parameters if p.fixed] == ["fb", "beta"]
    assert not any(p.fixed for p in MODEL.parameters)
    assert fixed["beta"] == dataclasses.replace(MODEL["beta"], fixed=True)
    assert MODEL.fix() == MODEL
    with pytest.raises(ModelError, match="Did you mean 'beta'"):
        MODEL.fix("betta")


def test_with_assay_adds_or_replaces():
    """If it fails, a second assay takes the place of the first, or the same assay is there twice."""
    both = MODEL.with_assay(assay())
    assert [a.name for a in both.assays] == ["qpcr", "flow"]
    assert [a.name for a in MODEL.assays] == ["qpcr"]
    again = both.with_assay(assay(sigma=0.9))
    assert [(a.name, a.sigma) for a in again.assays] == [("qpcr", 0.56), ("flow", 0.9)]
    with pytest.raises(ModelError, match="Did you mean 'level'"):
        MODEL.with_assay(assay(output="levels"))


def test_a_parameter_by_name():
    """If it fails, model["cmax"] gives another parameter, or a bare KeyError for a misspelt one."""
    assert [MODEL[p.name] for p in MODEL.parameters] == list(MODEL.parameters)
    with pytest.raises(ModelError, match=r"unknown parameter 'cmaxx'\. Did you mean 'cmax'\? Known: foldx, tmax, cmax"):
        MODEL["cmaxx"]


def test_the_nearest_match_is_offered_only_where_it_is_near():
    """If it fails, every unknown name is answered with a misleading suggestion."""
    assert nearest_or_raise("b", ["a", "b"], "thing", "here") == "b"
    with pytest.raises(ModelError) as caught:
        nearest_or_raise("zzz", ["alpha", "beta"], "thing", "here")
    assert str(caught.value) == "here: unknown thing 'zzz'. Known: alpha, beta."


def test_the_table_shows_value_variability_priors_and_source():
    """If it fails, what the user reviews before a fit is not what the fit uses."""
    table = MODEL.with_priors({"omega.cmax": Prior("halfnormal", 0.0, 0.8)}).fix("beta").table()
    assert table.index.tolist() == ["foldx", "tmax", "cmax", "alpha", "fb", "beta"]
    assert table.columns.tolist() == [
        "label", "value", "unit", "transform", "omega", "IIV CV %", "prior", "prior omega", "source",
    ]  # fmt: skip
    cmax = table.loc["cmax"]
    assert cmax["value"] == 24000
    assert cmax["unit"] == "copies/ug"
    assert cmax["omega"] == pytest.approx(np.sqrt(0.65))
    assert cmax["IIV CV %"] == pytest.approx(100 * np.sqrt(np.exp(0.65) - 1))
    assert cmax["prior"] == f"Normal({np.log(24000):.3g}, 1.5)"
    assert cmax["prior omega"] == "HalfNormal(0.8)"
    assert cmax["source"] == MODEL["cmax"].source == "Table 1"
    assert table.loc["beta", "prior"] == "fixed"
    assert table.loc["tmax", "prior omega"] == f"LogNormal(ln {np.sqrt(0.38):.3g}, 0.7)"


def test_the_table_of_a_parameter_without_variability_or_not_log_normal():
    """If it fails, a CV is shown where there is none."""
    parameters = tuple(
        dataclasses.replace(p, iiv=0.0)
        if p.name == "beta"
        else dataclasses.replace(p, transform="logit")
        if p.name == "fb"
        else p
        for p in MODEL.parameters
    )
    table = dataclasses.replace(MODEL, parameters=parameters).table()
    assert table.loc["beta", "prior omega"] == "none"
    assert table.loc["beta", "IIV CV %"] == 0
    assert np.isnan(table.loc["fb", "IIV CV %"])
    assert table.loc["fb", "omega"] == pytest.approx(np.sqrt(0.8))
