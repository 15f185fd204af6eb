"""The infusion phase of a model: asked for, written and read, seen in the samples of a table, and found by a fit."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from carkinetics.cohort import Cohort
from carkinetics.dataset import ReadOptions, read_dataset
from carkinetics.errors import ModelError
from carkinetics.fit_file import load_fit
from carkinetics.fitting import fit
from carkinetics.infusion import early_fall
from carkinetics.model_files import load_model, models_folder, parse_model
from carkinetics.model_parts import Prior
from carkinetics.model_text import describe
from carkinetics.model_writing import to_toml
from carkinetics.simulation import simulate
from carkinetics.structures.infusion_phase import InfusionPhase

STEIN = load_model("stein_2019_tisagenlecleucel")
FALLING = STEIN.with_infusion_phase()
MODELS = [load_model(path) for path in sorted(models_folder().glob("*.toml"))]
REFUSED = {
    "hardiansyah_2019_upn1": "distribution to the tissue",
    "hardiansyah_2019_upn3": "distribution to the tissue",
    "paixao_2022": "the distributed cells",
    "singh_2021_idecabtagene": "distribution to the marrow",
    "leon_triana_2021_ball": "counts the cells of the whole body",
    "liu_2022_ball": "counts the cells of the whole body",
}
ALLOWED = [m for m in MODELS if m.name not in REFUSED]
EARLY = (0.05, 0.5, 1.0, 2.0, 3.0, 7.0, 11.0, 14.0, 28.0)


def read(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(table, units={"DV": "copies/ug"}, options=ReadOptions(duplicates="replicate"))


def limited(model, lloq, sigma=None):
    """The model with another limit, and another residual SD, of all assays."""
    model = replace(model, assays=tuple(replace(a, lloq=lloq) for a in model.assays))
    return model if sigma is None else model.with_values({f"sigma.{a.name}": sigma for a in model.assays})


# Levels of four weeks' lag: nothing falls, and nothing grows.
STILL = limited(
    load_model("ogasawara_2021_lisocabtagene")
    .with_values(dict.fromkeys(load_model("ogasawara_2021_lisocabtagene").unknown(), 0.5))
    .with_values({"tlag": 8.0, "omega.tlag": 0.1, "tmax": 20.0}),
    1e-9,
    1.0,
)


def test_the_two_parameters_come_before_those_of_treatments():
    """If it fails, a treatment's factor is used as the rate of the fall."""
    text = (models_folder() / "stein_2019_tisagenlecleucel.toml").read_text()
    assert "[treatments." in text
    treated = STEIN.with_treatments()
    for model in (treated.with_infusion_phase(), FALLING.with_treatments()):
        names = [p.name for p in model.parameters]
        own = list(STEIN.structure.parameters._fields)
        assert names == [*own, "c0", "kd", *(t.factor.name for t in treated.treatments)]
        assert model.structure == FALLING.structure


def test_defaults_are_three_percent_of_the_peak_and_four_a_day():
    """If it fails, the phase of a model in other units begins at a level that no assay has."""
    for cmax in (24000.0, 30.0):
        model = STEIN.with_values({"cmax": cmax}).with_infusion_phase()
        assert model["c0"].value == pytest.approx(0.03 * cmax)
        assert model["c0"].prior.loc == pytest.approx(np.log(0.03 * cmax))
        assert model["c0"].prior.scale == 1.5
        assert model["c0"].unit == STEIN["cmax"].unit
        assert (model["kd"].value, model["kd"].unit, model["kd"].prior.scale) == (4.0, "1/day", 0.5)
        assert (model["c0"].iiv, model["kd"].iiv) == (2.0, 0.0)
        assert not model.unknown()
    given = STEIN.with_infusion_phase(c0=70.0, kd=2.0)
    assert (given["c0"].value, given["kd"].value) == (70.0, 2.0)
    assert given["c0"].source.startswith("given")
    assert model["c0"].source.startswith("default")
    assert given.with_priors({"kd": Prior("normal", 1.0, 0.1)})["kd"].prior.scale == 0.1


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_published_models_have_one_or_say_why_not(model):
    """If it fails, a model with two early falls can be fitted, or one that may have one is refused."""
    if model.name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[model.name]):
            model.with_infusion_phase(c0=100.0)
        return
    found = model.with_infusion_phase(c0=100.0)
    assert isinstance(found.structure, InfusionPhase)
    assert found.structure.dose == (model.typical_dose if model.structure.uses_dose else None)
    with pytest.raises(ModelError, match="the infusion phase that it has"):
        found.with_infusion_phase(c0=100.0)


