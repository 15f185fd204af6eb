"""Visual predictive checks: percentiles by hand, corrections as printed, limits in both, and faults that must show."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import carkinetics as ck
from carkinetics.dataset import read_dataset
from carkinetics.errors import DataError, ModelError
from carkinetics.model_files import load_model
from carkinetics.replication import limits_of, reference_ln_pred, replicated
from carkinetics.simulation import simulate
from carkinetics.visual_checks import quantile, vpc

MODEL = load_model("stein_2019_tisagenlecleucel")
WITH_COVARIATE = MODEL.with_covariates(ck.Covariate("BURDEN", on="cmax", center=10.0, value=1.0))
DAYS = (2.0, 4, 7, 10, 14, 21, 28, 60, 90, 180)
UNITS = {"DV": "copies/ug"}


def limited(model, lloq):
    return dataclasses.replace(model, assays=(dataclasses.replace(model.assays[0], lloq=lloq),))


def trial(model, seed, n=60, **people):
    return read_dataset(simulate(model, ck.Cohort(n=n, times=DAYS, **people), seed=seed).table, units=UNITS)


@pytest.fixture(scope="module")
def burdened():
    """A trial in which a covariate moves the level a hundredfold."""
    burden = np.exp(np.random.default_rng(1).normal(np.log(10), 1.5, 60))
    arm = np.where(np.arange(60) % 2 == 0, "A", "B")
    return trial(WITH_COVARIATE, 7, covariates=pd.DataFrame({"BURDEN": burden, "ARM": arm}))


def test_quantiles_are_numpys_and_stop_at_infinities():
    """If it fails, percentiles are interpolated otherwise, or a limit leaks a number."""
    x = np.random.default_rng(1).standard_normal((5, 23))
    levels = np.array([0.05, 0.5, 0.95, 0.0, 1.0])
    np.testing.assert_allclose(quantile(x, levels), np.quantile(x, levels, axis=1).T, rtol=0, atol=1e-12)
    hidden = np.array([-np.inf, -np.inf, 1.0, 2.0, np.inf])
    found = quantile(hidden, np.array([0.0, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8]))
    np.testing.assert_array_equal(found, [-np.inf, -np.inf, -np.inf, 1.0, 1.4, 2.0, np.inf])


def by_hand(data, model, n, seed, bins, correction):
    """Percentiles of bins, in pandas, from equations 1 and 2 of Bergstrand 2011 on natural and log scale."""
    trials = replicated(model, n=n, seed=seed, data=data)
    frame = pd.DataFrame({"t": data.time, "y": data.dv, "below": data.cens == 1, "pred": np.exp(trials.ln_pred)})
    frame["bin"] = pd.cut(frame["t"], bins, right=False, labels=False)
    middle = frame.groupby("bin")["pred"].transform("median")
    simulated = pd.DataFrame(np.exp(trials.ln_dv.T))
    factor = middle / frame["pred"] if correction != "none" else middle / middle
    corrected, drawn = frame["y"] * factor, simulated.mul(factor, axis=0)
    if correction == "variability":
        sd = np.log(drawn).std(axis=1, ddof=1)
        ratio = sd.groupby(frame["bin"]).transform("median") / sd
        corrected = np.exp(np.log(middle) + np.log(corrected / middle) * ratio)
        drawn = np.exp(np.log(drawn.div(middle, axis=0)).mul(ratio, axis=0)).mul(middle, axis=0)
    drawn[simulated.lt(np.exp(trials.limits.lloq), axis=0)] = 0.0
    corrected[frame["below"]] = 0.0
    with np.errstate(divide="ignore"):
        ln, ln_drawn = np.log(corrected), np.log(drawn)
    rows = []
    for k, part in frame.groupby("bin"):
        for p in (5.0, 50.0, 95.0):
            each = [np.quantile(ln_drawn.loc[part.index, c], p / 100, method="linear") for c in ln_drawn]
            rows.append((k, p, np.quantile(ln[part.index], p / 100), *np.quantile(each, (0.5, 0.025, 0.975))))
    return pd.DataFrame(rows, columns=["BIN", "PERCENTILE", "OBSERVED", "SIMULATED", "LOW", "HIGH"])


@pytest.mark.parametrize("correction", ["none", "prediction", "variability"])
def test_percentiles_are_those_computed_by_hand(burdened, correction):
    """If it fails, a bin holds other samples, or a value is corrected by another formula than the one printed."""
    free, edges = limited(WITH_COVARIATE, None), [0.0, 8.0, 30.0, 400.0]
    data = burdened
    quantified = dataclasses.replace(data, cens=np.zeros_like(data.cens))  # limits are of another test
    found = vpc(free, seed=3, n=40, data=quantified, bins=edges, correction=correction).percentiles
    expected = by_hand(quantified, free, 40, 3, edges, correction)
    for name in ("BIN", "PERCENTILE"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name in ("OBSERVED", "SIMULATED", "LOW", "HIGH"):
        np.testing.assert_allclose(np.log(found[name]), expected[name], rtol=0, atol=1e-12)


def test_a_patient_by_hand():
    """Three samples on paper: predictions of 100, 200 and 400 become one of 200, and the values move with them."""
    from carkinetics.visual_checks import _correct, _Rows

    class Trials:
        ln_pred = np.log([100.0, 200.0, 400.0])
        ln_dv = np.log([[50.0, 200.0, 800.0], [200.0, 200.0, 200.0]])

    rows = _Rows(Trials(), None, None, np.log([50.0, 300.0, 400.0]), Trials.ln_dv.copy(), np.zeros(3))  # pyright: ignore
    _correct(rows, np.arange(3), "prediction", None)
    np.testing.assert_allclose(np.exp(rows.observed), [100.0, 300.0, 200.0], rtol=1e-12)
    np.testing.assert_allclose(np.exp(rows.simulated), [[100.0, 200.0, 400.0], [400.0, 200.0, 100.0]], rtol=1e-12)


def test_correction_takes_the_covariate_out(burdened):
    """If it fails, a hundredfold covariate is called variability between patients."""
    plain, corrected = (
        vpc(WITH_COVARIATE, seed=1, n=100, data=burdened, correction=c).percentiles for c in ("none", "prediction")
    )

    def width(table):
        wide = table.pivot(index="BIN", columns="PERCENTILE", values="SIMULATED")
        return np.log(wide[95.0] / wide[50.0]).loc[2:5].mean()

    assert width(corrected) < 0.75 * width(plain)


def test_reference_corrected_values_are_those_of_a_patient_at_the_centre(burdened):
    """If it fails, the reference patient has the covariate or the days of another."""
    reference = reference_ln_pred(WITH_COVARIATE, burdened)
    found = vpc(WITH_COVARIATE, seed=1, n=60, data=burdened, correction="reference")
    curve = ck.typical_curves(WITH_COVARIATE, np.unique(burdened.time))["level"]
    np.testing.assert_allclose(np.exp(reference), curve.loc[burdened.time], rtol=1e-9)
    burden = burdened.table.groupby("ID")["BURDEN"].first()
    expected = burdened.dv * (burden.loc[found.samples["ID"]].to_numpy() / 10.0) ** -1.0
    np.testing.assert_allclose(found.samples["DV"], expected, rtol=1e-9)


def test_limits_hide_the_same_in_both():
    """If it fails, the simulated share below the limit, or a percentile there, is of other limits than the data's."""
    data = trial(limited(MODEL, 300.0), 11)
    found = vpc(MODEL, seed=2, n=200, data=data)  # the model's own limit is 50: the table's counts
    late = found.blq.iloc[-1]
    here = data.time == DAYS[-1]
    assert late["LLOQ"] == pytest.approx(300.0)
    assert late["OBSERVED"] == pytest.approx(np.mean(data.cens[here] == 1), abs=1e-15)
    trials = replicated(MODEL, n=200, seed=2, data=data)
    share = (np.exp(trials.ln_dv[:, here]) < 300.0 - 1e-9).mean(axis=1)
    quantified = data.cens[here] == 0  # of a row that was quantified the limit was not above its value
    assert (data.dv[here][quantified] >= 300.0).all()
    assert late["SIMULATED"] == pytest.approx(np.median(share), abs=1e-12)
    low = found.percentiles[(found.percentiles["BIN"] == 9) & (found.percentiles["PERCENTILE"] == 5.0)].iloc[0]
    assert np.isnan(low["OBSERVED"]) and np.isnan(low["SIMULATED"])
    assert (found.percentiles["OBSERVED"].dropna() >= 300.0).all()


