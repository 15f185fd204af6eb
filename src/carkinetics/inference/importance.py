"""Importance Gibbs: each patient's parameters by weighed proposals, the population on what they leave of it.

An iteration has two steps, or three, each of which leaves the posterior as it is:

1. Every patient's present parameters are joined by fresh proposals. The population moves, by Hamiltonian steps,
   on the patients' *averaged* weights, as if their parameters had been integrated out; then each patient takes
   one of its sets, by weight. The curves are solved once per set and never differentiated: kinks, walls and
   separate modes do not matter, only whether proposals fall near them.
2. Population and patients move together, by Hamiltonian steps in which the whitened patients stand still
   (:mod:`carkinetics.inference.coordinates`). This moves what the proposals cannot: a population whose patients
   must all follow it, residual SDs, and parameters without variability.
3. Where the pilot found the population slow (a ridge along which every patient bends), it also takes long steps:
   as in 1, on averaged weights, but of whitened proposals that follow the population; the curves of all of them
   are solved again for each step.

The first and the last are conditional importance samplers with the selection integrated out; with the present set
among the proposals they are exact for any number of them (Andrieu et al. 2010, section 4). An omega whose prior does
not exclude zero moves through it, on to its mirror image: there is no boundary, and no funnel, to get stuck at.

A trajectory that leaves the posterior is a rejected step among others, not the sign of a region that was missed:
proposals are drawn everywhere, whatever the steps can reach.

References
----------
Andrieu C, Doucet A, Holenstein R, J R Stat Soc B 2010;72:269-342, doi:10.1111/j.1467-9868.2009.00736.x.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpyro.infer.hmc_util import dual_averaging

from carkinetics.inference.chains import Block, Settings
from carkinetics.inference.coordinates import Transport, scattered
from carkinetics.inference.proposals import Proposals, log_standard_t, standard_t
from carkinetics.model import Model
from carkinetics.population import (
    Layout,
    Observations,
    ln_pred,
    log_joint,
    log_likelihood_by_subject,
    log_prior_phi,
    make_layout,
    split_phi,
    with_random,
)

_ACCEPT = 0.8  # that both step sizes are adapted to
_FIRST_STEP = 0.4
_INNER_MOVES = 2
_TRAJECTORY = 1.5  # in posterior SDs: about a quarter of a round trip
_MOST_STEPS = 16
_TRUST = 50  # draws that what was known before a pilot counts for
_FLAT = 3.0

_start_adapting, _adapt = dual_averaging()


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


class State(NamedTuple):
    """Of a chain: where it is, and how long its steps are."""

    key: Any
    phi: Float[Array, " phi"]
    z: Float[Array, "random subject"]
    lp: Float[Array, ""]
    iteration: Int[Array, ""]
    inner: Any  # of dual averaging
    outer: Any


class Importance:
    """The kernel of importance Gibbs."""

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings, self.layout = model, settings, make_layout(model)
        self.mirrored = mirrored(model)

    def start(self, key, obs: Observations, tuning: Tuning, phi, z, jitter) -> State:
        """At ``(phi, z)``, and ``jitter`` times a draw from the start's Gaussian picture away from it."""
        for_point, for_chain = jax.random.split(key)
        phi, z, _ = tuning.transport(self.layout, scattered(for_point, self.layout, tuning.transport, phi, z, jitter))
        adapting = _start_adapting(math.log(_FIRST_STEP))
        return State(for_chain, phi, z, log_joint(self.model, obs, phi, z), jnp.array(0), adapting, adapting)

    def finite(self, state: State):
        """Whether the density is finite there."""
        return jnp.isfinite(state.lp)

    def slower(self, state: State, shrink: float) -> State:
        """The same state with smaller steps."""
        by = jnp.log(shrink)
        inner, outer = ((x[0] + by, x[1] + by, *x[2:]) for x in (state.inner, state.outer))
        return state._replace(inner=inner, outer=outer)

    def step(self, state: State, obs: Observations, tuning: Tuning) -> tuple[State, Block]:
        """One iteration."""
        key, for_patients, for_shift, for_move = jax.random.split(state.key, 4)
        adapting = state.iteration < self.settings.warmup
        inner, outer = (jnp.exp(jnp.where(adapting, x[0], x[1])) for x in (state.inner, state.outer))
        phi, z, renewed, inner_accept = self._renew(for_patients, obs, tuning, state.phi, state.z, inner)
        phi, z, shifted = jax.lax.cond(
            tuning.shifts > 0,
            lambda phi, z: self._shift(for_shift, obs, tuning, phi, z),
            lambda phi, z: (phi, z, jnp.nan),
            *(phi, z),
        )
        phi, z, lp, moved = self._move(for_move, obs, tuning, phi, z, outer)
        new = State(
            key,
            phi,
            z,
            lp,
            state.iteration + 1,
            _select(adapting, _adapt(_ACCEPT - inner_accept, state.inner), state.inner),
            _select(adapting, _adapt(_ACCEPT - moved.accept, state.outer), state.outer),
        )
        stats = {
            "lp": lp,
            "n_steps": moved.steps,
            "acceptance_rate": moved.accept,
            "acceptance_population": inner_accept,
            "acceptance_shift": shifted,
            "step_size": outer,
            "renewed": renewed,
        }
        return new, Block(phi, z, stats)

    def _renew(self, key, obs: Observations, tuning: Tuning, phi, z, step):
        """Proposals; the population on their averaged weights; one set for each patient."""
        layout, random = self.layout, jnp.array(self.layout.random)
        for_sets, for_choice, for_moves = jax.random.split(key, 3)
        theta, omega, sigma = split_phi(layout, phi)
        present = theta[random][:, None] + omega[:, None] * z
        fresh = tuning.proposals.sample(for_sets, self.settings.proposals - 1)
        sets = jnp.concatenate([present[:, None], fresh], axis=1)

        def fit(x):
            ln_level = ln_pred(layout, with_random(layout, theta, x), obs)
            return log_likelihood_by_subject(ln_level, sigma, obs)

        weight = jax.vmap(fit, in_axes=1)(sets) - tuning.proposals.log_density(sets)
        weight = jnp.where(jnp.isfinite(weight), weight, -jnp.inf)

        def log_weights(phi):
            theta, omega, _ = split_phi(layout, phi)
            standard = (sets - theta[random][:, None, None]) / omega[:, None, None]
            return weight - 0.5 * jnp.sum(standard**2, axis=0) - jnp.log(omega).sum()

        moving = jnp.array(inner_positions(layout))

        def log_marginal(u):
            there = phi.at[moving].add(tuning.inner @ u)
            average = jax.scipy.special.logsumexp(log_weights(there), axis=0)
            return average.sum() + log_prior_phi(self.model, there).sum()

        def move(carry, key):
            u, accepted = carry
            moved = _trajectory(key, u, log_marginal, step)
            return (moved.at, accepted + moved.accept / _INNER_MOVES), None

        keys = jax.random.split(for_moves, _INNER_MOVES)
        (u, accepted), _ = jax.lax.scan(move, (jnp.zeros(len(moving)), 0.0), keys)
        phi = phi.at[moving].add(tuning.inner @ u)
        choice = jax.random.categorical(for_choice, log_weights(phi), axis=0)
        x = jnp.take_along_axis(sets, choice[None, None], axis=1)[:, 0]
        theta, omega, _ = split_phi(layout, phi)
        return phi, (x - theta[random][:, None]) / omega[:, None], choice != 0, accepted

    def _move(self, key, obs: Observations, tuning: Tuning, phi, z, step):
        """The population, and the patients with it."""
        layout, transport = self.layout, tuning.transport

        def density(u, v):
            place = tuning.place(u)
            omega = self._population(place)[1]
            z, log_det = transport.patients(layout, *self._population(place), v)
            phi, z = self._phi(place), z * jnp.sign(omega)[:, None]
            lp = log_joint(self.model, obs, phi, z)
            return lp + log_det.sum() + self._log_rate(phi), (phi, z, lp)

        place = to_place(layout, self.mirrored, phi)
        u = tuning.whitened(place)
        v = transport.whitened(layout, *self._population(place), z)
        moved = _trajectory(key, u, lambda u: density(u, v)[0], step)
        phi, z, lp = density(moved.at, v)[1]
        return phi, z, lp, moved

    def _shift(self, key, obs: Observations, tuning: Tuning, phi, z):
        """The population by long steps, on averaged weights of whitened proposals that follow it."""
        layout, transport, k = self.layout, tuning.transport, len(self.layout.random)
        for_sets, for_choice, for_moves = jax.random.split(key, 3)
        place = to_place(layout, self.mirrored, phi)
        present = transport.whitened(layout, *self._population(place), z)
        n, one = self.settings.proposals - 1, jnp.ones(k)
        fresh = standard_t(for_sets, k, n, obs.n_subjects)
        sets = jnp.concatenate([present[:, None], fresh], axis=1)
        proposed = log_standard_t(sets, one)

        def log_weights(place):
            theta, omega, sigma = self._population(place)

            def weight(v):
                z, log_det = transport.patients(layout, theta, omega, sigma, v)
                x = theta[jnp.array(layout.random)][:, None] + omega[:, None] * z
                ln_level = ln_pred(layout, with_random(layout, theta, x), obs)
                fit = log_likelihood_by_subject(ln_level, sigma, obs)
                return fit - 0.5 * jnp.sum(z**2, axis=0) + log_det

            weights = jax.vmap(weight, in_axes=1)(sets) - proposed
            return jnp.where(jnp.isfinite(weights), weights, -jnp.inf)

        def log_marginal(u, weights):
            """Against the Gaussian that the steps leave as it is."""
            phi = self._phi(tuning.place(u))
            prior = log_prior_phi(self.model, phi).sum() + self._log_rate(phi)
            return jax.scipy.special.logsumexp(weights, axis=0).sum() + prior + 0.5 * u @ u

        def move(i, carry):
            """A step; the first goes nowhere, and finds the weights here (one copy of the solver is compiled)."""
            key, u, weights, value, accepted = carry
            key, for_angle, for_step, for_accept = jax.random.split(key, 4)
            # A rotation towards a fresh draw of the Gaussian: short steps as well as independent ones.
            angle = jnp.where(i > 0, 0.5 * jnp.pi * jax.random.uniform(for_angle), 0.0)
            there = jnp.cos(angle) * u + jnp.sin(angle) * jax.random.normal(for_step, u.shape)
            weights_there = log_weights(tuning.place(there))
            value_there = log_marginal(there, weights_there)
            change = value_there - value
            taken = jnp.log(jax.random.uniform(for_accept)) < jnp.where(jnp.isnan(change), -jnp.inf, change)
            taken = taken | (i == 0)
            new, old = (there, weights_there, value_there), (u, weights, value)
            return key, *_select(taken, new, old), accepted + taken

        begin = (for_moves, tuning.whitened(place), jnp.zeros(sets.shape[1:]), -jnp.inf, -1)
        _, u, weights, _, accepted = jax.lax.fori_loop(0, tuning.shifts + 1, move, begin)
        choice = jax.random.categorical(for_choice, weights, axis=0)
        v = jnp.take_along_axis(sets, choice[None, None], axis=1)[:, 0]
        place = tuning.place(u)
        theta, omega, sigma = self._population(place)
        z, _ = transport.patients(layout, theta, omega, sigma, v)
        return self._phi(place), z * jnp.sign(omega)[:, None], accepted / jnp.maximum(tuning.shifts, 1)

    def _population(self, place):
        """Typical values, omegas (of either sign where mirrored), residual SDs."""
        theta, omega, sigma = split_phi(self.layout, place)
        n = len(self.layout.estimated)
        return theta, jnp.where(jnp.array(self.mirrored), place[n : n + len(omega)], omega), sigma

    def _phi(self, place):
        """``phi`` of a place, the same for an omega and its mirror image."""
        n, k = len(self.layout.estimated), len(self.layout.random)
        omega = place[n : n + k]
        return place.at[n : n + k].set(jnp.where(jnp.array(self.mirrored), jnp.log(jnp.abs(omega)), omega))

    def _log_rate(self, phi):
        """Log of d phi / d place: the model's density is one of ln omega, a mirrored omega is itself the coordinate."""
        n, k = len(self.layout.estimated), len(self.layout.random)
        return -jnp.sum(jnp.where(jnp.array(self.mirrored), phi[n : n + k], 0.0))


