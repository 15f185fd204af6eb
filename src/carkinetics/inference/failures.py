"""Whose density is not finite: inside a chain that is a rejected proposal without a name, here it gets one."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from carkinetics.density import ln_pred, log_likelihood_of_rows
from carkinetics.inference.chains import Block
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import population

PLACES = 16  # divergent transitions around which is looked, spread over all of them
MOVES = 32  # places looked at around each


class Failures(NamedTuple):
    """What is not finite, by patient.

    Attributes
    ----------
    solve : Bool[" subject"]
        The curve, at one of the patient's samples at least.
    density : Bool[" subject"]
        The log likelihood of the patient's samples.
    gradient : Bool[" subject"]
        The gradient of that in ``(phi, z)``.
    """

    solve: Bool[Array, " subject"]
    density: Bool[Array, " subject"]
    gradient: Bool[Array, " subject"]


def failures(model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]) -> Failures:
    """What is not finite at ``(phi, z)``, by patient."""
    layout, n = make_layout(model), obs.n_subjects
    of_patient = partial(jax.ops.segment_sum, segment_ids=obs.subject, num_segments=n)

    def of_one(phi, z, design):
        of = population(layout, phi, design[:, None])
        return of.individual(z[:, None])[:, 0], of.residual

    def total(phi, z):
        individual, residual = jax.vmap(of_one, in_axes=1, out_axes=-1)(phi, z, obs.design)
        curve = ln_pred(layout, individual, obs)
        rows = log_likelihood_of_rows(curve, residual[:, obs.assay, obs.subject], obs)
        return of_patient(rows).sum(), (curve, rows)

    # Every patient has a copy of phi: otherwise one patient's NaN would be the gradient of all.
    copies = jnp.broadcast_to(phi[:, None], (phi.shape[0], n))
    slopes, (curve, rows) = jax.grad(total, argnums=(0, 1), has_aux=True)(copies, z)
    return Failures(
        solve=of_patient((~jnp.isfinite(curve)).astype(int)) > 0,
        density=~jnp.isfinite(of_patient(rows)),
        gradient=~jnp.isfinite(jnp.concatenate(slopes)).all(axis=0),
    )


class Around(NamedTuple):
    """Which patients fail where transitions diverged.

    Attributes
    ----------
    failed : Int[" subject"]
        Places at which the patient's density or its gradient is not finite.
    places : int
        Places looked at; 0 where nothing diverged.
    """

    failed: Int[np.ndarray, " subject"]
    places: int


def around_divergences(model: Model, obs: Observations, blocks: list[Block], *, seed: int) -> Around:
    """Look around the draws at which transitions diverged, as far from each as two draws lie apart.

    The proposal that failed is not kept, and its draw is where the chain stayed: a place that was allowed. What
    is looked at is therefore the neighbourhood, as wide as the posterior is in every direction.
    """
    phi, z = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("phi", "z"))
    where = np.flatnonzero(np.concatenate([b.stats.get("diverging", np.zeros(len(b.phi))) for b in blocks]))
    if not len(where):
        return Around(np.zeros(obs.n_subjects, int), 0)
    where = where[np.linspace(0, len(where) - 1, PLACES).astype(int)]  # a few are looked at more than once
    one, other = np.random.default_rng([seed, 3]).integers(len(phi), size=(2, PLACES * MOVES))
    start = np.repeat(where, MOVES)
    places = [jnp.asarray(x[start] + x[one] - x[other]) for x in (phi, z)]

    def failed(obs, phi, z):
        found = failures(model, obs, phi, z)
        return found.solve | found.density | found.gradient

    run = jax.jit(lambda obs, phi, z: jax.lax.map(lambda at: failed(obs, *at), (phi, z)))
    return Around(np.asarray(run(obs, *places)).sum(0), PLACES * MOVES)
