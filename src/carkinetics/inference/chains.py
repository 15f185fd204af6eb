"""Chains: compiled blocks of iterations, whichever the sampler, run side by side.

A chain is a loop in Python over a compiled block of iterations; warm-up and sampling are the same program. On a
CPU every chain has a thread of its own: compiled code runs outside the interpreter's lock, so the chains run in
parallel on one JAX device, whatever was imported or set before, and no chain waits for another. On an
accelerator the chains of a device are one vectorised program.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from carkinetics.errors import FitError
from carkinetics.inference.progress import Report, silent
from carkinetics.model import Model
from carkinetics.observations import Observations

BLOCK = 25  # iterations per call of the compiled program: the grain of progress and of interruption


@dataclass(frozen=True)
class Settings:
    """How long and how carefully to sample.

    Attributes
    ----------
    pilot : int
        Iterations per chain that find where population and patients lie; the sampler is then tuned to that.
    warmup : int
        Iterations per chain that adapt the step sizes after it; like the pilot's, thrown away.
    draws : int
        Iterations per chain that are kept, at least.
    max_draws : int
        Sampling goes on, beyond ``draws``, until every population parameter passes the gates (R-hat, bulk and
        tail ESS) or this many are kept.
    proposals : int
        ``method="importance"``: parameter sets weighed per patient and iteration, its present one among them.
    target_accept : float
        Acceptance that the step size is adapted to, wherever curves are solved; nearer to 1 is slower and safer.
    max_tree_depth : int
        ``method="nuts"``: doublings of a trajectory at most.
    refine : int
        Divides the steps of the fixed-grid solver; ``fit.check()`` says when 1 is too coarse.
    """

    pilot: int = 200
    warmup: int = 250
    draws: int = 1000
    max_draws: int = 8000
    proposals: int = 48
    target_accept: float = 0.95
    max_tree_depth: int = 10
    refine: int = 1

    def __post_init__(self):
        for name in ("pilot", "warmup", "draws", "max_draws", "proposals", "max_tree_depth", "refine"):
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
    """What a block of iterations leaves behind; the leading axis is the draw.

    ``stats`` has at least ``lp`` (log density of the model), ``diverging`` and ``n_steps`` (gradients).
    """

    phi: Float[Any, "draw phi"]
    z: Float[Any, "draw random subject"]
    stats: dict[str, Any]


@runtime_checkable
class Kernel(Protocol):
    """A sampler: how a chain starts, and one iteration of it; pure functions of arrays, compiled by `Programs`."""

    model: Model
    settings: Settings

    def start(self, key, obs: Observations, tuning, phi, z, jitter) -> Any:
        """A chain's first state: at ``(phi, z)``, or about ``jitter`` posterior SDs away from it."""
        ...

    def step(self, state, obs: Observations, tuning) -> tuple[Any, Block]:
        """The next state, and what is kept of it."""
        ...

    def finite(self, state) -> Any:
        """Whether the density is finite there."""
        ...

    def slower(self, state, shrink: float) -> Any:
        """The same state with smaller steps."""
        ...


class _Compiled(NamedTuple):
    """A kernel's programs, and the shapes of one chain's state."""

    start: Callable[..., Any]
    block: Callable[..., tuple[Any, Block]]
    shape: Any


_COMPILED: dict[Any, _Compiled] = {}  # by everything that a program depends on; the data are arguments
_KEPT = 8  # programs


class Programs:
    """A kernel's compiled programs for one device, one shape of data and of tuning, and lanes of so many chains.

    A second fit of equal shapes in the same process, with another seed or other data, compiles nothing.
    """

    def __init__(self, kernel: Kernel, obs: Observations, tuning, phi, z, *, device=None, width: int = 1):
        self.kernel, self.settings, self.width, self.device = kernel, kernel.settings, width, device
        self.obs = self.here(obs)
        begin = self.here((jax.random.key(0), obs, tuning, phi, z, jnp.array(0.0)))
        leaves, structure = jax.tree.flatten((obs, tuning))
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        key = (type(kernel), kernel.model, kernel.settings, device, width, structure, shapes, jax.config.jax_enable_x64)
        if key not in _COMPILED:
            while len(_COMPILED) >= _KEPT:
                _COMPILED.pop(next(iter(_COMPILED)))
            _COMPILED[key] = self._compile(begin)
        self.start, self._compiled, self.shape = _COMPILED[key]

    def _compile(self, begin) -> _Compiled:
        shape = jax.eval_shape(self.kernel.start, *begin)  # of one chain's state
        many, block = shape, self._block
        if self.width > 1:
            many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.width, *x.shape), x.dtype), shape)
            block = jax.vmap(block, in_axes=(0, None, None))
        lowered = (jax.jit(self.kernel.start).lower(*begin), jax.jit(block).lower(many, *begin[1:3]))
        with ThreadPoolExecutor(2) as pool:  # XLA compiles outside the interpreter's lock
            start, compiled = pool.map(lambda program: program.compile(), lowered)
        return _Compiled(start, compiled, shape)

    def here(self, arrays):
        """The arrays on this program's device, or where they are if it has none of its own."""
        return arrays if self.device is None else jax.device_put(arrays, self.device)

    def first(self, key, tuning, phi, z, jitter: float):
        """A chain's first state."""
        return self.start(*self.here((key, self.obs, tuning, phi, z, jnp.array(jitter))))

    def _block(self, state, obs: Observations, tuning):
        return jax.lax.scan(lambda state, _: self.kernel.step(state, obs, tuning), state, length=BLOCK)

    def block(self, states: Sequence, tuning) -> list[tuple[Any, Block]]:
        """The next state and block of every chain of a lane."""
        with jax.enable_x64(True):  # a thread of its own has JAX's default
            return self._lane(states, self.here(tuning))

    def _lane(self, states: Sequence, tuning) -> list[tuple[Any, Block]]:
        if self.width == 1:
            state, block = self._compiled(self.here(states[0]), self.obs, tuning)
            return [(state, jax.tree.map(np.asarray, block))]
        many = self.here(jax.tree.map(lambda *x: jnp.stack(x), *states))
        many, blocks = self._compiled(many, self.obs, tuning)
        blocks = jax.tree.map(np.asarray, blocks)
        return [jax.tree.map(lambda x, i=i: x[i], (many, blocks)) for i in range(self.width)]


