"""The sampler's coordinates: an exact map with an exact Jacobian, and exactly right where all is Gaussian."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jaxtyping import Array, Float

from carkinetics.dataset import read_dataset
from carkinetics.density import log_joint
from carkinetics.inference import laplace
from carkinetics.inference.coordinates import (
    Bend,
    Point,
    Transport,
    cholesky,
    log_density,
    no_transport,
    pairs,
    prior_precision,
    solve_lower,
    solve_upper,
    transport,
)
from carkinetics.inputs import resolved
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model, parse_model
from carkinetics.model_parts import Assay, Prior
from carkinetics.observations import make_observations
from carkinetics.structure import AbstractStructure
from everything import EVERYTHING
from tiers import tiered
from unpacked import split_phi

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
FLOW = Assay("flow", "level", "PB", "copies/ug", "lognormal", 0.9, Prior("lognormal", math.log(0.9), 0.4))
TIMES = [1.0, 4, 7, 11, 14, 21, 28, 60, 120]


class LineParameters(NamedTuple):
    a: Float[Array, "*n"]
    b: Float[Array, "*n"]
    c: Float[Array, "*n"]


class LineStates(NamedTuple):
    level: Float[Array, "*n"]


class Line(AbstractStructure[LineParameters, LineStates]):
    """ln level = a + b t + c t^2: with identity transforms the posterior given the population is Gaussian."""

    name = "line"
    parameters = LineParameters
    states = LineStates
    outputs = ("level",)

    def curve(self, t, p, x):
        return {"level": p.a + p.b * t + p.c * t**2}

    def initial(self, p, x):
        return LineStates(jnp.exp(p.a))

    def rhs(self, t, y, p, x):
        return LineStates(y.level * (p.b + 2 * p.c * t))

    def output(self, y, p):
        return {"level": jnp.log(y.level)}


LINE = parse_model(
    """
schema = 1
name = "line"
structure = "line"
[parameters]
a = {value = 2.0, unit = "1", transform = "identity", omega_sd = 0.9}
b = {value = -0.4, unit = "1", transform = "identity", omega_sd = 0.5}
c = {value = 0.1, unit = "1", transform = "identity", no_iiv = true}
[assays]
one = {output = "level", matrix = "PB", unit = "copies/ug", error = "lognormal", sigma = 0.3}
two = {output = "level", matrix = "PB", unit = "copies/ug", error = "lognormal", sigma = 0.7}
""",
    structures=[Line()],
)


def samples(times, level, assays, n, spread, seed):
    """A table of quantified samples; every patient misses some, and the last one has none but a dose."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        shift = rng.normal(0, spread)
        rows.append((f"P{i}", 0.0, np.nan, 1e8, 1, ""))
        for assay in assays if i < n - 1 else ():
            for t in times[: rng.integers(2, len(times) + 1)]:
                rows.append((f"P{i}", t, float(np.exp(level(t) + shift + rng.normal(0, 0.4))), 0, 0, assay))
    return pd.DataFrame(rows, columns=["ID", "TIME", "DV", "AMT", "EVID", "DVID"])


def observations(model, frame):
    with pytest.warns() as _:
        data = read_dataset(frame, units={"DV": "copies/ug"}, lloq=20 if "qpcr" in set(frame["DVID"]) else None)
    return make_observations(model, data)


def stein(t):
    return np.log(24000) + (np.log(3900) / 9.3 * (t - 9.3) if t < 9.3 else -0.16 * (t - 9.3))


