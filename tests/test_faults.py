"""Fits of wrong models to simulated trials: each diagnostic finds the fault that it is there for, and no other."""

import dataclasses
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import carkinetics as ck

pytestmark = pytest.mark.slow

BASE = ck.load_model("stein_2019_tisagenlecleucel")
MODEL = dataclasses.replace(BASE, assays=(dataclasses.replace(BASE.assays[0], lloq=100.0),))
DAYS = (2.0, 4, 7, 10, 14, 21, 28, 60, 90, 180, 365)


def read(table):
    return ck.read_dataset(table, units={"DV": "copies/ug"})


def trial(model, seed, **people):
    return read(ck.simulate(model, ck.Cohort(n=60, times=DAYS, **people), seed=seed).table)


def fitted(model, data):
    return ck.fit(model, data, seed=1, method="laplace", progress=False)


@cache
def right():
    """A trial and the fit of the model that it is of."""
    return fitted(MODEL, trial(MODEL, 31))


def test_a_right_model_has_no_fault():
    """If it fails, the diagnostics accuse a model that is right."""
    fit = right()
    assert ck.npde(fit, seed=1).table().loc["qpcr", "P"] > 0.01
    outside = ck.vpc(fit, seed=1, n=300).outside()
    assert outside["OUTSIDE"].sum() <= 0.15 * outside["BINS"].sum()
    checks = ck.predictive_checks(fit, seed=1).xs("posterior", level="FROM")
    assert (checks["P"] > 0.02).all()
    assert not ck.shrinkage(fit).loc[["cmax", "tmax"], "FLAG"].any()


def test_a_missing_covariate_shows_in_its_strata_and_goes_away():
    """If it fails, a covariate that moves the level is missed, or still seen once it is in the model."""
    rng = np.random.default_rng(1)
    people = pd.DataFrame({"BURDEN": np.exp(rng.normal(2.3, 1.2, 60))})
    effect = ck.Covariate("BURDEN", on="cmax", center=10.0, value=0.9)
    data = trial(MODEL.with_covariates(effect), 33, covariates=people)
    without, with_it = fitted(MODEL, data), fitted(MODEL.with_covariates(ck.Covariate("BURDEN", on="cmax")), data)
    burden = data.table.groupby("ID")["BURDEN"].first()
    p, spread = [], []
    for fit in (without, with_it):
        rows = ck.npde(fit, seed=1).rows
        peak = rows[rows["TIME"].between(7, 21)]
        p.append(stats.spearmanr(peak["NPD"], burden.loc[peak["ID"]]).pvalue)
        sides = ck.vpc(fit, seed=1, n=200, stratify="BURDEN").outside().xs(50.0, level="OF")["SIDE"]
        spread.append(np.ptp(sides))
    assert p[0] < 1e-6 < p[1]
    assert spread[0] > spread[1] + 0.2


def test_samples_below_the_limit_that_were_dropped_show_in_their_share():
    """If it fails, a fit without them (M1) passes for one with them."""
    fit, data = right(), right().data
    without = fitted(MODEL, ck.drop_censored(data))
    blq = [ck.vpc(f, seed=1, n=200, data=data).outside().loc[("qpcr", "", "BLQ")] for f in (without, fit)]
    assert blq[0]["OUTSIDE"] > blq[1]["OUTSIDE"]
    assert blq[0]["SIDE"] > 0.15  # more samples lie below the limit than the biased fit expects
    p = [ck.predictive_checks(f, seed=1, data=data).loc[("qpcr", "blq", "posterior"), "P"] for f in (without, fit)]
    assert p[0] < 0.05 < p[1]


def test_a_spread_that_is_held_too_narrow_shows():
    """If it fails, patients who differ more than the model lets them go unnoticed."""
    known = tuple(
        dataclasses.replace(p, iiv=0.35 * p.iiv, prior_omega=ck.Prior("lognormal", float(np.log(0.35 * p.iiv)), 0.01))
        for p in MODEL.parameters
    )
    fit = fitted(dataclasses.replace(MODEL, parameters=known), right().data)
    assert ck.npde(fit, seed=1).table().loc["qpcr", "P"] < 1e-4 < ck.npde(right(), seed=1).table().loc["qpcr", "P"]
    eta = ck.shrinkage(fit).loc[["cmax", "tmax"], "SHRINKAGE %"]
    assert (eta < 0).all() and eta.min() < -30  # patients spread more than omega says
    sensitive = ck.sensitivity(fit)
    assert sensitive.loc["omega cmax", "PRIOR"] > 0.05
