"""Doses: rates against quadrature, exposures against those of fitted patients, refusals, and the calibration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import carkinetics as ck
import dosing
from carkinetics import cli, cohort, layout
from carkinetics.exposures import exposure
from carkinetics.model_checks import typical_curves
from carkinetics.new_exposures import new_exposures, wanted
from carkinetics.population import natural

TRUTH = dosing.Truth(10.2, 0.6, 0.9, (-0.4, 1.3), (-1.0, 0.2, 1.1, 2.5), 0.8)
N = 30


@pytest.fixture(scope="module")
def trial():
    return dosing.drawn_trial(TRUTH, N, np.random.default_rng(5))


@pytest.fixture(scope="module")
def data(trial):
    return ck.read_dataset(dosing.table_of(trial), units={"DV": "copies/ug"})


@pytest.fixture(scope="module")
def fit(trial, data):
    model = dosing.peak_model()
    return dosing.given_fit(model, data, dosing.posterior_phi(model, trial, np.random.default_rng(1)))


@pytest.fixture(scope="module")
def responses(trial):
    return dosing.responses_of(trial, TRUTH, np.random.default_rng(2), 3)


def known(response, theta):
    """A response whose parameters are known."""
    draws = np.tile(np.asarray(theta, float), (len(response.posterior.draws), 1))
    return dataclasses.replace(response, posterior=dataclasses.replace(response.posterior, draws=draws))


def known_fit(data, truth=TRUTH, omega=None):
    """A fit whose population is known."""
    model = dosing.peak_model()
    values = {"cmax": truth.mu, "e_dose_per_kg_cmax": truth.beta, "omega cmax": np.log(omega or truth.omega)}
    phi = [values.get(c.name, np.log(0.5)) for c in layout.make_layout(model).components]
    return dosing.given_fit(model, data, np.tile(phi, (20, 1)))


def asked(fit, responses, **others):
    orr, crs = responses
    given = {"levels": dosing.LEVELS, "seed": 4, "dose_column": "DOSE_PER_KG"} | others
    return ck.recommend(fit, efficacy=orr, toxicity=crs, **given)


def test_rates_of_a_known_truth_are_integrals(trial, data, responses):
    """If it fails, a dose is judged by another population, another exposure, or another patient's probability."""
    c = np.array(TRUTH.thresholds)
    orr = known(responses[0], TRUTH.response)
    crs = known(responses[1], [c[0], *np.log(np.diff(c)), TRUTH.slope])
    plan = asked(known_fit(data), (orr, crs), options=ck.DoseOptions(draws=20, simulated=400))
    expected = np.array([dosing.true_rates(trial, TRUTH, d) for d in dosing.LEVELS])
    for k, name in enumerate(("ORR", "CRS>=3")):
        assert plan.rates[name].shape == (20, 3)
        np.testing.assert_allclose(plan.rates[name].mean(axis=0), expected[:, k], atol=1e-3)
        assert plan.rates[name].std(axis=0).max() < 3e-3  # few patients are enough
    means = TRUTH.mu + TRUTH.beta * np.log(np.array(dosing.LEVELS) / dosing.CENTRE)
    np.testing.assert_allclose(plan.means["cmax (qpcr)"].mean(axis=0), means, atol=2e-3)
    tails = np.exp(means + np.array([[-1.6449], [0.0], [1.6449]]) * TRUTH.omega)
    np.testing.assert_allclose(plan.spread["cmax (qpcr)"], tails, rtol=0.05)
    utility = expected[:, 0] - 1.5 * expected[:, 1]
    assert plan.p_best.argmax() == utility.argmax() and plan.p_best.max() == 1
    np.testing.assert_allclose(plan.table["UTILITY"], utility, atol=2e-3)


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_and_another_one_nearly(fit, responses):
    """If it fails, a recommendation cannot be reproduced, or hangs on the random numbers."""
    one, again, other = (asked(fit, responses, seed=s) for s in (4, 4, 5))
    pd.testing.assert_frame_equal(one.table, again.table)
    assert str(one) == str(again)
    for name in ("ORR", "CRS>=3", "UTILITY"):
        np.testing.assert_allclose(one.table[name], other.table[name], atol=0.04)
    np.testing.assert_allclose(one.p_best, other.p_best, atol=0.1)


