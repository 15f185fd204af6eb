"""Cohorts: levels, infusions, treatments, covariates and courses reach the curves, and come back from the table."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from carkinetics.cohort import Cohort
from carkinetics.covariates import Covariate
from carkinetics.dataset import read_dataset
from carkinetics.dependence import Mixture
from carkinetics.errors import DataError, DataWarning, ModelError
from carkinetics.inputs import inputs_of
from carkinetics.model_files import load_model
from carkinetics.model_parts import Conversion, Parameter, Prior, Regressor, Treatment
from carkinetics.observations import make_observations
from carkinetics.simulation import simulate, truth_of

TIMES = (1.0, 5.0, 9.0, 14.0, 28.0, 100.0)
STEIN = load_model("stein_2019_tisagenlecleucel")
PRIOR = Prior("normal", 0.0, 1.0), Prior("lognormal", 0.0, 1.0)
TREATMENTS = tuple(
    Treatment(name, column, Parameter(f"f_{name}", factor, "1", "log", 0.0, False, *PRIOR))
    for name, column, factor in (("tocilizumab", "TOCI_DAY", 1.2), ("steroids", "STEROID_DAY", 0.5))
)
TREATED = dataclasses.replace(STEIN, treatments=TREATMENTS).with_treatments()
WBC = Regressor("wbc", "WBC", "cells/uL", "locf", 5000.0)
CONVERTED = dataclasses.replace(
    STEIN,
    regressors=(WBC,),
    assays=(dataclasses.replace(STEIN.assays[0], conversion=Conversion("wbc", 2.0, 6.3)),),
)
NOTHING = {"variability": False, "residual": False, "limits": False}


def ln(simulation, output="level"):
    """Natural log of a curve of the first replicate, ``(subject, time)``."""
    return np.log(simulation.curves[output].values[0])


def read(simulation, **units):
    return read_dataset(simulation.table, units={"DV": "copies/ug", "AMT": "cells"} | units)


def test_dose_levels_have_the_same_patients():
    """If it fails, a comparison of doses compares patients as well, or a level is not given."""
    cohort = Cohort(n=20, times=TIMES, levels=(1e6, 2e6, 5e6))
    found = simulate(STEIN, cohort, seed=1)
    people = found.people.loc[1]
    assert len(people) == 60
    assert people.index.is_unique
    assert sorted(people["DOSE_PER_KG"].unique()) == [1e6, 2e6, 5e6]
    assert (people.groupby("LEVEL").size() == 20).all()
    by_level = found.individual.to_numpy().reshape(3, 20, -1)
    np.testing.assert_array_equal(by_level[0], by_level[2])
    np.testing.assert_array_equal(by_level[0], simulate(STEIN, Cohort(n=20, times=TIMES), seed=1).individual)
    amounts = read(found).doses().set_index("ID")["AMT"]
    np.testing.assert_allclose(amounts[people.index], people["DOSE_PER_KG"] * people["WT"])


def test_a_flat_dose_is_the_same_whatever_the_weight():
    """If it fails, cells per patient are multiplied by the weight."""
    found = simulate(STEIN, Cohort(n=5, times=TIMES, dose=1.5e8), seed=1)
    np.testing.assert_array_equal(read(found).doses()["AMT"], np.full(5, 1.5e8))


def test_split_doses_are_in_the_table_and_add_up():
    """If it fails, a split dose is one record, or another amount."""
    from carkinetics.structures import STRUCTURES

    repeatable = [s for s in STRUCTURES.values() if s.repeatable]
    cohort = Cohort(n=4, times=TIMES, dose=1e8, infusions=((0.0, 0.1), (1.0, 0.3), (2.0, 0.6)))
    with pytest.raises(ModelError, match="takes one infusion; the cohort has 3"):
        simulate(STEIN, cohort, seed=1)
    for structure in repeatable:
        model = next((m for m in map(load_model, _names()) if m.structure is structure and not m.unknown()), None)
        if model is None:
            continue
        found = simulate(model, cohort, seed=1, limits=False)
        data = read_dataset(found.table, units={"AMT": "cells"})
        doses = data.doses()
        np.testing.assert_allclose(doses.groupby("ID")["AMT"].sum(), 1e8)
        x = inputs_of(model, data)
        np.testing.assert_allclose(x.dose, 1e7)
        np.testing.assert_allclose(x.later_day, np.tile([[1.0], [2.0]], 4))
        np.testing.assert_allclose(x.later_dose, np.tile([[3e7], [6e7]], 4))


def _names():
    from carkinetics.model_files import models_folder

    return sorted(p.stem for p in models_folder().glob("*.toml"))


@pytest.mark.parametrize(
    "infusions", [(), ((1.0, 1.0),), ((0.0, 0.5), (0.0, 0.5)), ((0.0, 0.0),), ((0.0, 1.0), (-1.0, 1.0))], ids=str
)
def test_infusions_that_cannot_be_are_refused(infusions):
    """If it fails, a study without a first infusion is simulated."""
    with pytest.raises(ModelError, match="infusions must be"):
        simulate(STEIN, Cohort(n=2, times=TIMES, infusions=infusions), seed=1)


def growth(t, tmax, *treatments):
    """The integral of the treatments' factors up to ``min(t, tmax)``, by a fine sum."""
    s = np.linspace(0, min(t, tmax), 200_001)
    middle = 0.5 * (s[1:] + s[:-1])
    factor = np.prod([np.where(middle >= day, f, 1.0) for day, f in treatments], axis=0)
    return float((factor * np.diff(s)).sum())


