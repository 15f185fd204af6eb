"""Occasions of a model: asked for, written and read, fed from a table, simulated, and found by a fit."""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from carkinetics.cohort import Cohort
from carkinetics.dataset import read_dataset
from carkinetics.density import as_arguments
from carkinetics.errors import DataError, DataWarning, ModelError
from carkinetics.fit_file import load_fit
from carkinetics.fit_result import Fit
from carkinetics.fitting import fit
from carkinetics.inference.guess import starting_values
from carkinetics.infusion import with_evidence
from carkinetics.inputs import infusions_of, inputs_of, second_infusion
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model, models_folder, parse_model
from carkinetics.model_parts import OCCASION_OMEGA, Prior
from carkinetics.model_text import describe
from carkinetics.model_writing import to_toml
from carkinetics.observations import make_observations
from carkinetics.simulation import simulate
from carkinetics.solvers import curves
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.structures.occasions import Occasions

STEIN = load_model("stein_2019_tisagenlecleucel")
TWICE = STEIN.with_occasions("cmax", "tmax")
FACTORS = ["cmax_occ1", "cmax_occ2", "tmax_occ1", "tmax_occ2"]
MODELS = [load_model(path) for path in sorted(models_folder().glob("*.toml"))]
CAN = [m for m in MODELS if m.structure.closed_form or m.structure.repeatable]
SECOND = 60.0
TIMES = (1.0, 4.0, 7.0, 9.0, 11.0, 14.0, 21.0, 28.0, 45.0, 61.0, 64.0, 67.0, 69.0, 71.0, 74.0, 81.0, 88.0, 120.0)
COHORT = Cohort(n=6, times=TIMES, infusions=((0.0, 1.0), (SECOND, 1.0)))


