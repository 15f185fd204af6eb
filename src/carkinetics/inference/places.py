"""Where the population moves in importance Gibbs, and what it is told to move by: tuning, from a start or a pilot."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from carkinetics.inference.coordinates import Transport
from carkinetics.inference.proposals import Proposals
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model

_TRUST = 50  # draws that what was known before a pilot counts for
_FLAT = 3.0


class Tuning(eqx.Module):
    """What the sampler was told by the start or by a pilot.

    Attributes
    ----------
    transport : Transport
    proposals : Proposals
    inner : Float["inner inner"]
        Cholesky factor of the covariance of typical values and log omegas, given the patients' proposals.
    centre : Float[" phi"]
    scale : Float["phi phi"]
        Of the population in the coordinates in which it moves: ``place = centre + scale (u + bow h(u_0))``.
    bow : Float[" phi"]
        How the rest of the population bends as its slowest direction ``u_0`` moves.
    shifts : Int[""]
        Long steps of the population in an iteration; 0 where the shorter ones do.
    """

    transport: Transport
    proposals: Proposals
    inner: Float[Array, "inner inner"]
    centre: Float[Array, " phi"]
    scale: Float[Array, "phi phi"]
    bow: Float[Array, " phi"]
    shifts: Int[Array, ""]

    def place(self, u: Float[Array, " phi"]) -> Float[Array, " phi"]:
        """Where the population is, from whitened coordinates; the map keeps volumes up to a constant."""
        return self.centre + self.scale @ (u + self.bow * _bowed(u[0]))

    def whitened(self, place: Float[Array, " phi"]) -> Float[Array, " phi"]:
        """The inverse of :meth:`place`."""
        straight = jnp.linalg.solve(self.scale, place - self.centre)
        return straight - self.bow * _bowed(straight[0])


def mirrored(model: Model) -> tuple[bool, ...]:
    """Which omegas have a prior that is positive at zero and even about it."""
    layout = make_layout(model)
    # A correlated effect's sign matters: its mirror image is another population.
    correlated = {layout.omega_of[k] for k in layout.correlated}
    omegas = enumerate(layout.components[layout.omegas])
    return tuple(c.prior.family == "halfnormal" and k not in correlated for k, c in omegas)


def to_place(layout: Layout, mirrored: tuple[bool, ...], phi):
    """``phi`` in the coordinates in which the population moves: mirrored omegas as they are, not their logs."""
    at = layout.omegas
    omega = jnp.where(jnp.array(mirrored), jnp.exp(phi[..., at]), phi[..., at])
    return jnp.concatenate([phi[..., : at.start], omega, phi[..., at.stop :]], axis=-1)


def tuned(
    model: Model,
    transport: Transport,
    curvature: Float[np.ndarray, "phi phi"],
    proposals: Proposals,
    phi: Float[np.ndarray, "chain draw phi"] | None = None,
    shifts: int = 0,
) -> Tuning:
    """A tuning from coordinates and proposals, and from a pilot's draws of the population if there are any.

    ``curvature`` is the population's approximate posterior covariance at the transport's centre.
    """
    layout, mirror = make_layout(model), mirrored(model)
    # In NumPy: a dozen small steps, each of which JAX would compile.
    moving, known = np.array(layout.among_random()), np.asarray(curvature)
    inner = np.linalg.cholesky(known[np.ix_(moving, moving)])
    rate = np.ones(layout.n_phi)
    rate[layout.omegas] = np.where(mirror, np.exp(np.asarray(transport.centre)[layout.omegas]), 1.0)
    known = rate[:, None] * known * rate
    if phi is None:
        centre, scale, bow = to_place(layout, mirror, transport.centre), np.linalg.cholesky(known), np.zeros(len(rate))
    else:
        places = np.asarray(to_place(layout, mirror, phi))
        centre = places.mean((0, 1))
        scale, bow = bowed(places, known)
    parts = (inner, centre, scale, bow, shifts)
    return Tuning(transport, proposals, *(jnp.asarray(x) for x in parts))


def bowed(
    places: Float[np.ndarray, "chain draw phi"], known: Float[np.ndarray, "phi phi"]
) -> tuple[Float[np.ndarray, "phi phi"], Float[np.ndarray, " phi"]]:
    """The scale of a pilot's draws, its slowest parameter as the first direction, and how the others bend with it."""
    draws = places.reshape(-1, places.shape[-1])
    order = np.argsort(-autocorrelation(places), kind="stable")[:1]
    order = np.append(order, np.delete(np.arange(draws.shape[1]), order))
    scale = np.empty((len(order), len(order)))
    scale[order] = np.linalg.cholesky(shrunk(draws, known)[np.ix_(order, order)])
    straight = np.linalg.solve(scale, (draws - draws.mean(0)).T)
    parabola = _bowed(straight[0]) - _bowed(straight[0]).mean()
    # Least squares on the parabola, held back as if some draws had shown none.
    bow = (straight * parabola).sum(1) / ((parabola**2).sum() + _TRUST)
    bow[0] = 0.0
    return scale, bow


def autocorrelation(chains: Float[np.ndarray, "chain draw n"]) -> Float[np.ndarray, " n"]:
    """Correlation of every quantity with itself one draw before, about the mean of all chains."""
    off = chains - chains.mean((0, 1))
    return (off[:, 1:] * off[:, :-1]).mean((0, 1)) / (off**2).mean((0, 1))


def _bowed(x):
    """A parabola of a standard normal, level far out; of an array of NumPy or of JAX."""
    return x**2 / (1 + (x / _FLAT) ** 2) - 1


def shrunk(draws: Float[np.ndarray, "draw n"], known: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The draws' covariance, or something between it and what was known while they are few."""
    return (len(draws) * np.cov(draws.T) + _TRUST * known) / (len(draws) + _TRUST)