@pytest.mark.parametrize("days", [(4.0, np.inf), (4.0, 6.5), (6.5, 4.0), (-2.0, 30.0), (np.inf, np.inf)])
def test_treatments_act_as_their_integral(days):
    """If it fails, comedication acts before its day, on the decline, or twice."""
    given = {name: day for name, day in zip(("TOCI_DAY", "STEROID_DAY"), days, strict=True) if np.isfinite(day)}
    cohort = Cohort(n=1, times=TIMES, covariates=given)
    found = ln(simulate(TREATED, cohort, seed=1, **NOTHING))[0]
    plain = ln(simulate(STEIN, cohort, seed=1, **NOTHING))[0]
    rho = np.log(3900) / 9.3
    more = [rho * (growth(t, 9.3, (days[0], 1.2), (days[1], 0.5)) - min(t, 9.3)) for t in TIMES]
    np.testing.assert_allclose(found - plain, more, atol=1e-4)


def test_treatment_days_come_back_from_the_table():
    """If it fails, a fit sees other treatment days than those simulated, or takes an untreated patient as treated."""
    columns = pd.DataFrame({"TOCI_DAY": [4.0, np.nan, 6.0], "STEROID_DAY": [np.nan, np.nan, 5.0]})
    found = simulate(TREATED, Cohort(n=3, times=TIMES, covariates=columns), seed=1)
    x = inputs_of(TREATED, read(found))
    np.testing.assert_array_equal(x.since, [[4.0, np.inf, 6.0], [np.inf, np.inf, 5.0]])
    assert [p.name for p in TREATED.parameters][-2:] == ["f_tocilizumab", "f_steroids"]
    obs = make_observations(TREATED, read(found))
    np.testing.assert_array_equal(obs.inputs.since, x.since)


def test_a_column_that_the_model_reads_must_be_there():
    """If it fails, every patient is taken as untreated because a column has another name."""
    data = read(simulate(STEIN, Cohort(n=3, times=TIMES), seed=1))
    with pytest.raises(DataError, match="reads column TOCI_DAY, which is absent"):
        make_observations(TREATED, data)
    with pytest.raises(DataError, match="reads column WBC, which is absent"):
        make_observations(CONVERTED, data)


def test_a_treatment_day_that_changes_is_refused():
    """If it fails, one of two contradicting days is used."""
    table = simulate(TREATED, Cohort(n=2, times=TIMES, covariates={"TOCI_DAY": 3.0, "STEROID_DAY": 5.0}), seed=1).table
    table.loc[3, "TOCI_DAY"] = 4.0
    with pytest.raises(DataError, match="TOCI_DAY changes within a patient"):
        inputs_of(TREATED, read_dataset(table))