def synthetic(model, obs, seed):
    """A map with random centre, scale and information: nothing that a start would have had to find."""
    rng = np.random.default_rng(seed)
    layout = make_layout(model)
    p, a, n = len(layout.parameters), len(layout.assays), obs.n_subjects
    root = rng.normal(size=(a, n, p, 3)) * rng.choice([0.0, 1, 6], (1, n, 1, 1))
    information = np.einsum("aspm,asqm->apqs", root, root)[:, list(layout.random)]
    k = len(layout.random)
    order = np.triu(np.ones((k, k)), 1)  # triangular: a parameter is moved by later ones only
    first, second = pairs(k)
    curve = rng.normal(0, 1, (k, len(first), n)) * (order[:, first] * order[:, second])[:, :, None]
    bend = Bend(*(jnp.asarray(x) for x in (rng.normal(0, 1, (k, n)), rng.uniform(0.5, 2, (k, n)), curve)))
    scale = np.tril(rng.normal(0, 0.1, (layout.n_phi, layout.n_phi)), -1) + np.diag(rng.uniform(0.1, 0.5, layout.n_phi))
    return Transport(
        centre=jnp.asarray(layout.start + rng.normal(0, 0.1, layout.n_phi)),
        scale=jnp.asarray(scale),
        information=jnp.asarray(information),
        shift=jnp.asarray(rng.normal(0, 2, (*information.shape[:2], n))),
        sigma=jnp.asarray(rng.uniform(0.3, 1, a)),
        second=jnp.asarray(rng.uniform(size=n) if layout.mixture else np.zeros(n)),
        design=obs.design,
        bend=bend,
        held=jnp.arange(n) == 1,
    )


STEIN = {
    "published": PUBLISHED,
    "fixed": PUBLISHED.fix("beta", "foldx"),
    "two assays": PUBLISHED.with_assay(FLOW),
    "everything": EVERYTHING,
}


def read_samples(model, seed):
    """The model with what covariates leave open, and a table's arrays; the last patient has no samples."""
    frame = samples(TIMES, stein, [a.name for a in model.assays], 4, 0.7, seed=seed)
    number = frame["ID"].str[1:].astype(int)
    frame = frame.assign(BURDEN=2.0 + number, AGE=40 + 7 * number % 5, SEX=["FM"[k % 2] for k in number])
    frame = frame.assign(PRODUCT=["ABC"[k % 3] for k in number])
    with pytest.warns() as _:
        data = read_dataset(frame, units={"DV": "copies/ug"}, lloq=20)
    model, _ = resolved(model, data)
    return model, make_observations(model, data)


@pytest.mark.parametrize("name", tiered(STEIN, thorough={"everything", "fixed", "two assays"}))
def test_the_density_counts_the_jacobian_of_the_map(name):
    """If it fails, the sampler's posterior is not the model's: it depends on where the start happened to be."""
    model = STEIN[name]
    with jax.enable_x64(True):
        model, obs = read_samples(model, seed=1)
        layout, map_ = make_layout(model), synthetic(model, obs, seed=2)
        n_phi, k, n = layout.n_phi, len(layout.random), obs.n_subjects

        def flat(x):
            phi, z, _ = map_(layout, Point(x[:n_phi], x[n_phi:].reshape(k, n)))
            return jnp.concatenate([phi, z.ravel()])

        both = jax.jit(lambda x: (flat(x), jax.jacfwd(flat)(x)))
        density = jax.jit(lambda x: log_density(model, obs, map_, Point(x[:n_phi], x[n_phi:].reshape(k, n))))
        joint = jax.jit(lambda x: log_joint(model, obs, x[:n_phi], x[n_phi:].reshape(k, n)))
        constant = np.linalg.slogdet(np.asarray(map_.scale))[1]
        for seed in range(6):
            x = jnp.asarray(np.random.default_rng(seed).normal(size=n_phi + k * n))
            y, jacobian = both(x)
            wanted = float(joint(y)) + np.linalg.slogdet(np.asarray(jacobian))[1] - constant
            assert float(density(x)) == pytest.approx(wanted, rel=1e-11, abs=1e-9)


@pytest.mark.parametrize("name", tiered(STEIN, thorough={"everything", "fixed"}))
def test_the_inverse_is_the_inverse(name):
    """If it fails, a chain that changes coordinates in mid-run jumps to another place."""
    with jax.enable_x64(True):
        model, obs = read_samples(STEIN[name], seed=1)
        layout, map_ = make_layout(model), synthetic(model, obs, seed=2)
        there_and_back = jax.jit(lambda p: map_.inverse(layout, *map_(layout, p)[:2]))
        for seed in range(3):
            rng = np.random.default_rng(seed)
            point = Point(
                jnp.asarray(rng.normal(size=layout.n_phi)), jnp.asarray(rng.normal(size=map_.shift.shape[1:]))
            )
            back = there_and_back(point)
            np.testing.assert_allclose(back.u, point.u, atol=1e-9)
            np.testing.assert_allclose(back.v, point.v, atol=1e-8)


