"""Trial files: what they say arrives, and what they must not say is refused with its place and a remedy."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import arms
import carkinetics as ck
from carkinetics.trials.files import parse_trial
from carkinetics.trials.parts import Binary, Distribution, Hazard, Link


def test_the_seed_trial_is_one_file():
    """If it fails, the trial that the library was written for does not load, or is not what the registry says."""
    trial = ck.load_trial("nct03754764")
    assert trial.enrolment.patients == 80
    assert trial.levels[0] == 1e6 and trial.levels[-1] == 5e6 and trial.per_kg
    assert (trial.population["AGE"].low, trial.population["AGE"].high) == (12, 70)
    assert {s.assay for s in trial.sampling} == {"qpcr", "qpcr_bm", "qpcr_ln"}
    assert max(d for s in trial.sampling for d in s.days) == 168
    assert (trial.toxicity.day, trial.response.day) == (28, 182)
    assert "nct03754764" in ck.list_trials()


def test_every_number_of_the_seed_trial_has_a_source():
    """If it fails, a number stands in the file of which nobody says where it is from."""
    trial = ck.load_trial("nct03754764")
    parts = [trial.assignment, trial.enrolment, trial.follow_up, trial.toxicity, trial.response, trial.analysis]
    parts += [*trial.sampling, *trial.population.values(), trial.progression, trial.death]
    sources = [p.source for p in parts if p is not None] + [c.source for c in trial.model.covariates]
    assert all(len(s) > 10 for s in sources)
    assert sum("assumption" in s for s in sources) >= 10


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("per_month = 4", "per_mont = 4", r"enrolment: unknown key 'per_mont'. Did you mean 'per_month'"),
        ("[response]", "[respons]", r"unknown key 'respons'. Did you mean 'response'"),
        ("schema = 1", "schema = 2", r"reads schema = 1"),
        ('on = "cmax"', 'on = "cmx"', r"unknown parameter 'cmx'. Did you mean 'cmax'"),
        ("[sampling.qpcr]", "[sampling.qpc]", r"unknown assay 'qpc'. Did you mean 'qpcr'"),
        ("levels = [1e6, 4e6]", "levels = [4e6, 1e6]", r"must be above 0 and rise"),
        ('unit = "cells/kg"', 'unit = "cells/lb"', r"unknown unit 'cells/lb'"),
        ("patients = 14", "patients = 15", r"the arms have 25 patients and enrolment.patients is 24"),
        ("level = 2", "level = 3", r"level = 3; there are 2 levels"),
        ("probability = 0.2", "probability = 1.2", r"toxicity: probability = 1.2 must be between 0 and 1"),
        ('exposure = "auc_0_28"', 'exposure = "auc_28_0"', r"must begin before it ends"),
        ('exposure = "auc_0_28"', 'exposure = "aucc"', r"unknown exposure 'aucc'"),
        ("days = 168", "days = 60", r"follow_up ends before day 84"),
        ("days = [1, 4, 7", "days = [1, 7, 4", r"increasing"),
        ("missed = 0.1", "missed = 1.0", r"must be a share from 0 and below 1"),
        ("lod = 10", "lod = 60", r"lod = 60 is above the lloq"),
        ("shares = [1, 3]", "shares = [1]", r"population.SEX: give levels, and a share above 0 of each"),
        ('distribution = "normal"', 'distribution = "norml"', r"Did you mean 'normal'"),
        ("prior_sd = 0.5", "", r"leaves its center, prior_sd or reference to the data"),
        ("dropout_per_year = 0.5", "dropout_per_year = -1", r"must be a rate from 0"),
        ('column = "DOSE_PER_KG"', 'column = "DOSE_PER_K"', r"Did you mean 'DOSE_PER_KG'"),
        ("patients = 24", "patients = 24.5", r"must be a whole number"),
        ("minimum = 8", "minimum = 1", r"must be a whole number from 2"),
        ("[population.WT]", "[population.WEIGHT]", r"give the weight, \[population.WT\]"),
        ("per_month = 4", "per_month = nan", r"must be a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(old, new, said):
    """If it fails, a slip of the pen in a trial file is taken for a trial."""
    with pytest.raises(ck.ModelError, match=said):
        parse_trial(arms.text((old, new)), where="mine.toml")


def test_a_source_must_be_given():
    """If it fails, a number may stand in a trial file without saying where it is from."""
    with pytest.raises(ck.ModelError, match="enrolment: source is missing"):
        parse_trial(arms.text(('per_month = 4\nsource = "a test"', "per_month = 4")))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('design = "boin"', 'design = "bion"', r"unknown design 'bion'. Did you mean 'boin'"),
        ("target = 0.3 }", "taget = 0.3 }", r"options of boin: unknown key 'taget'"),
        ("patients = 12", "patients = 40", r"patients = 40 is more than the trial's 24"),
        ("target = 0.3 }", "target = 30 }", r"must lie between 0 and 1"),
        ('design = "boin"\noptions = { target = 0.3 }', 'design = "crm"', r"crm needs options.guesses"),
    ],
)
def test_a_design_that_cannot_be_is_refused(old, new, said):
    """If it fails, a design that was meant is not the one that is simulated."""
    with pytest.raises(ck.ModelError, match=said):
        parse_trial(arms.with_design(arms.BOIN.replace(old, new)))


def test_designs_come_with_their_options_and_rules():
    """If it fails, what the file says of a design does not reach it."""
    crm = 'design = "crm"\noptions = { guesses = [0.1, 0.3], target = 0.2 }\nrules = ["no_skipping", "maximum_jump"]'
    trial = parse_trial(arms.with_design(arms.BOIN.replace('design = "boin"\noptions = { target = 0.3 }', crm)))
    design = trial.assignment.design
    assert design.target == 0.2 and design.setting.doses == (1e6, 4e6)
    assert [type(r).__name__ for r in design.rules] == ["NoSkipping", "MaximumJump"]


def test_a_file_of_your_own(tmp_path):
    """If it fails, only the library's trials can be simulated."""
    path = tmp_path / "mine.toml"
    path.write_text(arms.TEXT, encoding="utf-8")
    assert ck.load_trial(path).name == "arms"
    with pytest.raises(ck.ModelError, match="Did you mean 'nct03754764'"):
        ck.load_trial("nct0375476")
    with pytest.raises(ck.ModelError, match="there is no such file"):
        ck.load_trial(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("given", "of"),
    [
        (Distribution("uniform", low=12, high=70), stats.uniform(12, 58)),
        (Distribution("normal", 62, 14, 32, 110), stats.truncnorm((32 - 62) / 14, (110 - 62) / 14, 62, 14)),
        (Distribution("lognormal", 20, 1.2), stats.lognorm(1.2, scale=20)),
    ],
)
def test_covariates_have_the_distribution_that_is_stated(given, of):
    """If it fails, simulated patients are not those of the file (scipy's quantiles, to the three decimals kept)."""
    u = np.linspace(0.001, 0.999, 400)
    np.testing.assert_allclose(given.draw(u), of.ppf(u), atol=6e-4)


