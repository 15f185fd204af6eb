"""NPD and NPDE: against a definition written anew, by hand, and over a hundred trials of the true model."""

import dataclasses
from functools import cache

import mpmath
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from carkinetics.cohort import Cohort
from carkinetics.dataset import read_dataset
from carkinetics.errors import ModelError
from carkinetics.model_files import load_model
from carkinetics.prediction_errors import bounds, decorrelated, errors_of, imputed, npde
from carkinetics.replication import replicated
from carkinetics.simulation import simulate
from tiers import tiered

MODEL = load_model("stein_2019_tisagenlecleucel")
DAYS = (2.0, 4, 7, 10, 14, 21, 28, 60, 90, 180)
UNITS = {"DV": "copies/ug"}
TRIALS, SEEDS = 1000, 100
BLQ_25 = 100.0  # the limit below which a quarter of the samples lie
INF = np.inf
NO_CUTS = np.array([[-INF], [-INF], [INF]])


def limited(lloq):
    return dataclasses.replace(MODEL, assays=(dataclasses.replace(MODEL.assays[0], lloq=lloq),))


def trial(model, seed, n=20):
    return read_dataset(simulate(model, Cohort(n=n, times=DAYS), seed=seed).table, units=UNITS)


def by_the_book(y, simulated, u, how):
    """Brendel's NPDE of one patient in 30 digits: loops, mpmath's matrices and eigenvalues, no NumPy algebra."""
    with mpmath.workdps(30):
        n, m = simulated.shape
        x = [[mpmath.mpf(float(v)) for v in row] for row in simulated]
        mean = [sum(row[j] for row in x) / n for j in range(m)]
        cov = mpmath.matrix(m, m)
        for i in range(m):
            for j in range(m):
                cov[i, j] = sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in x) / (n - 1)
        if how == "cholesky":
            white = mpmath.inverse(mpmath.cholesky(cov))
        else:
            values, vectors = mpmath.eigsy(cov)
            white = vectors * mpmath.diag([1 / mpmath.sqrt(v) for v in values]) * vectors.T

        def freed(row):
            return white * mpmath.matrix([a - b for a, b in zip(row, mean, strict=True)])

        mine, others, places = freed([mpmath.mpf(float(v)) for v in y]), [freed(row) for row in x], []
        for j in range(m):
            less, equal = (sum(bool(f(o[j], mine[j])) for o in others) for f in (_less, _equal))
            places.append((less + u[j] * (equal + 1)) / (n + 1))
        return [float(mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(float(p)) - 1)) for p in places]


def _less(a, b):
    return a < b


def _equal(a, b):
    return a == b


@pytest.mark.parametrize("how", ["cholesky", "inverse"])
def test_npde_of_a_patient_is_brendels(how):
    """If it fails, errors are decorrelated or ranked otherwise than the definition says."""
    rng = np.random.default_rng(1)
    root = np.array([[1.0, 0, 0, 0], [0.9, 0.5, 0, 0], [0.7, 0.4, 0.6, 0], [-0.2, 0.3, 0.1, 1.2]])
    simulated = rng.standard_t(5, (60, 4)) @ root.T + [7.0, 9.0, 6.0, 3.0]
    y, u = np.array([7.3, 8.1, 6.9, 1.5]), rng.uniform(size=4)
    found = stats.norm.ppf(decorrelated(y, simulated, u, how))
    np.testing.assert_allclose(found, by_the_book(y, simulated, u, how), rtol=0, atol=1e-12)