@pytest.mark.thorough
def test_where_a_start_is_found_nought_is_the_start_with_everything():
    """If it fails, the sampler does not begin where the start was found, of a model with classes or correlations."""
    with jax.enable_x64(True):
        model, obs = read_samples(EVERYTHING, seed=1)
        layout = make_layout(model)
        start = jax.jit(lambda *x: start_of(model, *x))(obs, jnp.asarray(layout.start), jnp.zeros((7, 4)))
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(start))
        assert (start.decrement < 0.1).all()
        map_ = transport(model, obs, start)
        phi, z, _ = map_(layout, Point(jnp.zeros(layout.n_phi), jnp.zeros_like(start.z)))
        np.testing.assert_allclose(phi, start.phi, rtol=1e-12)
        np.testing.assert_allclose(z, start.z, rtol=0, atol=1e-9)


@pytest.mark.thorough
def test_the_map_is_smooth_and_its_gradient_finite_for_every_patient():
    """If it fails, patients without samples (no information) make the gradient NaN."""
    with jax.enable_x64(True):
        obs = observations(PUBLISHED, samples(TIMES, stein, ["qpcr"], 4, 0.7, seed=1))
        map_ = synthetic(PUBLISHED, obs, seed=3)
        point = Point(jnp.zeros(13), jnp.asarray(np.random.default_rng(1).normal(size=(6, 4))))
        gradient = jax.jit(jax.grad(lambda p: log_density(PUBLISHED, obs, map_, p)))(point)
        assert all(bool(jnp.isfinite(g).all()) for g in gradient)


@pytest.mark.thorough
def test_no_transport_is_plain_non_centring():
    """If it fails, the fallback of a failed start is not the safe one."""
    with jax.enable_x64(True):
        model = STEIN["two assays"]
        obs = observations(model, samples(TIMES, stein, ["qpcr", "flow"], 4, 0.7, seed=1))
        layout, rng = make_layout(model), np.random.default_rng(4)
        phi = jnp.asarray(rng.normal(size=layout.n_phi))
        map_ = no_transport(model, obs, phi)
        u, v = jnp.asarray(rng.normal(size=layout.n_phi)), jnp.asarray(rng.normal(size=(6, 4)))
        found, z, log_det = map_(layout, Point(u, v))
        np.testing.assert_allclose(z, v, rtol=0, atol=1e-14)
        assert float(log_det) == pytest.approx(0, abs=1e-13)
        np.testing.assert_allclose(found, phi + jnp.diag(map_.scale) * u, rtol=1e-14)
        np.testing.assert_array_equal(map_.scale, np.diag(np.diag(map_.scale)))
        wanted = float(jax.jit(lambda *x: log_joint(model, *x))(obs, found, v))
        density = jax.jit(lambda *x: log_density(model, *x))
        assert float(density(obs, map_, Point(u, v))) == pytest.approx(wanted, rel=1e-13)


def test_prior_precision_is_the_curvature_of_the_prior():
    """If it fails, components that the data do not inform are scaled wrongly."""
    with jax.enable_x64(True):
        phi = jnp.asarray([p.theta for p in PUBLISHED.parameters] + [0.1] * 7)
        found = prior_precision(PUBLISHED, phi)
        wanted = [p.prior.scale**-2 for p in PUBLISHED.parameters]
        wanted += [p.prior_omega.scale**-2 for p in PUBLISHED.parameters] + [PUBLISHED.assays[0].prior.scale ** -2]
        # A log-normal prior on omega is a normal one on ln omega.
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        half = PUBLISHED.with_priors({"omega.cmax": Prior("halfnormal", 0.0, 0.8)})
        # ln p(x) = -exp(2x) / (2 s^2) + x has the curvature 2 exp(2x) / s^2 in x = ln omega.
        assert float(prior_precision(half, phi)[8]) == pytest.approx(2 * math.exp(0.2) / 0.64, rel=1e-12)