def test_what_cannot_be_is_refused():
    """If it fails, a phase begins at a level that nobody gave, or at none."""
    model = load_model("chaudhury_2020_first_order")
    with pytest.raises(ModelError, match="no level is known from which to tell c0"):
        model.with_infusion_phase()
    for wrong in ({"c0": 0.0}, {"c0": float("inf")}, {"kd": -1.0}, {"kd": float("nan")}):
        with pytest.raises(ModelError, match="must be finite and above 0"):
            STEIN.with_infusion_phase(**wrong)
    kimmel = replace(load_model("kimmel_2021_axicabtagene"), typical_dose=float("nan"))
    with pytest.raises(ModelError, match="needs the typical_dose"):
        kimmel.with_infusion_phase(c0=10.0)


@pytest.mark.parametrize("model", ALLOWED, ids=lambda m: m.name)
def test_written_and_read_it_is_the_same_model(model):
    """If it fails, a saved fit comes back as a fit of another model."""
    model = model.with_infusion_phase(c0=123.4, kd=3.21)
    for wanted in (model, replace(model, typical_dose=3e8)):
        back = parse_model(to_toml(wanted))
        # Acting treatments and what is not known are compared by what is written of them.
        assert to_toml(back) == to_toml(wanted)
        assert back.structure == wanted.structure
        assert [p.name for p in back.parameters] == [p.name for p in wanted.parameters]
        assert back["c0"] == wanted["c0"]
        assert back["kd"] == wanted["kd"]
    assert parse_model(model.toml).structure == model.structure


def test_a_file_says_it_in_one_line_and_two_parameters():
    """If it fails, what models/README.md shows cannot be loaded."""
    text = to_toml(FALLING)
    assert 'structure = "expansion_contraction"\ninfusion_phase = true\n' in text
    without = text.replace("infusion_phase = true\n", "")
    with pytest.raises(ModelError, match="unknown parameter 'c0'"):
        parse_model(without)
    plain = to_toml(STEIN)
    said = plain.replace('"expansion_contraction"\n', '"expansion_contraction"\ninfusion_phase = true\n')
    with pytest.raises(ModelError, match="needs the parameters c0, kd as well"):
        parse_model(said)
    assert parse_model(said.replace("= true", "= false", 1)).structure == STEIN.structure
    for wrong in ('"yes"', "1", "{ doses = 1e8 }", "{ dose = -1 }", "{}", "{ dose = 1e8 }"):
        with pytest.raises(ModelError, match=r"^mine\.toml"):
            parse_model(text.replace("infusion_phase = true", f"infusion_phase = {wrong}"), where="mine.toml")
    four = to_toml(STEIN).replace('"expansion_contraction"\n', '"four_phases"\ninfusion_phase = true\n')
    with pytest.raises(ModelError, match=r"^mine\.toml: four_phases needs no infusion phase"):
        parse_model(four, where="mine.toml")


def test_a_dose_of_its_own_is_written():
    """If it fails, c0 belongs to another dose after the typical one was changed."""
    kimmel = load_model("kimmel_2021_axicabtagene").with_infusion_phase(c0=10.0)
    assert "infusion_phase = true" in to_toml(kimmel)
    changed = to_toml(replace(kimmel, typical_dose=1e6))
    assert "infusion_phase = { dose = 180000000.0 }" in changed
    assert parse_model(changed).structure == kimmel.structure


def test_the_model_in_words_has_both_equations():
    """If it fails, `carkinetics models mine.toml` describes half of the model."""
    text = describe(FALLING)
    assert "Stein's model of tisagenlecleucel" in text
    assert "exp(-kd (t - t_k))" in text
    assert "expansion_contraction with infusion phase" in text
    assert "level right after the infusion" in text