@pytest.mark.parametrize(("interpolation", "expected"), [("locf", 1000.0), ("nocb", 3000.0), ("linear", 2000.0)])
def test_copies_per_ug_follow_the_white_blood_count(interpolation, expected):
    """If it fails, cells/uL become copies/ug with another count than the one interpolated as stated."""
    model = dataclasses.replace(CONVERTED, regressors=(dataclasses.replace(WBC, interpolation=interpolation),))
    cohort = Cohort(n=2, times=(3.0, 5.0, 7.0, 20.0), courses={"WBC": ((3.0, 7.0), (1000.0, 3000.0))})
    found = simulate(model, cohort, seed=1, **NOTHING)
    ratio = found.samples["ipred"].values[0, 0, :, 0] / found.curves["level"].values[0, 0]
    # domain facts: copies/ug = cells/uL x VCN / (6.3e-6 x WBC)
    np.testing.assert_allclose(ratio, 2 / (6.3e-6 * np.array([1000.0, expected, 3000.0, 3000.0])), rtol=1e-12)
    data = read(found)
    assert data.n_obs == 8
    obs = make_observations(model, data)
    offset = np.asarray(obs.offset)[np.asarray(obs.subject) == 0]
    np.testing.assert_allclose(np.sort(offset), np.sort(np.log(ratio)), rtol=1e-12)


def test_a_patient_without_a_count_is_named():
    """If it fails, a patient's predictions are NaN and nobody says why."""
    table = simulate(CONVERTED, Cohort(n=3, times=TIMES), seed=1).table
    table.loc[table["ID"] == "V2", "WBC"] = np.nan
    with pytest.raises(DataError, match=r"WBC is empty in all rows: 1 patients \(V2\)"):
        make_observations(CONVERTED, read_dataset(table))


def test_doses_per_kg_need_a_weight():
    """If it fails, cells per kg are read as cells."""
    table = simulate(STEIN, Cohort(n=3, times=TIMES), seed=1).table
    table["AMT"] = np.where(table["EVID"] == 1, table["DOSE_PER_KG"], 0.0)

    class Needs(type(STEIN.structure)):
        uses_dose = True

    model = dataclasses.replace(STEIN, structure=Needs())
    data = read_dataset(table, units={"AMT": "cells/kg"})
    expected = table[table["EVID"] == 1].set_index("ID").eval("DOSE_PER_KG * WT")
    np.testing.assert_allclose(inputs_of(model, data).dose, expected)
    with pytest.raises(DataError, match="reads column WT, which is absent"):
        inputs_of(model, read_dataset(table.drop(columns="WT"), units={"AMT": "cells/kg"}))
    with pytest.raises(DataError, match="AMT in 'mg' cannot be read"):
        inputs_of(model, read_dataset(table, units={"AMT": "mg"}))
    with pytest.raises(DataError, match="no dose record"):
        inputs_of(model, read_dataset(table[table["EVID"] == 0]))


def test_a_second_infusion_that_the_structure_does_not_take_is_said():
    """If it fails, a re-treated patient is fitted as if nothing had happened."""
    table = simulate(STEIN, Cohort(n=2, times=TIMES), seed=1).table
    again = table[table["EVID"] == 1].iloc[:1].assign(TIME=60.0)
    data = read_dataset(pd.concat([table, again], ignore_index=True))
    with pytest.warns(DataWarning, match=r"1 patients have further infusions \(V1\); expansion_contraction takes one"):
        make_observations(STEIN, data)


@pytest.mark.parametrize(
    ("form", "x", "factor"),
    [("power", 20.0, 2.0**0.7), ("exponential", 12.0, np.exp(1.4)), ("linear", 12.0, 2.4)],
)
def test_covariates_multiply_the_typical_value(form, x, factor):
    """If it fails, a covariate acts by another formula than the paper's."""
    model = dataclasses.replace(STEIN, covariates=(Covariate("BURDEN", on="cmax", form=form, center=10.0, value=0.7),))
    plain = simulate(STEIN, Cohort(n=2, times=TIMES), seed=1).individual
    found = simulate(model, Cohort(n=2, times=TIMES, covariates=pd.DataFrame({"BURDEN": [x, np.nan]})), seed=1)
    np.testing.assert_allclose(found.individual["cmax"] / plain["cmax"], [factor, 1.0], rtol=1e-12)
    np.testing.assert_allclose(found.individual["tmax"], plain["tmax"])
    assert found.table["BURDEN"].dropna().unique() == [x]


