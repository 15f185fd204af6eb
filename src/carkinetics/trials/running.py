"""Many trials: simulated, analysed and decided, on one machine or a cluster, with the same numbers on each."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carkinetics.errors import FitError, ModelError
from carkinetics.inference.progress import counted
from carkinetics.observations import Fill
from carkinetics.simulation import refuse_seed
from carkinetics.trials.analysis import analysed, fill_of, outcome_of
from carkinetics.trials.batches import Folder, Row, digest
from carkinetics.trials.characteristics import ManyTrials, true_rates
from carkinetics.trials.parts import Trial
from carkinetics.trials.simulation import SimulatedTrial, replicate_seed, simulate_trial

BATCH = 5  # trials of one task: what a killed worker does again, and one file
HOW = ("laplace", "design")
# One thread a worker: the programs are small, and cores are used by workers. Numbers do not depend on it.
ALONE = {"NPROC": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Dask has workers give freed memory back at once: the large arrays of a fit were mapped anew all the time, which took a
# sixth of the time. Set before a process begins, or the C library does not see it.
KEPT = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "33554432"}

# Dask looks at what every worker does a hundred times a second, and keeps that for its dashboard: 7 % of the time.
QUIET = {"distributed.worker.profile.enabled": False}

Analyse = Callable[[SimulatedTrial, int], Mapping[str, Any]]


def simulate_trials(
    trial: Trial,
    n: int = 1000,
    *,
    seed: int,
    analyse: str | Analyse = "laplace",
    client: Any = None,
    workers: int = 1,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ManyTrials:
    """Simulate a trial many times, analyse each time, and say how it behaves.

    Trial ``r`` is ``simulate_trial(trial, seed=replicate_seed(seed, r))``: its numbers depend on the seed and on ``r``
    alone, so that workers, batches and interruptions make no difference to them.

    Parameters
    ----------
    n : int
        Trials.
    analyse : {"laplace", "design"} or callable
        ``laplace``: a Laplace fit of the kinetics, exposure, logistic models of toxicity and response, the plan of
        :func:`carkinetics.recommend`, and what the design selects. ``design``: what the design selects alone, without
        any fit. Or a function of your own of a :class:`SimulatedTrial` and a seed that returns names and numbers (plain
        ones, or None); it has to be importable where workers are.
    client : distributed.Client, optional
        A Dask client of your own: SLURM, Kubernetes, another machine. Its workers are used, ``workers`` is not.
    workers : int
        Processes of this machine. With more than one a script needs ``if __name__ == "__main__":``, as worker processes
        import it.
    folder : path, optional
        Finished batches of five trials are kept there, a file each; the same call goes on from them, with a larger
        ``n`` as well. It refuses batches of another trial, seed or analysis.
    progress : bool
        Show a bar with the time left, if stderr is a terminal.

    Returns
    -------
    ManyTrials
        Shares and means with their Monte Carlo errors, and one row a trial.

    Raises
    ------
    ModelError
        A number or the analysis cannot be.
    FitError
        The folder is of another run or cannot be written; ``distributed`` is not installed. A fit that fails is counted
        and does not end the run.
    """
    refuse_seed(seed)
    name = _named(analyse)
    for what, value in (("n", n), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ModelError(f"simulate_trials: {what} = {value!r} must be a whole number above 0.")
    kept = None if folder is None else Folder(Path(folder), trial, seed, name, BATCH)
    batches = [list(range(b, min(b + BATCH, n))) for b in range(0, n, BATCH)]
    found = {} if kept is None else {k: rows for k, b in enumerate(batches) if (rows := kept.finished(k, b))}
    todo = [k for k in range(len(batches)) if k not in found]
    fill = _filled(trial, kept) if analyse == "laplace" and todo else None
    work = partial(run_batch, Sent(digest(trial), trial), seed, analyse, fill)
    done = sum(len(rows) for rows in found.values())
    with counted("trials", n, done, show=progress) as advance:
        for k, rows in _each(work, {k: batches[k] for k in todo}, client, workers):
            if kept is not None:
                kept.keep(k, rows)
            found[k] = rows
            advance(len(rows))
    rows = [row for k in sorted(found) for row in found[k]]
    return ManyTrials(trial, seed, name, pd.DataFrame(rows).set_index("replicate"), true_rates(trial))


def _named(analyse: str | Analyse) -> str:
    if callable(analyse):
        return f"{getattr(analyse, '__module__', '')}.{getattr(analyse, '__qualname__', repr(type(analyse)))}"
    if analyse not in HOW:
        raise ModelError(f"analyse = {analyse!r}: choose {HOW[0]!r} or {HOW[1]!r}, or give a function.")
    return analyse


def _filled(trial: Trial, kept: Folder | None) -> Fill:
    """From the folder, so that a run that goes on has the same programs."""
    known = None if kept is None else kept.fill()
    if known is not None:
        return known
    made = fill_of(trial)
    return made if kept is None else kept.fill(made) or made


@dataclass(frozen=True)
class Sent:
    """A trial on its way to another process, known by what it says."""

    digest: str
    trial: Trial = field(compare=False)


@lru_cache(maxsize=8)
def _received(sent: Sent) -> Trial:
    """The trial as this process got it first: to JAX a model that is sent again is another one, and compiles anew."""
    return sent.trial


def run_batch(sent: Sent, seed: int, analyse: str | Analyse, fill: Fill | None, replicates: list[int]) -> list[Row]:
    """Some replicates, one after the other; plain numbers, with None for what is not."""
    trial = _received(sent)
    return [{"replicate": r} | _plain(_one(trial, replicate_seed(seed, r), analyse, fill)) for r in replicates]


def _one(trial: Trial, seed: int, analyse: str | Analyse, fill: Fill | None) -> Mapping[str, Any]:
    found = simulate_trial(trial, seed=seed)
    if callable(analyse):
        return outcome_of(found) | dict(analyse(found, seed))
    return analysed(found, seed=seed, fill=fill) if analyse == "laplace" else outcome_of(found)


def _plain(row: Mapping[str, Any]) -> Row:
    def one(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool | int | np.integer | np.bool_):
            return int(value)
        return float(value) if math.isfinite(value) else None

    return {str(k): one(v) for k, v in row.items()}


def _each(
    work: Callable[[list[int]], list[Row]], batches: Mapping[int, list[int]], client: Any, workers: int
) -> Iterator[tuple[int, list[Row]]]:
    """Batches as they are finished."""
    if not batches:
        return
    if client is None and workers == 1:
        for k, replicates in batches.items():
            yield k, work(replicates)
        return
    with _cluster(client, min(workers, len(batches))) as at:
        from distributed import as_completed

        futures = at.map(work, list(batches.values()), pure=False, retries=2)
        number = {f.key: k for f, k in zip(futures, batches, strict=True)}
        for future in as_completed(futures):
            yield number[future.key], future.result()


@contextmanager
def _cluster(client: Any, workers: int) -> Iterator[Any]:
    """The client that was given, or one of processes on this machine that nobody else can reach."""
    if client is not None:
        yield client
        return
    try:
        import dask.config
        from distributed import Client, LocalCluster
    except ImportError:
        raise FitError(
            "workers > 1 needs the package distributed: pip install 'carkinetics[cluster]', or use workers=1."
        ) from None
    local = "127.0.0.1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cluster's own making; those of trials are in their rows
        with (
            dask.config.set({"distributed.nanny.pre-spawn-environ": ALONE | KEPT} | QUIET),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host=local,
                dashboard_address=None,  # pyright: ignore[reportArgumentType]
                env=ALONE,
                silence_logs=50,
            ) as cluster,
            Client(cluster) as made,
        ):
            yield made
