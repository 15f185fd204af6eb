"""``fit``: a model and a dataset in, a :class:`~carkinetics.fit_result.Fit` out.

Data-driven start -> Laplace start -> coordinates -> chains in blocks until the gates pass -> one tree.
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.dataset import Dataset
from carkinetics.errors import FitError
from carkinetics.fit_result import Fit, gate_failures
from carkinetics.fit_tree import build_tree
from carkinetics.inference.cache import use_compile_cache
from carkinetics.inference.chains import Block, Chain, Programs, Settings, diverging, run_chains
from carkinetics.inference.checkpoint import Checkpoint, opened
from carkinetics.inference.identity import identity
from carkinetics.inference.progress import Report, bars, stage
from carkinetics.inference.solver_check import solver_error
from carkinetics.inference.tuning import KERNELS, Method, Tuner, pilots, skeleton
from carkinetics.model import Model
from carkinetics.population import make_layout, make_observations

EXTENSION = 500  # draws per chain that are added while a gate still fails
# A few divergent transitions are sampled anew with a smaller step, since a region may have been missed; many
# are a fault of the model or the data, which no step mends.
CAREFUL_MAX = 0.005  # share of transitions
CAREFUL_SHRINK = 0.6
CAREFUL_ATTEMPTS = 3
DEFAULT_SETTINGS = Settings()


def fit(  # the main verb: eight arguments, five of which nobody needs to give
    model: Model,
    data: Dataset,
    *,
    seed: int,
    method: Method = "importance",
    chains: int = 4,
    settings: Settings = DEFAULT_SETTINGS,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a population model by Bayesian inference.

    Parameters
    ----------
    model : Model
    data : Dataset
    seed : int
        From 0 to 2**32 - 1. The same data, model, settings and seed on the same machine give the same draws.
    method : {"importance", "nuts"}
        Importance Gibbs (see :mod:`carkinetics.inference.importance`): several times as fast, at home with patients
        whose samples have two explanations. Or NUTS in transported coordinates: slower, and the better choice for
        models in which more than about ten parameters vary between patients.
    chains : int
        Run in parallel, one thread each.
    settings : Settings
        Length and care; sampling goes on beyond ``settings.draws`` until R-hat <= 1.01 and bulk and tail ESS
        >= 400 for every population parameter, or ``settings.max_draws`` is reached. If a few transitions
        diverged, the draws are taken anew with a smaller step.
    checkpoint : path, optional
        A folder of this fit's own, from which the same call goes on after the process was killed, with the draws
        that it would have had on the same machine; of a finished fit it returns the same fit without sampling.
        SIGTERM then ends the process with exit code 143 once every chain has kept its block.
    progress : bool
        Show bars with chain, step, divergences and time left, if stderr is a terminal.

    Returns
    -------
    Fit
        Whether it can be trusted is said by ``fit.check()``; a fit that has not converged is marked so.

    Raises
    ------
    FitError, ModelError
        Nothing to fit, an option out of range, no starting point, or a checkpoint that is in use, of another fit,
        damaged beyond its newest files or in a folder that cannot be written; nothing has been sampled then. Or the
        disk is full; what was kept is intact.
    """
    _refuse(data, seed, method, chains)
    use_compile_cache()
    with jax.enable_x64(True):
        obs = make_observations(model, data, refine=settings.refine)
        folder = None if checkpoint is None else Path(checkpoint)
        ours = {} if folder is None else identity(model, data, obs, method, settings, seed, chains)
        with opened(folder, ours, skeleton(model, method)) as kept:
            over = kept.finished(chains)
            if over is None:
                run = _run(Tuner(model, obs, method), data, seed, chains, settings, kept, show=progress)
            else:
                run = Run(over[0], method, seed, settings, **over[1])
            with stage("checking the solver", show=progress):
                solver = solver_error(model, obs, run.blocks)
            return Fit(model=model, data=data, tree=build_tree(model, data, obs, run, solver))


class Run(NamedTuple):
    """What the sampler produced, and how."""

    blocks: list[Block]
    method: Method
    seed: int
    settings: Settings
    seconds: dict[str, float]
    gradients: int
    complete: bool
    notes: list[str]