def test_limits_of_rows_are_the_tables():
    """If it fails, a quantified row has a limit above its value, or three states become two."""
    model = limited(MODEL, 50.0)
    data = trial(model, 3, n=4)
    cens, limit, dv = (x.copy() for x in (data.cens, data.limit, data.dv))
    of = data.subject == 0
    dv[of], cens[of], limit[of] = 1000.0, 0, np.nan
    first, second, third, fourth = np.flatnonzero(of)[:4]
    cens[[first, second, third]] = (1, 1, -1)
    dv[[first, second, third, fourth]] = (5.0, 20.0, 1e6, 12.0)
    limit[second] = 5.0
    limits = limits_of(model, dataclasses.replace(data, cens=cens, limit=limit, dv=dv))
    lod, lloq, uloq = (np.exp(x) for x in (limits.lod, limits.lloq, limits.uloq))
    np.testing.assert_allclose([lod[first], lod[second], lloq[second]], [5.0, 5.0, 20.0])
    assert lloq[first] == pytest.approx(20.0)  # below the limit of detection: that of quantification is the patient's
    assert uloq[third] == pytest.approx(1e6)
    assert lloq[fourth] == pytest.approx(12.0)
    rest = np.flatnonzero(of)[4:]
    np.testing.assert_allclose(lloq[rest], 20.0)
    np.testing.assert_allclose(uloq[rest], 1e6)


