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

A trajectory of step 2 whose energy is lost is counted as divergent, as in NUTS: a region may be reached by proposals
alone, and then slowly.

References
----------
Andrieu C, Doucet A, Holenstein R, J R Stat Soc B 2010;72:269-342, doi:10.1111/j.1467-9868.2009.00736.x.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpyro.infer.hmc_util import dual_averaging

from carkinetics.density import log_joint, subject_log_likelihood
from carkinetics.inference.chains import Block, Settings
from carkinetics.inference.coordinates import scattered
from carkinetics.inference.places import Tuning, mirrored, to_place
from carkinetics.inference.proposals import log_standard_t, standard_t
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import Population, population
from carkinetics.priors import log_prior

_ACCEPT = 0.8  # that the step size on averaged weights is adapted to; where curves are solved, it is a setting
_FIRST_STEP = 0.4
_INNER_MOVES = 2
_TRAJECTORY = 1.5  # in posterior SDs: about a quarter of a round trip
_MOST_STEPS = 16
_DIVERGED = 1000.0  # loss of energy, as in NumPyro's NUTS

_start_adapting, _adapt = dual_averaging()


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
        """The same state with smaller steps where curves are solved: no other diverges."""
        by, x = jnp.log(shrink), state.outer
        return state._replace(outer=(x[0] + by, x[1] + by, *x[2:]))

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
            _select(adapting, _adapt(self.settings.target_accept - moved.accept, state.outer), state.outer),
        )
        stats = {
            "lp": lp,
            "diverging": moved.diverging,
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
        layout = self.layout
        for_sets, for_choice, for_moves = jax.random.split(key, 3)
        of = population(layout, phi, obs.design)
        fresh = tuning.proposals.sample(for_sets, self.settings.proposals - 1)
        sets = jnp.concatenate([of.varying(z)[:, None], fresh], axis=1)

        fit = jax.vmap(lambda x: subject_log_likelihood(layout, of, x, obs), in_axes=1)
        weight = fit(sets) - tuning.proposals.log_density(sets)
        weight = jnp.where(jnp.isfinite(weight), weight, -jnp.inf)

        def log_weights(phi):
            return weight + population(layout, phi, obs.design).log_density(sets)

        moving = jnp.array(layout.among_random())

        def log_marginal(u):
            there = phi.at[moving].add(tuning.inner @ u)
            average = jax.scipy.special.logsumexp(log_weights(there), axis=0)
            return average.sum() + log_prior(self.model, there)

        def move(carry, key):
            u, accepted = carry
            moved = _trajectory(key, u, log_marginal, step)
            return (moved.at, accepted + moved.accept / _INNER_MOVES), None

        keys = jax.random.split(for_moves, _INNER_MOVES)
        (u, accepted), _ = jax.lax.scan(move, (jnp.zeros(len(moving)), 0.0), keys)
        phi = phi.at[moving].add(tuning.inner @ u)
        choice = jax.random.categorical(for_choice, log_weights(phi), axis=0)
        x = jnp.take_along_axis(sets, choice[None, None], axis=1)[:, 0]
        return phi, population(layout, phi, obs.design).whitened(x), choice != 0, accepted

    def _move(self, key, obs: Observations, tuning: Tuning, phi, z, step):
        """The population, and the patients with it."""
        layout, transport = self.layout, tuning.transport

        def density(u, v):
            place = tuning.place(u)
            of = self._population(place, obs)
            z, log_det = transport.patients(layout, of, v)
            phi, z = self._phi(place), self._own_side(of, z)
            lp = log_joint(self.model, obs, phi, z)
            return lp + log_det.sum() + self._log_rate(phi), (phi, z, lp)

        # A mirrored omega begins on either side of zero by chance: the steps' scale is not symmetric, so that a chain
        # which always began on one side would not leave the posterior as it is.
        for_side, key = jax.random.split(key)
        side = jax.random.rademacher(for_side, (len(self.mirrored),), float)
        side = jnp.where(jnp.array(self.mirrored), side, 1.0)
        place = to_place(layout, self.mirrored, phi).at[layout.omegas].multiply(side)
        u, of = tuning.whitened(place), self._population(place, obs)
        v = transport.whitened(layout, of, self._own_side(of, z))
        moved = _trajectory(key, u, lambda u: density(u, v)[0], step)
        phi, z, lp = density(moved.at, v)[1]
        return phi, z, lp, moved

    def _shift(self, key, obs: Observations, tuning: Tuning, phi, z):
        """The population by long steps, on averaged weights of whitened proposals that follow it."""
        layout, transport = self.layout, tuning.transport
        for_sets, for_choice, for_moves = jax.random.split(key, 3)
        place = to_place(layout, self.mirrored, phi)
        present = transport.whitened(layout, self._population(place, obs), z)
        fresh = standard_t(for_sets, len(layout.random), self.settings.proposals - 1, obs.n_subjects)
        sets = jnp.concatenate([present[:, None], fresh], axis=1)
        proposed = log_standard_t(sets)

        def log_weights(place):
            of = self._population(place, obs)

            def weight(v):
                z, log_det = transport.patients(layout, of, v)
                return subject_log_likelihood(layout, of, of.varying(z), obs) + of.log_density_z(z) + log_det

            weights = jax.vmap(weight, in_axes=1)(sets) - proposed
            return jnp.where(jnp.isfinite(weights), weights, -jnp.inf)

        def log_marginal(u, weights):
            """Against the Gaussian that the steps leave as it is; on this side of zero only, as that is not even."""
            place = tuning.place(u)
            phi = self._phi(place)
            beyond = jnp.any(jnp.array(self.mirrored) & (place[layout.omegas] <= 0))
            prior = log_prior(self.model, phi) + self._log_rate(phi)
            found = jax.scipy.special.logsumexp(weights, axis=0).sum() + prior + 0.5 * u @ u
            return jnp.where(beyond, -jnp.inf, found)

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
        of = self._population(place, obs)
        z, _ = transport.patients(layout, of, v)
        return self._phi(place), self._own_side(of, z), accepted / jnp.maximum(tuning.shifts, 1)

    def _population(self, place, obs: Observations) -> Population:
        """The population at a place; omegas are of either sign where mirrored."""
        at = place[self.layout.omegas]
        return population(self.layout, place, obs.design, omega=jnp.where(jnp.array(self.mirrored), at, jnp.exp(at)))

    def _own_side(self, of: Population, z):
        """``z`` of the population's mirror image, in which every omega is positive; or back."""
        return z * jnp.sign(of.omega)[:, None] if any(self.mirrored) else z

    def _phi(self, place):
        """``phi`` of a place, the same for an omega and its mirror image."""
        omega = place[self.layout.omegas]
        return place.at[self.layout.omegas].set(jnp.where(jnp.array(self.mirrored), jnp.log(jnp.abs(omega)), omega))

    def _log_rate(self, phi):
        """Log of d phi / d place: the model's density is one of ln omega, a mirrored omega is itself the coordinate."""
        return -jnp.sum(jnp.where(jnp.array(self.mirrored), phi[self.layout.omegas], 0.0))


class _Moved(NamedTuple):
    """The end of a trajectory."""

    at: Float[Array, " n"]
    accept: Float[Array, ""]
    diverging: Any
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
    return _Moved(jnp.where(taken, there, at), accept, change < -_DIVERGED, steps)


def _select(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