def test_categories_come_as_often_as_their_shares_say():
    """If it fails, shares are not shares."""
    u = (np.arange(1000) + 0.5) / 1000
    found = Distribution("categorical", levels=("F", "M"), shares=(1.0, 3.0)).draw(u)
    assert (found == "M").mean() == 0.75


def test_outcomes_follow_from_exposure_as_stated():
    """If it fails, a slope means something else than a log odds, or a log hazard, per e-fold of exposure."""
    link = Link("cmax", "qpcr", 100.0, 0.7)
    e = np.array([100.0, 100.0 * np.e])
    of = Binary("DLT", 0.2, link, 28, 0.3, -1, "")
    odds = of.chance(e) / (1 - of.chance(e))
    np.testing.assert_allclose(odds, [0.25, 0.25 * np.exp(0.7)], rtol=1e-12)
    weibull = Hazard("death", 150.0, 1.7, link, "")
    scale = 150 / np.log(2) ** (1 / 1.7)
    u = np.array([0.3, 0.3])
    by_scipy = stats.weibull_min(1.7, scale=scale * np.exp(-0.7 / 1.7)).isf(0.3)
    np.testing.assert_allclose(weibull.day(u, e), [stats.weibull_min(1.7, scale=scale).isf(0.3), by_scipy], rtol=1e-12)
    x = stats.weibull_min(1.7, scale=scale * np.exp(-0.7 / 1.7)).sf(90.0)
    np.testing.assert_allclose(weibull.survival(90.0, e)[1], x, rtol=1e-12)
    assert dataclasses.replace(of, link=Link()).chance(np.array([1.0, 5.0])).tolist() == pytest.approx([0.2, 0.2])


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*every value is below the limit")
def test_the_command_line_tells_a_trial_from_a_model(tmp_path, capsys):
    """If it fails, ``carkinetics simulate trial.toml`` takes a trial for a model, or writes what nobody reads."""
    from carkinetics import cli

    path = tmp_path / "mine.toml"
    path.write_text(arms.with_design(), encoding="utf-8")
    assert cli.main(["simulate", str(path), "--out", str(tmp_path / "one"), "--seed", "3"]) == 0
    alone = ck.simulate_trial(ck.load_trial(path), seed=3)
    written = pd.read_csv(tmp_path / "one" / "patients.csv")
    assert list(written["ID"]) == list(alone.patients["ID"])
    ck.read_dataset(tmp_path / "one" / "table.csv", outcomes=tmp_path / "one" / "patients.csv")
    many = ["simulate", str(path), "--trials", "3", "--analyse", "design", "--out", str(tmp_path / "many")]
    assert cli.main(many) == 0
    assert len(pd.read_csv(tmp_path / "many" / "replicates.csv")) == 3
    assert "3 trials" in capsys.readouterr().out
    assert cli.main(["simulate", "nct0375476"]) == 1
