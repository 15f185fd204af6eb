"""The Laplace start: each patient's terms against finite differences of Stein's equations, and simulated truth."""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import log_ndtr

from carkinetics.cohort import Cohort
from carkinetics.covariates import Covariate
from carkinetics.dataset import read_dataset
from carkinetics.inference import laplace
from carkinetics.inference.coordinates import transport
from carkinetics.inference.guess import starting_values
from carkinetics.inference.laplace import OMEGA_BOUNDS, patient_terms
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.model_parts import Assay, Prior
from carkinetics.observations import make_observations
from carkinetics.simulation import simulate
from unpacked import split_phi

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
FLOW = Assay("flow", "level", "PB", "copies/ug", "lognormal", 0.9, Prior("lognormal", np.log(0.9), 0.4))
NAMES = [p.name for p in PUBLISHED.parameters]
TIMES = (1.0, 4.0, 7.0, 9.0, 11.0, 14.0, 17.0, 21.0, 28.0, 60.0, 90.0, 180.0, 270.0, 365.0)


def read(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(frame, units={"DV": "copies/ug"})


def ln_level(t, x):
    """Stein's curve as printed, from log parameters."""
    foldx, tmax, cmax, alpha, fb, beta = np.exp(x)
    s = np.maximum(t - tmax, 0)
    decline = np.log((1 - fb) * np.exp(-alpha * s) + fb * np.exp(-beta * s))
    return np.log(cmax) + np.log(foldx) / tmax * np.minimum(t - tmax, 0) + decline


def log_likelihood(rows, f, sigma):
    """One number a row: quantified, below, above, or between LIMIT and DV."""
    y, lower = np.log(rows["DV"].to_numpy()), np.log(rows["LIMIT"].to_numpy())
    z, cens = (y - f) / sigma, rows["CENS"].to_numpy()
    between = np.log(stats.norm.cdf(z) - stats.norm.cdf((lower - f) / sigma))
    kinds = [cens == 0, (cens == 1) & np.isfinite(lower), cens == 1]
    return np.select(kinds, [stats.norm.logpdf(z) - np.log(sigma) - y, between, log_ndtr(z)], log_ndtr(-z))


def curvature(f, x):
    h = 1e-4
    return (f(x + h) - 2 * f(x) + f(x - h)) / h**2


@pytest.fixture(scope="module")
def mixed():
    """Four patients, two assays, all kinds of rows; the individual parameters are not at any mode."""
    rng, rows = np.random.default_rng(1), []
    individual = np.log([p.value for p in PUBLISHED.parameters])[:, None] + rng.normal(0, 0.4, (6, 4))
    for i in range(4):
        for assay in ("qpcr", "flow"):
            for t in rng.choice(TIMES, 8, replace=False):
                dv = float(np.exp(ln_level(float(t), individual[:, i]) + rng.normal(0, 0.7)))
                cens, limit = [(0, np.nan), (1, np.nan), (-1, np.nan), (1, dv / 3)][rng.integers(4)]
                rows.append((f"P{i}", float(t), dv, assay, cens, limit))
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "DV", "DVID", "CENS", "LIMIT"])
    sigma = np.array([0.6, 1.1])
    with jax.enable_x64(True):
        model = PUBLISHED.with_assay(FLOW)
        obs = make_observations(model, read(frame))
        run = jax.jit(lambda *x: patient_terms(make_layout(model), *x))
        terms = run(obs, jnp.asarray(individual), jnp.asarray([sigma, np.full(2, np.nan)]))
    assert [g.kind for g in obs.rows] == ["quantified", "below", "above", "between"]
    return frame, individual, dict(zip(("qpcr", "flow"), sigma, strict=True)), obs, terms


def test_the_score_is_the_slope_of_each_patients_likelihood(mixed):
    """If it fails, a patient's place is searched along the wrong slope, or along another assay's or patient's."""
    frame, individual, sigma, _, terms = mixed
    for i in range(4):
        for a, assay in enumerate(sigma):
            rows = frame[(frame["ID"] == f"P{i}") & (frame["DVID"] == assay)]

            def total(x, r=rows, s=sigma[assay]):
                return log_likelihood(r, ln_level(r["TIME"].to_numpy(), x), s).sum()

            for k in range(6):
                h = 1e-5 * np.eye(6)[k]
                slope = (total(individual[:, i] + h) - total(individual[:, i] - h)) / 2e-5
                assert float(terms.score[a, k, i]) == pytest.approx(slope, rel=1e-6, abs=1e-6)
        mine = frame[frame["ID"] == f"P{i}"]
        residual = mine["DVID"].map(sigma).to_numpy()
        value = log_likelihood(mine, ln_level(mine["TIME"].to_numpy(), individual[:, i]), residual).sum()
        assert float(terms.log_lik[i]) == pytest.approx(value, rel=1e-11)


