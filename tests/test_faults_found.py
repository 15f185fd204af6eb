"""Trials of one model, judged by another at known numbers: each fault is found, with a power that is stated.

No fit absorbs anything here, so power is that of the diagnostic itself. What a fit leaves of a fault is tried in
tests/test_faults.py.
"""

import dataclasses
from functools import cache

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import carkinetics as ck
from carkinetics.prediction_errors import PredictionErrors, errors_of
from carkinetics.replication import replicated
from tiers import tiered

DAYS = (2.0, 4, 7, 10, 14, 21, 28, 60, 90, 180)
TRIALS = 100
BASE = ck.load_model("stein_2019_tisagenlecleucel")
SIGMA, OMEGA = BASE.assays[0].sigma, next(p.iiv for p in BASE.parameters if p.name == "cmax")


def limited(model, lloq=None):
    return dataclasses.replace(model, assays=(dataclasses.replace(model.assays[0], lloq=lloq),))


MODEL = limited(BASE)
# The SD of its residual is the log-normal one's.
HEAVY = MODEL.with_residual("student_t", values={"sigma": SIGMA / np.sqrt(3.0), "nu": 3.0})
SPREAD = MODEL.with_values({f"omega.{p.name}": 1.5 * p.iiv for p in MODEL.parameters if p.iiv})
# A covariate explains half of the variance of ln cmax; without it patients differ as much.
BURDENED = MODEL.with_values({"omega.cmax": OMEGA / np.sqrt(2)}).with_covariates(
    ck.Covariate("BURDEN", on="cmax", center=10.0, value=OMEGA / np.sqrt(2))
)
# Ogasawara's lag, doubling time and peak; the wrong model grows from the same first level to the same peak from day 0.
SAME = ("cmax", "alpha", "fb", "beta")
LAG = limited(ck.load_model("ogasawara_2021_lisocabtagene")).with_values(
    {name: BASE[name].value for name in SAME}
    | {f"omega.{name}": BASE[name].iiv for name in SAME}
    | {"omega.tmax": 0.3, "omega.tlag": 0.01, "omega.tdouble": 0.2, "sigma.qpcr": SIGMA}
)
PEAK = LAG["tmax"].value
NO_LAG = LAG.with_values({"tlag": 0.01, "tdouble": LAG["tdouble"].value * PEAK / (PEAK - LAG["tlag"].value)})


@cache
def design(n):
    """Who was sampled when; the values are not looked at."""
    burden = np.exp(np.random.default_rng(1).normal(np.log(10.0), 1.0, n))
    people = pd.DataFrame({"BURDEN": burden})
    table = ck.simulate(BURDENED, ck.Cohort(n=n, times=DAYS, covariates=people), seed=1).table
    return ck.read_dataset(table, units={"DV": "copies/ug"})


def judged(truth, model, trials, n=20, seed=0):
    """NPD and NPDE, by the model, of trials of the truth."""
    data = design(n)
    simulated = replicated(model, n=1000, seed=100 + seed, data=data)
    drawn = replicated(truth, n=trials, seed=200 + seed, data=data).ln_dv
    for k, ln_dv in enumerate(drawn):
        npd, npde = errors_of(simulated, ln_dv, ln_dv, seed=k)
        yield data, npd, npde


def p_of(data, npde, column, keep=slice(None)):
    rows = pd.DataFrame({"NPDE": npde, "DVID": "qpcr"})
    return PredictionErrors(rows[keep], 1000, "cholesky", {}).table().loc["qpcr", column]


def variance(data, npd, npde):
    return p_of(data, npde, "P VARIANCE")


def early(data, npd, npde):
    """Of the second sample given the first, and of the third given both: too low, then too high."""
    return p_of(data, npde, "P MEAN", data.time == 4)


def against_burden(data, npd, npde):
    """Rank correlation over patients of their mean NPD with the covariate."""
    mean = pd.Series(npd).groupby(data.subject).mean()
    burden = data.table.groupby("ID")["BURDEN"].first().loc[list(data.subjects)]
    return stats.spearmanr(mean, burden).pvalue


FAULTS = {  # model that is true and right, model that is wrong, test, patients, power that is promised
    "narrow omegas": (SPREAD, MODEL, variance, 20, 0.9),
    "missing covariate": (BURDENED, MODEL, against_burden, 60, 0.8),
    "missing lag": (LAG, NO_LAG, early, 20, 0.85),
}


@pytest.mark.parametrize("fault", tiered(FAULTS, thorough={"narrow omegas", "missing lag"}))
def test_a_fault_is_found_and_none_where_there_is_none(fault):
    """If it fails, the test that docs/diagnostics.md names for this fault misses it in a trial of sixty patients."""
    right, wrong, p_value, _, _ = FAULTS[fault]
    found, calm = (p_value(*next(judged(right, model, 2, n=60))) for model in (wrong, right))
    assert found < 1e-3 < calm


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_power_against_a_stated_alternative(fault):
    """If it fails, a fault is found more rarely than stated, or a right model is accused more often than one in 20."""
    right, wrong, p_value, n, promised = FAULTS[fault]
    found, calm = (np.array([p_value(*each) for each in judged(right, m, TRIALS, n=n)]) for m in (wrong, right))
    print(fault, "power", np.mean(found < 0.05), "false alarms", np.mean(calm < 0.05))
    assert np.mean(found < 0.05) >= promised
    assert stats.binom.sf(np.sum(calm < 0.05) - 1, TRIALS, 0.05) > 1e-3