@pytest.mark.thorough
def test_new_exposures_are_those_of_fitted_patients(data):
    """If it fails, new patients' exposure is another quantity than the one that the response was fitted to."""
    model, rng = ck.load_model(dosing.MODEL), np.random.default_rng(0)
    own = layout.make_layout(model)
    start = np.array([p.theta for p in own.parameters])
    with jax.enable_x64(True):
        spread = jnp.asarray(start[:, None] + 0.5 * rng.standard_normal((len(start), N)))
        values = np.asarray(natural(own, spread))
    dims = ("chain", "draw", "parameter", "subject")
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"individual": (dims, values[None, None])})})
    tree.attrs["method"] = "importance"
    fitted = dosing.GivenFit(model, data, tree)
    names = ["cmax", "auc_0_28", "auc_7_60", "tmax", "c_28", "c28_cmax", "t_last", "time_above", "doubling_time",
             "fold_expansion", "cmax_per_WT"]  # fmt: skip
    expected = exposure(fitted, names)
    metrics = [wanted(expected[name], model, None) for name in names]
    x = cohort.inputs_for(model, ck.Cohort(n=N, times=(1.0,), dose=1.0), pd.DataFrame({"DOSE": np.ones(N)}))
    found = new_exposures(fitted.model, metrics, values, x, {"WT": np.full(N, 70.0)})
    for m in metrics:
        np.testing.assert_allclose(found[m], expected[m.name].draws[0], rtol=2e-4, err_msg=m.name)


@pytest.mark.thorough
def test_a_structure_that_takes_the_dose(responses):
    """If it fails, cells per kg are not multiplied by the weight, or the dose does not reach the curve."""
    model = ck.load_model("barros_2021_hdlm2")
    assert not any(p.iiv for p in model.parameters)  # all patients are alike
    table = pd.DataFrame({"ID": ["A", "B", "C"], "TIME": 7.0, "DV": [1e5, 2e5, 3e5], "AMT": 0.0, "EVID": 0, "MDV": 0})
    assay = model.assays[0]
    doses = table.assign(TIME=0.0, DV=np.nan, AMT=[1e6, 2e6, 4e6], EVID=1, MDV=1)
    table = pd.concat([doses, table], ignore_index=True).assign(DVID=assay.name, CENS=0, WT=[50.0, 70, 90] * 2)
    data = ck.read_dataset(table, units={"DV": assay.unit})
    fit = dosing.given_fit(model, data, np.tile(layout.make_layout(model).start, (4, 1)))
    metric = dataclasses.replace(responses[0].patients.metric, assay=assay.name, window=(0.0, 30.0))
    pair = tuple(dataclasses.replace(r, patients=dataclasses.replace(r.patients, metric=metric)) for r in responses)
    options = ck.DoseOptions(draws=4, simulated=30)
    each = asked(fit, pair, dose_column="", levels=(1e4, 1e5), options=options)
    assert each.unit == "cells/kg"
    np.testing.assert_allclose(np.sort(each.doses), np.sort([1e6 / 50, 2e6 / 70, 4e6 / 90]))
    options = dataclasses.replace(options, patients=pd.DataFrame({"WT": [70.0]}))
    kg = asked(fit, pair, dose_column="", levels=(1e4, 1e5), options=options)
    options = dataclasses.replace(options, per_kg=False)
    whole = asked(fit, pair, dose_column="", levels=(7e5, 7e6), options=options)
    for name in kg.rates:
        np.testing.assert_allclose(kg.rates[name], whole.rates[name], rtol=1e-9)
    assert whole.unit == "cells" and len(whole.doses) == 3
    typical = typical_curves(dataclasses.replace(model, typical_dose=7e5), np.arange(1, 301) / 10)
    peak = float(typical[assay.output].max())
    np.testing.assert_allclose(np.exp(whole.means[f"cmax ({assay.name})"][:, 0]), peak, rtol=1e-2)
    assert (whole.means[f"cmax ({assay.name})"][:, 0] != whole.means[f"cmax ({assay.name})"][:, 1]).all()


