"""``fit``: a model and a dataset in, a :class:`~carkinetics.fit_result.Fit` out.

Data-driven start -> Laplace start -> coordinates -> chains in blocks until the gates pass -> one tree.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.dataset import Dataset
from carkinetics.errors import FitError
from carkinetics.fit_result import MOVE_FAILED, Fit
from carkinetics.fit_tree import build_tree
from carkinetics.inference.approximation import DRAWS, Approximation, approximate, draw
from carkinetics.inference.cache import use_compile_cache
from carkinetics.inference.chains import Block, Chain, NoStart, Programs, Settings, run_chains
from carkinetics.inference.checkpoint import Checkpoint, opened
from carkinetics.inference.devices import Lanes, lanes
from carkinetics.inference.failures import around_divergences
from carkinetics.inference.gates import convergence, gate_failures
from carkinetics.inference.identity import identity
from carkinetics.inference.laplace import EM_ROUNDS, WIDENING_ROUNDS, Start
from carkinetics.inference.progress import Report, bars, stage
from carkinetics.inference.quick import START_ROUNDS, approximate_quickly
from carkinetics.inference.solver_check import solver_error
from carkinetics.inference.tuning import KERNELS, Method, Tuner, lost, pilots, rebuilt
from carkinetics.infusion import with_evidence
from carkinetics.inputs import resolved
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_writing import to_toml
from carkinetics.observations import Fill, Observations, make_observations

EXTENSION = 500  # draws per chain that are added while a gate still fails
# A few divergent transitions are sampled anew with a smaller step, since a region may have been missed; many
# are a fault of the model or the data, which no step mends.
CAREFUL_MAX = 0.005  # share of transitions
CAREFUL_SHRINK = 0.6
CAREFUL_ATTEMPTS = 3
RETUNE_RHAT = 1.02  # beyond which chains are tuned again by their own draws, once
DEFAULT_SETTINGS = Settings()
_LONG_START = EM_ROUNDS, WIDENING_ROUNDS


def fit(  # the main verb: ten arguments, seven of which nobody needs to give
    model: Model,
    data: Dataset,
    *,
    seed: int,
    method: Method | Literal["laplace"] = "importance",
    chains: int = 4,
    devices: int | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    checkpoint: str | os.PathLike[str] | None = None,
    infusion_phase: bool | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a population model by Bayesian inference.

    Parameters
    ----------
    model : Model
    data : Dataset
    seed : int
        From 0 to 2**32 - 1. The same data, model, settings and seed on the same machine give the same draws.
    method : {"importance", "nuts", "laplace"}
        Importance Gibbs (see :mod:`carkinetics.inference.importance`): several times as fast, at home with patients
        whose samples have two explanations. Or NUTS in transported coordinates: slower, and the better choice for
        models in which more than about ten parameters vary between patients. Or ``laplace``, the Gaussian nearest to
        the posterior: a quick look while a model is built, marked as an approximation wherever it is shown. It has no
        chains and no checkpoint; its estimates and intervals do not depend on the seed, which is that of its draws.
    chains : int
        Run in parallel: one thread each on a CPU, one vectorised program on each accelerator.
    devices : int, optional
        How many of JAX's devices to use; by default ``CARKINETICS_DEVICES``, else one CPU or all accelerators.
    settings : Settings
        Length and care; sampling goes on beyond ``settings.draws`` until R-hat <= 1.01 and bulk and tail ESS
        >= 400 for every population parameter, or ``settings.max_draws`` is reached. If a few transitions
        diverged, the draws are taken anew with a smaller step.
    checkpoint : path, optional
        A folder of this fit's own, from which the same call goes on after the process was killed, with the draws
        that it would have had on the same machine; of a finished fit it returns the same fit without sampling.
        SIGTERM then ends the process with exit code 143 once every chain has kept its block.
    infusion_phase : bool, optional
        Whether a fast initial fall is added to the rise (:meth:`carkinetics.Model.with_infusion_phase`). By default
        where the model can have one and early samples show it (:func:`carkinetics.early_fall`); ``fit.check()`` says
        so.
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
        disk is full; what was kept is intact. Or a Laplace approximation is not finite: in whom, in which parameters.
    """
    _refuse(data, seed, method, chains)
    spread = lanes(chains, devices)
    if method == "laplace" and checkpoint is not None:
        raise FitError("method='laplace' keeps no checkpoint: leave checkpoint out.")
    use_compile_cache()
    model, added = with_evidence(model, data, infusion_phase)
    model, imputed = resolved(model, data)
    imputed = added + imputed
    model = replace(model, toml=to_toml(model))  # as it is fitted, whatever was changed since its file was read
    with jax.enable_x64(True):
        obs = make_observations(model, data, refine=settings.refine)
        if method == "laplace":
            run = _approximated(Tuner(model, obs, "nuts"), data, seed, settings, show=progress)
            return _fit(model, data, obs, run, imputed, show=progress)
        folder = None if checkpoint is None else Path(checkpoint)
        ours = {} if folder is None else identity(model, data, obs, method, settings, seed, chains, spread.width)
        with opened(folder, ours, partial(rebuilt, model, method)) as kept:
            over = kept.finished(chains)
            if over is None:
                run = _run(Tuner(model, obs, method), data, seed, spread, settings, kept, progress)
            else:
                run = Run(over[0], method, seed, settings, **over[1])
            return _fit(model, data, obs, run, imputed, show=progress)