def test_simulated_levels_fall_and_then_rise_as_without():
    """If it fails, a simulation of the model has no phase, or another growth."""
    cohort = Cohort(n=200, times=EARLY)
    plain, falling = (simulate(m, cohort, seed=4).curves["level"] for m in (STEIN, FALLING))
    median = falling.median("subject").values.ravel()
    assert median[0] > 10 * median[3]
    assert median[5] > 10 * median[3]
    early, late = ({"time": [t for t in EARLY if (t < 2) == first]} for first in (True, False))
    assert (falling.sel(early).median("subject") > plain.sel(early).median("subject")).all()
    np.testing.assert_allclose(
        falling.sel(late).median("subject").values[..., 2:], plain.sel(late).median("subject").values[..., 2:], rtol=0.4
    )


def rows(*samples, who="A", **more):
    """(day, level) of a patient; a negative level is a limit."""
    days, levels = np.array(samples, float).T
    columns = {"TIME": days, "DV": np.abs(levels), "CENS": (levels < 0).astype(int), "EVID": 0, "AMT": 0.0} | more
    return pd.DataFrame({"ID": who, **columns})


def table(*samples, n=6, later=()):
    """``n`` patients with the same samples, and dose records on the days ``later``."""
    parts = [rows(*samples, who=f"P{i}") for i in range(n)]
    doses = [
        pd.DataFrame({"ID": f"P{i}", "TIME": [day], "DV": 0.0, "CENS": 0, "EVID": 1, "AMT": 1e8})
        for i in range(n)
        for day in later
    ]
    return read(pd.concat([*parts, *doses], ignore_index=True))


@pytest.mark.parametrize(
    ("samples", "patients", "falls"),
    [
        ([(0.1, 500), (2, 100), (10, 5000)], 6, 6),
        ([(0.1, 500), (2, -10), (10, 5000)], 6, 6),
        ([(0, -10), (0, 500), (2, -10), (10, 5000)], 6, 6),  # day 0 before and after the infusion
        ([(0.1, 500), (0.9, 20), (1, 30), (2, 30), (3, 4000)], 6, 6),  # the first sample, and the first two
        ([(0.1, 500), (2, 300), (10, 5000)], 6, 0),
        ([(0.1, 20), (2, -10), (10, 5000)], 6, 0),  # not clear
        ([(0.1, -10), (2, 300), (10, 5000)], 6, 0),
        ([(0.1, -10), (2, -10), (10, 5000)], 0, 0),
        ([(0, -10), (2, -10), (10, 5000)], 0, 0),  # drawn before the infusion
        ([(0.1, 500), (4, 10), (10, 5000)], 0, 0),  # nothing until day 4
        ([(1, 500), (2, 10), (10, 5000)], 0, 0),  # nothing before day 1
    ],
)
def test_patients_are_counted_who_can_tell(samples, patients, falls):
    """If it fails, samples before the infusion, or patients without early ones, are taken for evidence."""
    found = early_fall(table(*samples))
    assert (found.patients, found.falls, found.shown) == (patients, falls, falls > 0)
    assert bool(found) == found.shown
    assert str(patients) in str(found) or "no patient" in str(found)


def test_three_patients_are_needed_and_a_few_falls_are_none():
    """If it fails, one outlier adds two parameters to a model, or many falls are overlooked."""
    fall, rise = ((0.1, 500), (2, 20)), ((0.1, 50), (2, 60))
    for n, k, said in [(2, 2, False), (3, 3, True), (5, 3, False), (5, 4, True), (20, 8, False), (20, 9, True)]:
        parts = [rows(*(fall if i < k else rise), who=f"P{i}") for i in range(n)]
        found = early_fall(read(pd.concat(parts, ignore_index=True)))
        assert (found.patients, found.falls, found.shown) == (n, k, said)


def test_samples_before_the_infusion_do_not_count():
    """If it fails, a contaminated sample of the day before is taken for the infusion."""
    data = table((0.1, -10), (2, 300), (10, 5000))
    early = replace(data, time=np.where(data.time < 1, -1.0, data.time), cens=np.zeros_like(data.cens))
    assert (early_fall(early).patients, early_fall(early).shown) == (0, False)


def test_after_a_further_infusion_samples_do_not_count():
    """If it fails, the second of a split dose hides the fall of the first."""
    samples = [(0.1, 500), (1, 20), (1.1, 2000), (2, 1000), (10, 5000)]
    assert not early_fall(table(*samples))
    assert early_fall(table(*samples, later=(0.0, 1.05)))


