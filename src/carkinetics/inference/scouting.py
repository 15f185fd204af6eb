"""Where else a patient's parameters might be: a search by weighed samples, before chains and without them.

A chain tells of the explanations that it has visited. Here every patient's parameters are drawn from the whole width
of the population and weighed by the samples, with the population as it stands; a mixture is fitted to them, drawn
from, and fitted again (population Monte Carlo: Cappe et al. 2008). Weights are tempered while few sets carry them.

References
----------
Cappe O, Douc R, Guillin A, Marin J-M, Robert CP, Stat Comput 2008;18:447-459, doi:10.1007/s11222-008-9059-x.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.inference.proposals import Proposals, mixture, make_proposals
from carkinetics.model import Model
from carkinetics.population import (
    Observations,
    ln_pred,
    log_likelihood_by_subject,
    make_layout,
    split_phi,
    with_random,
)

_SETS, _BATCH = 2048, 32  # per patient and round; solved together
_WIDE = 2.0  # of the population's SDs: a patient in its tail is not missed because the tail is still unknown
_ROUNDS = 4
_CARRIED = 60.0  # sets that must carry the weight


@partial(jax.jit, static_argnums=0)
def weighed(model: Model, obs: Observations, proposals: Proposals, phi: Float[Array, " phi"], key):
    """Parameter sets from proposals (transformed scale), and the logs of their weights."""
    layout = make_layout(model)
    theta, omega, sigma = split_phi(layout, phi)
    typical = theta[jnp.array(layout.random)]

    def batch(key):
        sets = proposals.sample(key, _BATCH)

        def fit(x):
            return log_likelihood_by_subject(ln_pred(layout, with_random(layout, theta, x), obs), sigma, obs)

        prior = -0.5 * jnp.sum(((sets - typical[:, None, None]) / (_WIDE * omega[:, None, None])) ** 2, axis=0)
        return sets, jax.vmap(fit, in_axes=1)(sets) + prior - proposals.log_density(sets)

    sets, weights = jax.lax.map(batch, jax.random.split(key, _SETS // _BATCH))
    sets = jnp.moveaxis(sets, 1, 2).reshape(-1, sets.shape[1], obs.n_subjects)
    weights = weights.reshape(-1, obs.n_subjects)
    return sets, jnp.where(jnp.isfinite(weights), weights, -jnp.inf)


def scouted(model: Model, obs: Observations, proposals: Proposals, phi, known, draws=None, seed: int = 0) -> Proposals:
    """Proposals for every patient given a population, from others.

    ``known`` is a covariance that stands in while few sets carry the weight.
    """
    theta, omega, _ = split_phi(make_layout(model), jnp.asarray(phi))
    typical = np.asarray(theta)[list(make_layout(model).random)]
    for key in jax.random.split(jax.random.key(seed), _ROUNDS):
        sets, log = (np.asarray(x) for x in weighed(model, obs, proposals, jnp.asarray(phi), key))
        weights = tempered(log)
        if draws is not None:
            sets = np.concatenate([sets, draws])
            weights = np.concatenate([weights / 2, np.full(draws[:, 0].shape, 0.5 / len(draws))])
        parts = mixture(sets, known, weights)
        proposals = make_proposals(*parts, typical, np.asarray(omega))
    return proposals


def tempered(log: Float[np.ndarray, "set subject"]) -> Float[np.ndarray, "set subject"]:
    """Weights of sum one, to the largest power up to one at which enough sets carry them."""
    log = log - log.max(0)

    def powered(power):
        weights = np.exp(power * log)
        return weights / weights.sum(0)

    low, high = np.zeros(log.shape[1]), np.ones(log.shape[1])
    enough = 1 / (powered(high) ** 2).sum(0) >= _CARRIED
    for _ in range(15):
        middle = (low + high) / 2
        fine = 1 / (powered(middle) ** 2).sum(0) >= _CARRIED
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    return powered(np.where(enough, 1.0, low))
