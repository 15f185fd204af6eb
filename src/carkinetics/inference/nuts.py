"""NUTS in transported coordinates, in blocks: compiled once, run by one thread a chain.

A chain is a loop in Python over a compiled block of iterations; warm-up and sampling are the same program.
Each chain has a thread of its own: compiled code runs outside the interpreter's lock, so the chains run in
parallel on one JAX device, whatever was imported or set before, and no chain waits for another.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from numpyro.infer.hmc import HMCState, hmc

from carkinetics.errors import FitError
from carkinetics.inference.coordinates import Point, Transport, log_density
from carkinetics.inference.progress import Report, silent
from carkinetics.model import Model
from carkinetics.population import Observations, make_layout

BLOCK = 25  # iterations per call of the compiled program: the grain of progress and of interruption


@dataclass(frozen=True)
class Settings:
    """How long and how carefully to sample.

    Attributes
    ----------
    pilot : int
        Iterations per chain that find where the population lies; the coordinates are then centred there.
    warmup : int
        Iterations per chain that adapt the sampler in those coordinates; like the pilot's, thrown away.
    draws : int
        Iterations per chain that are kept, at least.
    max_draws : int
        Sampling goes on, beyond ``draws``, until every population parameter passes the gates (R-hat, bulk and
        tail ESS) or this many are kept.
    target_accept : float
        Acceptance that the step size is adapted to; nearer to 1 is slower and safer.
    max_tree_depth : int
        Doublings of a trajectory at most.
    refine : int
        Divides the steps of the fixed-grid solver; ``fit.check()`` says when 1 is too coarse.
    """

    pilot: int = 150
    warmup: int = 250
    draws: int = 1000
    max_draws: int = 8000
    target_accept: float = 0.9
    max_tree_depth: int = 10
    refine: int = 1

    def __post_init__(self):
        for name in ("pilot", "warmup", "draws", "max_draws", "max_tree_depth", "refine"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FitError(f"settings: {name} = {value!r} must be a whole number above 0.")
        if not 0 < self.target_accept < 1:
            raise FitError(f"settings: target_accept = {self.target_accept!r} must lie between 0 and 1.")
        if self.max_draws < self.draws:
            raise FitError(f"settings: max_draws = {self.max_draws} is below draws = {self.draws}.")


class NoStart(FitError):
    """A chain found no starting point with a finite density."""


class Block(NamedTuple):
    """What a block of iterations leaves behind; the leading axis is the draw."""

    phi: Float[Any, "draw phi"]
    z: Float[Any, "draw random subject"]
    lp: Float[Any, " draw"]
    energy: Float[Any, " draw"]
    diverging: Bool[Any, " draw"]
    n_steps: Int[Any, " draw"]
    acceptance_rate: Float[Any, " draw"]
    step_size: Float[Any, " draw"]


class Sampler:
    """The compiled programs of one model and one shape of data."""

    def __init__(self, model: Model, obs: Observations, coordinates: Transport, settings: Settings):
        self.model, self.settings = model, settings
        self._init, self._sample = hmc(potential_fn_gen=partial(_potential, model), algo="NUTS")
        started = time.perf_counter()
        begin = (jax.random.key(0), obs, coordinates, coordinates.centre, coordinates.shift[0], jnp.array(0.0))
        self.shape = jax.eval_shape(self._start, *begin)  # of a chain's state
        programs = (jax.jit(self._start).lower(*begin), jax.jit(self._block).lower(self.shape, obs, coordinates))
        with ThreadPoolExecutor(2) as pool:  # XLA compiles outside the interpreter's lock
            self.start, self.block = pool.map(lambda lowered: lowered.compile(), programs)
        self.compile_seconds = time.perf_counter() - started

    def _start(self, key, obs: Observations, coordinates: Transport, phi, z, jitter) -> HMCState:
        """A chain's first state: at ``(phi, z)``, and ``jitter`` times a standard normal draw from there."""
        for_u, for_v, for_chain = jax.random.split(key, 3)
        at = coordinates.inverse(make_layout(self.model), phi, z)
        point = Point(
            u=at.u + jitter * jax.random.normal(for_u, at.u.shape),
            v=at.v + jitter * jax.random.normal(for_v, at.v.shape),
        )
        return self._init(
            point._asdict(),
            self.settings.warmup,
            step_size=0.3,
            dense_mass=[("u",)],  # type: ignore[arg-type]
            target_accept_prob=self.settings.target_accept,
            max_tree_depth=self.settings.max_tree_depth,
            model_args=(obs, coordinates),
            rng_key=for_chain,
        )

    def _block(self, state: HMCState, obs: Observations, coordinates: Transport):
        layout = make_layout(self.model)

        def step(state, _):
            state = self._sample(state, (obs, coordinates))
            phi, z, log_det = coordinates(layout, Point(**state.z))
            return state, Block(
                phi=phi,
                z=z,
                lp=-state.potential_energy - log_det,  # of the model, not of the sampler's coordinates
                energy=state.energy,
                diverging=state.diverging,
                n_steps=state.num_steps,
                acceptance_rate=state.accept_prob,
                step_size=state.adapt_state.step_size,
            )

        return jax.lax.scan(step, state, length=BLOCK)


