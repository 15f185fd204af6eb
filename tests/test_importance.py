"""The pieces of importance Gibbs: proposals against their densities, moves against the distributions they must keep."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.density import log_joint
from carkinetics.inference.chains import Settings
from carkinetics.inference.coordinates import no_transport
from carkinetics.inference.importance import Importance
from carkinetics.inference.places import autocorrelation, bowed, mirrored, to_place, tuned
from carkinetics.inference.proposals import (
    BROAD_SHARE,
    COMPONENTS,
    FREEDOM,
    Mixture,
    around,
    log_standard_t,
    make_proposals,
    standard_t,
)
from carkinetics.inference.tuning import FAR, FAR_MIRRORED, Tuner, how_far
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.model_parts import Prior
from carkinetics.observations import Group, make_observations
from carkinetics.population import class_sign, population
from carkinetics.priors import prior_phi
from everything import EVERYTHING, prepared, table, tied
from unpacked import split_phi

PUBLISHED = load_model(MODEL)
HALF = PUBLISHED.with_priors({"omega.fb": Prior("halfnormal", 0.0, 1.0), "omega.beta": Prior("halfnormal", 0.0, 1.0)})


def random_proposals(k=3, n=4, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(COMPONENTS, n, k, k))
    covariance = root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(k)
    share = rng.dirichlet(np.ones(COMPONENTS), n).T
    own = Mixture(share, rng.normal(size=(COMPONENTS, k, n)), covariance)
    return make_proposals(own, rng.normal(size=(k, 1)), rng.uniform(0.5, 2, k))


def components(p, s):
    """Shares, means and scale matrices of a patient's proposals, the population's among them."""
    factor = np.asarray(p.factor[..., s])
    own = [(1 - BROAD_SHARE) * p.share[:, s], np.asarray(p.mean[:, :, s]), factor @ np.swapaxes(factor, -1, -2)]
    broad = [[BROAD_SHARE], np.asarray(p.broad_mean)[None, :, 0], np.diag(np.asarray(p.broad_scale) ** 2)[None]]
    return list(zip(*(np.concatenate(pair) for pair in zip(own, broad, strict=True)), strict=True))


def test_density_of_proposals_is_scipys():
    """If it fails, weights are wrong, and with them every patient."""
    with jax.enable_x64(True):
        p = random_proposals()
        x = np.random.default_rng(1).normal(0, 3, (3, 50, 4))
        found = np.asarray(p.log_density(jnp.asarray(x)))
        wanted = np.empty_like(found)
        for s in range(4):
            parts = (c * stats.multivariate_t(m, v, df=FREEDOM).pdf(x[:, :, s].T) for c, m, v in components(p, s))
            wanted[:, s] = np.log(sum(parts))
    # A constant that all patients and sets share is left out.
    np.testing.assert_allclose(found - found[0, 0], wanted - wanted[0, 0], rtol=0, atol=1e-11)


def test_proposals_are_drawn_from_their_density():
    """If it fails, what is drawn and what it is weighed by differ: every patient's posterior is off."""
    with jax.enable_x64(True):
        p = random_proposals(k=2, n=2)
        x = np.asarray(p.sample(jax.random.key(0), 40_000))
        for s in range(2):
            for j in range(2):

                def cdf(q, j=j, s=s):
                    return sum(c * stats.t(FREEDOM, m[j], np.sqrt(v[j, j])).cdf(q) for c, m, v in components(p, s))

                assert stats.kstest(x[j, :, s], cdf).pvalue > 1e-3
        t = np.asarray(standard_t(jax.random.key(1), 3, 40_000, 1))[..., 0]
        # The squared length of a multivariate t vector over its dimension is F distributed.
        assert stats.kstest((t**2).sum(0) / 3, stats.f(3, FREEDOM).cdf).pvalue > 1e-3
        density = np.asarray(log_standard_t(jnp.asarray(t[:, :5, None])))[:, 0]
        wanted = stats.multivariate_t(np.zeros(3), np.eye(3), df=FREEDOM).logpdf(t[:, :5].T)
        np.testing.assert_allclose(np.diff(density), np.diff(wanted), atol=1e-11)


