"""What a sampler is told before it samples: from the data alone, then from a pilot's own draws."""

import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.dataset import Dataset
from carkinetics.errors import FitWarning
from carkinetics.fit_result import convergence
from carkinetics.inference.chains import Block, Settings
from carkinetics.inference.coordinates import Bend, Point, Transport, no_transport, transport
from carkinetics.inference.guess import starting_values
from carkinetics.inference.importance import Importance, Tuning, shrunk, tuned
from carkinetics.inference.laplace import Start, find_modes, widen
from carkinetics.inference.nuts import Nuts
from carkinetics.inference.proposals import Proposals, from_draws, make_proposals
from carkinetics.model import Model
from carkinetics.population import Observations, make_layout, split_phi

Method = Literal["importance", "nuts"]
# Long steps of the population in an iteration, where a pilot had fewer effective draws than this share.
SHIFTS, SLOW = 2, 0.1
KERNELS = {"importance": Importance, "nuts": Nuts}


def pilots(method: Method, settings: Settings) -> list[int]:
    """Iterations of each pilot; after each the sampler is tuned anew.

    After the last there is one more as long as all of them, if the sampler has begun to take long steps meanwhile.
    """
    if method == "nuts":
        return [settings.pilot]
    # Each finds more of the posterior's width than the one before, which its own tuning had held back.
    quarter = settings.pilot // 4
    return [quarter, quarter, settings.pilot - 2 * quarter]


def skeleton(model: Model, method: Method):
    """The tree structure of a method's tuning."""
    bend = None if model.structure.closed_form else Bend(*_blanks(3))
    coordinates = Transport(*_blanks(4), bend)
    if method == "nuts":
        return jax.tree.structure(coordinates)
    return jax.tree.structure(Tuning(coordinates, Proposals(*_blanks(4)), *_blanks(5)))


def _blanks(n: int) -> list[Any]:
    return [0.0] * n


class _Picture(NamedTuple):
    """A Gaussian picture of the posterior: coordinates, and every patient given the population at their centre."""

    start: Start
    transport: Transport
    mean: Float[Array, "random subject"]
    covariance: Float[Array, "random random subject"]


class Tuner:
    """Tunes a sampler: before sampling from the data, later from the chains' own draws."""

    def __init__(self, model: Model, obs: Observations, method: Method):
        self.model, self.obs, self.method = model, obs, method
        self._modes = jax.jit(lambda obs, phi, z: find_modes(model, obs, phi, z))
        self._widen = jax.jit(self._picture)

    def _picture(self, obs: Observations, phi, z, move) -> _Picture:
        start = widen(self.model, obs, phi, z, move)
        found = transport(self.model, obs, start)
        return _Picture(start, found, *_patients(self.model, found))

    def first(self, data: Dataset) -> tuple[Transport | Tuning, list[str]]:
        """From the data alone, and what to say about it."""
        phi, z = (jnp.asarray(x) for x in starting_values(self.model, data))
        picture = self._widen(self.obs, *self._modes(self.obs, phi, z), jnp.array(True))
        if not _finite(picture):
            note = "The Laplace start failed; sampling in plain non-centred coordinates instead, which is slower."
            warnings.warn(note, FitWarning, stacklevel=3)
            found = no_transport(self.model, self.obs, phi)
            return self._tuning(found, *_patients(self.model, found)), [note]
        lost = [data.subjects[i] for i in np.flatnonzero(np.asarray(picture.start.decrement) > 0.5)]
        notes = [f"No Gaussian start for patient(s) {', '.join(lost)}: they slow the sampler."] if lost else []
        return self._tuning(*picture[1:]), notes

    def centre(self, tuning: Transport | Tuning) -> tuple[Float[Array, " phi"], Float[Array, "random subject"]]:
        """Population and patients in the middle of the start's picture."""
        found = tuning if isinstance(tuning, Transport) else tuning.transport
        layout = make_layout(self.model)
        at_rest = Point(jnp.zeros(layout.n_phi), jnp.zeros((len(layout.random), self.obs.n_subjects)))
        phi, z, _ = found(layout, at_rest)
        return phi, z

    def unfinished(self, tuning: Transport | Tuning) -> bool:
        """Whether one more pilot is worth its time: the long steps' own width is found by taking them."""
        return isinstance(tuning, Tuning) and int(tuning.shifts) > 0

    def _tuning(self, found: Transport, mean, covariance) -> Transport | Tuning:
        if self.method == "nuts":
            return found
        layout = make_layout(self.model)
        theta, omega, _ = split_phi(layout, found.centre)
        proposals = make_proposals(mean, covariance, theta[jnp.array(layout.random)], omega)
        return tuned(self.model, found, found.scale @ found.scale.T, proposals)

    def again(self, old: Transport | Tuning, draws: list[Block]) -> Transport | Tuning:
        """From a pilot's draws; what they cannot give stays as it was.

        A typical value that the data barely inform lies where only sampling finds it, and its uncertainty is
        wider than any curvature says.
        """
        phi, z = np.concatenate([d.phi for d in draws]), np.concatenate([d.z for d in draws])
        picture = self._widen(self.obs, jnp.asarray(phi.mean(0)), jnp.asarray(z.mean(0)), jnp.array(False))
        if isinstance(old, Transport):
            if not _finite(picture):
                return old
            found = picture.transport
            scale = jnp.linalg.cholesky(shrunk(phi, old.scale @ old.scale.T))
            return Transport(found.centre, scale, found.information, found.shift, found.bend)
        if _finite(picture):
            found, covariance = picture.transport, picture.covariance
        else:
            found, (_, covariance) = old.transport, _patients(self.model, old.transport)
        layout = make_layout(self.model)
        theta, omega, _ = (np.asarray(x) for x in jax.vmap(lambda x: split_phi(layout, x))(phi))
        random = list(layout.random)
        x = theta[:, random, None] + omega[:, :, None] * z
        proposals = from_draws(x, covariance, jnp.asarray(theta[:, random].mean(0)), jnp.asarray(omega.mean(0)))
        chains = np.stack([d.phi for d in draws])
        slow = int(old.shifts) > 0 or convergence(chains)[1].min() < SLOW * len(phi)
        return tuned(self.model, found, found.scale @ found.scale.T, proposals, chains, shifts=SHIFTS if slow else 0)


def _patients(model: Model, found: Transport):
    """Mean and covariance of every patient's random parameters, given the population at the centre."""
    layout = make_layout(model)
    theta, omega, sigma = split_phi(layout, found.centre)
    # Whitening is affine: its origin is the mean, its unit vectors the columns of the covariance's factor.
    n = found.shift.shape[-1]
    k = len(omega)
    origin, _ = found.patients(layout, theta, omega, sigma, jnp.zeros((k, n)))
    columns = [
        found.patients(layout, theta, omega, sigma, jnp.zeros((k, n)).at[j].set(1.0))[0] - origin for j in range(k)
    ]
    factor = omega[:, None, None] * jnp.stack(columns, axis=1)
    mean = theta[jnp.array(layout.random)][:, None] + omega[:, None] * origin
    return mean, jnp.einsum("kjs,ljs->kls", factor, factor)


def _finite(tree) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))
