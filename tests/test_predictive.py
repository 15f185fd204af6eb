"""Patients left out: against a population in which everything is Gaussian, integrated by NumPy and SciPy."""

import dataclasses
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import logsumexp

from carkinetics.dataset import read_dataset
from carkinetics.errors import FitError
from carkinetics.fitting import fit
from carkinetics.inference.chains import Settings
from carkinetics.model_files import load_model
from carkinetics.predictive import ESS_MIN, LeftOut, left_out, lopo
from quadrature import ln_shape

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
KNOWN = {p.name: p.value for p in PUBLISHED.parameters}
# Only cmax varies and is estimated: the log of every sample is Gaussian, given omega and sigma.
MODEL = dataclasses.replace(
    PUBLISHED,
    parameters=tuple(
        p if p.name == "cmax" else dataclasses.replace(p, iiv=0.0, fixed=True) for p in PUBLISHED.parameters
    ),
)
DAYS, LATE = np.array([3.0, 7.0, 14.0, 28.0, 60.0, 100.0]), 28.0
N, LIMIT = 10, 50.0


def table():
    """Ten patients, the first far off; one sample of the second is below the limit."""
    rng, rows = np.random.default_rng(4), []
    for i in range(N):
        ln_cmax = np.log(24000) + (2.2 if i == 0 else 0.8 * rng.standard_normal())
        ln_dv = ln_cmax + ln_shape(DAYS, KNOWN | {"cmax": 1.0}) + 0.5 * rng.standard_normal(len(DAYS))
        for j, (day, x) in enumerate(zip(DAYS, ln_dv, strict=True)):
            below = i == 1 and j == 5
            rows.append((f"P{i}", day, LIMIT if below else np.exp(x), int(below)))
    return pd.DataFrame(rows, columns=["ID", "TIME", "DV", "CENS"]).assign(DVID="qpcr")


@cache
def fitted():
    data = read_dataset(table(), units={"DV": "copies/ug"})
    return fit(MODEL, data, seed=1, settings=Settings(draws=1500), progress=False)


class Exact:
    """Log probability of any samples: Gaussian given omega and sigma, on a grid of which they are integrated out."""

    def __init__(self):
        t = table()
        self.who = t["ID"].str[1:].to_numpy(int)
        self.y = np.log(t["DV"]) - ln_shape(t["TIME"].to_numpy(), KNOWN | {"cmax": 1.0})
        self.y, self.day, self.below = self.y.to_numpy(), t["TIME"].to_numpy(), t["CENS"].to_numpy() == 1
        p, a = MODEL["cmax"], MODEL.assays[0]
        self.mean, self.sd = p.prior.loc, p.prior.scale
        u = np.linspace(-3.5, 3.5, 61)
        self.omega, self.sigma = (np.exp(prior.loc + prior.scale * u) for prior in (p.prior_omega, a.prior))
        self.log_grid = stats.norm.logpdf(u)[:, None] + stats.norm.logpdf(u)

    def grid(self, rows, below=None):
        """Log probability of quantified ``rows``, and of one more below its limit, at every omega and sigma."""
        order = [*np.flatnonzero(rows), *([] if below is None else [below])]
        same = self.who[order][:, None] == self.who[order]
        found = np.empty(self.log_grid.shape)
        for i, omega in enumerate(self.omega):
            for j, sigma in enumerate(self.sigma):
                v = self.sd**2 + omega**2 * same + sigma**2 * np.eye(len(order))
                off, n = self.y[order] - self.mean, len(order) - (below is not None)
                w = v[:n, :n]
                found[i, j] = -0.5 * (n * np.log(2 * np.pi) + np.linalg.slogdet(w)[1])
                found[i, j] -= 0.5 * off[:n] @ np.linalg.solve(w, off[:n])
                if below is not None:
                    gain = np.linalg.solve(w, v[:n, n])
                    sd = np.sqrt(v[n, n] - gain @ v[:n, n])
                    found[i, j] += stats.norm.logcdf((off[n] - gain @ off[:n]) / sd)
        return self.log_grid + found

    def log_prob(self, asked):
        """Of samples, censored ones among them."""
        below = np.flatnonzero(asked & self.below)
        return logsumexp(self.grid(asked & ~self.below, *below))

    def elpd(self, i, after):
        everything, asked = np.ones(len(self.y), bool), (self.who == i) & (self.day > after)
        return self.log_prob(everything) - self.log_prob(everything & ~asked)

    def probability_below(self, row, known):
        """That the sample of this row is smaller than it was, given others (none of them censored)."""
        return np.exp(logsumexp(self.grid(known, row)) - logsumexp(self.grid(known)))