@pytest.fixture(scope="module")
def parts():
    """A kernel whose omegas are partly mirrored, with a tuning and a place."""
    data = read_trial(virtual_trial(1, patients=5))
    with jax.enable_x64(True):
        obs = make_observations(HALF, data)
        tuner = Tuner(HALF, obs, "importance")
        tuning, _ = tuner.first(data)
        phi, z = tuner.centre(tuning)
        yield Importance(HALF, Settings(proposals=16)), obs, tuning, phi, z


def test_which_omegas_are_mirrored():
    """A log-normal prior excludes zero: its omega stays a logarithm, and so does a correlated effect's."""
    assert mirrored(PUBLISHED) == (False,) * 6
    assert mirrored(HALF) == (False, False, False, False, True, True)
    assert mirrored(HALF.with_correlation("cmax", "beta")) == (False, False, False, False, True, False)
    shared = tied(HALF).with_priors({"omega.tmax": Prior("halfnormal", 0.0, 1.0)})
    assert mirrored(shared) == (False, True, False, True, True)
    assert mirrored(shared.with_correlation("alpha", "cmax")) == (False, False, False, True, True)


def test_whitened_places_go_there_and_back(parts):
    """If it fails, a step starts elsewhere than where the chain stands."""
    kernel, _, tuning, phi, _ = parts
    rng = np.random.default_rng(3)
    places = rng.normal(size=(4, 60, 13)) @ np.diag(rng.uniform(0.1, 1, 13)) + rng.normal(size=13)
    scale, bow = bowed(places, np.eye(13))
    bow = jnp.asarray(bow + 0.3).at[0].set(0.0)
    bent = eqx.tree_at(lambda t: (t.scale, t.bow), tuning, (jnp.asarray(scale), bow))
    for each in (tuning, bent):
        u = jnp.asarray(rng.normal(size=13))
        np.testing.assert_allclose(each.whitened(each.place(u)), u, atol=1e-9)
    # Volumes are kept up to a constant: the same determinant everywhere.
    sizes = [
        np.linalg.slogdet(np.asarray(jax.jacobian(bent.place)(jnp.asarray(rng.normal(size=13)))))[1] for _ in "123"
    ]
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-10)
    np.testing.assert_allclose(kernel._phi(to_place(kernel.layout, kernel.mirrored, phi)), phi, rtol=1e-12)


def test_how_far_a_patient_is_from_its_gaussian(parts):
    """If it fails, patients with two explanations are moved as if they had one, and every step diverges."""
    kernel, obs, tuning, phi, _ = parts
    rng = np.random.default_rng(6)
    v = rng.normal(size=(200, 6, obs.n_subjects))
    v[:100, :, 1] += 6.0
    v[100:, :, 1] -= 6.0
    of = population(kernel.layout, phi, obs.design)
    z = jax.vmap(lambda v: tuning.transport.patients(kernel.layout, of, v)[0])(v)
    far = np.asarray(how_far(HALF, tuning.transport, jnp.tile(phi, (200, 1)), z))
    np.testing.assert_allclose(far, np.where(np.arange(obs.n_subjects) == 1, 37.0, 1.0), rtol=0.2)
    assert (far[[0, 2]] < FAR).all() and far[1] > FAR_MIRRORED


def test_a_held_patient_stands_still(parts):
    """If it fails, a step throws a patient that no Gaussian describes out of what its samples allow."""
    kernel, obs, tuning, phi, z = parts
    layout = kernel.layout
    held = eqx.tree_at(lambda t: t.held, tuning.transport, jnp.arange(obs.n_subjects) == 2)
    here, elsewhere = (population(layout, x, obs.design) for x in (phi, phi + 0.3))
    v = held.whitened(layout, here, z)
    before, after = here.varying(z), elsewhere.varying(held.patients(layout, elsewhere, v)[0])
    np.testing.assert_allclose(after[:, 2], before[:, 2], rtol=1e-12)
    assert np.abs(after[:, 0] - before[:, 0]).max() > 1e-3