@pytest.mark.thorough
def test_covariates_of_responses_and_given_patients(trial, data):
    """If it fails, a response's covariate is taken from another patient, or new patients are not those given."""
    rng, ids = np.random.default_rng(3), [f"P{i:03d}" for i in range(N)]
    burden = pd.DataFrame({"BURDEN": rng.normal(size=N)}, ids)
    y = pd.Series((rng.random(N) < 1 / (1 + np.exp(-2 * burden["BURDEN"] - trial.u))).astype(int), ids, name="ORR")
    metric = dosing.peak_metric(trial)
    orr = ck.logistic(metric, y, seed=1, covariates=burden)
    crs = ck.ordinal(metric, pd.Series(rng.integers(0, 5, N), ids, name="CRS"), seed=2)
    still = known_fit(data, omega=1e-9)  # exposure is the typical patient's
    peaks = np.exp(TRUTH.mu + TRUTH.beta * np.log(np.array(dosing.LEVELS) / dosing.CENTRE))
    for value in (-1.0, 1.5):
        row = pd.DataFrame({"BURDEN": [value]})
        options = ck.DoseOptions(draws=20, simulated=10, patients=row)
        plan = asked(still, (known(orr, orr.posterior.draws[7]), crs), options=options)
        expected = [orr.predict([x], covariates=row)[7, 0] for x in peaks]
        np.testing.assert_allclose(plan.rates["ORR"], np.tile(expected, (len(plan.rates["ORR"]), 1)), rtol=1e-6)
    one = known(orr, orr.posterior.draws[7])
    plan = asked(still, (one, crs), options=ck.DoseOptions(draws=20, simulated=400))
    expected = [orr.predict(np.full(N, x), covariates=burden)[7].mean() for x in peaks]
    np.testing.assert_allclose(plan.rates["ORR"].mean(axis=0), expected, atol=0.05)
    assert plan.rates["ORR"].std(axis=0).max() > 0.005  # the covariates of the next patients are not known exactly
    with pytest.raises(ck.DataError, match="lack the column BURDEN"):
        asked(still, (orr, crs), options=ck.DoseOptions(patients=pd.DataFrame({"WT": [70.0]})))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"dose_column": ""}, ck.ModelError, "Is DOSE_PER_KG the dose"),
        ({"dose_column": "DOSE_PER_G"}, ck.ModelError, "DOSE_PER_KG"),
        ({"levels": (1e6,)}, ck.ModelError, "two doses or more"),
        ({"levels": (2e6, 1e6)}, ck.ModelError, "from the lowest"),
        ({"levels": (0.0, 1e6)}, ck.ModelError, "above 0"),
        ({"seed": -1}, ck.ModelError, "seed"),
    ],
)
def test_what_cannot_be_is_refused(fit, responses, change, error, said):
    """If it fails, a plan of doses that mean nothing to the model is computed."""
    with pytest.raises(error, match=said):
        asked(fit, responses, **change)


def test_a_model_without_a_dose_is_refused_and_says_how_to_add_it(fit, responses):
    """If it fails, levels that are all alike are compared, and one of them recommended."""
    plain = dataclasses.replace(fit, model=dataclasses.replace(fit.model, covariates=()))
    with pytest.raises(ck.ModelError, match=r"does not depend on the dose.*with_covariates"):
        asked(plain, responses, dose_column="")


def test_failed_fits_are_refused_and_their_status_stands_in_the_plan(fit, responses):
    """If it fails, a dose is recommended from draws that nobody should trust, without a word."""
    failed = dosing.FailedFit(fit.model, fit.data, fit.tree)
    with pytest.raises(ck.FitError, match="failed, so no dose: The chains disagree"):
        asked(failed, responses)
    plan = asked(failed, responses, options=ck.DoseOptions(draws=20, simulated=20, allow_failed=True))
    assert "failed (The chains disagree.)" in str(plan)


def test_a_response_to_plain_numbers_is_refused(fit, responses, trial):
    """If it fails, new patients' exposure is guessed to be what the numbers were."""
    ids = [f"P{i:03d}" for i in range(N)]
    y = pd.Series(np.arange(N) % 2, ids, name="ORR")
    plain = ck.logistic(pd.Series(np.exp(trial.ln_peak), ids), y, seed=1)
    with pytest.raises(ck.ModelError, match="plain numbers"):
        asked(fit, (plain, responses[1]))


def test_endpoints_that_cannot_be_are_refused(fit, responses):
    """If it fails, a typing error in a target or a weight turns a harm into a benefit."""
    orr, crs = responses
    wrong = {
        "between 0 and 1": {"target": 25},
        "at most 0": {"weight": 1.5},
        "one of the grades": {"at": 7},
        "names": {"name": "ORR"},
    }
    for said, bad in wrong.items():
        with pytest.raises(ck.ModelError, match=said):
            asked(fit, (orr, ck.Endpoint(crs, **bad)))
    with pytest.raises(ck.ModelError, match="all weights are 0"):
        asked(fit, (ck.Endpoint(orr, weight=0.0), ck.Endpoint(crs, weight=0.0)))