def _potential(model: Model, obs: Observations, coordinates: Transport):
    # A density that is not finite is a place the model does not allow: NumPyro counts the energy there as
    # infinite, so it is rejected as a divergence. A guard here would only cost time (a factor of 2.5).
    return lambda position: -log_density(model, obs, coordinates, Point(**position))


class Chain:
    """One chain's state and what it has kept so far."""

    def __init__(self, number: int, sampler: Sampler, key, obs: Observations):
        self.number, self.sampler, self.obs, self.key = number, sampler, obs, key
        self.blocks: list[Block] = []  # of this stage, warm-up included
        self.stored: deque[Block] = deque()  # of this stage, from a checkpoint, not yet gone through again
        self.n_steps = 0  # gradients in all stages
        self.done = 0  # iterations in all stages
        self.warmup = 0  # iterations of this stage that adapt
        # Called after every block, and with True when the chain pauses: where a checkpoint is written.
        self.keep: Callable[[Chain, bool], None] = lambda chain, pausing: None

    def begin(self, coordinates: Transport, phi, z, *, jitter: float) -> None:
        """Begin a stage in these coordinates: adaptation starts anew, at ``(phi, z)`` or ``jitter`` away from it."""
        self.coordinates, self.blocks, self.warmup = coordinates, [], self.sampler.settings.warmup
        self.key, *attempts = jax.random.split(self.key, 21)
        for attempt in attempts:
            self.state = self.sampler.start(attempt, self.obs, coordinates, phi, z, jnp.array(jitter))
            if np.isfinite(float(self.state.potential_energy)):
                return
            jitter /= 2
        raise NoStart(
            "no starting point with a finite density in 20 attempts. Look at the data for values far outside "
            "what the priors allow, or widen the priors (model.with_priors)."
        )

    def begin_again(self, shrink: float) -> None:
        """Begin a stage where the last one ended, adapted as it was but with a smaller step."""
        adapted = self.state.adapt_state
        self.state = self.state._replace(adapt_state=adapted._replace(step_size=shrink * adapted.step_size))
        self.blocks, self.warmup = [], 0

    def run(self, until: int, report: Report, stop: threading.Event) -> None:
        """Go on until ``until`` iterations of this stage are done, unless asked to stop.

        Blocks of a checkpoint are gone through first; ``state`` is already that after the last of them.
        """
        total = self.done - len(self.blocks) * BLOCK + until
        try:
            while len(self.blocks) * BLOCK < until and (self.stored or not stop.is_set()):
                self._add(self.stored.popleft() if self.stored else self._sampled())
                report(self.number, self.done, total, self._divergences())
                self.keep(self, False)
            self.keep(self, True)
        except BaseException:
            stop.set()  # the other chains need not go on
            raise

    def _sampled(self) -> Block:
        self.state, block = self.sampler.block(self.state, self.obs, self.coordinates)
        return jax.tree.map(np.asarray, block)

    def _add(self, block: Block) -> None:
        self.blocks.append(block)
        self.done += BLOCK
        self.n_steps += int(block.n_steps.sum())

    def _divergences(self) -> int:
        """Divergences since warm-up; -1 during it."""
        if len(self.blocks) * BLOCK <= self.warmup:
            return -1
        return int(np.concatenate([b.diverging for b in self.blocks])[self.warmup :].sum())

    def kept(self, skip: int | None = None) -> Block:
        """This stage's iterations after the first ``skip`` (all of warm-up, by default), as one block."""
        return joined(self.blocks, self.warmup if skip is None else skip)


def joined(blocks: list[Block], skip: int = 0) -> Block:
    """Blocks as one, without the first ``skip`` iterations."""
    return Block(*(np.concatenate(parts)[skip:] for parts in zip(*blocks, strict=True)))


def run_chains(chains: list[Chain], until: int, report: Report = silent) -> bool:
    """Run every chain to ``until`` iterations of its stage, one thread each; False if interrupted from the keyboard.

    Whatever interrupts (also SystemExit), every chain ends its block and keeps it first.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(len(chains)) as pool:
        running = [pool.submit(chain.run, until, report, stop) for chain in chains]
        try:
            for job in running:
                job.result()
        except (KeyboardInterrupt, SystemExit) as asked:
            stop.set()
            for job in running:
                job.result()
            if isinstance(asked, SystemExit):
                raise
            return False
    return True