def fit_at(model, table, ipred, draws=400, seed=0):
    """A fit of this table whose patients' curves are known."""
    data = ck.read_dataset(table, units={"DV": "copies/ug"})
    assay, rng = model.assays[0], np.random.default_rng(seed)
    shape = (1, draws, data.n_obs)
    again = ipred * np.exp(assay.sigma * rng.standard_normal(shape))
    of = ("chain", "draw", "obs")
    posterior = {"ipred": (of, np.broadcast_to(ipred, shape)), "pred": (of, np.broadcast_to(ipred, shape))}
    posterior["sigma"] = (("chain", "draw", "assay"), np.full((1, draws, 1), assay.sigma))
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(posterior, coords={"assay": [assay.name]}),
            "posterior_predictive": xr.Dataset({"dv": (of, again)}),
        }
    )
    return ck.Fit(model=model, data=data, tree=tree)


def known_curves(truth, seed, n=20):
    """A trial of the truth, read as one of the log-normal model with the patients' own curves."""
    trial = ck.simulate(truth, ck.Cohort(n=n, times=DAYS), seed=seed)
    return trial.table, trial.samples["ipred"].values.ravel()


def tails_of(truth, seed):
    residual = ck.gof(fit_at(MODEL, *known_curves(truth, seed)))["IWRES"]
    return stats.shapiro(residual).pvalue, float(stats.kurtosis(residual))


def test_heavy_tails_show_in_the_individual_residuals():
    """If it fails, outliers of a few samples pass for noise: 200 residuals of a t with three degrees of freedom."""
    (heavy, kurtosis), (normal, none) = tails_of(HEAVY, 1), tails_of(MODEL, 1)
    assert heavy < 1e-4 < 0.01 < normal
    assert kurtosis > 2 > 1 > abs(none)


@pytest.mark.slow
def test_power_against_heavy_tails():
    """If it fails, individual residuals do not tell a t with three degrees of freedom, or accuse normal ones.

    Prediction errors are no test for it: in them a residual is mixed with what differs between patients.
    """
    found, calm = (np.array([tails_of(truth, seed)[0] for seed in range(40)]) for truth in (HEAVY, MODEL))
    data = design(60)
    mixed = [p_of(data, npde, "P NORMAL") for _, _, npde in judged(HEAVY, MODEL, TRIALS, n=60)]
    print("heavy tails: power", np.mean(found < 0.05), "false alarms", np.mean(calm < 0.05), end=" ")
    print("of NPDE with 60 patients", np.mean(np.array(mixed) < 0.05))
    assert np.mean(found < 0.05) >= 0.95
    assert stats.binom.sf(np.sum(calm < 0.05) - 1, 40, 0.05) > 1e-3
    assert np.mean(np.array(mixed) < 0.05) < 0.6


LATE = (2.0, 7, 14, 21, 28, 60, 90, 120, 150, 180)


def risen(seed, n=60, fold=10.0):
    """Trial in which every sixth patient's last two samples are of a clone: on day 150 ``1`` and then ``fold`` times
    what is left of the cells on top of it."""
    trial = ck.simulate(MODEL, ck.Cohort(n=n, times=LATE), seed=seed)
    table, ipred = trial.table, trial.samples["ipred"].values[0, :, :, 0]
    sick = np.arange(n) % 6 == 0
    share = np.zeros((n, len(LATE)))
    share[sick, -2:] = (fold - 1, fold**2 - 1)
    rows = table["EVID"] == 0
    table.loc[rows, "DV"] *= (1 + share).ravel()
    return table, ipred.ravel(), sick


def test_a_clone_that_grows_late_is_flagged_and_nobody_else():
    """If it fails, a relapse by transduced cells that no kinetics explain goes unnoticed, or health is called one."""
    table, ipred, sick = risen(1)
    found = ck.late_rise(fit_at(MODEL, table, ipred))
    assert found["FLAG"][sick].mean() >= 0.8
    assert found["FLAG"][~sick].mean() < 0.15


def clones(seed):
    """Whom a fit of such a trial flags: of the sick, of the others; and how surely it says that it would."""
    table, _, sick = risen(seed)
    fit = ck.fit(MODEL, ck.read_dataset(table, units={"DV": "copies/ug"}), seed=1, method="laplace", progress=False)
    found = ck.late_rise(fit)
    return found["FLAG"][sick].mean(), found["FLAG"][~sick].mean(), found["POWER"].mean()


@pytest.mark.slow
def test_what_a_fit_leaves_of_a_late_rise():
    """If it fails, a fit takes every relapse for persistence, or calls the healthy relapsed.

    A fitted curve goes between the low samples and the high ones, and the residual SD grows: power is half of what it
    is of a known curve.
    """
    sick, others, power = np.mean([clones(seed) for seed in (2, 3, 4)], axis=0)
    print("late rise: found", sick, "of the others", others, "its own POWER", power)
    assert sick > 0.3
    assert others < 0.05


def below(seed, n=60, lloq=400.0):
    """A trial whose samples below the limit were dropped from the table."""
    model = limited(BASE, lloq)
    return model, ck.read_dataset(
        ck.simulate(model, ck.Cohort(n=n, times=DAYS), seed=seed).table, units={"DV": "copies/ug"}
    )


@pytest.mark.slow
def test_power_against_dropped_samples():
    """If it fails, the share below the limit does not tell that samples below it were left out (M1)."""
    found, calm = [], []
    for seed in range(40):
        model, data = below(seed, n=20)
        for kept, of in ((ck.drop_censored(data), found), (data, calm)):
            row = ck.vpc(model, seed=seed, n=200, data=kept).outside().loc[("qpcr", "", "BLQ")]
            of.append(row["OUTSIDE"] >= 3 and row["SIDE"] < 0)
    print("dropped samples: power", np.mean(found), "false alarms", np.mean(calm))
    assert np.mean(found) >= 0.9
    assert np.mean(calm) <= 0.05