def _run(
    tuner: Tuner, data: Dataset, seed: int, chains: int, settings: Settings, kept: Checkpoint, *, show: bool
) -> Run:
    """Start, compile and sample; or what is left of that."""
    clock = [time.perf_counter()]
    with stage("finding a start", show=show):
        tuning, notes = kept.start() or tuner.first(data)
    clock.append(time.perf_counter())
    obs, layout = tuner.obs, make_layout(tuner.model)
    start = jnp.zeros(layout.n_phi), jnp.zeros((len(layout.random), obs.n_subjects))
    with stage("compiling the sampler", show=show):
        programs = Programs(KERNELS[tuner.method](tuner.model, settings), obs, tuning, *start)
    clock.append(time.perf_counter())
    keys = jax.random.split(jax.random.key(seed), chains)
    states = [Chain(c, programs, key, obs) for c, key in enumerate(keys)]
    complete = _sample(states, tuner, tuning, notes, kept, show=show)
    clock.append(time.perf_counter())
    seconds: dict[str, float] = dict(zip(("start", "compile", "sampling"), np.diff(clock).tolist(), strict=True))
    if kept.earlier:
        seconds["before_resuming"] = kept.earlier
    blocks = _same_length(states)
    gradients = sum(c.n_steps for c in states)
    facts = {"seconds": seconds, "gradients": gradients, "complete": complete, "notes": notes + kept.notes}
    if complete:
        kept.finish(len(blocks[0].phi), facts)
    return Run(blocks, tuner.method, seed, settings, **facts)


def _refuse(data: Dataset, seed: int, method: str, chains: int) -> None:
    if method not in KERNELS:
        raise FitError(f"method = {method!r}: choose one of {', '.join(map(repr, KERNELS))}.")
    if isinstance(chains, bool) or not isinstance(chains, int) or chains < 1:
        raise FitError(f"chains = {chains!r} must be a whole number above 0.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise FitError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")
    if not (data.cens == 0).any():
        raise FitError(f"{data.source}: no quantified observation; nothing can be estimated.")


def _sample(states: list[Chain], tuner: Tuner, tuning, notes: list[str], kept: Checkpoint, *, show: bool) -> bool:
    """Pilots, warm up, and sample until the gates pass or the budget ends; False if interrupted.

    A resumed run goes the same way: a stage begins as the checkpoint has it, its stored blocks are gone through,
    and every decision is made from the same draws again.
    """
    settings = states[0].programs.settings
    lengths, lengthened = pilots(tuner.method, settings), []
    with bars(len(states), sum(lengths) + settings.warmup + settings.draws, show=show) as report:
        kept.enter(states, partial(_begin_pilot, states, tuner, tuning), notes)
        complete = True
        while complete and lengths:
            complete = run_chains(states, lengths.pop(0), report)
            if complete:
                kept.enter(states, partial(_begin_tuned, states, tuner), notes)
                if not lengths and not lengthened and tuner.unfinished(states[0].tuning):
                    lengthened = [settings.pilot]
                    lengths += lengthened
        piloting = not complete
        if not piloting:
            complete = _until_converged(states, settings, report)
            for _ in range(CAREFUL_ATTEMPTS):
                if not complete or not _few_divergences(states):
                    break
                kept.enter(states, partial(_begin_careful, states), notes)
                complete = _until_converged(states, settings, report)
    if piloting or min(c.iterations - c.warmup for c in states) <= 0:
        further = f"; the same call goes on from {kept.folder}." if kept.folder else ": there are no draws to return."
        raise FitError(f"interrupted during warm-up{further}")
    return complete


def _begin_pilot(states: list[Chain], tuner: Tuner, tuning) -> None:
    phi, z = tuner.centre(tuning)
    for chain in states:
        chain.begin(tuning, phi, z, jitter=1.0)


def _begin_tuned(states: list[Chain], tuner: Tuner) -> None:
    pilot = [chain.kept(skip=chain.iterations // 2) for chain in states]
    tuning = tuner.again(states[0].tuning, pilot)
    for chain, draws in zip(states, pilot, strict=True):
        chain.begin(tuning, jnp.asarray(draws.phi[-1]), jnp.asarray(draws.z[-1]), jitter=0.0)


def _begin_careful(states: list[Chain]) -> None:
    for chain in states:
        chain.begin_again(CAREFUL_SHRINK)


def _until_converged(states: list[Chain], settings: Settings, report: Report) -> bool:
    """Sample in extensions until the gates pass or the budget ends; False if interrupted."""
    draws = settings.draws
    while run_chains(states, states[0].warmup + draws, report):
        if draws >= settings.max_draws or not gate_failures(np.stack([b.phi for b in _same_length(states)])):
            return True
        draws = min(draws + EXTENSION, settings.max_draws)
    return False


def _few_divergences(states: list[Chain]) -> bool:
    """Whether a smaller step is likely to help: some transitions diverged, but only a few."""
    share = np.concatenate([diverging(b) for b in _same_length(states)]).mean()
    return bool(0 < share < CAREFUL_MAX)


def _same_length(states: list[Chain]) -> list[Block]:
    """Every chain's kept draws, cut to the shortest (they differ only after an interruption)."""
    blocks = [c.kept() for c in states]
    n = min(len(b.phi) for b in blocks)
    return [jax.tree.map(lambda x: x[:n], b) for b in blocks]
