"""Exposure of fitted patients: draw by draw against closed forms, with the right unit, status and reason."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad

import carkinetics as ck
from carkinetics import cli
from carkinetics.exposures import CurveRules, exposure
from carkinetics.model_parts import Parameter

LN2 = math.log(2)
EVERY = (
    "cmax", "tmax", "auc_0_28", "auc_0_90", "auc_3_17.5", "auc_inf", "c_28", "c_0", "c28_cmax", "c_last", "t_last",
    "time_above", "doubling_time", "fold_expansion", "contraction_half_life", "persistence_half_life",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(rich_fit):
    return exposure(rich_fit, EVERY, draws=200)


@pytest.fixture(scope="module")
def values(rich_fit):
    """Individual parameters of the same draws, by name, each (draw, subject)."""
    individual = rich_fit.tree["posterior"].to_dataset()["individual"].stack(sample=("chain", "draw"))
    keep = np.unique(np.linspace(0, individual.sizes["sample"] - 1, 200).astype(int))
    return {
        str(k): individual.sel(parameter=k).isel(sample=keep).transpose("sample", "subject").values.astype(float)
        for k in individual["parameter"].values
    }


def area(v, begin, end):
    """Integral of Stein's curve, by hand."""
    rho, fb = np.log(v["foldx"]) / v["tmax"], np.minimum(v["fb"], 1 - 1e-12)

    def rising(t):
        return np.exp(rho * (np.minimum(t, v["tmax"]) - v["tmax"])) / rho

    def left(t):
        s = np.maximum(t - v["tmax"], 0)
        return -(1 - fb) * np.expm1(-v["alpha"] * s) / v["alpha"] - fb * np.expm1(-v["beta"] * s) / v["beta"]

    return v["cmax"] * (rising(end) - rising(begin) + left(end) - left(begin))


def level(v, t):
    s, fb = np.maximum(t - v["tmax"], 0), np.minimum(v["fb"], 1 - 1e-12)
    rise = np.log(v["foldx"]) / v["tmax"] * (np.minimum(t, v["tmax"]) - v["tmax"])
    return v["cmax"] * np.exp(rise) * ((1 - fb) * np.exp(-v["alpha"] * s) + fb * np.exp(-v["beta"] * s))


def test_every_draw_is_that_of_the_printed_equations(found, values):
    """If it fails, an exposure belongs to another draw, another patient, or another curve."""
    v, early = values, values["tmax"] < 90
    assert early.all()
    expected = {
        "cmax": v["cmax"],
        "tmax": v["tmax"],
        "auc_0_28": area(v, 0, 28),
        "auc_0_90": area(v, 0, 90),
        "auc_3_17.5": area(v, 3, 17.5),
        "c_28": level(v, 28),
        "c_0": v["cmax"] / v["foldx"],
        "c28_cmax": level(v, 28) / v["cmax"],
        "doubling_time": LN2 * v["tmax"] / np.log(v["foldx"]),
        "fold_expansion": v["foldx"],
    }
    for name, values_ in expected.items():
        np.testing.assert_allclose(found[name].draws, values_, rtol=5e-5, err_msg=name)
        middle = np.median(np.abs(found[name].draws / values_ - 1))
        assert middle < 1e-8, name
    s = [level(v, t) for t in (182.5, 365)]
    np.testing.assert_allclose(found["persistence_half_life"].draws, LN2 * 182.5 / np.log(s[0] / s[1]), rtol=1e-6)


def test_one_area_by_scipy(found, values):
    """The closed form of this file by scipy's quad. If it fails, both sides of the test above are wrong alike."""
    v = {k: x[17, 4] for k, x in values.items()}
    expected = quad(lambda t: level(v, t), 0, 90, points=[v["tmax"]], epsrel=1e-11, limit=200)[0]
    assert found["auc_0_90"].draws[17, 4] == pytest.approx(expected, rel=1e-9)


def test_days_above_the_limit(found, values):
    """At ``t_last`` the level is the limit, unless it never falls below it; and there is no level above it later."""
    t_last, above = found["t_last"].draws, found["time_above"].draws
    within = t_last < 365
    at_end = level({k: x[within] for k, x in values.items()}, t_last[within])
    np.testing.assert_allclose(at_end, 50.0, rtol=1e-3)
    assert (level(values, 365.0)[~within] >= 50 * (1 - 1e-9)).all()
    assert (above <= t_last + 1e-6).all() and (above > 0).all()
    with pytest.raises(ck.ModelError, match="limit"):
        CurveRules(limit=-1)