def start_of(model, obs, phi, z):
    """Modes, then every patient's Gaussian, with the population following."""
    return laplace.widen(model, obs, *laplace.find_modes(model, obs, phi, z), jnp.asarray(True))


@pytest.fixture(scope="module")
def line():
    """The linear model, its observations, its start and its map."""
    with jax.enable_x64(True):
        frame = samples([0.0, 1, 2, 3, 4], lambda t: 2 - 0.4 * t + 0.1 * t**2, ["one", "two"], 6, 0.9, seed=7)
        obs = observations(LINE, frame)
        layout = make_layout(LINE)
        phi = jnp.asarray([2.0, -0.4, 0.1, math.log(0.9), math.log(0.5), math.log(0.3), math.log(0.7)])
        start = jax.jit(lambda *x: start_of(LINE, *x))(obs, phi, jnp.zeros((2, obs.n_subjects)))
        return obs, layout, start, transport(LINE, obs, start)


def test_at_the_start_the_map_sends_nought_to_the_start(line):
    """If it fails, the sampler does not begin where the start was found."""
    _, layout, start, map_ = line
    with jax.enable_x64(True):
        phi, z, _ = map_(layout, Point(jnp.zeros(7), jnp.zeros_like(start.z)))
        np.testing.assert_array_equal(phi, start.phi)
        np.testing.assert_allclose(z, start.z, rtol=0, atol=1e-10)


def test_a_start_that_missed_a_mode_still_sends_nought_to_where_it_stands(line):
    """If it fails, one patient whose mode was not found is thrown far away and its chain does not start."""
    obs, layout, start, _ = line
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        missed = start._replace(z=start.z + 2, score=start.score + jnp.asarray(rng.normal(0, 9, start.score.shape)))
        _, z, _ = transport(LINE, obs, missed)(layout, Point(jnp.zeros(7), jnp.zeros_like(start.z)))
        np.testing.assert_allclose(z, missed.z, rtol=0, atol=1e-9)


def at_the_modes(obs, layout, start):
    """The same start with every patient exactly at its mode, by linear algebra in NumPy."""
    theta, omega, sigma = (np.asarray(x) for x in split_phi(layout, start.phi))
    times = np.asarray(obs.grid.time).reshape(-1)[np.asarray(obs.cell)]
    z, score = np.zeros(start.z.shape), np.zeros(start.score.shape)
    for i in range(obs.n_subjects):
        mine = np.asarray(obs.subject) == i
        assay, y = np.asarray(obs.assay)[mine], np.asarray(obs.ln_dv)[mine]
        x, weight = np.vander(times[mine], 3, increasing=True), sigma[assay] ** -2.0
        design = x[:, :2] * omega
        z[:, i] = np.linalg.solve(design.T * weight @ design + np.eye(2), design.T * weight @ (y - x @ theta))
        residual = weight * (y - x @ theta - design @ z[:, i])
        for a in range(len(sigma)):
            score[a, :, i] = x[assay == a].T @ residual[assay == a]
    return start._replace(z=jnp.asarray(z), score=jnp.asarray(score))


def test_patients_are_standard_normal_where_the_model_is_linear(line):
    """If it fails, the whitening is not the conditional Gaussian: a funnel is left, at the start or off it."""
    obs, layout, start, _ = line
    with jax.enable_x64(True):
        map_ = transport(LINE, obs, at_the_modes(obs, layout, start))
        density = jax.jit(lambda u, v: log_density(LINE, obs, map_, Point(u, v)) + 0.5 * jnp.sum(v * v))
        rng = np.random.default_rng(2)
        for scale in (0.0, 1.0, 3.0):  # typical values, omegas and sigmas that are many SDs from the start's
            u = jnp.asarray(rng.normal(size=layout.n_phi) * scale)
            values = [float(density(u, jnp.asarray(rng.normal(size=(2, obs.n_subjects)) * 2))) for _ in range(4)]
            np.testing.assert_allclose(values, values[0], rtol=0, atol=1e-8)