class _Moved(NamedTuple):
    """The end of a trajectory."""

    at: Float[Array, " n"]
    accept: Float[Array, ""]
    steps: Int[Array, ""]


def _trajectory(key, at: Float[Array, " n"], log_density, step) -> _Moved:
    """One Hamiltonian trajectory of jittered length and step, accepted or not.

    Its length follows the step, so that it covers the same way however small the steps have to be.
    """
    for_momentum, for_step, for_length, for_accept = jax.random.split(key, 4)
    slope = jax.value_and_grad(log_density)
    way = _TRAJECTORY * jax.random.uniform(for_length, minval=0.5, maxval=1.5)
    steps = jnp.clip(jnp.ceil(way / step), 1, _MOST_STEPS).astype(int)
    step = step * jax.random.uniform(for_step, minval=0.8, maxval=1.2)
    momentum = jax.random.normal(for_momentum, at.shape)

    def leapfrog(i, carry):
        """A way and a kick; none and half a one at the start, so that one copy of the gradient is compiled."""
        at, momentum, begin, _ = carry
        at = at + jnp.where(i > 0, step, 0.0) * momentum
        value, gradient = slope(at)
        kick = jnp.where((i == 0) | (i == steps), 0.5, 1.0) * step
        return at, momentum + kick * gradient, jnp.where(i == 0, value, begin), value

    there, last, begin, end = jax.lax.fori_loop(0, steps + 1, leapfrog, (at, momentum, 0.0, 0.0))
    change = end - 0.5 * last @ last - begin + 0.5 * momentum @ momentum
    change = jnp.where(jnp.isfinite(change), change, -jnp.inf)
    accept = jnp.minimum(1.0, jnp.exp(change))
    taken = jax.random.uniform(for_accept) < accept
    return _Moved(jnp.where(taken, there, at), accept, steps)


