"""``fit``: a model and a dataset in, a :class:`~carkinetics.fit_result.Fit` out.

Data-driven start -> Laplace start -> coordinates -> chains in blocks until the gates pass -> one tree.
"""

import time
import warnings
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.dataset import Dataset
from carkinetics.errors import FitError, FitWarning
from carkinetics.fit_result import Fit, gate_failures
from carkinetics.fit_tree import build_tree
from carkinetics.inference.cache import use_compile_cache
from carkinetics.inference.coordinates import Transport, no_transport, transport
from carkinetics.inference.guess import starting_values
from carkinetics.inference.laplace import laplace_start
from carkinetics.inference.nuts import Block, Chain, Sampler, Settings, run_chains
from carkinetics.inference.progress import bars, stage
from carkinetics.model import Model
from carkinetics.population import Observations, make_observations

EXTENSION = 500  # draws per chain that are added while a gate still fails
DEFAULT_SETTINGS = Settings()


def fit(
    model: Model,
    data: Dataset,
    *,
    seed: int,
    method: Literal["nuts"] = "nuts",
    chains: int = 4,
    settings: Settings = DEFAULT_SETTINGS,
    progress: bool = True,
) -> Fit:
    """Fit a population model by Bayesian inference.

    Parameters
    ----------
    model : Model
    data : Dataset
    seed : int
        From 0 to 2**32 - 1. The same data, model, settings and seed on the same machine give the same draws.
    method : {"nuts"}
        NUTS in transported coordinates.
    chains : int
        Run in parallel, one thread each.
    settings : Settings
        Length and care; sampling goes on beyond ``settings.draws`` until R-hat <= 1.01 and bulk and tail ESS
        >= 400 for every population parameter, or ``settings.max_draws`` is reached.
    progress : bool
        Show bars with chain, step, divergences and time left, if stderr is a terminal.

    Returns
    -------
    Fit
        Whether it can be trusted is said by ``fit.check()``; a fit that has not converged is marked so.

    Raises
    ------
    FitError, ModelError
        Nothing to fit, an option out of range, or no starting point; nothing has been sampled then.
    """
    _refuse(data, seed, method, chains)
    use_compile_cache()
    with jax.enable_x64(True):
        started = time.perf_counter()
        obs = make_observations(model, data)
        with stage("finding a start", show=progress):
            coordinates, notes = coordinates_for(model, data, obs)
        found = time.perf_counter()
        with stage("compiling the sampler", show=progress):
            sampler = Sampler(model, obs, coordinates, settings)
            keys = jax.random.split(jax.random.key(seed), chains)
            states = [Chain(c, sampler, key, obs, coordinates) for c, key in enumerate(keys)]
        compiled = time.perf_counter()
        complete = _sample(states, settings, show=progress)
        sampled = time.perf_counter()
        seconds = {"start": found - started, "compile": compiled - found, "sampling": sampled - compiled}
        run = Run(
            blocks=_same_length(states),
            seed=seed,
            settings=settings,
            seconds=seconds,
            warmup_steps=sum(c.warmup_steps for c in states),
            complete=complete,
            notes=tuple(notes),
        )
        return Fit(model=model, data=data, tree=build_tree(model, data, obs, run))


class Run(NamedTuple):
    """What the sampler produced, and how."""

    blocks: list[Block]
    seed: int
    settings: Settings
    seconds: dict[str, float]
    warmup_steps: int
    complete: bool
    notes: tuple[str, ...]


def _refuse(data: Dataset, seed: int, method: str, chains: int) -> None:
    if method != "nuts":
        raise FitError(f"method = {method!r}: choose 'nuts'.")
    if isinstance(chains, bool) or not isinstance(chains, int) or chains < 1:
        raise FitError(f"chains = {chains!r} must be a whole number above 0.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise FitError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")
    if not (data.cens == 0).any():
        raise FitError(f"{data.source}: no quantified observation; nothing can be estimated.")


def coordinates_for(model: Model, data: Dataset, obs: Observations) -> tuple[Transport, list[str]]:
    """The sampler's coordinates, and what to say about them."""
    phi, z = (jnp.asarray(x) for x in starting_values(model, data))

    def find(obs, phi, z):
        start = laplace_start(model, obs, phi, z)
        return start, transport(model, obs, start)

    start, coordinates = jax.block_until_ready(jax.jit(find)(obs, phi, z))
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(coordinates)):
        note = "The Laplace start failed; sampling in plain non-centred coordinates instead, which is slower."
        warnings.warn(note, FitWarning, stacklevel=3)
        return no_transport(model, obs, phi), [note]
    lost = [data.subjects[i] for i in np.flatnonzero(np.asarray(start.decrement) > 0.5)]
    notes = [f"No Gaussian start for patient(s) {', '.join(lost)}: they slow the sampler."] if lost else []
    return coordinates, notes


def _sample(states: list[Chain], settings: Settings, *, show: bool) -> bool:
    """Run the chains until the gates pass or the budget ends; False if interrupted."""
    until = settings.warmup + settings.draws
    with bars(len(states), until, show=show) as report:
        while run_chains(states, until, until, report):
            draws = np.stack([b.phi for b in _same_length(states)])
            if until >= settings.warmup + settings.max_draws or not gate_failures(draws):
                return True
            until = min(until + EXTENSION, settings.warmup + settings.max_draws)
    if min(len(c.blocks) for c in states) == 0:
        raise FitError("interrupted during warm-up: there are no draws to return.")
    return False


def _same_length(states: list[Chain]) -> list[Block]:
    """Every chain's kept draws, cut to the shortest (they differ only after an interruption)."""
    blocks = [c.kept() for c in states]
    n = min(len(b.lp) for b in blocks)
    return [Block(*(x[:n] for x in b)) for b in blocks]