def test_the_scale_of_typical_values_is_their_posterior_where_the_model_is_linear(line):
    """If it fails, the population's coordinates are not whitened by what the samples say about them."""
    obs, layout, start, map_ = line
    with jax.enable_x64(True):
        _, omega, sigma = (np.asarray(x) for x in split_phi(layout, start.phi))
    times = np.asarray(obs.grid.time).reshape(-1)[np.asarray(obs.cell)]
    precision = np.diag([p.prior.scale**-2 for p in LINE.parameters])
    for i in range(obs.n_subjects):
        mine = np.asarray(obs.subject) == i
        x = np.vander(times[mine], 3, increasing=True)
        # Random effects integrated out: y ~ normal(X theta, X1 Omega X1' + Sigma).
        spread = x[:, :2] * omega @ (x[:, :2] * omega).T + np.diag(sigma[np.asarray(obs.assay)[mine]] ** 2)
        precision += x.T @ np.linalg.solve(spread, x)
    covariance = np.asarray(map_.scale) @ np.asarray(map_.scale).T
    np.testing.assert_allclose(covariance[:3, :3], np.linalg.inv(precision), rtol=1e-8, atol=1e-12)
    assert (np.linalg.eigvalsh(covariance) > 0).all()


def test_the_start_says_how_far_each_patient_is_from_its_mode_where_the_model_is_linear(line):
    """If it fails, patients are not at their modes, or the decrement misses it, where the mode is known."""
    obs, layout, start, _ = line
    with jax.enable_x64(True):
        theta, omega, sigma = (np.asarray(x) for x in split_phi(layout, start.phi))
    times = np.asarray(obs.grid.time).reshape(-1)[np.asarray(obs.cell)]
    for i in range(obs.n_subjects):
        mine = np.asarray(obs.subject) == i
        x, weight = np.vander(times[mine], 3, increasing=True), sigma[np.asarray(obs.assay)[mine]] ** -2.0
        design = x[:, :2] * omega
        residual = np.asarray(obs.ln_dv)[mine] - x @ theta
        mode = np.linalg.solve(design.T * weight @ design + np.eye(2), design.T * weight @ residual)
        away = np.asarray(start.z)[:, i] - mode
        distance = np.sqrt(away @ (design.T * weight @ design + np.eye(2)) @ away)  # in posterior SDs
        assert distance < 0.1
        assert float(start.decrement[i]) == pytest.approx(distance, rel=1e-6, abs=1e-9)
        information = np.asarray(start.information).sum(0)[:, :, i]
        np.testing.assert_allclose(information, x.T * weight @ x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 6])
def test_factor_and_solves_equal_numpy(k):
    """If it fails, the unrolled linear algebra mixes up rows, columns or patients."""
    rng = np.random.default_rng(k)
    root = rng.normal(size=(9, k, k))
    matrix = root @ root.transpose(0, 2, 1) + np.eye(k)
    rhs = rng.normal(size=(9, k))
    with jax.enable_x64(True):
        factor = cholesky(jnp.asarray(np.moveaxis(matrix, 0, -1)))
        lower, upper = (np.asarray(f(factor, jnp.asarray(rhs.T))) for f in (solve_lower, solve_upper))
    for i in range(9):
        wanted = np.linalg.cholesky(matrix[i])
        found = np.array([[0.0 if c > r else float(factor[r][c][i]) for c in range(k)] for r in range(k)])
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(lower[:, i], np.linalg.solve(wanted, rhs[i]), rtol=1e-10)
        np.testing.assert_allclose(upper[:, i], np.linalg.solve(wanted.T, rhs[i]), rtol=1e-10)


def test_the_inverse_takes_every_place_back(line):
    """If it fails, a chain that changes coordinates in mid-run jumps to another place."""
    _, layout, _, map_ = line
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        point = Point(jnp.asarray(rng.normal(size=7)), jnp.asarray(rng.normal(size=map_.shift.shape[1:])))
        phi, z, _ = map_(layout, point)
        back = map_.inverse(layout, phi, z)
        np.testing.assert_allclose(back.u, point.u, atol=1e-10)
        np.testing.assert_allclose(back.v, point.v, atol=1e-10)
