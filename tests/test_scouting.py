"""The search for every explanation of a patient's samples: mixtures, tempered weights, and what is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from carkinetics.dataset import read_dataset
from carkinetics.demo import MODEL
from carkinetics.density import subject_log_likelihood
from carkinetics.inference.proposals import COMPONENTS, Mixture, mixture
from carkinetics.inference.scouting import scouted, tempered
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.observations import make_observations
from carkinetics.population import population
from unpacked import split_phi

PUBLISHED = load_model(MODEL)


def test_a_mixture_has_the_moments_and_the_modes_of_its_draws():
    """If it fails, a pilot teaches nothing, or a patient's second explanation is lost between the first and nothing."""
    rng = np.random.default_rng(2)
    covariance = np.array([[1.0, 0.6], [0.6, 2.0]])
    one = rng.multivariate_normal([1.0, -2.0], covariance, 4000)
    two = one + np.array([9.0, 0.0]) * (rng.uniform(size=(4000, 1)) < 0.25)
    x = np.stack([one, two, two], axis=2)
    # To the third patient's draws the second explanation has as much weight as the first.
    weights = np.stack([np.ones(4000), np.ones(4000), np.where(two[:, 0] > 5.5, 3.0, 1.0)], axis=1)
    weights /= weights.sum(0)
    found = mixture(x, weights, np.tile(np.eye(2), (3, 1, 1)))
    np.testing.assert_allclose(found.share.sum(0), 1.0)
    for s in range(3):
        mean = np.average(x[:, :, s], axis=0, weights=weights[:, s])
        np.testing.assert_allclose(found.share[:, s] @ found.mean[:, :, s], mean, atol=0.1)
        within = np.einsum("c,ckl->kl", found.share[:, s], found.covariance[:, s])
        off = found.mean[:, :, s] - mean
        total = within + np.einsum("c,ck,cl->kl", found.share[:, s], off, off)
        wanted = np.cov(x[:, :, s].T, aweights=weights[:, s])
        np.testing.assert_allclose(total, wanted, atol=0.05 * wanted.max())
    for s, share in ((1, 0.25), (2, 0.5)):
        far = found.mean[:, 0, s] > 5.5
        assert found.share[far, s].sum() == pytest.approx(share, abs=0.03)
        # Each component belongs to one explanation: none lies between, and none is as wide as both together.
        assert (np.abs(found.mean[:, 0, s] - 5.5) > 2).all()
        assert (found.covariance[:, s, 0, 0] < 2).all()


def test_weights_are_tempered_until_enough_sets_carry_them():
    """If it fails, one lucky set is taken for a patient's whole posterior, or all sets count alike."""
    log = np.random.default_rng(3).normal(0, [0.1, 3.0, 30.0, 1.0], (2000, 4))
    log[:, 3] = -np.inf
    weights = tempered(log)
    np.testing.assert_allclose(weights.sum(0), 1.0)
    size = 1 / (weights**2).sum(0)
    # Where enough carry them, they stay as they are; where none has a weight, all have the same.
    np.testing.assert_allclose(weights[:, 0], np.exp(log[:, 0]) / np.exp(log[:, 0]).sum())
    np.testing.assert_allclose(weights[:, 3], 1 / 2000)
    for s in (1, 2):

        def missing(power, s=s):
            powered = np.exp(power * (log[:, s] - log[:, s].max()))
            return powered.sum() ** 2 / (powered**2).sum() - 60

        power = optimize.brentq(missing, 1e-6, 1.0)
        assert size[s] == pytest.approx(60, rel=0.02)
        highest = 1 / np.exp(power * (log[:, s] - log[:, s].max())).sum()
        assert weights[:, s].max() == pytest.approx(highest, rel=0.05)


def once(t):
    """Ln level after an infusion: up by 1.2 a day to day 10, down by 0.4 a day from there."""
    return 12 - np.where(t < 10, 1.2 * (10 - t), 0.4 * (t - 10))


@pytest.mark.thorough
def test_a_patient_with_two_explanations_is_scouted():
    """If it fails, an explanation is missed that no pilot chain happens to begin at."""
    days = np.array([2.0, 5, 7, 9, 11, 14, 18, 22, 26, 38, 42, 45, 47, 50, 54, 60])
    # A rise and a fall, and the same again after a second infusion that no record tells of: either one long plateau
    # with outliers in the middle, or a quick rise and fall with outliers at the end.
    level = np.logaddexp(once(days), np.where(days > 38, once(days - 36), -9))
    frame = pd.DataFrame({"ID": "1", "TIME": days, "DV": np.exp(level), "CENS": 0, "DVID": "qpcr"})
    with jax.enable_x64(True):
        data = read_dataset(frame, units={"DV": "copies/ug"}, lloq=1)
        obs, layout = make_observations(PUBLISHED, data), make_layout(PUBLISHED)
        phi = jnp.asarray([p.theta for p in PUBLISHED.parameters] + [0.0] * 7)
        theta, omega, _ = split_phi(layout, phi)
        of = population(layout, phi, obs.design)
        # At the typical patient, and sure of it.
        typical, narrow = np.asarray(theta)[:, None], 0.01 * np.eye(6)[None]
        share = np.full((COMPONENTS, 1), 1 / COMPONENTS)
        start = Mixture(share, np.stack([typical] * COMPONENTS), np.stack([narrow] * COMPONENTS))
        proposals = scouted(PUBLISHED, obs, start, narrow, np.asarray(phi))
        fit = jax.jit(jax.vmap(lambda x: subject_log_likelihood(layout, of, x, obs), in_axes=1))
        x = proposals.sample(jax.random.key(1), 4000)
        standard = (x - theta[:, None, None]) / omega[:, None, None]
        log = fit(x) - 0.5 * jnp.sum(standard**2, axis=0) - proposals.log_density(x)
        weights = np.exp(np.asarray(log - log.max())[:, 0])
        # Against the population's own distribution, drawn from a million times.
        y = theta[:, None, None] + omega[:, None, None] * jax.random.normal(jax.random.key(2), (6, 1_000_000, 1))
        blind = np.concatenate([np.asarray(fit(part))[:, 0] for part in jnp.split(y, 20, axis=1)])
    blind = np.exp(blind - blind.max())
    # Of a million sets drawn blindly about a hundred carry the weight, here of 4000.
    assert weights.sum() ** 2 / (weights**2).sum() > 100
    assert blind.sum() ** 2 / (blind**2).sum() > 100
    for i in (0, 3):  # foldx and alpha
        for q in np.asarray(theta)[i] + np.array([-1.5, -0.5, 0.5, 1.5]):
            found, wanted = (np.average(np.asarray(z[i, :, 0]) < q, weights=w) for z, w in ((x, weights), (y, blind)))
            assert found == pytest.approx(wanted, abs=0.1), (i, q)