def quick_fit(
    model: Model, data: Dataset, *, seed: int, draws: int = DRAWS, kept: int | None = None, fill: Fill | None = None
) -> Fit:
    """``fit(method="laplace")`` in a tenth of the time, for simulated trials by the thousand.

    The search is :func:`carkinetics.inference.quick.approximate_quickly`; an infusion phase is not looked for.

    Parameters
    ----------
    draws : int
        From the Gaussian; its mean and covariance are exact in them.
    kept : int, optional
        So many of them, evenly spaced, are in the fit; all by default. Their curves take longer than the search where a
        structure is stiff.
    fill : Fill, optional
        Sizes of arrays, so that data of many trials share one compiled program.

    Raises
    ------
    FitError
        As of :func:`fit`.
    """
    _refuse(data, seed, "laplace", 1)
    use_compile_cache()
    model, imputed = resolved(model, data)
    model = replace(model, toml=to_toml(model))
    with jax.enable_x64(True):
        obs = make_observations(model, data, fill=fill)
        tuner = Tuner(model, obs, "nuts")
        run = _approximated(tuner, data, seed, DEFAULT_SETTINGS, show=False, quick=draws, kept=kept)
        return _fit(model, data, obs, run, imputed, show=False)


def _fit(model: Model, data: Dataset, obs: Observations, run: "Run", imputed: list[str], *, show: bool) -> Fit:
    run = run._replace(notes=[*run.notes, *imputed])
    with stage("checking the solver", show=show):
        solver = solver_error(model, obs, run.blocks)
        around = around_divergences(model, obs, run.blocks, seed=run.seed)
    return Fit(model=model, data=data, tree=build_tree(model, data, obs, run, solver, around))


class Run(NamedTuple):
    """What the sampler produced, and how; for an approximation, one block of draws and how its search went."""

    blocks: list[Block]
    method: Method | Literal["laplace"]
    seed: int
    settings: Settings
    seconds: dict[str, float]
    gradients: int
    complete: bool
    notes: list[str]
    approximation: dict[str, Any] | None = None


def _approximated(
    tuner: Tuner,
    data: Dataset,
    seed: int,
    settings: Settings,
    *,
    show: bool,
    quick: int = 0,
    kept: int | None = None,
) -> Run:
    """The Gaussian approximation and draws from it; with ``quick``, so many of the quick one, or those ``kept``."""
    clock = [time.perf_counter()]
    with stage("finding a start", show=show):
        start = tuner.laplace_start(data, START_ROUNDS if quick else _LONG_START)
    clock.append(time.perf_counter())
    with stage("approximating the posterior", show=show):
        found = _quickly(tuner, data, start) if quick else approximate(tuner.model, tuner.obs, start)
        draws = draw(tuner.model, tuner.obs, found.map_, seed, quick or DRAWS, kept)
    clock.append(time.perf_counter())
    quality = {
        "last_move": found.last_move,
        "lost": lost(data, found.decrement),
        "at_bound": found.at_bound,
    }
    names = ", ".join(found.uninformed)
    notes = [f"{names}: the samples narrow nothing that a Gaussian could show; the prior's width."] if names else []
    seconds: dict[str, float] = dict(zip(("start", "approximation"), np.diff(clock).tolist(), strict=True))
    return Run([draws], "laplace", seed, settings, seconds, 0, complete=True, notes=notes, approximation=quality)


def _quickly(tuner: Tuner, data: Dataset, start: Start) -> Approximation:
    """From a short start; where that leads nowhere, from a long one."""
    found: list[Approximation] = []
    with suppress(FitError):
        found.append(approximate_quickly(tuner.model, tuner.obs, start))
    if found and found[0].last_move <= MOVE_FAILED:
        return found[0]
    try:
        found.append(approximate_quickly(tuner.model, tuner.obs, tuner.laplace_start(data, _LONG_START)))
    except FitError:
        if not found:
            raise
    return min(found, key=lambda f: f.last_move)