def test_the_information_is_the_gauss_newton_matrix_of_each_assay(mixed):
    """If it fails, the sampler's coordinates are whitened by something else than the samples' information."""
    frame, individual, sigma, _, terms = mixed
    for i in range(4):
        for a, assay in enumerate(sigma):
            rows = frame[(frame["ID"] == f"P{i}") & (frame["DVID"] == assay)]
            t, x, s = rows["TIME"].to_numpy(), individual[:, i], sigma[assay]
            h = 1e-5 * np.eye(6)
            jacobian = np.array([(ln_level(t, x + h[k]) - ln_level(t, x - h[k])) / 2e-5 for k in range(6)])
            weight = -curvature(lambda f, r=rows, s=s: log_likelihood(r, f, s), ln_level(t, x))
            assert (weight > 0).all()
            wanted = jacobian * weight @ jacobian.T
            np.testing.assert_allclose(terms.information[a, :, :, i], wanted, rtol=1e-5, atol=1e-5)


def test_what_is_known_is_left_out_and_nothing_else(mixed):
    """If it fails, fixing a parameter changes what the samples say of the others, or an effect on it is lost."""
    _, individual, sigma, obs, every = mixed
    fixed = PUBLISHED.with_assay(FLOW).with_values({f"omega.{n}": 0 for n in ("foldx", "beta")}).fix("foldx", "beta")
    layout = make_layout(fixed)
    assert [NAMES[i] for i in layout.moving] == ["tmax", "cmax", "alpha", "fb"]
    with jax.enable_x64(True):
        known = jnp.asarray([list(sigma.values()), np.full(2, np.nan)])
        terms = jax.jit(lambda *x: patient_terms(layout, *x))(obs, jnp.asarray(individual), known)
    kept = np.isin(NAMES, ["tmax", "cmax", "alpha", "fb"])
    np.testing.assert_allclose(terms.score, np.where(kept[:, None], every.score, 0.0), rtol=1e-12)
    both = (kept[:, None] & kept)[:, :, None]
    np.testing.assert_allclose(terms.information, np.where(both, every.information, 0.0), rtol=1e-12)
    with_effect = fixed.with_covariates(Covariate("BURDEN", on="foldx", center=1.0))
    assert "foldx" in [NAMES[i] for i in make_layout(with_effect).moving]


def test_the_slope_in_sigma_is_that_of_the_patients_rows(mixed):
    """If it fails, sigma follows another assay's samples, or another patient's."""
    frame, individual, sigma, _, terms = mixed
    for i in range(4):
        for a, assay in enumerate(sigma):
            rows = frame[(frame["ID"] == f"P{i}") & (frame["DVID"] == assay)]
            f = ln_level(rows["TIME"].to_numpy(), individual[:, i])
            up, down = (log_likelihood(rows, f, sigma[assay] * np.exp(h)).sum() for h in (1e-5, -1e-5))
            assert float(terms.slope_residual[0, a, i]) == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-6)


def start_of(model, obs, phi, z):
    """Modes, then every patient's Gaussian, with the population following."""
    return laplace.widen(model, obs, *laplace.find_modes(model, obs, phi, z), jnp.asarray(True))


def found(model, data, shift=0.0, run=None):
    """The start, the SDs of its population, and its names' columns."""
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        phi, z = starting_values(model, data)
        phi[: len(make_layout(model).estimated)] += shift
        run = run or jax.jit(lambda *x: start_of(model, *x))
        start = run(obs, jnp.asarray(phi), jnp.asarray(z))
        scale = np.asarray(transport(model, obs, start).scale)
    return start, np.sqrt(np.diag(scale @ scale.T))


UNLIMITED = replace(PUBLISHED, assays=(replace(PUBLISHED.assays[0], lloq=None),))  # one shape: compiled once
COHORT = Cohort(n=60, times=TIMES)


@pytest.fixture(scope="module")
def starts():
    """Starts of five simulated studies, from one compiled program."""
    run = jax.jit(lambda *x: start_of(UNLIMITED, *x))
    read_ = [read(simulate(UNLIMITED, COHORT, seed=seed).table) for seed in range(5)]
    return [(data, *found(UNLIMITED, data, run=run)) for data in read_], run


@pytest.mark.thorough
def test_the_population_is_near_the_simulated_truth(starts):
    """If it fails, the EM stops elsewhere than at the population that the patients imply."""
    truth = np.concatenate(
        [
            [p.theta for p in PUBLISHED.parameters],
            np.log([p.iiv for p in PUBLISHED.parameters]),
            [np.log(PUBLISHED.assays[0].sigma)],
        ]
    )
    free = [k for k in range(13) if k not in (5, 11)]  # not beta: a year informs a 220-day half-life only in part
    distance = np.array([(np.asarray(start.phi) - truth) / sd for _, start, sd in starts[0]])
    # A Gaussian picture, not a posterior: the SDs of fb, omega fb and sigma are a third too small or more.
    assert (np.abs(distance[:, free]) < 4).all()
    assert (np.abs(distance[:, [0, 1, 2, 3]]) < 3).all()
    # Nor are the SDs so wide that anything would pass: 55 distances of a calibrated start have an RMS near 1.
    assert 0.5 < np.sqrt((distance[:, free] ** 2).mean()) < 1.7
    assert max(sd[:4].max() for _, _, sd in starts[0]) < 0.3