def test_a_bow_is_found():
    """If it fails, a ridge that bends is straight to the sampler."""
    rng = np.random.default_rng(4)
    slow = np.cumsum(0.2 * rng.normal(size=(4, 400)), axis=1)
    slow = slow / slow.std()
    places = np.stack([rng.normal(size=(4, 400)), slow, 0.8 * slow**2 + 0.1 * rng.normal(size=(4, 400))], axis=-1)
    assert autocorrelation(places).argmax() in (1, 2)
    with jax.enable_x64(True):
        scale, bow = bowed(places[..., [0, 1, 1]] + [0, 0, 1e-3] * rng.normal(size=(4, 400, 3)), np.eye(3))
        assert np.abs(np.asarray(bow)).max() < 0.3
        draws = places.reshape(-1, 3)[:, [1, 0, 2]][None]  # the slow one first
        draws[..., 1] = rng.normal(size=1600)
        scale, bow = bowed(draws, np.eye(3))
        straight = np.linalg.solve(np.asarray(scale), (draws[0] - draws[0].mean(0)).T)
    assert np.abs(np.asarray(bow)).max() > 0.5
    assert straight.shape == (3, 1600)


def test_a_mirrored_omega_counts_its_rate(parts):
    """The density of a place is the model's with d phi / d place; a mirror image has the same."""
    kernel, obs, _, phi, z = parts
    place = to_place(kernel.layout, kernel.mirrored, phi)
    n = len(kernel.layout.estimated)
    mirror = place.at[n + 4].multiply(-1)
    for each in (place, mirror):
        np.testing.assert_allclose(kernel._phi(each), phi, rtol=1e-12)
    rate = np.linalg.slogdet(np.asarray(jax.jacobian(kernel._phi)(place)))[1]
    np.testing.assert_allclose(kernel._log_rate(phi), rate, rtol=1e-12)
    omega = kernel._population(mirror, obs).omega
    assert float(omega[4]) < 0
    np.testing.assert_allclose(np.abs(omega), split_phi(kernel.layout, phi)[1], rtol=1e-12)
    # The mirrored population with mirrored effects is the same patients.
    assert np.isfinite(float(log_joint(kernel.model, obs, phi, z)))


# The second has covariates, correlated and tied effects, classes, and a horseshoe; of its half-normal omegas one is
# a correlated effect's too.
PRIORS = {"half-normal": HALF, "everything": EVERYTHING.with_correlation("beta", "cmax", "alpha", "ratio_flow")}


@pytest.mark.thorough
@pytest.mark.parametrize("step", ["_renew", "_shift", "_move"])
@pytest.mark.parametrize("name", ["half-normal", "everything"])
def test_each_step_leaves_the_prior_as_it_is(name, step):
    """Without samples' information the posterior is the prior: whatever a step does to draws of it, they stay draws.

    Every step alone, from exact draws, many times over: a wrong weight, Jacobian or acceptance shows as a drift.
    """
    n, length = 4000, 0.1
    with jax.enable_x64(True):
        model, obs = prepared(PRIORS[name], table(2 if name == "half-normal" else 3, assays=("qpcr",)))
        layout, obs = make_layout(model), unlimited(obs)
        kernel = Importance(model, Settings(proposals=4))
        tuning = prior_tuning(kernel, obs)
        keys = jax.random.split(jax.random.key(5), n)
        phi, z = prior_draws(model, obs, jax.random.key(6), n)

        def moved(key, phi, z):
            for k in jax.random.split(key, 3):
                if step == "_move":
                    phi, z, *_ = kernel._move(k, obs, tuning, phi, z, length)
                elif step == "_renew":
                    phi, z, *_ = kernel._renew(k, obs, tuning, phi, z, length)
                else:
                    phi, z, *_ = kernel._shift(k, obs, tuning, phi, z)
            return phi, z

        after = jax.jit(jax.vmap(moved))(keys, phi, z)
        moved_share = np.mean(np.abs(np.asarray(after[0]) - np.asarray(phi)).max(1) > 1e-3)
        fresh = prior_draws(model, obs, jax.random.key(8), n)
        found, wanted = (summaries(layout, obs, *draws) for draws in (after, fresh))
    assert moved_share > 0.2, moved_share
    p = {k: stats.ks_2samp(found[k], wanted[k]).pvalue for k in wanted}
    assert min(p.values()) > 1e-4, sorted(p.items(), key=lambda kv: kv[1])[:5]