def test_strata_are_panels(burdened):
    """If it fails, a panel shows another arm's patients, or thirds of a covariate are not thirds."""
    by_arm = vpc(WITH_COVARIATE, seed=1, n=20, data=burdened, stratify="ARM")
    assert set(by_arm.percentiles["STRATUM"]) == {"ARM A", "ARM B"}
    arm = burdened.table.groupby("ID")["ARM"].first()
    assert (by_arm.samples["STRATUM"] == "ARM " + arm.loc[by_arm.samples["ID"]].to_numpy()).all()
    thirds = vpc(WITH_COVARIATE, seed=1, n=20, data=burdened, stratify="BURDEN").samples
    assert thirds.groupby("STRATUM")["ID"].nunique().tolist() == [20, 20, 20]
    with pytest.raises(DataError, match="absent"):
        vpc(WITH_COVARIATE, seed=1, n=20, data=burdened, stratify="STAGE")


@pytest.fixture(scope="module")
def plain_trial():
    return trial(limited(MODEL, 100.0), 12, n=100)


def test_the_right_model_lies_inside(plain_trial):
    """If it fails, intervals are too narrow, and a right model looks wrong."""
    found = vpc(MODEL, seed=1, n=300, data=plain_trial)
    table = found.outside()
    assert table["OUTSIDE"].sum() <= stats.binom.isf(1e-3, table["BINS"].sum(), 0.05) + 2
    assert "every sampling day is a bin: 10" in next(iter(found.bins.values()))