def test_units_windows_and_the_interface_to_responses(found, rich_fit):
    """If it fails, a response model is told another unit, window or order of patients."""
    units = {"cmax": "copies/ug", "tmax": "day", "auc_0_28": "copies/ug day", "c28_cmax": "1", "t_last": "day"}
    for name, unit in units.items():
        assert found[name].unit == unit
        assert found[name].subjects == rich_fit.data.subjects
        assert found[name].draws.shape == (200, rich_fit.data.n_subjects)
        assert found[name].assay == "qpcr"
    assert found["auc_3_17.5"].window == (3, 17.5)
    assert found["cmax"].window == (0, 90)
    assert found["auc_inf"].window == (0, math.inf)
    table = found.table()
    assert len(table) == len(EVERY) * rich_fit.data.n_subjects
    assert (table["LOW"] <= table["VALUE"]).all() and (table["VALUE"] <= table["HIGH"]).all()
    assert "Laplace approximation" in found.source and f"fit {rich_fit.check().status}" in found.source


def test_the_same_draws_whatever_is_asked(found, rich_fit):
    """If it fails, Cmax and AUC of one draw belong to different curves."""
    alone = exposure(rich_fit, ["auc_0_28", "cmax"], draws=200)
    np.testing.assert_allclose(alone["cmax"].draws, found["cmax"].draws, rtol=1e-12)
    np.testing.assert_allclose(alone["auc_0_28"].draws, found["auc_0_28"].draws, rtol=5e-5)


def cut(fit, name, day):
    """The fit as if the patient had been followed to that day."""
    i = fit.data.subjects.index(name)
    stays = ~((fit.data.subject == i) & (fit.data.time > day))
    arrays = {k: getattr(fit.data, k)[stays] for k in ("subject", "assay", "time", "dv", "cens", "limit")}
    return dataclasses.replace(fit, data=dataclasses.replace(fit.data, **arrays))


def test_status_and_reason(rich_fit, found):
    """Beyond the last sample, censored at the horizon, from the prior. If it fails, a guess passes for a fact."""
    assert set(found["auc_0_28"].status) == {"model"}
    assert set(found["auc_inf"].status) == set(found["persistence_half_life"].status) == {"extrapolated"}
    assert set(found["t_last"].status) <= {"model", "extrapolated", "censored"}
    first, second = rich_fit.data.subjects[:2]
    short = cut(cut(rich_fit, first, 21.0), second, -1.0)
    there = exposure(short, ["auc_0_28", "auc_0_14", "cmax"], draws=50)
    assert there["auc_0_28"].status[:3] == ("extrapolated", "extrapolated", "model")
    assert there["auc_0_28"].reason[0] == "the last sample is of day 21"
    assert "no sample of this assay" in there["auc_0_28"].reason[1]
    assert there["auc_0_14"].status[0] == "model"
    still = exposure(rich_fit, ["t_last"], draws=50, rules=CurveRules(limit=1e-6, horizon=200.0))["t_last"]
    assert set(still.status) == {"censored"}
    assert (still.draws == 200).all()
    assert "day 200 in 100 % of the draws" in still.reason[2]


def test_a_patient_below_the_limit_throughout_is_said_to_be_the_populations(rich_fit):
    """If it fails, the prior's Cmax of a non-expander is reported as if it were measured."""
    here = rich_fit.data.subject == 0
    cens = np.where(here, 1, rich_fit.data.cens)
    below = dataclasses.replace(rich_fit, data=dataclasses.replace(rich_fit.data, cens=cens))
    found = exposure(below, ["cmax", "c_last"], draws=20)
    assert "all samples are below the limit" in found["cmax"].reason[0]
    assert found["cmax"].reason[1] == ""
    assert found["c_last"].status[0] == "not_estimable"
    assert "no measurable sample up to day 365 in 100 % of the draws" in found["c_last"].reason[0]
    assert np.isnan(found["c_last"].draws[:, 0]).all()


