"""``fit``: a model and a dataset in, a :class:`~carkinetics.fit_result.Fit` out.

Data-driven start -> Laplace start -> coordinates -> chains in blocks until the gates pass -> one tree.
"""

import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.dataset import Dataset
from carkinetics.errors import FitError, FitWarning
from carkinetics.findings import listed
from carkinetics.fit_result import Fit, gate_failures
from carkinetics.fit_tree import build_tree
from carkinetics.inference.approximation import Draws, approximate, draw
from carkinetics.inference.cache import use_compile_cache
from carkinetics.inference.checkpoint import Checkpoint, opened
from carkinetics.inference.coordinates import Point, Transport, no_transport, transport
from carkinetics.inference.failures import around_divergences, failures
from carkinetics.inference.guess import starting_values
from carkinetics.inference.identity import identity
from carkinetics.inference.laplace import Start, find_modes, not_finite, widen
from carkinetics.inference.nuts import BLOCK, Block, Chain, NoStart, Sampler, Settings, run_chains
from carkinetics.inference.progress import Report, bars, stage
from carkinetics.inference.solver_check import solver_error
from carkinetics.model import Model
from carkinetics.population import Observations, make_layout, make_observations

EXTENSION = 500  # draws per chain that are added while a gate still fails
# A few divergent transitions are sampled anew with a smaller step, since a region may have been missed; many
# are a fault of the model or the data, which no step mends.
CAREFUL_MAX = 0.005  # share of transitions
CAREFUL_SHRINK = 0.6
CAREFUL_ATTEMPTS = 3
LOST = 0.5  # SDs from its own Gaussian beyond which a patient was not found
_LISTED = 20  # patients named in one message
DEFAULT_SETTINGS = Settings()


