"""How far the solver's curves are from the ODE: asked where the posterior is, answered by the reference solver."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.inference.chains import Block
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import natural, population

DRAWS = 8  # posterior draws that are solved again, of every patient
TOLERANCE = 1e-8  # of the reference


class Distance(NamedTuple):
    """The solver's curves beside the reference's, by patient, at the samples' times.

    Attributes
    ----------
    ln_level : Float[" subject"]
        The largest difference of ln level where both are finite.
    failed, unsolved : Bool[" subject"]
        The solver's curve is not finite; the reference's is not.
    steps : Int[" subject"]
        Steps that the reference took.
    """

    ln_level: Float[Array, " subject"]
    failed: Bool[Array, " subject"]
    unsolved: Bool[Array, " subject"]
    steps: Int[Array, " subject"]


def distance(
    layout: Layout, obs: Observations, individual: Float[Array, "parameter subject"], *, max_steps: int
) -> Distance:
    """Solve every patient by both solvers, from transformed individual parameters."""
    structure, names = layout.structure, sorted({a.output for a in layout.assays})
    p, x = as_arguments(structure, natural(layout, individual), obs.inputs)

    def reference(time, p, x):
        return solvers.reference_solve(structure, time, p, x, tol=TOLERANCE, max_steps=max_steps)

    exact, steps = jax.vmap(reference, in_axes=-1, out_axes=(1, 0))(obs.grid.time, p, x)
    ours = solvers.curves(structure, obs.grid, p, x)
    ours, exact = (jnp.concatenate([curve[name] for name in names]) for curve in (ours, exact))
    both = jnp.isfinite(ours) & jnp.isfinite(exact)
    return Distance(
        ln_level=jnp.where(both, jnp.abs(ours - exact), 0.0).max(axis=0),
        failed=~jnp.isfinite(ours).all(axis=0),
        unsolved=~jnp.isfinite(exact).all(axis=0),
        steps=steps,
    )


class SolverError(NamedTuple):
    """How far the solver is from the ODE over the posterior draws that were solved again.

    Attributes
    ----------
    largest : float
        Difference of ln level; 0 where the structure has a closed form.
    subject : int
        The patient in whom it is largest.
    failed, unsolved : Int[" subject"]
        Draws in which the solver's curve was not finite; in which the reference's was not.
    draws : int
        Draws that were solved again.
    """

    largest: float
    subject: int
    failed: Int[np.ndarray, " subject"]
    unsolved: Int[np.ndarray, " subject"]
    draws: int


@partial(jax.jit, static_argnums=0)
def _distances(model: Model, obs: Observations, phi: Float[Array, "draw phi"], z: Float[Array, "draw random subject"]):
    layout = make_layout(model)

    def one(phi, z):
        individual = population(layout, phi, obs.design).individual(z)
        return distance(layout, obs, individual, max_steps=solvers.MAX_STEPS)

    return jax.lax.map(lambda at: one(*at), (phi, z))


def solver_error(model: Model, obs: Observations, blocks: list[Block]) -> SolverError:
    """Solve posterior draws again with the reference solver, and compare at the samples' times."""
    structure = model.structure
    if structure.closed_form:
        none = np.zeros(obs.n_subjects, int)
        return SolverError(0.0, 0, none, none, 0)
    phi, z = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("phi", "z"))
    chosen = np.linspace(0, len(phi) - 1, DRAWS).astype(int)
    found = jax.tree.map(np.asarray, _distances(model, obs, jnp.asarray(phi[chosen]), jnp.asarray(z[chosen])))
    largest = found.ln_level.max(axis=0)
    failed, unsolved = found.failed.sum(axis=0), found.unsolved.sum(axis=0)
    return SolverError(float(largest.max()), int(largest.argmax()), failed, unsolved, DRAWS)