def test_places_by_hand():
    """If it fails, a rank is off by one, ties are not shared, or a limit's probability is another."""
    simulated = np.array([[1.0], [2.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [8.0]])
    rng = np.random.default_rng(0)

    def place(low, high, u, cuts=NO_CUTS):
        values, found, exchanged = imputed(simulated, np.array([low]), np.array([high]), cuts, np.array([u]), rng)
        assert sorted(exchanged.ravel()) == sorted(simulated.ravel())
        return values[0], found[0]

    # Of ten places, three simulated values are smaller than 2.5 and one of the ten is its own.
    assert place(2.5, 2.5, 0.5) == (2.5, 0.35)
    # Two ties: anywhere from the second place to the fourth.
    assert place(2.0, 2.0, 0.0)[1] == pytest.approx(0.1, abs=1e-15)
    assert place(2.0, 2.0, 1.0)[1] == pytest.approx(0.4, abs=1e-15)
    # Below a limit of 4: one of the four places below it, and one of the values there.
    assert place(-INF, 4.0, 0.5) == (2.0, pytest.approx(0.25, abs=1e-15))
    # Between limits of 2 and 4, and above one of 7.
    assert place(2.0, 4.0, 0.9) == (3.0, pytest.approx(0.46, abs=1e-15))
    assert place(7.0, INF, 0.0) == (7.0, pytest.approx(0.7, abs=1e-15))
    # Where nothing was simulated, the limit stands in, and the place is an end's.
    assert place(-INF, 0.5, 0.5) == (0.5, pytest.approx(0.05, abs=1e-15))
    assert place(9.0, INF, 0.5) == (9.0, pytest.approx(0.95, abs=1e-15))


def test_simulated_values_change_places_only_beyond_limits():
    """If it fails, simulated patients keep what a limit hides, or quantified values lose their patient."""
    rng = np.random.default_rng(3)
    simulated = np.arange(400.0)[:, None] + np.zeros(2)
    cuts = np.array([[20.0, -INF], [100.0, 100.0], [350.0, INF]])
    _, _, found = imputed(simulated, np.full(2, 200.0), np.full(2, 200.0), cuts, np.full(2, 0.5), rng)
    for j, cells in enumerate(([(0, 20), (20, 100), (350, 400)], [(0, 100)])):
        kept = np.ones(400, bool)
        for begin, end in cells:
            inside = found[begin:end, j]
            assert sorted(inside) == list(range(begin, end))
            assert (inside != np.arange(begin, end)).mean() > 0.8
            kept[begin:end] = False
        np.testing.assert_array_equal(found[kept, j], np.arange(400.0)[kept])


@cache
def held_out(lloq):
    """A thousand replicates of a trial, and another hundred in the place of data."""
    trials = replicated(limited(lloq), n=TRIALS + SEEDS, seed=8, data=trial(limited(lloq), 2))
    return dataclasses.replace(trials, ln_dv=trials.ln_dv[:TRIALS]), trials.ln_dv[TRIALS:]


def censored_at(trials, ln_dv):
    below = trials.limits.below(ln_dv)
    return np.where(below, -INF, ln_dv), np.where(below, trials.limits.lloq, ln_dv), below


@pytest.mark.parametrize(("lloq", "share"), [(None, 0.0), (BLQ_25, 0.25)])
@pytest.mark.parametrize(
    ("how", "seeds"),
    [
        ("cholesky", 25),
        pytest.param("cholesky", SEEDS, marks=pytest.mark.slow),
        pytest.param("inverse", SEEDS, marks=pytest.mark.slow),
    ],
)
def test_errors_of_the_true_model_are_standard_normal(lloq, share, how, seeds):
    """If it fails, a right model looks wrong, or would with samples below the limit. Every trial has its own test."""
    trials, others = held_out(lloq)
    p, below = [], []
    for k, ln_dv in enumerate(others[:seeds]):
        low, high, hidden = censored_at(trials, ln_dv)
        npd, errors = errors_of(trials, low, high, seed=k, decorrelation=how)
        p.append(stats.kstest(errors, "norm").pvalue)
        below.append(hidden.mean())
        assert np.isfinite(npd).all()
    assert np.mean(below) == pytest.approx(share, abs=0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert stats.binom.sf(np.sum(np.array(p) < 0.05) - 1, seeds, 0.05) > 1e-3


@pytest.mark.parametrize("how", tiered(["cholesky", "inverse"], thorough={"inverse"}))
def test_only_npd_of_one_patient_are_correlated(how):
    """If it fails, the decorrelation leaves what it is there to take away."""
    trials, others = held_out(None)
    together = [[], []]
    for k, ln_dv in enumerate(others):
        for kept, errors in zip(together, errors_of(trials, ln_dv, ln_dv, seed=k, decorrelation=how), strict=True):
            kept.append(errors.reshape(20, len(DAYS)))
    npd, freed = (np.corrcoef(np.concatenate(kept).T) for kept in together)
    off = ~np.eye(len(DAYS), dtype=bool)
    assert np.abs(npd[off]).max() > 0.5
    assert np.abs(freed[off]).max() < 0.1  # 4.5 standard errors of 2,000 patients


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_simulated_trials_that_were_read_again_are_right_too(seed):
    """If it fails, rows of simulated and observed samples are matched wrongly on the way through the table."""
    errors = npde(limited(400.0), data=trial(limited(400.0), 40 + seed, n=40), seed=seed)
    assert errors.table().loc["qpcr", "P"] > 0.003
    assert stats.kstest(errors.rows["NPD"], "norm").pvalue > 1e-6  # correlated, but not shifted
    assert list(errors.rows.columns) == ["ID", "TIME", "DVID", "DV", "CENS", "PRED", "NPD", "NPDE"]


NARROW = {f"omega.{p.name}": 0.4 * p.iiv for p in MODEL.parameters if p.iiv}


@pytest.mark.parametrize(
    ("wrong", "column", "days"),
    [
        ({"sigma.qpcr": 0.25}, "P VARIANCE", (0, 400)),
        pytest.param(NARROW, "P VARIANCE", (0, 400), marks=pytest.mark.slow),
        pytest.param({"cmax": 4000.0}, "P MEAN", (0, 400), marks=pytest.mark.slow),
        pytest.param({"beta": 0.03}, "P MEAN", (100, 400), marks=pytest.mark.slow),
        pytest.param({"tmax": 20.0}, "P MEAN", (0, 8), marks=pytest.mark.slow),
    ],
    ids=["residual", "omegas", "level", "late slope", "late peak"],
)
def test_a_wrong_model_is_seen(wrong, column, days):
    """If it fails, errors look normal whatever the model: a residual, a spread, a level or a time is missed."""
    data = trial(limited(100.0), 12, n=60)
    for model, seen in ((MODEL, False), (MODEL.with_values(wrong), True)):
        errors = npde(model, data=data, seed=1)
        part = errors.rows[errors.rows["TIME"].between(*days)]
        p = dataclasses.replace(errors, rows=part).table().loc["qpcr", column]
        assert p < 1e-4 if seen else p > 1e-2


def test_dropped_samples_are_seen():
    """If it fails, leaving out what is below the limit goes unnoticed: then the rest lies too high."""
    data = trial(limited(400.0), 13, n=60)
    stays = data.cens == 0
    arrays = {name: getattr(data, name)[stays] for name in ("subject", "assay", "time", "dv", "cens", "limit")}
    errors = npde(limited(None), data=dataclasses.replace(data, **arrays), seed=1)
    late = errors.rows[errors.rows["TIME"] >= 60]["NPDE"]
    assert late.mean() > 0.3
    assert errors.table().loc["qpcr", "P MEAN"] < 1e-3


@pytest.mark.parametrize(
    ("error", "values"), [("student_t", {"nu": 3.0}), ("combined", {}), ("negative_binomial", {"dispersion": 0.5})]
)
def test_every_residual_has_its_own_errors(error, values):
    """If it fails, heavy tails, values near 0 or the steps of counts make a right model look wrong."""
    lloq = 1.0 if error == "negative_binomial" else 20.0
    model = limited(lloq).with_residual(error, values=values)
    table = simulate(model, Cohort(n=60, times=DAYS), seed=21).table
    errors = npde(model, data=read_dataset(table, units=UNITS), seed=2)
    assert stats.kstest(errors.rows["NPDE"], "norm").pvalue > 1e-3
    assert np.isfinite(errors.rows[["NPD", "NPDE"]].to_numpy()).all()


def test_two_assays_are_judged_each_by_itself():
    """If it fails, a fault of one assay is spread over the other."""
    second = dataclasses.replace(MODEL.assays[0], name="flow", sigma=0.9, lloq=100.0)
    model = MODEL.with_assay(second)
    data = read_dataset(simulate(model, Cohort(n=60, times=DAYS), seed=5).table, units={"DV": "copies/ug"})
    found = npde(model.with_values({"sigma.flow": 0.3}), data=data, seed=1).table()
    assert found.loc["qpcr", "P"] > 0.01
    assert found.loc["flow", "P VARIANCE"] < 1e-6


def test_tests_are_scipys():
    """If it fails, the table's p-values are of other tests than it says."""
    errors = npde(MODEL, data=trial(MODEL, 3), seed=1)
    x, row = errors.rows["NPDE"].to_numpy(), errors.table().loc["qpcr"]
    assert row["P MEAN"] == pytest.approx(stats.wilcoxon(x).pvalue, rel=1e-12)
    assert row["P NORMAL"] == pytest.approx(stats.shapiro(x).pvalue, rel=1e-12)
    below = stats.chi2.cdf(np.sum((x - x.mean()) ** 2), len(x) - 1)
    assert row["P VARIANCE"] == pytest.approx(2 * min(below, 1 - below), rel=1e-9)
    assert row["P"] == min(1.0, 3 * min(row["P MEAN"], row["P VARIANCE"], row["P NORMAL"]))


def test_the_same_seed_gives_the_same_errors(small_fit):
    """If it fails, a table cannot be made again; or a fit's own data are not what is judged."""
    one, two, other = (npde(small_fit, seed=s, n=200).rows for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not np.allclose(one["NPDE"], other["NPDE"])
    np.testing.assert_array_equal(one["DV"], small_fit.data.dv)


def test_bounds_are_the_three_states():
    """If it fails, a sample between two limits counts as one below both."""
    data = trial(MODEL, 3)
    cens, limit, dv = data.cens.copy(), data.limit.copy(), data.dv.copy()
    cens[:4], limit[:4], dv[:4] = (1, 1, -1, 0), (np.nan, 10.0, np.nan, np.nan), (50.0, 50.0, 900.0, 70.0)
    low, high = bounds(dataclasses.replace(data, cens=cens, limit=limit, dv=dv))
    np.testing.assert_allclose(np.exp(low[:4]), [0.0, 10.0, 900.0, 70.0])
    np.testing.assert_allclose(np.exp(high[:4]), [50.0, 50.0, INF, 70.0])


def test_what_cannot_be_judged_is_refused():
    """If it fails, covariances of too few trials, or a misspelt option, end in numbers."""
    data = trial(MODEL, 3)
    with pytest.raises(ModelError, match="Use n = 1000"):
        npde(MODEL, data=data, seed=1, n=15)
    with pytest.raises(ModelError, match="data"):
        npde(MODEL, seed=1)