def _select(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def mirrored(model: Model) -> tuple[bool, ...]:
    """Which omegas have a prior that is positive at zero and even about it."""
    return tuple(p.prior_omega.family == "halfnormal" for p in model.parameters if p.iiv > 0)


def inner_positions(layout: Layout) -> list[int]:
    """Where ``phi`` has the typical values of random parameters and the log omegas."""
    n = len(layout.estimated)
    typical = [j for j, i in enumerate(layout.estimated) if i in layout.random]
    return typical + list(range(n, n + len(layout.random)))


def to_place(layout: Layout, mirrored: tuple[bool, ...], phi):
    """``phi`` in the coordinates in which the population moves: mirrored omegas as they are, not their logs."""
    n = len(layout.estimated)
    end = n + len(layout.random)
    logs = phi[..., n:end]
    omega = jnp.where(jnp.array(mirrored), jnp.exp(logs), logs)
    return jnp.concatenate([phi[..., :n], omega, phi[..., end:]], axis=-1)


def tuned(
    model: Model,
    transport: Transport,
    curvature: Float[Array, "phi phi"],
    proposals: Proposals,
    phi: Float[np.ndarray, "chain draw phi"] | None = None,
    shifts: int = 0,
) -> Tuning:
    """A tuning from coordinates and proposals, and from a pilot's draws of the population if there are any.

    ``curvature`` is the population's approximate posterior covariance at the transport's centre.
    """
    layout, mirror = make_layout(model), mirrored(model)
    moving = np.array(inner_positions(layout))
    inner = jnp.linalg.cholesky(curvature[np.ix_(moving, moving)])
    rate = jax.jacobian(lambda x: to_place(layout, mirror, x))(transport.centre)
    covariance, centre = rate @ curvature @ rate.T, to_place(layout, mirror, transport.centre)
    if phi is None:
        scale, bow = jnp.linalg.cholesky(covariance), jnp.zeros(layout.n_phi)
    else:
        places = np.stack([np.asarray(to_place(layout, mirror, chain)) for chain in phi])
        centre = jnp.asarray(places.mean((0, 1)))
        scale, bow = bowed(places, covariance)
    return Tuning(transport, proposals, inner, centre, scale, bow, jnp.array(shifts))


def bowed(
    places: Float[np.ndarray, "chain draw phi"], known: Float[Array, "phi phi"]
) -> tuple[Float[Array, "phi phi"], Float[Array, " phi"]]:
    """The scale of a pilot's draws, its slowest parameter as the first direction, and how the others bend with it."""
    draws = places.reshape(-1, places.shape[-1])
    order = np.argsort(-autocorrelation(places), kind="stable")[:1]
    order = np.append(order, np.delete(np.arange(draws.shape[1]), order))
    scale = np.empty((len(order), len(order)))
    scale[order] = np.linalg.cholesky(np.asarray(shrunk(draws, known))[np.ix_(order, order)])
    straight = np.linalg.solve(scale, (draws - draws.mean(0)).T)
    parabola = np.asarray(_bowed(straight[0]))
    # Least squares on the parabola, held back as if some draws had shown none.
    bow = (straight * (parabola - parabola.mean())).sum(1) / (((parabola - parabola.mean()) ** 2).sum() + _TRUST)
    bow[0] = 0.0
    return jnp.asarray(scale), jnp.asarray(bow)


def autocorrelation(chains: Float[np.ndarray, "chain draw n"]) -> Float[np.ndarray, " n"]:
    """Correlation of every quantity with itself one draw before, about the mean of all chains."""
    off = chains - chains.mean((0, 1))
    return (off[:, 1:] * off[:, :-1]).mean((0, 1)) / (off**2).mean((0, 1))


def _bowed(x):
    """A parabola of a standard normal, level far out."""
    return (_FLAT * jnp.tanh(x / _FLAT)) ** 2 - 1


def shrunk(draws: Float[np.ndarray, "draw n"], known: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The draws' covariance, or something between it and what was known while they are few."""
    return jnp.asarray((len(draws) * np.cov(draws.T) + _TRUST * np.asarray(known)) / (len(draws) + _TRUST))
