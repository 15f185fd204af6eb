"""What a sampler is told before it samples: from the data alone, then from a pilot's own draws."""

import warnings
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.dataset import Dataset
from carkinetics.errors import FitError, FitWarning
from carkinetics.findings import listed
from carkinetics.inference.chains import Block, Settings
from carkinetics.inference.coordinates import Bend, Point, Transport, no_transport, transport
from carkinetics.inference.failures import failures
from carkinetics.inference.gates import convergence
from carkinetics.inference.guess import starting_values
from carkinetics.inference.importance import Importance
from carkinetics.inference.laplace import EM_ROUNDS, Start, find_modes, not_finite, widen
from carkinetics.inference.nuts import Nuts
from carkinetics.inference.places import Tuning, mirrored, shrunk, tuned
from carkinetics.inference.proposals import Proposals, around, mixture
from carkinetics.inference.scouting import scouted
from carkinetics.inference.swapping import better_places
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import population

LOST = 0.5  # SDs from its own Gaussian beyond which a patient was not found
# Mean square of whitened parameters (1 of a Gaussian) beyond which no Gaussian describes a patient, who then stands
# still. No omega passes zero while somebody does: where one may, only those far beyond do.
FAR, FAR_MIRRORED = 3.0, 10.0
_SOME = 100  # draws that tell
_SEARCHES = 8  # of modes, at most
_LOOKS = 8  # for a better place after each, once somebody has been moved
Method = Literal["importance", "nuts"]
# Long steps of the population in an iteration, where a pilot had fewer effective draws than this share.
SHIFTS, SLOW = 2, 0.05
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


def rebuilt(model: Model, method: Method, leaves: list[Array]) -> Transport | Tuning:
    """A tuning from its arrays, in the order in which ``jax.tree.leaves`` gives them."""
    first, rest = leaves[:7], leaves[7:]
    bend, (held, *rest) = (None, rest) if model.structure.closed_form else (Bend(*rest[:3]), rest[3:])
    found = Transport(*first, bend=bend, held=held)
    if method == "nuts":
        return found
    share, mean, factor, broad_mean, broad_scale, *rest = rest
    return Tuning(found, Proposals(share, mean, factor, broad_mean, broad_scale), *rest)


class _Picture(NamedTuple):
    """A Gaussian picture of the posterior: coordinates, and every patient given the population at their centre."""

    start: Start
    transport: Transport
    mean: Float[Array, "random subject"]
    covariance: Float[Array, "subject random random"]


# Compiled once per model and shape of data, whichever fit asks.
_modes = jax.jit(find_modes, static_argnums=0, static_argnames="rounds")
_widened = jax.jit(widen, static_argnums=0, static_argnames="rounds")


@partial(jax.jit, static_argnums=0)
def _picture(model: Model, obs: Observations, phi, z, move) -> _Picture:
    start = widen(model, obs, phi, z, move)
    found = transport(model, obs, start)
    return _Picture(start, found, *_patients(model, found))


@partial(jax.jit, static_argnums=0)
def _centre(model: Model, found: Transport):
    layout = make_layout(model)
    phi, z, _ = found(layout, Point(jnp.zeros(layout.n_phi), jnp.zeros_like(found.shift[0])))
    return phi, z


@partial(jax.jit, static_argnums=0)
def how_far(model: Model, found: Transport, phi, z):
    """Mean square of every patient's whitened parameters over draws: about 1 if the picture is theirs."""
    layout = make_layout(model)

    def whitened(phi, z):
        return found.whitened(layout, found.population(layout, phi), z)

    return jnp.mean(jax.vmap(whitened)(phi, z) ** 2, axis=(0, 1))