@pytest.mark.thorough
def test_the_start_comes_back_from_a_bad_guess(starts):
    """If it fails, the EM is stuck, and a bad first guess of the population becomes a bad start."""
    _, run = starts
    for data, start, sd in starts[0][:2]:
        for shift in (-0.5, 0.5):  # 2.5 to 7 SDs away in every typical value at once
            other, _ = found(UNLIMITED, data, shift=shift, run=run)
            assert (np.abs(np.asarray(other.phi - start.phi))[:6] < 2 * sd[:6]).all()


@pytest.mark.thorough
def test_patients_are_near_their_simulated_selves(starts):
    """If it fails, columns of patients or parameters are mixed up between start and dataset."""
    for seed, (data, start, _) in enumerate(starts[0]):
        truth = simulate(UNLIMITED, COHORT, seed=seed).individual.loc[list(data.subjects)]
        with jax.enable_x64(True):
            theta, omega, _ = (np.asarray(x) for x in split_phi(make_layout(UNLIMITED), start.phi))
        individual = theta[:, None] + omega[:, None] * np.asarray(start.z)
        for name in ("cmax", "alpha", "tmax"):
            k = NAMES.index(name)
            assert np.corrcoef(individual[k], np.log(truth[name]))[0, 1] > 0.75, name


@pytest.mark.thorough
def test_the_information_is_positive_semi_definite_and_the_start_finite(starts):
    """If it fails, the sampler's coordinates have no Cholesky factor, and the fallback is taken in silence."""
    for _, start, sd in starts[0]:
        matrix = np.moveaxis(np.asarray(start.information).sum(0), -1, 0)
        lowest, highest = np.linalg.eigvalsh(matrix)[:, 0], np.linalg.eigvalsh(matrix)[:, -1]
        assert (lowest >= -1e-9 * highest).all()
        assert all(bool(jnp.isfinite(x).all()) for x in start)
        assert np.isfinite(sd).all()
        assert (np.asarray(start.decrement) < 0.5).mean() > 0.9
        omega = np.exp(np.asarray(start.phi)[6:12])
        assert ((omega > OMEGA_BOUNDS[0]) & (omega < OMEGA_BOUNDS[1])).all()


@pytest.fixture(scope="module")
def odd():
    """A study with the assay's limit in which P1 has no sample, P2 nothing but samples below it, P3 one sample."""
    table = simulate(PUBLISHED, Cohort(n=12, times=TIMES), seed=7).table
    table["ID"] = table["ID"].str.replace("V", "P").str.replace("P0", "P")
    sample = table["EVID"] == 0
    table = table[~(sample & ((table["ID"] == "P1") | ((table["ID"] == "P3") & (table["TIME"] != 11))))].copy()
    low = (table["EVID"] == 0) & (table["ID"] == "P2")
    table.loc[low, ["DV", "CENS"]] = [50.0, 1]
    data = read(table)
    return data, found(PUBLISHED, data)[0]


@pytest.mark.thorough
def test_a_patient_without_samples_has_no_information_and_stays_typical(odd):
    """If it fails, somebody without a sample gets a kinetics of his own, or breaks the start."""
    data, start = odd
    i = data.subjects.index("P1")
    assert (np.asarray(start.information)[..., i] == 0).all()
    assert (np.asarray(start.score)[..., i] == 0).all()
    np.testing.assert_allclose(np.asarray(start.z)[:, i], 0, atol=1e-2)  # the population still moves a little
    assert float(start.decrement[i]) < 1e-2


@pytest.mark.thorough
def test_a_patient_all_below_the_limit_is_finite_and_low(odd):
    """If it fails, a non-expander stops the fit, or is drawn as if its samples said nothing."""
    data, start = odd
    i = data.subjects.index("P2")
    assert all(np.isfinite(np.asarray(x)[..., i]).all() for x in start[1:])
    assert float(start.z[NAMES.index("cmax"), i]) < -1
    assert all(bool(jnp.isfinite(x).all()) for x in start)


@pytest.mark.thorough
def test_a_patient_with_one_sample_is_finite(odd):
    """If it fails, six parameters from one sample give a singular matrix."""
    data, start = odd
    i = data.subjects.index("P3")
    assert np.isfinite(np.asarray(start.z)[:, i]).all()
    assert np.linalg.matrix_rank(np.asarray(start.information)[0, :, :, i], tol=1e-3) >= 1