class Chain:
    """One chain's state and what it has kept so far."""

    def __init__(self, number: int, programs: Programs, key):
        self.number, self.programs, self.key = number, programs, key
        self.blocks: list[Block] = []  # of this stage, warm-up included
        self.stored: deque[Block] = deque()  # of this stage, from a checkpoint, not yet gone through again
        self.n_steps = 0  # gradients in all stages
        self.done = 0  # iterations in all stages
        self.warmup = 0  # iterations of this stage that adapt
        # Called after every block, and with True when the chain pauses: where a checkpoint is written.
        self.keep: Callable[[Chain, bool], None] = lambda chain, pausing: None

    def begin(self, tuning, phi, z, *, jitter: float) -> None:
        """Begin a stage with this tuning: adaptation starts anew, at ``(phi, z)`` or ``jitter`` away from it."""
        self.tuning, self.blocks, self.warmup = tuning, [], self.programs.settings.warmup
        self.key, *attempts = jax.random.split(self.key, 21)
        for attempt in attempts:
            self.state = self.programs.first(attempt, tuning, phi, z, jitter)
            if bool(self.programs.kernel.finite(self.state)):
                return
            jitter /= 2
        raise NoStart(
            "no starting point with a finite density in 20 attempts. Look at the data for values far outside "
            "what the priors allow, or widen the priors (model.with_priors)."
        )

    def begin_again(self, shrink: float) -> None:
        """Begin a stage where the last one ended, adapted as it was but with smaller steps."""
        self.state = self.programs.kernel.slower(self.state, shrink)
        self.blocks, self.warmup = [], 0

    @property
    def iterations(self) -> int:
        """Iterations of this stage so far."""
        return len(self.blocks) * BLOCK

    def add(self, block: Block) -> None:
        """Keep a block."""
        self.blocks.append(block)
        self.done += BLOCK
        self.n_steps += int(block.stats["n_steps"].sum())

    def divergences(self) -> int:
        """Divergences since warm-up; -1 during it."""
        return -1 if self.iterations <= self.warmup else int(self.kept().stats["diverging"].sum())

    def kept(self, skip: int | None = None) -> Block:
        """This stage's iterations after the first ``skip`` (all of warm-up, by default), as one block."""
        return joined(self.blocks, self.warmup if skip is None else skip)


def joined(blocks: list[Block], skip: int = 0) -> Block:
    """Blocks as one, without the first ``skip`` iterations."""
    return jax.tree.map(lambda *parts: np.concatenate(parts)[skip:], *blocks)


def _run_lane(lane: Sequence[Chain], until: int, report: Report, stop: threading.Event) -> None:
    """Go on until every chain of a lane has ``until`` iterations of this stage, unless asked to stop.

    Blocks of a checkpoint are gone through first; a chain's state is already that after the last of them.
    """
    totals = [chain.done - chain.iterations + until for chain in lane]
    try:
        while (here := min(chain.iterations for chain in lane)) < until:
            behind = [chain for chain in lane if chain.iterations == here]
            sampling = [chain for chain in behind if not chain.stored]
            if sampling and stop.is_set():
                break
            for chain in behind:
                if chain.stored:
                    chain.add(chain.stored.popleft())
            if sampling:  # the others of the lane are ahead: they are computed and not used
                results = lane[0].programs.block([chain.state for chain in lane], lane[0].tuning)
                for chain, (state, block) in zip(lane, results, strict=True):
                    if chain in sampling:
                        chain.state = state
                        chain.add(block)
            for chain in behind:
                report(chain.number, chain.done, totals[lane.index(chain)], chain.divergences())
                chain.keep(chain, False)
        for chain in lane:
            chain.keep(chain, True)
    except BaseException:
        stop.set()  # the other chains need not go on
        raise


def run_chains(chains: Sequence[Chain], until: int, report: Report = silent) -> bool:
    """Run every chain to ``until`` iterations of its stage, one thread a lane; False if interrupted by Ctrl-C.

    Whatever interrupts (also SystemExit), every chain ends its block and keeps it first.
    """
    stop = threading.Event()
    width = chains[0].programs.width
    lanes = [chains[i : i + width] for i in range(0, len(chains), width)]
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(_run_lane, lane, until, report, stop) for lane in lanes]
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