def test_a_covariate_that_its_effect_does_not_allow_is_refused():
    """If it fails, a burden of 0 under a power gives patients of NaN."""
    model = dataclasses.replace(STEIN, covariates=(Covariate(column="BURDEN", on="cmax", center=10.0, value=0.7),))
    with pytest.raises(ModelError, match="BURDEN = 0 is outside"):
        simulate(model, Cohort(n=2, times=TIMES, covariates={"BURDEN": 0.0}), seed=1)


def test_rows_of_covariates_are_drawn_whole():
    """If it fails, a virtual patient has the weight of one and the burden of another."""
    given = pd.DataFrame({"WT": [50.0, 60.0, 70.0], "BURDEN": [5.0, 6.0, 7.0]})
    people = simulate(STEIN, Cohort(n=300, times=TIMES, covariates=given), seed=1).people
    np.testing.assert_allclose(people["WT"], 10 * people["BURDEN"])
    assert stats.chisquare(people["WT"].value_counts()).pvalue > 1e-4


def test_classes_of_a_mixture_have_their_shares_and_values():
    """If it fails, poor expanders are too many, too few, or not poor."""
    model = dataclasses.replace(STEIN, mixture=Mixture("cmax", 240.0, 0.2, "poor expander"))
    n = 20_000
    found = simulate(model, Cohort(n=n, times=(9.0,)), seed=3)
    poor = (found.people["CLASS"] == "poor expander").to_numpy()
    assert abs(poor.mean() - 0.2) < stats.norm.isf(0.5e-4) * np.sqrt(0.16 / n)
    cmax = np.log(found.parameters["cmax"].to_numpy())
    for here, value in ((poor, 240.0), (~poor, 24000.0)):
        assert abs(cmax[here].mean() - np.log(value)) < stats.norm.isf(0.5e-4) * np.sqrt(0.65 / here.sum())
    assert "CLASS" not in found.table
    assert (simulate(model, Cohort(n=5, times=(9.0,)), seed=3, variability=False).people["CLASS"] == "reference").all()


def test_switches_take_away_what_they_say():
    """If it fails, 'no residual error' leaves some, or 'typical' patients differ."""
    cohort = Cohort(n=30, times=TIMES)
    full = simulate(STEIN, cohort, seed=1)
    np.testing.assert_array_equal(full.curves["level"].values, full.samples["ipred"].values[..., 0])
    clean = simulate(STEIN, cohort, seed=1, residual=False, limits=False)
    np.testing.assert_array_equal(clean.samples["dv"].values, clean.samples["ipred"].values)
    np.testing.assert_array_equal(clean.curves["level"].values, full.curves["level"].values)
    assert not clean.samples["below"].any()
    assert full.samples["below"].any()
    typical = simulate(STEIN, cohort, seed=1, **NOTHING)
    assert (typical.parameters.nunique() == 1).all()
    assert typical.parameters["cmax"].iloc[0] == pytest.approx(24000, rel=1e-12)


def test_replicates_begin_with_the_same_study_and_then_differ():
    """If it fails, a study changes with the number of its repetitions, or they are all one study."""
    cohort = Cohort(n=7, times=TIMES)
    one, three = simulate(STEIN, cohort, seed=1), simulate(STEIN, cohort, seed=1, replicates=3)
    pd.testing.assert_frame_equal(three.table[three.table["REP"] == 1].drop(columns="REP"), one.table)
    assert not np.isclose(three.curves["level"][0], three.curves["level"][1]).any()
    assert three.curves["level"].dims == ("replicate", "subject", "time")
    assert list(three.population.index) == [1, 2, 3]
    assert one.truth == truth_of(STEIN)


@pytest.mark.thorough
def test_uncertainty_of_a_model_is_that_of_its_priors():
    """If it fails, prior predictive simulations are not of the priors."""
    n = 300
    found = simulate(STEIN, Cohort(n=1, times=(1.0,)), seed=1, replicates=n, uncertainty=True)
    z = stats.norm.isf(0.5e-4)
    for p in STEIN.parameters:
        ln_value = np.log(found.population[p.name])
        assert abs(ln_value.mean() - p.theta) < z * p.prior.scale / np.sqrt(n), p.name
        assert abs(ln_value.std() / p.prior.scale - 1) < z / np.sqrt(2 * n), p.name
        assert abs(np.log(found.population[f"omega {p.name}"]).std() / p.prior_omega.scale - 1) < z / np.sqrt(2 * n)