def fit(  # the main verb: eight arguments, five of which nobody needs to give
    model: Model,
    data: Dataset,
    *,
    seed: int,
    method: Literal["nuts", "laplace"] = "nuts",
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
    method : {"nuts", "laplace"}
        NUTS in transported coordinates; or the Gaussian nearest to the posterior, in seconds: a quick look while
        a model is built, marked as an approximation wherever it is shown. It has no chains and no checkpoint, and
        its estimates and intervals do not depend on the seed, which is that of the draws from the Gaussian.
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
        disk is full; what was kept is intact. Or a Laplace approximation is not finite: in whom, in which parameters.
    """
    _refuse(data, seed, method, chains)
    if method == "laplace" and checkpoint is not None:
        raise FitError("method='laplace' takes seconds and keeps no checkpoint: leave checkpoint out.")
    use_compile_cache()
    with jax.enable_x64(True):
        obs = make_observations(model, data, refine=settings.refine)
        folder = None if checkpoint is None else Path(checkpoint)
        ours = {} if folder is None else identity(model, data, obs, settings, seed, chains)
        with opened(folder, ours) as kept:
            over = kept.finished(chains)
            if method == "laplace":
                run = _approximated(Finder(model, obs), data, seed, settings, show=progress)
            elif over is None:
                run = _run(Finder(model, obs), data, seed, chains, settings, kept, show=progress)
            else:
                run = Run(over[0], seed, settings, **over[1])
            with stage("checking the solver", show=progress):
                solver = solver_error(model, obs, run.blocks)
                around = around_divergences(model, obs, run.blocks, seed=seed)
            return Fit(model=model, data=data, tree=build_tree(model, data, obs, run, solver, around))


class Run(NamedTuple):
    """What the sampler produced, and how; for an approximation, one block of draws and how its search went."""

    blocks: list[Block] | list[Draws]
    seed: int
    settings: Settings
    seconds: dict[str, float]
    gradients: int
    complete: bool
    notes: list[str]
    approximation: dict[str, Any] | None = None


def _approximated(find: "Finder", data: Dataset, seed: int, settings: Settings, *, show: bool) -> Run:
    """The Gaussian approximation and draws from it."""
    clock = [time.perf_counter()]
    with stage("finding a start", show=show):
        start, map_ = find.start(data)
        if not _finite(map_):
            raise FitError(f"No Laplace approximation: {find.not_finite(data)}")
    clock.append(time.perf_counter())
    with stage("approximating the posterior", show=show):
        found = approximate(find.model, find.obs, start)
        draws = draw(find.model, find.obs, found.map_, seed)
    clock.append(time.perf_counter())
    quality = {
        "last_move": found.last_move,
        "lost": _lost(data, found.decrement),
        "at_bound": found.at_bound,
    }
    names = ", ".join(found.uninformed)
    notes = [f"{names}: the samples narrow nothing that a Gaussian could show; the prior's width."] if names else []
    seconds: dict[str, float] = dict(zip(("start", "approximation"), np.diff(clock).tolist(), strict=True))
    return Run([draws], seed, settings, seconds, gradients=0, complete=True, notes=notes, approximation=quality)


def _run(
    find: "Finder", data: Dataset, seed: int, chains: int, settings: Settings, kept: Checkpoint, *, show: bool
) -> Run:
    """Start, compile and sample; or what is left of that."""
    clock = [time.perf_counter()]
    with stage("finding a start", show=show):
        coordinates, notes = kept.start() or find.coordinates(data)
    clock.append(time.perf_counter())
    with stage("compiling the sampler", show=show):
        sampler = Sampler(find.model, find.obs, coordinates, settings)
    clock.append(time.perf_counter())
    keys = jax.random.split(jax.random.key(seed), chains)
    states = [Chain(c, sampler, key, find.obs) for c, key in enumerate(keys)]
    try:
        complete = _sample(states, find, coordinates, notes, kept, show=show)
    except NoStart as error:
        who = find.at_fault(data, *_centre(find.model, coordinates))
        raise FitError(f"{error}{who}") from error
    clock.append(time.perf_counter())
    seconds: dict[str, float] = dict(zip(("start", "compile", "sampling"), np.diff(clock).tolist(), strict=True))
    if kept.earlier:
        seconds["before_resuming"] = kept.earlier
    blocks = _same_length(states)
    gradients = sum(c.n_steps for c in states)
    facts = {"seconds": seconds, "gradients": gradients, "complete": complete, "notes": notes + kept.notes}
    if complete:
        kept.finish(len(blocks[0].lp), facts)
    return Run(blocks, seed, settings, **facts)


def _refuse(data: Dataset, seed: int, method: str, chains: int) -> None:
    if method not in ("nuts", "laplace"):
        raise FitError(f"method = {method!r}: choose 'nuts' or 'laplace'.")
    if isinstance(chains, bool) or not isinstance(chains, int) or chains < 1:
        raise FitError(f"chains = {chains!r} must be a whole number above 0.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise FitError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")
    if not (data.cens == 0).any():
        raise FitError(f"{data.source}: no quantified observation; nothing can be estimated.")


class Finder:
    """Finds coordinates: before sampling from the data, later from the chains' own draws."""

    def __init__(self, model: Model, obs: Observations):
        self.model, self.obs = model, obs
        self._modes = jax.jit(lambda obs, phi, z: find_modes(model, obs, phi, z))
        self._widen = jax.jit(self._coordinates)

    def _coordinates(self, obs: Observations, phi, z, move) -> tuple[Start, Transport]:
        start = widen(self.model, obs, phi, z, move)
        return start, transport(self.model, obs, start)

    def start(self, data: Dataset) -> tuple[Start, Transport]:
        """The Laplace start and its coordinates, from the data alone; not finite where it failed."""
        phi, z = (jnp.asarray(x) for x in starting_values(self.model, data))
        return self._widen(self.obs, *self._modes(self.obs, phi, z), jnp.array(True))

    def coordinates(self, data: Dataset) -> tuple[Transport, list[str]]:
        """Coordinates from the data alone, and what to say about them."""
        start, found = self.start(data)
        if not _finite(found):
            note = "The Laplace start failed; sampling in plain non-centred coordinates instead, which is slower. "
            note += self.not_finite(data)
            warnings.warn(note, FitWarning, stacklevel=3)
            return no_transport(self.model, self.obs, jnp.asarray(starting_values(self.model, data)[0])), [note]
        lost = _lost(data, start.decrement)
        notes = [f"No Gaussian start for patient(s) {', '.join(lost)}: they slow the sampler."] if lost else []
        return found, notes

    def at_fault(self, data: Dataset, phi, z) -> str:
        """A sentence that names the patients without a finite density at a start; empty if there are none."""
        found = jax.jit(lambda obs, phi, z: failures(self.model, obs, phi, z))(self.obs, phi, z)
        lost = np.flatnonzero(found.density)
        what = "curve" if np.asarray(found.solve)[lost].all() else "density"
        who = listed(data.subjects[i] for i in lost)
        return f" At the start, the {what} of patient(s) {who} is not finite." if len(lost) else ""

    def not_finite(self, data: Dataset) -> str:
        """After a start that failed: in which patients and parameters, and what to do."""
        where = not_finite(self.model, self.obs, *(jnp.asarray(x) for x in starting_values(self.model, data)))
        names = np.array([p.name for p in self.model.parameters])
        who = [f"{data.subjects[i]} ({', '.join(names[where[:, i]])})" for i in np.flatnonzero(where.any(0))]
        if not who:
            return "No single patient is to blame: narrow the priors (model.with_priors)."
        listed = "; ".join(who[:_LISTED]) + (f"; and {len(who) - _LISTED} more" if len(who) > _LISTED else "")
        return (
            f"The likelihood is not finite for patient(s), by parameter: {listed}. Look at their doses and samples, or "
            "narrow the priors of these parameters (model.with_priors)."
        )

    def recentred(self, old: Transport, draws: list[Block]) -> Transport:
        """Coordinates around where the pilot's draws lie; the old ones where that fails.

        A typical value that the data barely inform lies where only sampling finds it, and its uncertainty is
        wider than any curvature says.
        """
        phi = np.concatenate([d.phi for d in draws])
        z = np.concatenate([d.z for d in draws]).mean(0)
        covariance = (phi.shape[0] * np.cov(phi.T) + 50 * np.asarray(old.scale @ old.scale.T)) / (phi.shape[0] + 50)
        _, found = self._widen(self.obs, jnp.asarray(phi.mean(0)), jnp.asarray(z), jnp.array(False))
        found = eqx.tree_at(lambda t: t.scale, found, jnp.linalg.cholesky(jnp.asarray(covariance)))
        return found if _finite(found) else old


def _lost(data: Dataset, decrement) -> list[str]:
    """Patients whose Gaussian was not found."""
    return [data.subjects[i] for i in np.flatnonzero(~(np.asarray(decrement) <= LOST))]


def _finite(tree) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def _sample(
    states: list[Chain], find: Finder, coordinates: Transport, notes: list[str], kept: Checkpoint, *, show: bool
) -> bool:
    """Pilot, recentre, warm up, and sample until the gates pass or the budget ends; False if interrupted.

    A resumed run goes the same way: a stage begins as the checkpoint has it, its stored blocks are gone through,
    and every decision is made from the same draws again.
    """
    settings = states[0].sampler.settings
    with bars(len(states), settings.pilot + settings.warmup + settings.draws, show=show) as report:
        kept.enter(states, partial(_begin_pilot, states, coordinates), notes)
        complete = run_chains(states, settings.pilot, report)
        piloting = not complete
        if complete:
            kept.enter(states, partial(_begin_main, states, find), notes)
            complete = _until_converged(states, settings, report)
            for _ in range(CAREFUL_ATTEMPTS):
                if not complete or not _few_divergences(states):
                    break
                kept.enter(states, partial(_begin_careful, states), notes)
                complete = _until_converged(states, settings, report)
    if piloting or min(len(c.blocks) * BLOCK - c.warmup for c in states) <= 0:
        further = f"; the same call goes on from {kept.folder}." if kept.folder else ": there are no draws to return."
        raise FitError(f"interrupted during warm-up{further}")
    return complete


def _centre(model: Model, coordinates: Transport):
    """Where a chain's pilot begins: ``phi`` and ``z`` in the middle of the coordinates."""
    layout = make_layout(model)
    return coordinates(layout, Point(jnp.zeros(layout.n_phi), jnp.zeros_like(coordinates.shift[0])))[:2]


def _begin_pilot(states: list[Chain], coordinates: Transport) -> None:
    phi, z = _centre(states[0].sampler.model, coordinates)
    for chain in states:
        chain.begin(coordinates, phi, z, jitter=1.0)


def _begin_main(states: list[Chain], find: Finder) -> None:
    pilot = [chain.kept(skip=chain.sampler.settings.pilot // 2) for chain in states]
    coordinates = find.recentred(states[0].coordinates, pilot)
    for chain, draws in zip(states, pilot, strict=True):
        chain.begin(coordinates, jnp.asarray(draws.phi[-1]), jnp.asarray(draws.z[-1]), jitter=0.0)


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
    diverging = np.concatenate([b.diverging for b in _same_length(states)])
    return bool(0 < diverging.mean() < CAREFUL_MAX)


def _same_length(states: list[Chain]) -> list[Block]:
    """Every chain's kept draws, cut to the shortest (they differ only after an interruption)."""
    blocks = [c.kept() for c in states]
    n = min(len(b.lp) for b in blocks)
    return [Block(*(x[:n] for x in b)) for b in blocks]