def test_the_peak_over_the_burden(rich_fit, found):
    """If it fails, another patient's burden divides the peak."""
    burden = rich_fit.data.table.groupby("ID")["BURDEN"].first().loc[list(rich_fit.data.subjects)].to_numpy(float)
    per = exposure(rich_fit, ["cmax_per_BURDEN"], draws=200)["cmax_per_BURDEN"]
    np.testing.assert_allclose(per.draws * burden, found["cmax"].draws, rtol=1e-12)
    assert per.unit == "copies/ug per BURDEN"
    table = rich_fit.data.table.copy()
    table.loc[table["ID"] == rich_fit.data.subjects[1], "BURDEN"] = 0.0
    none = dataclasses.replace(rich_fit, data=dataclasses.replace(rich_fit.data, table=table))
    zero = exposure(none, ["cmax_per_BURDEN"], draws=20)["cmax_per_BURDEN"]
    assert zero.status[1] == "not_estimable" and "not above 0" in zero.reason[1]
    assert zero.status[0] == "model"
    with pytest.raises(ck.ModelError, match="has texts"):
        exposure(rich_fit, ["cmax_per_SEX"], draws=20)


@pytest.mark.thorough
def test_marrow_and_blood_apart():
    """An assay with a ratio to blood has that ratio's exposure. If it fails, matrices are pooled."""
    model = ck.load_model("stein_2019_tisagenlecleucel")
    blood = model.assays[0]
    ratio = Parameter(
        name="ratio_marrow",
        value=0.5,
        unit="1",
        transform="log",
        iiv=0.4,
        fixed=False,
        prior=ck.Prior("normal", math.log(0.5), 0.5),
        prior_omega=ck.Prior("lognormal", math.log(0.4), 0.3),
    )
    model = model.with_assay(dataclasses.replace(blood, name="marrow", matrix="BM", ratio=ratio, lloq=None))
    trial = ck.simulate(model, ck.Cohort(n=5, times=(4.0, 8, 11, 15, 28, 60, 120)), seed=2)
    data = ck.read_dataset(trial.table, units={"DV": "copies/ug"})
    fit = ck.fit(model, data, seed=1, method="laplace", progress=False)
    with pytest.raises(ck.ModelError, match="name one"):
        exposure(fit)
    names = ["cmax", "auc_0_28"]
    of = {a: exposure(fit, names, assay=a, draws=50) for a in ("qpcr", "marrow")}
    draws = fit.tree["posterior"].to_dataset()["individual"].sel(parameter="ratio_marrow").stack(s=("chain", "draw"))
    keep = np.unique(np.linspace(0, draws.sizes["s"] - 1, 50).astype(int))
    share = draws.transpose("s", "subject").values[keep].astype(float)
    for name in names:
        np.testing.assert_allclose(of["marrow"][name].draws, of["qpcr"][name].draws * share, rtol=1e-9)
    with pytest.raises(ck.ModelError, match="CurveRules"):
        exposure(fit, ["t_last"], assay="marrow")
    assert exposure(fit, ["t_last"], assay="marrow", draws=5, rules=CurveRules(limit=20.0))["t_last"].unit == "day"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["cmx"], "Did you mean 'cmax'"),
        (["auc_28"], "Did you mean 'auc_0_28'"),
        (["auc_28_0"], "Use auc_0_28"),
        (["half_life"], "half_life"),
        (["cmax", "auc_0_400", "c_500"], "auc_0_400 and c_500: later than the curves' end"),
        (["auc_<from>_<to>"], "Use a number"),
        (["cmax_per_BRDEN"], "Did you mean 'BURDEN'"),
        ("cmax", "must be a sequence"),
        ([], "must be a sequence"),
    ],
)
def test_unknown_metrics_name_the_nearest(rich_fit, asked, said):
    """If it fails, a typing error ends in a traceback, or in another metric."""
    with pytest.raises(ck.ModelError, match=said):
        exposure(rich_fit, asked)


def test_a_failed_fit_is_refused_and_said(rich_fit):
    """If it fails, numbers of a fit that did not converge go into a dose decision."""
    tree = rich_fit.tree.copy()
    facts = json.loads(tree.attrs["approximation"]) | {"last_move": 3.0}
    tree.attrs = dict(tree.attrs) | {"approximation": json.dumps(facts)}
    failed = dataclasses.replace(rich_fit, tree=tree)
    assert failed.check().status == "failed"
    with pytest.raises(ck.FitError, match="the fit failed"):
        exposure(failed)
    assert "fit failed" in exposure(failed, ["cmax"], draws=5, allow_failed=True).source