@pytest.mark.thorough
def test_the_command_line_gives_the_same_table(fit, trial, tmp_path, capsys, monkeypatch):
    """If it fails, the command recommends another dose than Python, or a typing error ends in a traceback."""
    orr, crs = dosing.outcomes_of(trial, TRUTH, np.random.default_rng(2))
    outcomes = pd.DataFrame({"ORR": orr, "CRS": crs})
    outcomes["PFS_TIME"], outcomes["PFS_EVENT"] = 100.0 + np.arange(N), 1
    with_outcomes = dataclasses.replace(fit, data=dataclasses.replace(fit.data, outcomes=outcomes))
    metric = dataclasses.replace(dosing.peak_metric(trial), window=(0.0, 28.0))
    monkeypatch.setattr("carkinetics.fit_file.load_fit", lambda path: with_outcomes)
    monkeypatch.setattr("carkinetics.exposures.exposure", lambda *_, **__: {"cmax": metric})
    ends = ["--efficacy", "ORR:cmax", "PFS:cmax@120", "--toxicity", "CRS:cmax@3"]
    rest = [
        "--levels",
        "1e6",
        "1e7",
        "--dose-column",
        "DOSE_PER_KG",
        "--seed",
        "4",
        "--out",
        str(tmp_path / "dose.csv"),
    ]
    command = ["dose", "fit.nc", *ends, *rest]
    assert cli.main(command) == 0
    assert "not a medical device" in capsys.readouterr().out
    efficacy = [
        ck.logistic(metric, outcomes["ORR"], seed=4),
        ck.tte(metric, outcomes[["PFS_TIME", "PFS_EVENT"]], seed=4),
    ]
    toxicity = ck.ordinal(metric, outcomes["CRS"], seed=4)
    expected = asked(fit, ([efficacy[0], ck.Endpoint(efficacy[1], at=120)], toxicity), levels=(1e6, 1e7))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "dose.csv"), expected.table, check_dtype=False)
    assert "PFS_120" in expected.table
    for wrong in ("ORR", "OR:cmax", "CRS:cmax@x"):
        assert cli.main(["dose", "fit.nc", "--efficacy", wrong, *ends[3:], *rest]) == 1
        assert wrong.split(":")[0] in capsys.readouterr().err


@pytest.mark.slow
def test_plans_are_calibrated_over_trials_from_the_prior():
    """If it fails, intervals of rates are too narrow or too wide, or P(best) promises what does not come.

    60 trials; the benchmark ``bench_dose.py`` runs hundreds.
    """
    inside, said, seen = [], [], []
    for seed in range(60):
        truth = dosing.drawn_truth(np.random.default_rng([seed, 11]))
        plan, rates = dosing.planned(truth, 40, seed)
        table = plan.table
        low, high = (table[[f"ORR_{s}", f"CRS>=3_{s}"]].to_numpy() for s in ("LOW", "HIGH"))
        inside.append((low <= rates) & (rates <= high))
        said.append(plan.p_best)
        seen.append(np.arange(3) == (rates @ [1.0, -1.5]).argmax())
    coverage = np.mean(inside, axis=0)
    assert ((coverage > 0.78) & (coverage < 0.99)).all()  # 3 SDs of 60 trials about 0.9
    p, hit = np.array(said), np.array(seen)
    top = p.argmax(axis=1)
    rows = np.arange(60)
    error = np.sqrt((p[rows, top] * (1 - p[rows, top])).sum()) / 60
    assert abs(hit[rows, top].mean() - p[rows, top].mean()) < 3 * error


@pytest.mark.slow
def test_a_flat_truth_gives_no_evidence_and_a_steep_one_is_found():
    """If it fails, noise is called a reason to give more cells, or a reason to give more cells is missed."""
    found = {"flat": [], "steep": []}
    for seed in range(20):
        drawn = dosing.drawn_truth(np.random.default_rng([seed, 12]))
        for kind, beta, slope in (("flat", 0.0, 1.2), ("steep", 1.5, 1.5)):
            truth = dataclasses.replace(drawn, beta=beta, response=(-0.3, slope))
            found[kind].append(dosing.planned(truth, 40, seed)[0].more_is_better)
    assert sum(found["flat"]) <= 4  # of 20, at most 0.1 expected: P(more than 4) = 0.04
    assert sum(found["steep"]) >= 14