def prior_draws(model, obs, key, n):
    """Populations and patients of the prior; patients of the second class lie about its middle."""
    layout = make_layout(model)
    phi = prior_phi(model, key, n)
    z = jax.random.normal(jax.random.fold_in(key, 1), (n, len(layout.random), obs.n_subjects))
    if layout.mixture is None:
        return phi, z
    number = jax.random.uniform(jax.random.fold_in(key, 2), (n, 1, obs.n_subjects))
    at = layout.classes.start
    step = np.exp(np.asarray(phi[:, at]))[:, None] * class_sign(layout)
    away = jax.vmap(lambda phi, step: population(layout, phi, obs.design).standardised(step))(phi, jnp.asarray(step))
    return phi, z + jnp.where(number < jax.nn.sigmoid(phi[:, at + 1])[:, None, None], away[:, :, None], 0.0)


def summaries(layout, obs, phi, z):
    """Every component of draws, and what ties patients to their population and to each other."""
    phi_, z_ = np.asarray(phi), np.asarray(z)
    found = {name: phi_[:, j] for j, name in enumerate(layout.phi_names)}
    found |= {f"z {k} {s}": z_[:, k, s] for k, s in np.ndindex(z_.shape[1:])}
    x = np.asarray(jax.vmap(lambda phi, z: population(layout, phi, obs.design).varying(z))(phi, z))
    found |= {f"x {k} {s}": x[:, k, s] for k, s in np.ndindex(x.shape[1:])}
    k = z_.shape[1]
    return found | {f"z {i} z {j}": z_[:, i, 0] * z_[:, j, 0] for i in range(k) for j in range(i)}


def unlimited(obs):
    """The same observations, all of them below a limit that is never reached: the likelihood is one."""
    obs = eqx.tree_at(lambda o: (o.ln_dv, o.ln_limit), obs, (jnp.full_like(obs.ln_dv, 1e6),) * 2)
    object.__setattr__(obs, "rows", (Group("below", "lognormal", 0, obs.n_obs),))
    return obs


def prior_tuning(kernel, obs):
    """A tuning that knows something, wrong as it may be: information about patients, proposals off the prior."""
    model, layout, rng = kernel.model, kernel.layout, np.random.default_rng(9)
    phi = jnp.asarray(layout.start)
    found = no_transport(model, obs, phi)
    a, k, p, n = found.information.shape
    root = rng.normal(size=(a, n, p, p)) / np.sqrt(a)
    information = np.einsum("asij,aslj->ails", root, root)[:, list(layout.random)]
    found = dataclasses.replace(
        found,
        information=jnp.asarray(information),
        shift=jnp.asarray(rng.normal(size=(a, k, n))),
        second=jnp.asarray(rng.uniform(size=n)),
        held=jnp.arange(n) == 1,
    )
    of = population(layout, phi, obs.design)
    theta, omega = (np.asarray(x) for x in (of.centre(), of.omega))
    own = around(theta + rng.normal(size=(k, n)), np.tile(np.eye(k), (n, 1, 1)))
    proposals = make_proposals(own, theta, omega)
    tuning = tuned(model, found, np.asarray(found.scale @ found.scale.T), proposals, shifts=2)
    # Steps that tie every component to the others: what is true of a mirror image only by symmetry is not true then.
    tie = 0.7 if layout.n_phi < 20 else 0.1
    tied = tuning.scale @ jnp.asarray(np.linalg.cholesky((1 - tie) * np.eye(layout.n_phi) + tie))
    return eqx.tree_at(lambda t: t.scale, tuning, tied)
