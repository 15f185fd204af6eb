"""Whether a patient's samples are better explained elsewhere: where another patient is, or where one might be.

A patient whose curve can rise again, or whose tumour can return, may have several explanations, and a search that
climbs ends at one of them: a residual SD that is far too large for everybody is what one such patient costs. Others of
the same population have mostly found theirs, so their places are tried, and some that are drawn from the population.
Somebody who stands at its only explanation never moves: nothing nearby is better, and what is far away fits worse.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from carkinetics.inference.laplace import log_posterior
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import population

CANDIDATES = 24  # patients at whose places everybody is tried, beside the typical one's
DRAWN, WIDE = 40, 2.0  # places drawn from the population as it stands, half of them from so many times its width
GAIN = 1.0  # log density that a place must be better by


@partial(jax.jit, static_argnums=0)
def better_places(
    model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"], key
) -> tuple[Float[Array, "random subject"], Bool[Array, " subject"]]:
    """Every patient's standardised random effects, elsewhere where that is better, and who has moved."""
    layout = make_layout(model)
    of = population(layout, phi, obs.design)
    n = z.shape[1]
    some = np.unique(np.linspace(0, n - 1, min(n, CANDIDATES)).round().astype(int))
    drawn = jax.random.normal(key, (DRAWN, len(z))) * jnp.where(jnp.arange(DRAWN) % 2, WIDE, 1.0)[:, None]
    places = jnp.concatenate([jnp.zeros((1, len(z))), z.T[some], drawn])

    def value(z):
        found = log_posterior(layout, obs, of, z)
        return jnp.where(jnp.isfinite(found), found, -jnp.inf)

    values = jax.lax.map(lambda place: value(jnp.broadcast_to(place[:, None], z.shape)), places)
    best = jnp.argmax(values, axis=0)
    moved = values[best, jnp.arange(n)] > value(z) + GAIN
    return jnp.where(moved, places[best].T, z), moved
