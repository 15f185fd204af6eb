"""The parts of a ``phi`` of a model without covariates, classes or correlations."""

import jax.numpy as jnp

from carkinetics.population import population


def split_phi(layout, phi):
    """Typical values (transformed), omegas, first residual parameters."""
    of = population(layout, jnp.asarray(phi), jnp.zeros((0, 1)))
    return of.typical[:, 0], of.omega, of.residual[0]