def test_a_fit_is_simulated_from_its_posterior(small_fit):
    """If it fails, predictions for new patients are of the priors, or of one draw."""
    cohort = Cohort(n=2, times=TIMES)
    posterior = small_fit.tree["posterior"].to_dataset()
    theta = posterior["theta"].mean(("chain", "draw")).sel(parameter="cmax")
    plain = simulate(small_fit, cohort, seed=1)
    assert np.log(plain.truth["cmax"]) == pytest.approx(float(theta), rel=1e-9)
    draws = simulate(small_fit, cohort, seed=1, replicates=25, uncertainty=True).population
    known = posterior["tv"].sel(parameter="cmax").values.ravel()
    assert np.isclose(draws["cmax"].to_numpy()[:, None], known, rtol=1e-9).any(axis=1).all()
    sigma = posterior["sigma"].values.ravel()
    assert np.isclose(draws["sigma qpcr"].to_numpy()[:, None], sigma, rtol=1e-9).any(axis=1).all()
    assert draws["cmax"].nunique() > 5


def test_an_unknown_number_stops_what_needs_it():
    """If it fails, a number that nobody has published is simulated as something."""
    from carkinetics.model_parts import UNKNOWN

    first = dataclasses.replace(STEIN.parameters[0], iiv=UNKNOWN)
    no_omega = dataclasses.replace(STEIN, parameters=(first, *STEIN.parameters[1:]))
    cohort = Cohort(n=2, times=TIMES)
    with pytest.raises(ModelError, match=r"numbers that are not known: omega\.foldx"):
        simulate(no_omega, cohort, seed=1)
    assert np.isfinite(ln(simulate(no_omega, cohort, seed=1, variability=False))).all()
    again = no_omega.with_values({"omega.foldx": STEIN.parameters[0].iiv})
    np.testing.assert_array_equal(
        simulate(again, cohort, seed=1).individual, simulate(STEIN, cohort, seed=1).individual
    )
    no_sigma = dataclasses.replace(STEIN, assays=(dataclasses.replace(STEIN.assays[0], sigma=UNKNOWN),))
    with pytest.raises(ModelError, match=r"sigma\.qpcr"):
        simulate(no_sigma, cohort, seed=1)
    assert np.isfinite(ln(simulate(no_sigma, cohort, seed=1, residual=False))).all()
    with pytest.raises(ModelError, match=r"a fit needs numbers that are not known: sigma\.qpcr"):
        make_observations(no_sigma, read(simulate(STEIN, cohort, seed=1)))
    nothing = dataclasses.replace(STEIN, parameters=(dataclasses.replace(first, value=UNKNOWN), *STEIN.parameters[1:]))
    with pytest.raises(ModelError, match="foldx"):
        simulate(nothing, cohort, seed=1, **NOTHING)


def test_a_treated_trial_is_fitted_with_its_treatment():
    """If it fails, the density does not see the treatment that made the data."""
    columns = {"TOCI_DAY": 4.0, "STEROID_DAY": np.nan}
    data = read(simulate(TREATED, Cohort(n=6, times=TIMES, covariates=columns), seed=2))
    obs = make_observations(TREATED, data)
    from carkinetics.density import ln_pred
    from carkinetics.layout import make_layout

    layout = make_layout(TREATED)
    assert layout.phi_names[6:8] == ["f_tocilizumab", "f_steroids"]
    with jax.enable_x64(True):
        theta = np.array([p.theta for p in TREATED.parameters])
        individual = jax.numpy.asarray(np.repeat(theta[:, None], 6, axis=1))
        pred = np.asarray(ln_pred(layout, individual, obs))
    at = np.asarray(obs.subject) == 0
    expected = ln(simulate(TREATED, Cohort(n=1, times=TIMES, covariates=columns), seed=1, **NOTHING))[0]
    np.testing.assert_allclose(np.sort(pred[at]), np.sort(expected), rtol=1e-10)
