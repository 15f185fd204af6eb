"""How far the fixed grid is from the ODE, where the posterior is: asked after a fit, answered by the reference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics import solvers
from carkinetics.inference.chains import Block
from carkinetics.model import Model
from carkinetics.population import Observations, individual_parameters, make_layout, natural, split_phi

DRAWS = 8  # posterior draws that are solved again, of every patient


class SolverError(NamedTuple):
    """The largest difference of ln level over patients, samples and draws, and what could not be compared.

    Attributes
    ----------
    largest : float
        0 where the structure has a closed form.
    subject : int
        The patient in whom it is largest.
    unsolved : int
        Patient-draws that the reference could not solve.
    """

    largest: float
    subject: int
    unsolved: int


def solver_error(model: Model, obs: Observations, blocks: list[Block]) -> SolverError:
    """Solve posterior draws again with the reference solver, and compare at the samples' times."""
    layout, structure = make_layout(model), model.structure
    if structure.closed_form or structure.stiff:  # evaluated, or solved by the reference's own kind
        return SolverError(0.0, 0, 0)
    phi, z = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("phi", "z"))
    chosen = np.linspace(0, len(phi) - 1, DRAWS).astype(int)

    def both(phi, z):
        theta, omega, _ = split_phi(layout, phi)
        p = natural(layout, individual_parameters(layout, theta, omega, z))
        ours = solvers.curves(structure, obs.grid, obs.dose, p)
        exact = jax.vmap(
            lambda time, dose, p: solvers.reference_curve(structure, time, dose, p, tol=1e-8),
            in_axes=(1, 0, 0),
            out_axes=1,
        )(obs.grid.time, obs.dose, p)
        return jnp.stack([ours[name] - exact[name] for name in sorted(set(layout.outputs))])

    compare = jax.jit(both)
    difference = np.stack([np.abs(compare(jnp.asarray(phi[i]), jnp.asarray(z[i]))) for i in chosen])
    largest = difference.max(axis=(0, 1, 2), where=np.isfinite(difference), initial=0.0)  # by patient
    unsolved = int((~np.isfinite(difference)).any(axis=(1, 2)).sum())
    return SolverError(float(largest.max()), int(largest.argmax()), unsolved)