@pytest.mark.parametrize(
    ("wrong", "percentile", "side"),
    [
        ({"cmax": 3000.0}, 50.0, 1.0),
        pytest.param({"sigma.qpcr": 2.5}, 95.0, -1.0, marks=pytest.mark.slow),
        pytest.param({"omega.cmax": 3.0}, 95.0, -1.0, marks=pytest.mark.slow),
        pytest.param({"fb": 0.3}, "BLQ", 1.0, marks=pytest.mark.slow),
    ],
    ids=["level", "residual", "omega", "share below the limit"],
)
def test_a_wrong_model_lies_outside(plain_trial, wrong, percentile, side):
    """If it fails, the check shows nothing: a level, a spread, or too few values below the limit."""
    row = vpc(MODEL.with_values(wrong), seed=1, n=200, data=plain_trial).outside().loc[("qpcr", "", percentile)]
    assert row["OUTSIDE"] >= 4
    assert np.sign(row["SIDE"]) == side


def test_dropped_samples_show_in_the_share_below(plain_trial):
    """If it fails, leaving out what is below the limit looks well."""
    dropped = ck.drop_censored(plain_trial)
    model = limited(MODEL, 100.0)
    row = vpc(model, seed=1, n=200, data=dropped).outside().loc[("qpcr", "", "BLQ")]
    assert row["OUTSIDE"] >= 3 and row["SIDE"] < 0


def test_a_missing_covariate_shows_in_its_strata(burdened):
    """If it fails, thirds of a covariate that matters look alike."""
    found = vpc(MODEL, seed=1, n=100, data=burdened, stratify="BURDEN").outside()
    sides = found.xs(50.0, level="OF")["SIDE"]
    assert sides.min() < -0.3 and sides.max() > 0.3


def test_a_fit_is_checked_with_its_own_draws_and_the_seed_decides(small_fit):
    """If it fails, a figure cannot be made again, or every trial has the same population."""
    one, two, other = (vpc(small_fit, seed=s, n=30).percentiles for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not np.allclose(one["SIMULATED"], other["SIMULATED"], equal_nan=True)
    sure, unsure = (replicated(small_fit, n=150, seed=1, population=p).ln_dv for p in ("estimate", "posterior"))
    assert unsure.mean(axis=1).std() > 1.2 * sure.mean(axis=1).std()


def test_replicates_are_of_the_models_population():
    """If it fails, simulated patients are of another population than the one they are drawn from."""
    data = trial(limited(MODEL, None), 5, n=20)
    ours = replicated(limited(MODEL, None), n=400, seed=1, data=data).ln_dv[:, data.time == 14.0].ravel()
    other = simulate(limited(MODEL, None), ck.Cohort(n=8000, times=(14.0,)), seed=9).samples["dv"].values.ravel()
    assert stats.ks_2samp(ours, np.log(other)).pvalue > 1e-3


def test_replicates_of_a_sample_share_its_effect():
    """If it fails, replicates scatter as if they were samples of their own."""
    model = limited(MODEL, None).with_residual("replicates", values={"sigma": 0.1, "sample": 0.8})
    table = simulate(limited(MODEL, None), ck.Cohort(n=10, times=DAYS), seed=2).table
    twice = pd.concat([table, table[table["EVID"] == 0]], ignore_index=True)
    data = read_dataset(twice, units=UNITS, options=ck.ReadOptions(duplicates="replicate"))
    ln_dv = replicated(model, n=300, seed=1, data=data).ln_dv
    first, second = ln_dv[:, 0::2], ln_dv[:, 1::2]
    assert (first - second).std() == pytest.approx(0.1 * np.sqrt(2), rel=0.05)


def test_what_cannot_be_simulated_is_refused(plain_trial):
    """If it fails, memory runs out, or a model without data simulates nothing."""
    with pytest.raises(ModelError, match="more than 2 GB"):
        vpc(MODEL, seed=1, n=1_000_000, data=plain_trial)
    with pytest.raises(ModelError, match="whole number above 1"):
        vpc(MODEL, seed=1, n=1, data=plain_trial)
    with pytest.raises(ModelError, match="no data"):
        vpc(MODEL, seed=1)