def read(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(table, units={"DV": "copies/ug", "AMT": "cells"})


def test_the_factors_come_after_the_structures_own():
    """If it fails, a treatment's factor or a phase's rate is used as the factor of an infusion."""
    own = list(STEIN.structure.parameters._fields)
    treated = [t.factor.name for t in STEIN.with_treatments().acting]
    for model in (STEIN.with_treatments().with_occasions("cmax", "tmax"), TWICE.with_treatments()):
        assert [p.name for p in model.parameters] == [*own, *FACTORS, *treated]
        assert model.structure == TWICE.structure
    for model in (STEIN.with_infusion_phase().with_occasions("cmax", "tmax"), TWICE.with_infusion_phase()):
        assert [p.name for p in model.parameters] == [*own, "c0", "kd", *FACTORS]
        assert model.structure == Occasions(InfusionPhase(STEIN.structure), ("cmax", "tmax"))
    with pytest.raises(ModelError, match="the infusion phase that it has"):
        TWICE.with_infusion_phase().with_infusion_phase()


def test_defaults_of_the_factors():
    """If it fails, infusions have typical values of their own, or an SD each."""
    for name in FACTORS:
        p = TWICE[name]
        assert (p.value, p.fixed, p.transform, p.iiv) == (1.0, True, "log", OCCASION_OMEGA)
        assert p.omega_of == ("" if name.endswith("1") else f"{name[:-1]}1")
        assert p.prior_omega == Prior("lognormal", np.log(0.4), 0.7)
    names = make_layout(TWICE).phi_names
    assert [n for n in names if "occ" in n] == ["omega cmax_occ1", "omega tmax_occ1"]
    assert STEIN.with_occasions("cmax", n=4, omega=0.2)["cmax_occ4"].iiv == 0.2


def test_numbers_and_priors_of_the_shared_omega():
    """If it fails, two infusions of a parameter have different SDs, and the model cannot be written."""
    changed = TWICE.with_values({"omega.cmax_occ1": 0.9})
    assert changed["cmax_occ2"].iiv == 0.9
    assert changed["tmax_occ2"].iiv == OCCASION_OMEGA
    assert parse_model(to_toml(changed)).parameters == changed.parameters
    given = TWICE.with_priors({"omega.cmax_occ1": Prior("halfnormal", 0.0, 0.3)})
    assert parse_model(to_toml(given)).parameters == given.parameters
    for change, what in ((TWICE.with_values, 0.9), (TWICE.with_priors, Prior("halfnormal", 0.0, 0.3))):
        with pytest.raises(ModelError, match=r"cmax_occ2 shares the omega of cmax_occ1; change omega\.cmax_occ1"):
            change({"omega.cmax_occ2": what})


def test_correlations_are_between_patients_unless_named():
    """If it fails, two infusions of a patient are correlated twice."""
    assert set(TWICE.with_correlation().correlation.parameters) == {p.name for p in STEIN.parameters if p.iiv}
    chosen = TWICE.with_correlation("cmax_occ1", "tmax_occ1").correlation
    assert chosen.parameters == ("cmax_occ1", "tmax_occ1")


@pytest.mark.parametrize("model", CAN, ids=lambda m: m.name)
def test_written_and_read_it_is_the_same_model(model):
    """If it fails, a saved fit comes back as a fit of another model."""
    logs = [p.name for p in model.parameters if p.transform == "log"]
    wanted = model.with_occasions(*logs[:2], n=3)
    if not model.structure.falls_by and all(a.matrix != "body" for a in model.assays):
        wanted = wanted.with_infusion_phase(c0=123.4)
    back = parse_model(to_toml(wanted))
    assert to_toml(back) == to_toml(wanted)
    assert back.structure == wanted.structure
    assert [p.name for p in back.parameters] == [p.name for p in wanted.parameters]
    assert all(back[p.name] == p for p in wanted.parameters if "_occ" in p.name)
    assert parse_model(wanted.toml).structure == wanted.structure


def test_published_models_have_them_or_say_why_not():
    """If it fails, a model that takes one infusion is given a second one that its equations do not know."""
    assert CAN
    for model in MODELS:
        if model not in CAN:
            with pytest.raises(ModelError, match="cannot have occasions: it has no closed form"):
                model.with_occasions(model.parameters[0].name)


def test_a_file_says_it_in_one_line_and_its_factors():
    """If it fails, what models/README.md shows cannot be loaded."""
    text = to_toml(TWICE)
    line = 'occasions = { varying = ["cmax", "tmax"], n = 2 }\n'
    assert f'structure = "expansion_contraction"\n{line}' in text
    with pytest.raises(ModelError, match="unknown parameter 'cmax_occ1'"):
        parse_model(text.replace(line, ""))
    with pytest.raises(ModelError, match=r"needs the parameters cmax_occ3, tmax_occ3 as well"):
        parse_model(text.replace("n = 2", "n = 3"))
    for wrong in (
        "true",
        "[]",
        "{}",
        "{ varying = [] }",
        '{ varying = "cmax" }',
        '{ varying = ["cmaxx"] }',
        '{ varying = ["cmax", "cmax"] }',
        '{ varying = ["cmax"], n = 1 }',
        '{ varying = ["cmax"], n = 1000000000 }',
        '{ varying = ["cmax"], n = 2.5 }',
        '{ varying = ["cmax"], n = true }',
        '{ varying = ["cmax"], m = 2 }',
    ):
        with pytest.raises(ModelError, match=r"^mine\.toml"):
            parse_model(text.replace(line, f"occasions = {wrong}\n"), where="mine.toml")
    logit = text.replace(
        '[parameters.cmax_occ2]\nlabel = "cmax of infusion 2, relative"\nvalue = 1.0\nunit = "1"\ntransform = "log"',
        '[parameters.cmax_occ2]\nvalue = 0.5\nunit = "1"\ntransform = "logit"',
    )
    assert logit != text
    with pytest.raises(ModelError, match=r"cmax_occ2 cannot vary between occasions"):
        parse_model(logit)
    saturable = text.replace('"expansion_contraction"', '"saturable_growth"').replace('"cmax", "tmax"', '"vmax"')
    with pytest.raises(ModelError, match="saturable_growth cannot have occasions"):
        parse_model(saturable)


def test_an_infusion_may_have_a_typical_value_of_its_own():
    """If it fails, that second infusions expand less than first ones cannot be said."""
    at = to_toml(TWICE).index("[parameters.cmax_occ2]")
    text = to_toml(TWICE)
    text = text[:at] + text[at:].replace("value = 1.0", "value = 0.3", 1).replace("fixed = true\n", "", 1)
    model = parse_model(text)
    assert "cmax_occ2" in make_layout(model).phi_names
    assert model["cmax_occ2"].value == 0.3


def test_what_cannot_be_is_refused():
    """If it fails, a factor takes a fraction above 1, or a typing error varies nothing."""
    with pytest.raises(ModelError, match="unknown parameter 'cmx'"):
        STEIN.with_occasions("cmx")
    with pytest.raises(ModelError, match="each named once"):
        STEIN.with_occasions()
    with pytest.raises(ModelError, match="has occasions already"):
        TWICE.with_occasions("alpha")
    for n in (1, 0, 10**9):
        with pytest.raises(ModelError, match="n is the largest number of infusions"):
            STEIN.with_occasions("cmax", n=n)
    for omega in (0.0, -1.0, float("nan")):
        with pytest.raises(ModelError, match="between occasions must be finite and above 0"):
            STEIN.with_occasions("cmax", omega=omega)
    logit = replace(
        STEIN, parameters=tuple(replace(p, transform="logit") if p.name == "fb" else p for p in STEIN.parameters)
    )
    with pytest.raises(ModelError, match="fb cannot vary between occasions"):
        logit.with_occasions("fb")


def test_the_model_in_words_has_its_equations():
    """If it fails, `carkinetics models mine.toml` describes a model of one infusion."""
    text = describe(TWICE)
    for part in (
        "Stein's model of tisagenlecleucel",
        "p_k = p p_occk",
        "expansion_contraction with occasions",
        "cmax of infusion 2, relative",
        "Between up to 2 infusions of a patient vary: cmax, tmax",
    ):
        assert part in text


def test_simulated_second_infusions_come_back_from_the_table():
    """If it fails, a second infusion is simulated on another day than it is fitted, or is not seen."""
    model = TWICE.with_values({"omega.cmax_occ1": 1.0})
    found = simulate(model, COHORT, seed=2, limits=False, residual=False)
    data = read(found.table)
    x = inputs_of(model, data)
    np.testing.assert_array_equal(x.later_day, np.full((1, 6), SECOND))
    np.testing.assert_array_equal(infusions_of(data), 2)
    np.testing.assert_array_equal(second_infusion(data), SECOND)
    obs = make_observations(model, data)
    assert np.isfinite(obs.ln_dv).all()
    level = found.curves["level"].squeeze()
    peaks = [level.sel(time=[t for t in TIMES if (t > SECOND) == second]).max("time") for second in (False, True)]
    ratio = found.individual["cmax_occ2"] / found.individual["cmax_occ1"]
    assert np.corrcoef(np.log(ratio), np.log(peaks[1] / peaks[0]).values.ravel())[0, 1] > 0.9
    with pytest.raises(ModelError, match="takes 2 infusions; the cohort has 3"):
        simulate(model, replace(COHORT, infusions=((0.0, 1.0), (30.0, 1.0), (SECOND, 1.0))), seed=1)
    with pytest.raises(ModelError, match="takes one infusion"):
        simulate(STEIN, COHORT, seed=1)


def test_the_likelihood_of_a_table_is_of_both_curves():
    """If it fails, the density reads another sum than the one that is simulated."""
    found = simulate(TWICE, COHORT, seed=2, limits=False, residual=False)
    data = read(found.table)
    obs = make_observations(TWICE, data)
    with jax.enable_x64(True):
        values = jnp.asarray(np.stack([found.individual[p.name].to_numpy() for p in TWICE.parameters]))
        ln = np.asarray(curves(TWICE.structure, obs.grid, *as_arguments(TWICE.structure, values, obs.inputs))["level"])
        real = np.asarray(obs.real)
    assert real.sum() == data.n_obs
    np.testing.assert_allclose(ln.reshape(-1)[np.asarray(obs.cell)][real], np.asarray(obs.ln_dv)[real], atol=1e-9)


def with_doses(table, *days, who=("V1",)):
    """The table with further dose records of these patients."""
    first = table[(table["EVID"] == 1) & table["ID"].isin(who)]
    return read(pd.concat([table, *(first.assign(TIME=day) for day in days)], ignore_index=True))


def test_more_infusions_than_occasions_are_refused_and_named():
    """If it fails, a third infusion is left out without a word."""
    table = simulate(STEIN, replace(COHORT, infusions=((0.0, 1.0),)), seed=1).table
    with pytest.raises(DataError, match=r"takes 2 infusions.* 2 patients \(V1 and V3\)\. Use n=4"):
        inputs_of(TWICE, with_doses(table, 30.0, 60.0, 90.0, who=("V1", "V3")))
    x = inputs_of(TWICE, with_doses(table, 30.0, who=("V1", "V3")))
    np.testing.assert_array_equal(x.later_day, [[30.0, np.inf, 30.0, np.inf, np.inf, np.inf]])
    assert inputs_of(TWICE, read(table)).later_day.shape == (0, 6)
    with pytest.warns(DataWarning, match=r"takes one: .* model\.with_occasions"):
        inputs_of(STEIN, with_doses(table, 30.0))


def test_records_at_one_time_are_one_infusion():
    """If it fails, two bags of one infusion are two expansions."""
    table = simulate(STEIN, replace(COHORT, infusions=((0.0, 1.0),), dose=1e8), seed=1).table
    bag = table[(table["EVID"] == 1) & (table["ID"] == "V1")].assign(TIME=30.0)
    x = inputs_of(TWICE, read(pd.concat([table, bag, bag.assign(AMT=5e7)], ignore_index=True)))
    np.testing.assert_array_equal(x.later_day[:, 0], [30.0])
    np.testing.assert_array_equal(x.later_dose[:, 0], [1.5e8])


def test_the_start_is_guessed_from_the_first_infusion():
    """If it fails, the peak of the second infusion is taken for the first one's, weeks too late."""
    model = TWICE.with_values({"omega.cmax_occ1": 1e-3, "omega.tmax_occ1": 1e-3})
    model = replace(model, parameters=tuple(replace(p, iiv=0.01 if p.iiv else 0.0) for p in model.parameters))
    high = replace(
        model, parameters=tuple(replace(p, value=50.0) if p.name == "cmax_occ2" else p for p in model.parameters)
    )
    data = read(simulate(high, COHORT, seed=3, limits=False, residual=False).table)
    phi, _ = starting_values(TWICE, data)
    names = make_layout(TWICE).phi_names
    assert phi[names.index("tmax")] == pytest.approx(np.log(9.3), abs=0.2)  # the sample at day 9 or that at day 11
    assert phi[names.index("cmax")] == pytest.approx(STEIN["cmax"].theta, abs=0.3)


def test_an_infusion_phase_that_is_seen_is_added_within():
    """If it fails, a table with early samples and second infusions cannot be fitted without further options."""
    early = replace(COHORT, n=12, times=(0.05, 0.5, 1.0, 2.0, 3.0, *TIMES[2:]))
    falling = TWICE.with_infusion_phase()
    data = read(simulate(falling, early, seed=4).table)
    model, notes = with_evidence(TWICE, data)
    assert "An infusion phase was added" in notes[0]
    assert model.structure == falling.structure
    assert with_evidence(model, data) == (model, [])
    assert np.isfinite(make_observations(model, data).ln_dv).all()


def small(n, omega):
    """A trial in which ``n`` patients have two infusions and as many have one."""
    truth = TWICE.with_values({"omega.cmax_occ1": omega, "omega.tmax_occ1": 0.2})
    both = simulate(truth, replace(COHORT, n=n), seed=11).table
    one = simulate(truth, replace(COHORT, n=n, infusions=((0.0, 1.0),)), seed=12).table
    return read(pd.concat([both, one.assign(ID="W" + one["ID"].astype(str))], ignore_index=True))


def by_hand(model, data, seed=1):
    """A fit whose draws are drawn here: of the population about the model's numbers, and of random effects."""
    rng, layout = np.random.default_rng(seed), make_layout(model)
    phi = {
        k: layout.start + s * rng.standard_normal((2, 50, layout.n_phi)) for k, s in (("posterior", 0.1), ("prior", 1))
    }
    names, shape = [p.name for p in model.parameters], (2, 50, len(model.parameters))
    place = {name: k for k, name in enumerate(layout.phi_names)}
    theta, omega = np.zeros(shape), np.zeros(shape)
    for k, p in enumerate(model.parameters):
        theta[..., k] = phi["posterior"][..., place[p.name]] if p.name in place else p.theta
        omega[..., k] = np.exp(phi["posterior"][..., place[f"omega {p.omega_of or p.name}"]])
    dims = ("chain", "draw")
    posterior = {
        "phi": ((*dims, "component"), phi["posterior"]),
        "theta": ((*dims, "parameter"), theta),
        "tv": ((*dims, "parameter"), np.exp(theta)),
        "omega": ((*dims, "parameter"), omega),
        "sigma": ((*dims, "assay"), np.exp(phi["posterior"][..., -1:])),
        "eta": ((*dims, "subject", "parameter"), rng.standard_normal((2, 50, data.n_subjects, shape[-1]))),
    }
    coords = {"parameter": names, "assay": [a.name for a in model.assays], "subject": list(data.subjects)}
    groups = {
        "posterior": xr.Dataset(posterior, coords),
        "prior": xr.Dataset({"phi": ((*dims, "component"), phi["prior"])}),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"method": "importance"}
    return Fit(model=model, data=data, tree=tree)


ROWS = [*(p.name for p in STEIN.parameters), "iov cmax", "iov tmax", "sigma qpcr"]


def test_the_parameter_table_has_one_row_for_all_infusions():
    """If it fails, factors of 1 are printed as parameters, or infusions that nobody had count as shrunk."""
    result = by_hand(TWICE, small(5, 0.7))
    table, posterior = result.parameters(), result.tree["posterior"].to_dataset()
    assert list(table.index) == ROWS
    omega = posterior["omega"].sel(parameter="tmax_occ2").values
    row = table.loc["iov tmax"]
    assert row["TV"] == pytest.approx(omega.mean())
    assert [row["2.5 %"], row["97.5 %"]] == pytest.approx(np.quantile(omega, [0.025, 0.975]))
    assert row["unit"] == "ln"
    assert 95 < row["contraction %"] < 100
    assert row["ESS"] > 10
    eta = posterior["eta"].mean(("chain", "draw"))
    second = np.array(["W" not in name for name in result.data.subjects])
    assert second.sum() == 5
    given = [*eta.sel(parameter="tmax_occ1").values, *eta.sel(parameter="tmax_occ2").values[second]]
    assert row["shrinkage %"] == pytest.approx(100 * (1 - np.std(given, ddof=1) / omega.mean()))
    # An infusion with a typical value of its own is a parameter of its own.
    own = replace(TWICE, parameters=tuple(replace(p, fixed=p.name != "cmax_occ2") for p in TWICE.parameters))
    assert list(by_hand(own, result.data).parameters().index) == [*ROWS[:6], "cmax_occ2", *ROWS[6:]]


@pytest.mark.slow
def test_a_fit_is_read_back_and_its_posterior_is_a_model(tmp_path):
    """If it fails, a saved fit loses the infusions, or the next trial's prior has other ones."""
    result = fit(TWICE, small(5, 0.7), seed=1, method="laplace", progress=False)
    table = result.parameters()
    assert list(table.index) == ROWS
    posterior = result.tree["posterior"].to_dataset()
    assert set(FACTORS) <= set(posterior["parameter"].values)
    omega = posterior["omega"].sel(parameter=["cmax_occ1", "cmax_occ2"]).values
    np.testing.assert_array_equal(omega[..., 0], omega[..., 1])
    row = table.loc["iov cmax"]
    assert row["TV"] == pytest.approx(np.exp(np.log(omega[..., 0]).mean()))
    assert row["2.5 %"] < row["TV"] < row["97.5 %"]
    assert row["contraction %"] > 0
    result.save(tmp_path / "fit.nc")
    back = load_fit(tmp_path / "fit.nc")
    assert back.model.structure == TWICE.structure
    pd.testing.assert_frame_equal(back.parameters(), table)
    again = result.to_model(tmp_path / "next.toml")
    assert load_model(tmp_path / "next.toml").parameters == again.parameters
    assert again["cmax_occ2"].iiv == again["cmax_occ1"].iiv != OCCASION_OMEGA


@pytest.mark.slow
@pytest.mark.parametrize("omega", [0.3, 0.9])
def test_a_fit_finds_the_sd_between_infusions(omega):
    """If it fails, second infusions do not tell what varies between infusions from what varies between patients."""
    result = fit(TWICE, small(30, omega), seed=1, method="laplace", progress=False)
    table = result.parameters()
    assert table.loc["iov cmax", "2.5 %"] < omega < table.loc["iov cmax", "97.5 %"]
    assert table.loc["iov tmax", "2.5 %"] < 0.2 < table.loc["iov tmax", "97.5 %"]
    assert table.loc["iov cmax", "97.5 %"] / table.loc["iov cmax", "2.5 %"] < 4
    assert table.loc["cmax", "2.5 %"] < 24000 < table.loc["cmax", "97.5 %"]
    assert table.loc["sigma qpcr", "TV"] == pytest.approx(STEIN.assays[0].sigma, rel=0.1)