def test_rules_that_cannot_be_are_refused():
    """If it fails, a peak is looked for where there is no curve."""
    with pytest.raises(ck.ModelError, match="peak"):
        CurveRules(peak=(0.0, 400.0))
    with pytest.raises(ck.ModelError, match="refine"):
        CurveRules(refine=0)


def test_longer_pieces_are_as_right_as_they_say(rich_fit, found):
    """If it fails, exposures of simulated trials are those of a grid."""
    coarse = exposure(rich_fit, ["auc_0_28", "cmax"], draws=200, rules=CurveRules(refine=1))
    off = np.abs(coarse["auc_0_28"].draws / found["auc_0_28"].draws - 1)
    assert 0 < off.max() < 1e-3 and np.median(off) < 1e-6
    np.testing.assert_allclose(coarse["cmax"].draws, found["cmax"].draws, rtol=1e-6)


def test_side_by_side(rich_fit, found):
    """Observed beside model-based, and where the one fails. If it fails, rows of different patients are compared."""
    both = ck.compare_exposure(rich_fit, draws=200)
    table = both.table.set_index(["METRIC", "ID"])
    assert list(both.table["ID"].unique()) == list(rich_fit.data.subjects)
    seen = ck.nca(rich_fit.data).exposure()
    for name in ("cmax", "auc_0_28"):
        np.testing.assert_allclose(table.loc[name, "MODEL"], found[name].value)
        np.testing.assert_allclose(table.loc[name, "OBSERVED"], seen[name].value)
        ln = np.log([seen[name].value, found[name].value])
        row = both.summary.set_index("METRIC").loc[name]
        assert row["N"] + row["ONLY_MODEL"] == row["PATIENTS"] == rich_fit.data.n_subjects
        if row["N"] == row["PATIENTS"]:
            assert row["R2"] == pytest.approx(np.corrcoef(ln)[0, 1] ** 2)
            assert row["RATIO"] == pytest.approx(np.exp(np.mean(ln[0] - ln[1])))
        assert row["R2"] > 0.5  # one draw of the residual error, with outliers, is in the observed one
    # A patient of whom no sample is measurable has no observed exposure, and is counted as such.
    cens = np.where(rich_fit.data.subject == 3, 1, rich_fit.data.cens)
    below = dataclasses.replace(rich_fit, data=dataclasses.replace(rich_fit.data, cens=cens))
    again = ck.compare_exposure(below, draws=20)
    assert again.summary.set_index("METRIC").loc["cmax", "ONLY_MODEL"] == 1
    why = again.failures()
    assert why[why["METRIC"] == "cmax"]["WHY"].str.contains("samples are below the limit").any()
    assert (why["N"] > 0).all()
    with pytest.raises(ck.ModelError, match="metric"):
        ck.compare_exposure(rich_fit, ["time_above"], draws=5)


def test_observed_against_model_at_other_windows(rich_fit):
    """If it fails, a window that only one side has is compared with another one."""
    both = ck.compare_exposure(rich_fit, ["auc_7_42", "tmax"], draws=20)
    assert list(both.summary["METRIC"]) == ["auc_7_42", "tmax"]
    assert both.table["OBSERVED"].notna().any()


@pytest.mark.thorough
def test_the_command_line_says_the_same(rich_fit, tmp_path, capsys):
    """If it fails, the command prints other numbers than Python, or a typing error ends in a traceback."""
    file, out = rich_fit.save(tmp_path / "fit.nc"), tmp_path / "exposure.csv"
    assert cli.main(["exposure", str(file), "cmax", "auc_0_28", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Laplace approximation" in printed and "R2" in printed
    table = pd.read_csv(out, dtype={"ID": str})
    expected = exposure(rich_fit, ["cmax", "auc_0_28"]).table()
    np.testing.assert_allclose(table["VALUE"], expected["VALUE"], rtol=1e-6)
    assert list(table["STATUS"]) == list(expected["STATUS"])
    assert cli.main(["exposure", str(file), "cmx", "--out", str(out)]) == 1
    assert "Did you mean 'cmax'" in capsys.readouterr().err