@cache
def exact():
    return Exact()


@pytest.mark.thorough
@pytest.mark.parametrize("after", [None, LATE])
def test_density_of_a_patient_left_out_is_the_closed_forms(after):
    """If it fails, models are ranked by numbers that are not their predictive density."""
    found = left_out(fitted(), seed=2, after=after).patients
    assert found["N"].tolist() == [6 if after is None else 2] * N
    assert found["N_BLQ"].sum() == 1
    assert (found["SETS"] > 50).all()
    for i in (0, 1, 2, 5):
        row = found.loc[f"P{i}"]
        assert row["ESS"] > ESS_MIN
        # Weights of equal size give 1 / sqrt(ESS); the odd patient's are not.
        assert row["ELPD"] == pytest.approx(exact().elpd(i, -np.inf if after is None else after), abs=0.08)


@pytest.mark.thorough
def test_a_refit_without_a_patient_says_the_same():
    """If it fails, patients whose weights fail are judged by another measure than the rest."""
    settings = Settings(draws=1500)
    for after in (None, LATE):
        found = left_out(fitted(), seed=3, after=after, refit=["P0"], settings=settings)
        assert found.patients["REFIT"].tolist() == [True] + [False] * (N - 1)
        assert np.isnan(found.patients.loc["P0", "K"])
        wanted = exact().elpd(0, -np.inf if after is None else after)
        assert found.patients.loc["P0", "ELPD"] == pytest.approx(wanted, abs=0.06)


@pytest.mark.thorough
def test_samples_lie_in_their_predictions_where_the_closed_form_says():
    """If it fails, coverage is of other predictions than those that were made."""
    rows = left_out(fitted(), seed=2).rows
    for row in (3, 21):  # day 28 of the first patient, day 28 of the fourth
        known = (exact().who != exact().who[row]) & ~exact().below
        where = rows[(rows["ID"] == f"P{exact().who[row]}") & (rows["TIME"] == exact().day[row])].iloc[0]
        assert where["LOW"] == where["HIGH"]
        assert where["HIGH"] == pytest.approx(exact().probability_below(row, known), abs=0.02)
    # What is known of the patient narrows its later samples; the one below the limit may lie anywhere below.
    late = left_out(fitted(), seed=2, after=LATE).rows
    row = 22
    known = ((exact().who != 3) | (exact().day <= LATE)) & ~exact().below
    where = late[(late["ID"] == "P3") & (late["TIME"] == exact().day[row])].iloc[0]
    assert where["HIGH"] == pytest.approx(exact().probability_below(row, known), abs=0.02)
    row = 11
    known = ((exact().who != 1) | (exact().day <= LATE)) & ~exact().below
    where = late[late["CENS"] == 1].iloc[0]
    assert where["LOW"] == 0
    assert where["HIGH"] == pytest.approx(exact().probability_below(row, known), abs=0.02)


def test_coverage_of_right_predictions_is_their_level():
    """If it fails, a model's intervals look wider or narrower than they are wherever samples are censored."""
    rng = np.random.default_rng(0)
    u, limit = rng.uniform(size=(2, 40_000))
    censored = u < 0.5 * limit
    rows = pd.DataFrame({"LOW": np.where(censored, 0, u), "HIGH": np.where(censored, 0.5 * limit, u)})
    found = LeftOut(pd.DataFrame(), rows)
    for level in (0.5, 0.9):
        assert found.coverage(level) == pytest.approx(level, abs=0.008)
    assert LeftOut(pd.DataFrame(), pd.DataFrame({"LOW": [0.2, 0.0], "HIGH": [0.2, 0.2]})).coverage(0.9) == 0.875


@pytest.mark.thorough
def test_lopo_is_the_table_and_refits_nobody_whose_weights_hold():
    """If it fails, the short way and the long one disagree."""
    pd.testing.assert_frame_equal(lopo(fitted(), seed=2), left_out(fitted(), seed=2).patients)


def test_what_cannot_be_left_out_is_refused(small_fit):
    """If it fails, a number without meaning comes back in the place of a message."""
    with pytest.raises(FitError, match="no sample is later than day 400"):
        left_out(small_fit, seed=1, after=400.0)
    quick = dataclasses.replace(small_fit, tree=small_fit.tree.copy())
    quick.tree.attrs = small_fit.tree.attrs | {"method": "laplace"}
    with pytest.raises(FitError, match="Laplace approximation"):
        lopo(quick, seed=1)
