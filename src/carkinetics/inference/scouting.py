"""Where a patient's parameters might be: a search by weighed samples, without chains.

A chain tells only of the explanations that it has visited. Here every patient's parameters are drawn from the whole
width of the population and weighed by the samples, with the population as it stands; a mixture is fitted to them, drawn
from, and fitted again: population Monte Carlo. What it finds are proposals; the sampler decides whether they are taken.

References
----------
Cappe O, Douc R, Guillin A, Marin JM, Robert CP, Stat Comput 2008;18:447-459, doi:10.1007/s11222-008-9059-x.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.density import subject_log_likelihood
from carkinetics.inference.proposals import Mixture, Proposals, make_proposals, mixture
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import population

_ROUNDS = 4, 2  # without a pilot's draws, and with them
_SETS, _TOGETHER = 2048, 32  # parameter sets per patient and round; those that are solved at a time
_WIDE = 2.0  # of the population's SDs, as one patient may be what tells how wide they are
_CARRIED = 60.0  # sets that must carry the weight
_DRAWS = 1000  # of a pilot, at most


def scouted(
    model: Model,
    obs: Observations,
    own: Mixture,
    known: Float[np.ndarray, "subject random random"],
    phi: Float[np.ndarray, " phi"],
    draws: Float[np.ndarray, "draw random subject"] | None = None,
) -> Proposals:
    """Proposals for every patient, given a population.

    They begin with ``own``, and fit the search's weighed sets and a pilot's ``draws``, half and half. ``known`` is a
    covariance that stands in where few sets carry the weight.
    """
    of = population(make_layout(model), jnp.asarray(phi), obs.design)
    centre, wide = np.asarray(of.centre()), np.asarray(jnp.abs(of.omega))
    if of.step is not None:  # both classes are within reach
        centre, wide = centre + np.asarray(of.step)[:, None] / 2, wide + np.abs(np.asarray(of.step)) / 2
    found = partial(make_proposals, theta=centre, omega=wide)
    if draws is not None:
        draws = draws[:: -(-len(draws) // _DRAWS)]
    for key in jax.random.split(jax.random.key(0), _ROUNDS[draws is not None]):
        sets, log_weights = (np.asarray(x) for x in _weighed(model, obs, found(own), jnp.asarray(phi), key))
        weights = tempered(log_weights)
        if draws is not None:
            sets = np.concatenate([sets, draws])
            weights = np.concatenate([weights / 2, np.full((len(draws), obs.n_subjects), 0.5 / len(draws))])
        own = mixture(sets, weights, known)
    return found(own)


@partial(jax.jit, static_argnums=0)
def _weighed(model: Model, obs: Observations, proposals: Proposals, phi: Float[Array, " phi"], key):
    """Parameter sets (transformed scale), shape (set, random, subject), and the logs of their weights."""
    layout = make_layout(model)
    of = population(layout, phi, obs.design)
    fit = jax.vmap(lambda x: subject_log_likelihood(layout, of, x, obs), in_axes=1)

    def some(key):
        sets = proposals.sample(key, _TOGETHER)
        prior = of.log_density_z(of.whitened(sets) / _WIDE)
        log_weights = fit(sets) + prior - proposals.log_density(sets)
        return jnp.moveaxis(sets, 1, 0), jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)

    found = jax.lax.map(some, jax.random.split(key, _SETS // _TOGETHER))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def tempered(log_weights: Float[np.ndarray, "set subject"]) -> Float[np.ndarray, "set subject"]:
    """Weights of sum one, to the largest power of at most one at which enough sets carry them."""
    # Where no set has a weight, all have the same.
    highest = log_weights.max(0)
    log_weights = np.where(np.isfinite(highest), log_weights - np.where(np.isfinite(highest), highest, 0.0), 0.0)

    def powered(power):
        weights = np.where(np.isfinite(log_weights), np.exp(power * np.maximum(log_weights, -1e300)), 0.0)
        return weights / weights.sum(0)

    def enough(power):
        return 1 / (powered(power) ** 2).sum(0) >= _CARRIED

    low, high = np.zeros(log_weights.shape[1]), np.ones(log_weights.shape[1])
    low = np.where(enough(high), 1.0, low)
    for _ in range(15):
        middle = (low + high) / 2
        fine = enough(middle)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    return powered(low)
