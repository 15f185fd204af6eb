"""Replicates of a sample share its effect: the rows' likelihood is that of a multivariate normal."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import carkinetics as ck
from carkinetics.density import log_likelihood, row_information
from carkinetics.observations import make_observations, row_positions
from carkinetics.replicates import draw_together

STEIN = ck.load_model("stein_2019_tisagenlecleucel")
SIGMA, SAMPLE = 0.3, 0.5
MODEL = STEIN.with_assay(
    dataclasses.replace(STEIN.assays[0], error="replicates", sigma=SIGMA, second=SAMPLE, lloq=None)
)


def trial(rows):
    table = pd.DataFrame(rows, columns=["ID", "TIME", "DV", "CENS"]).assign(DVID="qpcr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.DataWarning)  # a patient all below the limit
        return ck.read_dataset(table, units={"DV": "copies/ug"}, options=ck.ReadOptions(duplicates="replicate"))


def likelihood(data, ln_pred):
    """By row, in the dataset's order."""
    with jax.enable_x64(True):
        obs = make_observations(MODEL, data)
        at = row_positions(MODEL, data)
        f = jnp.zeros(obs.n_obs).at[at].set(ln_pred)
        found = log_likelihood(f, jnp.array([[SIGMA], [SAMPLE]]), obs)
        _, information = row_information(f, jnp.array([[SIGMA], [SAMPLE]]), obs)
    return np.asarray(found)[at], np.asarray(information)[at], obs


def test_replicates_are_a_multivariate_normal():
    """If it fails, three replicates of one sample count as three samples."""
    values = np.array([1200.0, 1500.0, 900.0])
    rows = [("a", 7.0, v, 0) for v in values] + [("a", 14.0, 300.0, 0), ("b", 7.0, 40.0, 0), ("b", 7.0, 80.0, 0)]
    data = trial(rows)
    f = np.where(data.time == 7, 6.5, 5.0)
    found, information, _ = likelihood(data, f)
    for who, day in (("a", 7.0), ("a", 14.0), ("b", 7.0)):
        here = (data.subject == data.subjects.index(who)) & (data.time == day)
        n = here.sum()
        covariance = SIGMA**2 * np.eye(n) + SAMPLE**2
        ln = np.log(data.dv[here])
        expected = stats.multivariate_normal(f[here], covariance).logpdf(ln) - ln.sum()
        assert found[here].sum() == pytest.approx(expected, rel=1e-12)
        # Of one prediction that they share.
        assert information[here].sum() == pytest.approx(np.linalg.inv(covariance).sum(), rel=1e-12)


def test_a_censored_replicate_knows_the_quantified_ones():
    """P(below | the others), by the conditional normal; alone it is the sample's and the replicate's SD together."""
    data = trial([("a", 7.0, 60.0, 0), ("a", 7.0, 50.0, 1), ("b", 7.0, 50.0, 1)])
    found, _, _ = likelihood(data, np.full(3, 4.2))
    both = SIGMA**2 + SAMPLE**2
    slope = SAMPLE**2 / both
    mean, sd = 4.2 + slope * (np.log(60) - 4.2), np.sqrt(both - slope * SAMPLE**2)
    censored = (data.subject == 0) & (data.cens == 1)
    assert found[censored][0] == pytest.approx(stats.norm.logcdf(np.log(50), mean, sd), rel=1e-10)
    alone = stats.norm.logcdf(np.log(50), 4.2, np.sqrt(both))
    assert found[data.subject == 1][0] == pytest.approx(alone, rel=1e-10)


@pytest.mark.slow
def test_both_spreads_are_recovered():
    """If it fails, replicates make a fit surer than they are."""
    days = (2.0, 4, 7, 9, 11, 14, 21, 28, 42, 70, 98, 140)
    plain = STEIN.with_assay(dataclasses.replace(STEIN.assays[0], sigma=SAMPLE, lloq=None))
    table = ck.simulate(plain, ck.Cohort(n=40, times=days), seed=5).table
    rng, sample = np.random.default_rng(1), table[table["EVID"] == 0]
    twice = [sample.assign(DV=sample["DV"] * np.exp(SIGMA * rng.standard_normal(len(sample)))) for _ in "12"]
    table = pd.concat([table[table["EVID"] == 1], *twice])
    data = ck.read_dataset(table, units={"DV": "copies/ug"}, options=ck.ReadOptions(duplicates="replicate"))
    found = ck.fit(MODEL, data, seed=1, method="laplace", progress=False).parameters()
    for name, truth in (("sigma qpcr", SIGMA), ("sample qpcr", SAMPLE)):
        assert found.loc[name, "2.5 %"] < truth < found.loc[name, "97.5 %"]


def test_drawn_replicates_share_their_sample():
    """If it fails, predictive checks count replicates as samples. Rows of one sample need not be neighbours."""
    taken = np.array([[0.0, 0, 1, 0, 1], [7.0, 9, 7, 7, 7]])  # two samples have two replicates
    n = 40_000
    drawn = draw_together(np.random.default_rng(1), np.full((n, 5), 2.0), SIGMA, SAMPLE, taken)
    found = np.cov(drawn.T)
    want = SIGMA**2 * np.eye(5) + SAMPLE**2 * (taken[:, :, None] == taken[:, None]).all(0)
    # Four standard errors of a covariance; (v_ii v_jj + v_ij^2) / n of normal draws.
    error = np.sqrt((np.outer(np.diag(want), np.diag(want)) + want**2) / n)
    assert (np.abs(found - want) < 4 * error).all()
    assert np.abs(drawn.mean(0) - 2).max() < 4 * np.sqrt(want[0, 0] / n)