def _run(
    tuner: Tuner, data: Dataset, seed: int, spread: Lanes, settings: Settings, kept: Checkpoint, show: bool
) -> Run:
    """Start, compile and sample; or what is left of that."""
    clock = [time.perf_counter()]
    with stage("finding a start", show=show):
        tuning, notes = kept.start() or tuner.first(data)
    clock.append(time.perf_counter())
    obs, layout = tuner.obs, make_layout(tuner.model)
    start = jnp.zeros(layout.n_phi), jnp.zeros((len(layout.random), obs.n_subjects))
    with stage("compiling the sampler", show=show):
        kernel = KERNELS[tuner.method](tuner.model, settings)
        compiled = [Programs(kernel, obs, tuning, *start, device=d, width=spread.width) for d in spread.devices]
    clock.append(time.perf_counter())
    keys = jax.random.split(jax.random.key(seed), spread.chains)
    states = [Chain(c, compiled[c // spread.width % len(compiled)], key) for c, key in enumerate(keys)]
    try:
        complete = _sample(states, tuner, tuning, notes, kept, show=show)
    except NoStart as error:
        raise FitError(f"{error}{tuner.at_fault(data, *tuner.centre(tuning))}") from error
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
    if method not in (*KERNELS, "laplace"):
        raise FitError(f"method = {method!r}: choose 'importance', 'nuts' or 'laplace'.")
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
    settings, lengths = states[0].programs.settings, pilots(tuner.method, states[0].programs.settings)
    with bars(len(states), sum(lengths) + settings.warmup + settings.draws, show=show) as report:
        stages = _Stages(states, tuner, kept, notes, report)
        piloted = stages.pilots(tuning, lengths)
        complete = piloted and stages.until_converged()
    if not piloted or min(c.iterations - c.warmup for c in states) <= 0:
        further = f"; the same call goes on from {kept.folder}." if kept.folder else ": there are no draws to return."
        raise FitError(f"interrupted during warm-up{further}")
    return complete


class _Stages(NamedTuple):
    """The chains of a fit, what tunes them and where they are kept; each stage begins from the one before."""

    states: list[Chain]
    tuner: Tuner
    kept: Checkpoint
    notes: list[str]
    report: Report

    def pilots(self, tuning, lengths: list[int]) -> bool:
        """Tune the chains by pilots of these lengths; False if interrupted."""
        self._enter(partial(self._begin_pilot, tuning))
        for length in lengths:
            if not self._run(length):
                return False
            self._enter(self._begin_tuned)
        if not self.tuner.unfinished(self.states[0].tuning):
            return True
        complete = self._run(self.states[0].programs.settings.pilot)
        if complete:
            self._enter(self._begin_tuned)
        return complete

    def until_converged(self) -> bool:
        """Sample in extensions until the gates pass or the budget ends; False if interrupted.

        A few divergent transitions: anew, with smaller steps. Chains that still disagree after twice the draws asked
        for: anew, tuned by what they have found meanwhile.
        """
        settings, careful, tuned = self.states[0].programs.settings, 0, False
        draws, before = settings.draws, []
        while self._run(self.states[0].warmup + draws):
            if careful < CAREFUL_ATTEMPTS and _few_divergences(self.states):
                before = self._anew(self._begin_careful)
                draws, careful = settings.draws, careful + 1
            elif draws >= settings.max_draws or not gate_failures(self._phi()):
                return True
            elif not tuned and draws >= 2 * settings.draws and convergence(self._phi())[0].max() > RETUNE_RHAT:
                before = self._anew(self._begin_tuned)
                draws, careful, tuned = settings.draws, 0, True
            else:
                draws = min(draws + EXTENSION, settings.max_draws)
        if any(c.iterations <= c.warmup for c in self.states):  # interrupted before this stage had draws of its own
            for chain, blocks, warmup in before:
                chain.blocks, chain.warmup = blocks, warmup
        return False

    def _anew(self, begin: Callable[[], None]) -> list[tuple[Chain, list[Block], int]]:
        """Begin another stage of sampling; comes back with the draws of the one before."""
        before = [(c, c.blocks, c.warmup) for c in self.states]
        self._enter(begin)
        return before

    def _run(self, until: int) -> bool:
        return run_chains(self.states, until, self.report)

    def _enter(self, begin: Callable[[], None]) -> None:
        self.kept.enter(self.states, begin, self.notes)

    def _phi(self) -> np.ndarray:
        return np.stack([b.phi for b in _same_length(self.states)])

    def _begin_pilot(self, tuning) -> None:
        phi, z = self.tuner.centre(tuning)
        for chain in self.states:
            chain.begin(tuning, phi, z, jitter=1.0)

    def _begin_tuned(self) -> None:
        pilot = [chain.kept(skip=chain.iterations // 2) for chain in self.states]
        tuning = self.tuner.again(self.states[0].tuning, pilot)
        for chain, draws in zip(self.states, pilot, strict=True):
            chain.begin(tuning, jnp.asarray(draws.phi[-1]), jnp.asarray(draws.z[-1]), jitter=0.0)

    def _begin_careful(self) -> None:
        for chain in self.states:
            chain.begin_again(CAREFUL_SHRINK)


def _few_divergences(states: list[Chain]) -> bool:
    """Whether a smaller step is likely to help: some transitions diverged, but only a few."""
    share = np.concatenate([b.stats["diverging"] for b in _same_length(states)]).mean()
    return bool(0 < share < CAREFUL_MAX)


def _same_length(states: list[Chain]) -> list[Block]:
    """Every chain's kept draws, cut to the shortest (they differ only after an interruption)."""
    blocks = [c.kept() for c in states]
    n = min(len(b.phi) for b in blocks)
    return [jax.tree.map(lambda x: x[:n], b) for b in blocks]