class Tuner:
    """Tunes a sampler: before sampling from the data, later from the chains' own draws."""

    def __init__(self, model: Model, obs: Observations, method: Method):
        self.model, self.obs = model, obs
        self.method: Method = method

    def first(self, data: Dataset) -> tuple[Transport | Tuning, list[str]]:
        """From the data alone, and what to say about it."""
        phi, z = (jnp.asarray(x) for x in starting_values(self.model, data))
        picture = _picture(self.model, self.obs, *self._modes(phi, z), True)
        if not _finite(picture):
            note = "The Laplace start failed; sampling in plain non-centred coordinates instead, which is slower. "
            note += self.not_finite(data)
            warnings.warn(note, FitWarning, stacklevel=3)
            found = no_transport(self.model, self.obs, phi)
            return self._tuning(found, *_patients(self.model, found)), [note]
        names = ", ".join(lost(data, picture.start.decrement))
        notes = [f"No Gaussian start for patient(s) {names}: they slow the sampler."] if names else []
        return self._tuning(*picture[1:]), notes

    def laplace_start(self, data: Dataset, rounds: tuple[int, int]) -> Start:
        """The start alone, after so many rounds of EM and of widening.

        Raises
        ------
        FitError
            It is not finite.
        """
        phi, z = (jnp.asarray(x) for x in starting_values(self.model, data))
        modes = self._modes(phi, z, rounds[0])
        found = _widened(self.model, self.obs, *modes, True, rounds=rounds[1])
        if not _finite(found):
            raise FitError(f"No Laplace approximation: {self.not_finite(data)}")
        return found

    def _modes(self, phi, z, rounds: int = EM_ROUNDS):
        """By EM, and by EM again as long as somebody is better explained elsewhere."""
        looks, keys = 1, iter(jax.random.split(jax.random.key(0), _SEARCHES * _LOOKS))
        for _ in range(_SEARCHES):
            phi, z = _modes(self.model, self.obs, phi, z, rounds=rounds)
            anybody = False
            for key in islice(keys, looks):
                z, moved = better_places(self.model, self.obs, phi, z, key)
                anybody = anybody or bool(moved.any())
            if not anybody:
                break
            looks = _LOOKS  # where there is one of two explanations, there may be more
        return phi, z

    def not_finite(self, data: Dataset) -> str:
        """After a start that failed: in which patients and parameters, and what to do."""
        where = not_finite(self.model, self.obs, *(jnp.asarray(x) for x in starting_values(self.model, data)))
        names = np.array([p.name for p in self.model.parameters])
        who = [f"{data.subjects[i]} ({', '.join(names[where[:, i]])})" for i in np.flatnonzero(where.any(0))]
        if not who:
            return "No single patient is to blame: narrow the priors (model.with_priors)."
        return (
            f"The likelihood is not finite for patient(s), by parameter: {listed(who)}. Look at their doses and "
            "samples, or narrow the priors of these parameters (model.with_priors)."
        )

    def at_fault(self, data: Dataset, phi, z) -> str:
        """A sentence that names the patients without a finite density at a start; empty if there are none."""
        found = failures(self.model, self.obs, phi, z)
        bad = np.flatnonzero(found.density)
        what = "curve" if np.asarray(found.solve)[bad].all() else "density"
        who = listed(data.subjects[i] for i in bad)
        return f" At the start, the {what} of patient(s) {who} is not finite." if len(bad) else ""

    def centre(self, tuning: Transport | Tuning) -> tuple[Float[Array, " phi"], Float[Array, "random subject"]]:
        """Population and patients in the middle of the start's picture."""
        return _centre(self.model, tuning if isinstance(tuning, Transport) else tuning.transport)

    def unfinished(self, tuning: Transport | Tuning) -> bool:
        """Whether one more pilot is worth its time: the long steps' own width is found by taking them."""
        return isinstance(tuning, Tuning) and int(tuning.shifts) > 0

    def _tuning(self, found: Transport, mean, covariance) -> Transport | Tuning:
        if self.method == "nuts":
            return found
        mean, covariance = np.asarray(mean), np.asarray(covariance)
        proposals = scouted(self.model, self.obs, around(mean, covariance), covariance, np.asarray(found.centre))
        return tuned(self.model, found, _square(found.scale), proposals)

    def again(self, old: Transport | Tuning, draws: list[Block]) -> Transport | Tuning:
        """From a pilot's draws; what they cannot give stays as it was.

        A typical value that the data barely inform lies where only sampling finds it, and its uncertainty is
        wider than any curvature says.
        """
        phi, z = np.concatenate([d.phi for d in draws]), np.concatenate([d.z for d in draws])
        picture = _picture(self.model, self.obs, jnp.asarray(phi.mean(0)), jnp.asarray(z.mean(0)), False)
        if isinstance(old, Transport):
            if not _finite(picture):
                return old
            found = picture.transport
            scale = jnp.asarray(np.linalg.cholesky(shrunk(phi, _square(old.scale))))
            return eqx.tree_at(lambda t: t.scale, found, scale)
        if _finite(picture):
            found, covariance = picture.transport, picture.covariance
        else:
            found, (_, covariance) = old.transport, _patients(self.model, old.transport)
        some = slice(None, None, -(-len(phi) // _SOME))
        far = how_far(self.model, found, jnp.asarray(phi[some]), jnp.asarray(z[some]))
        limit = FAR_MIRRORED if any(mirrored(self.model)) else FAR
        found = eqx.tree_at(lambda t: t.held, found, far > limit)
        x, covariance = np.asarray(_varying(self.model, self.obs, phi, z)), np.asarray(covariance)
        own = mixture(x, np.full((len(x), x.shape[2]), 1 / len(x)), covariance)
        proposals = scouted(self.model, self.obs, own, covariance, phi.mean(0), x)
        chains = np.stack([d.phi for d in draws])
        slow = int(old.shifts) > 0 or convergence(chains)[1].min() < SLOW * len(phi)
        return tuned(self.model, found, _square(found.scale), proposals, chains, shifts=SHIFTS if slow else 0)


def _patients(model: Model, found: Transport):
    """Mean and covariance of every patient's random parameters, given the population at the centre."""
    layout = make_layout(model)
    of = found.population(layout, found.centre)
    z, precision = found.gaussians(layout, found.centre)
    covariance = jnp.linalg.inv(jnp.moveaxis(precision, -1, 0))
    return of.varying(z), jax.vmap(lambda c: of.spread(of.spread(c).T))(covariance)


@partial(jax.jit, static_argnums=0)
def _varying(model: Model, obs: Observations, phi, z):
    """Random parameters of every draw."""
    layout = make_layout(model)
    return jax.vmap(lambda phi, z: population(layout, phi, obs.design).varying(z))(phi, z)


def _square(factor) -> np.ndarray:
    factor = np.asarray(factor)
    return factor @ factor.T


def lost(data: Dataset, decrement: Float[Array, " subject"] | Float[np.ndarray, " subject"]) -> list[str]:
    """Patients whose Gaussian was not found."""
    return [data.subjects[i] for i in np.flatnonzero(~(np.asarray(decrement) <= LOST))]


def _finite(tree) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))