def test_the_level_after_the_infusion_is_taken_back_to_day_0():
    """If it fails, c0 is off by what has left the blood before the first sample."""
    assert early_fall(table((0.1, 500), (2, 20))).c0 == pytest.approx(500 * np.exp(0.4))
    assert early_fall(table((0.5, 500), (0.7, 9), (2, 20))).c0 == pytest.approx(500 * np.exp(2.0))
    assert np.isnan(early_fall(table((0.1, -10), (2, 20))).c0)


def test_a_patient_with_two_assays_is_one_patient():
    """If it fails, two assays of three patients are six patients; or a cytokine is asked."""
    parts = [
        rows((0.1, a), (2, b), who=f"P{i}", DVID=name)
        for i in range(6)
        for name, a, b in [("qpcr", 500, 20), ("flow", 50, 2), ("il6", 2, 200)]
    ]
    data = read(pd.concat(parts, ignore_index=True))
    found = early_fall(data, assays=["qpcr", "flow"])
    assert (found.patients, found.falls, found.shown) == (6, 6, True)
    assert not early_fall(data, assays=["il6"])
    with pytest.raises(ModelError, match="unknown assay 'qpc'"):
        early_fall(data, assays=["qpc"])


def answers(model, n, *, times=EARLY, trials=60):
    """Share of simulated trials of ``n`` patients in which the phase is said to be seen."""
    simulated = simulate(model, Cohort(n=n * trials, times=times), seed=5).table
    ids = simulated["ID"].unique()
    return np.mean(
        [early_fall(read(simulated[simulated["ID"].isin(ids[k * n : (k + 1) * n])])).shown for k in range(trials)]
    )


@pytest.mark.thorough
def test_simulated_trials_show_it_only_if_they_have_it():
    """If it fails, a default of the fit follows from noise, or real early falls go unseen."""
    assert answers(limited(FALLING, 10.0), 10, trials=20) >= 0.8
    assert answers(limited(STEIN, 1.0, 1.2), 10, trials=20) == 0
    assert answers(STILL, 10, trials=20) <= 0.1


@pytest.mark.slow
def test_how_often_simulated_trials_show_it():
    """If it fails, the rule is less specific or less sensitive than docs say: power by number of patients."""
    for n, power in [(3, 0.25), (5, 0.5), (10, 0.85), (20, 0.95)]:
        assert answers(limited(FALLING, 10.0), n) >= power
        for model in (limited(STEIN, 10.0), limited(STEIN, 1.0, 1.2), STILL):
            assert answers(model, n) <= 0.1
    # A first sample after half a day is late: half of the trials of 20 patients do not show it.
    assert answers(limited(FALLING, 10.0), 20, times=(0.5, 1.0, 3.0, 7.0, 14.0)) < 0.5


@pytest.mark.slow
def test_a_fit_finds_what_was_simulated_and_is_read_back(tmp_path):
    """If it fails, the two parameters are not identified by early samples, or a saved fit loses them."""
    truth = limited(FALLING, 10.0)
    trial = simulate(truth, Cohort(n=30, times=(*EARLY, 60.0, 120.0)), seed=11)
    data = read(trial.table)
    assert early_fall(data)
    # The model that is fitted begins a factor of three from the truth.
    model = limited(STEIN, 10.0).with_infusion_phase(c0=0.01 * 24000.0, kd=2.5)
    result = fit(model, data, seed=1, method="laplace", progress=False)
    found = result.parameters()
    for name, value in [("c0", 720.0), ("kd", 4.0), ("cmax", 24000.0), ("tmax", 9.3)]:
        width = found.loc[name, "RSE %"] / 100
        assert width < 0.6
        assert abs(np.log(found.loc[name, "TV"] / value)) < 3 * max(width, 0.05), name
    assert found.loc["sigma qpcr", "TV"] == pytest.approx(STEIN.assays[0].sigma, rel=0.2)
    plain = fit(limited(STEIN, 10.0), data, seed=1, method="laplace", progress=False)
    assert plain.parameters().loc["sigma qpcr", "TV"] > 1.3 * found.loc["sigma qpcr", "TV"]
    result.save(tmp_path / "fit.nc")
    back = load_fit(tmp_path / "fit.nc")
    assert back.model.structure == model.structure
    assert back.parameters()["TV"].to_dict() == found["TV"].to_dict()
