"""Operating characteristics: a design on thousands of simulated trials, or on every trial that can happen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from carkinetics.design.base import AbstractDesign
from carkinetics.design.evidence import Evidence, nothing
from carkinetics.errors import DesignError
from carkinetics.simulation import refuse_seed

_MOST_STATES = 2_000_000


@dataclass(frozen=True)
class Truth:
    """What is true in a simulated trial.

    Attributes
    ----------
    toxicity : sequence of float
        DLT probability of every level.
    response : sequence of float
        Response probability of every level, for designs that use it; independent of the toxicity.
    """

    toxicity: Sequence[float]
    response: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class Operating:
    """How a design behaves.

    Attributes
    ----------
    table : DataFrame
        One row a level: ``LEVEL DOSE TRUTH``, ``SELECTED`` (share of trials), ``PATIENTS`` and ``DLT`` (mean per
        trial), each with its Monte Carlo standard error ``..._SE``.
    summary : DataFrame
        ``VALUE`` and ``SE`` of ``stopped`` (share of trials in which no level is selected), ``correct`` (share in
        which a level is selected whose rate is the closest to the target, or lies in the interval; NaN without a
        target), ``patients``, ``dlt`` and ``overdosed`` (patients at levels above the design's limit) per trial.
    trials : int
        Simulated trials; 0 where every trial was enumerated, and standard errors are 0.
    selected : array of shape (trial,)
        Level that every trial selects, 0 for none.
    patients, dlt : arrays of shape (trial, level)
        Counts of every trial. Of an enumeration there are no trials.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    trials: int
    selected: Int[np.ndarray, " trial"]
    patients: Float[np.ndarray, "trial level"]
    dlt: Float[np.ndarray, "trial level"]


def simulate(
    design: AbstractDesign,
    truth: Truth | Sequence[float] | np.ndarray,
    n: int = 1000,
    *,
    seed: int,
    patients: int = 36,
    cohort: int = 3,
    enough: int | None = None,
) -> Operating:
    """Simulate trials of a design, with complete outcomes.

    Every replicate has random numbers of its own, by seed and number: the first trials are the same whatever their
    number. Each patient has one number for the toxicity, whatever the dose: who has one at a level has one above it.

    Parameters
    ----------
    design : AbstractDesign
    truth : Truth or sequence of float
        DLT probability of every level.
    n : int
        Trials.
    seed : int
    patients : int
        Largest number of patients of a trial.
    cohort : int
        Patients of a cohort.
    enough : int, optional
        A trial ends once this many patients were treated at the level that would be next.

    Raises
    ------
    DesignError
        Truth and design have different levels, or a number cannot be.
    """
    truth = checked(design, truth, n, patients, cohort)
    refuse_seed(seed)
    if design.window is not None:
        raise DesignError("simulate: follow-up needs a calendar; use simulate_late for TITE designs.")
    luck = draws(seed, n, patients)
    state = nothing(n, len(truth.toxicity))
    live, who = np.ones(n, bool), np.arange(n)
    ended = np.zeros(n, int)
    done = 0
    while done < patients and live.any():
        size, alive = min(cohort, patients - done), who[live]
        level, over = _decided(design, _take(state, alive), enough)
        ended[alive[over]] = level[over]
        live[alive[over]] = False
        alive, level = alive[~over], level[~over]
        _treat(state, alive, level, luck[alive, done : done + size], truth)
        done += size
    ended[live] = _final(design, _take(state, who[live]))
    return described(design, truth, ended, state, None)


def exact(
    design: AbstractDesign,
    truth: Truth | Sequence[float] | np.ndarray,
    *,
    patients: int = 36,
    cohort: int = 3,
    enough: int | None = None,
) -> Operating:
    """The same without Monte Carlo error: all trials that can happen, with their probabilities.

    Trials with the same counts and the same current level are one state. For few patients, or designs such as 3+3 that
    have few states.

    Raises
    ------
    DesignError
        There are more than two million states.
    """
    truth = checked(design, truth, 1, patients, cohort)
    if design.window is not None:
        raise DesignError("exact: follow-up needs a calendar; use simulate_late for TITE designs.")
    state, mass = nothing(1, len(truth.toxicity)), np.ones(1)
    finished: list[tuple[np.ndarray, Evidence, np.ndarray]] = []
    done = 0
    while done < patients and len(mass):
        level, over = _decided(design, state, enough)
        finished.append((level[over], _take(state, over), mass[over]))
        size = min(cohort, patients - done)
        state, mass = _branch(design, _take(state, ~over), mass[~over], (level[~over], size, truth))
        done += size
    finished.append((_final(design, state), state, mass))
    ended, states, weight = zip(*finished, strict=True)
    merged = Evidence(
        np.concatenate([s.treated for s in states]),
        np.concatenate([s.toxic for s in states]),
        np.concatenate([s.effective for s in states]),
        np.concatenate([s.both for s in states]),
        np.concatenate([s.current for s in states]),
    )
    return described(design, truth, np.concatenate(ended), merged, np.concatenate(weight))


def draws(seed: int, n: int, patients: int, columns: int = 2) -> Float[np.ndarray, "trial patient column"]:
    """Uniform numbers of every replicate and patient; a replicate's depend on the seed and its number alone.

    The replicate's number is the highest word of a Philox counter, so that streams cannot meet.
    """
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    found = np.empty((n, patients, columns))
    for r in range(n):
        bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, r], np.uint64))
        found[r] = np.random.Generator(bits).random((patients, columns))
    return found


def checked(
    design: AbstractDesign, truth: Truth | Sequence[float] | np.ndarray, n: int, patients: int, cohort: int
) -> Truth:
    """The truth, if it fits the design and the numbers can be."""
    truth = truth if isinstance(truth, Truth) else Truth(tuple(float(p) for p in truth))
    for name, rates in (("toxicity", truth.toxicity), ("response", truth.response)):
        wrong = [p for p in rates if not 0 <= p <= 1]
        if wrong:
            raise DesignError(f"truth: {name} {wrong} must lie between 0 and 1.")
    levels = len(design.setting.doses)
    if len(truth.toxicity) != levels or len(truth.response) not in (0, levels):
        raise DesignError(f"truth has {len(truth.toxicity)} levels and the design {levels or 'none yet: doses=[...]'}.")
    if design.uses_response and not truth.response:
        raise DesignError(f"{design.name} needs the response too: Truth(toxicity=[...], response=[...]).")
    if min(n, patients, cohort) < 1:
        raise DesignError("trials, patients and cohort must be at least 1.")
    return truth


def _take(state: Evidence, at: Int[np.ndarray, " some"] | Bool[np.ndarray, " trial"]) -> Evidence:
    return Evidence(state.treated[at], state.toxic[at], state.effective[at], state.both[at], state.current[at])


def _decided(
    design: AbstractDesign, state: Evidence, enough: int | None
) -> tuple[Int[np.ndarray, " trial"], Bool[np.ndarray, " trial"]]:
    """The next level of every trial, or what it ends with, each state decided once; and which trials end."""
    keys = np.concatenate([state.treated, state.toxic, state.effective, state.both, state.current[:, None]], axis=1)
    _, first, back = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    some = _take(state, first)
    level, over = design.next_levels(some)
    if enough is not None:
        at = some.treated[np.arange(len(level)), np.maximum(level, 1) - 1]
        full = ~over & (at >= enough)
        level = np.where(full, design.final_levels(some), level)
        over = over | full
    return level[back.ravel()], over[back.ravel()]


def _final(design: AbstractDesign, state: Evidence) -> Int[np.ndarray, " trial"]:
    return design.final_levels(state) if len(state.current) else np.zeros(0, int)


def _treat(
    state: Evidence,
    alive: Int[np.ndarray, " some"],
    level: Int[np.ndarray, " some"],
    luck: Float[np.ndarray, "some patient column"],
    truth: Truth,
) -> None:
    """One more cohort in the trials that go on, added to the state in place."""
    rate = np.array(truth.toxicity)[level - 1]
    toxic = luck[:, :, 0] < rate[:, None]
    good = np.array(truth.response)[level - 1] if truth.response else np.zeros(len(level))
    effective = luck[:, :, 1] < good[:, None]
    state.treated[alive, level - 1] += luck.shape[1]
    for count, who in ((state.toxic, toxic), (state.effective, effective), (state.both, toxic & effective)):
        count[alive, level - 1] += who.sum(axis=1)
    state.current[alive] = level


def _branch(
    design: AbstractDesign,
    state: Evidence,
    mass: Float[np.ndarray, " state"],
    cohort: tuple[Int[np.ndarray, " state"], int, Truth],
) -> tuple[Evidence, Float[np.ndarray, " merged"]]:
    """All outcomes of one more cohort in every state, equal states merged."""
    level, size, truth = cohort
    rate = np.array(truth.toxicity)[level - 1]
    good = np.array(truth.response)[level - 1] if design.uses_response else np.zeros(len(level))
    found, weights, levels = [], [], state.treated.shape[1]
    at = np.eye(levels)[level - 1]
    for bad, fine, both in product(range(size + 1), *([range(size + 1 if design.uses_response else 1)] * 2)):
        if bad + fine + both > size:
            continue
        cells = np.stack([rate * (1 - good), (1 - rate) * good, rate * good, (1 - rate) * (1 - good)], axis=1)
        p = stats.multinomial.pmf([bad, fine, both, size - bad - fine - both], size, cells)
        counts = ((state.treated, size), (state.toxic, bad + both), (state.effective, fine + both), (state.both, both))
        parts = [*(count + more * at for count, more in counts), level[:, None]]
        found.append(np.concatenate(parts, axis=1)[p > 0])
        weights.append((mass * p)[p > 0])
    keys, back = np.unique(np.concatenate(found), axis=0, return_inverse=True)
    if len(keys) > _MOST_STATES:
        raise DesignError(f"exact: {len(keys)} states are too many; use simulate, or fewer patients.")
    merged = np.bincount(back.ravel(), np.concatenate(weights), len(keys)).astype(float)  # of nothing: integers
    treated, toxic, effective, both = (keys[:, k * levels : (k + 1) * levels] for k in range(4))
    return Evidence(treated, toxic, effective, both, keys[:, -1].astype(int)), merged


def described(
    design: AbstractDesign,
    truth: Truth,
    ended: Int[np.ndarray, " trial"],
    state: Evidence,
    mass: Float[np.ndarray, " trial"] | None,
) -> Operating:
    """Means over trials with their standard errors, or exact means where every trial has its probability."""
    n, levels = len(ended), np.arange(1, len(truth.toxicity) + 1)

    def mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if mass is not None:
            return mass @ values, np.zeros(values.shape[1])
        return values.mean(axis=0), values.std(axis=0) / np.sqrt(n)

    rates = np.array(truth.toxicity)
    columns = {"LEVEL": levels, "DOSE": np.array(design.setting.doses), "TRUTH": rates}
    by_level = {"SELECTED": (ended[:, None] == levels).astype(float), "PATIENTS": state.treated, "DLT": state.toxic}
    for name, values in by_level.items():
        columns[name], columns[f"{name}_SE"] = mean(values)
    overdosed = state.treated[:, rates > design.setting.limit].sum(axis=1)
    overall = {
        "stopped": ended == 0,
        "correct": np.isin(ended, levels[design.wanted(rates)]) if design.target is not None else np.full(n, np.nan),
        "patients": state.treated.sum(axis=1),
        "dlt": state.toxic.sum(axis=1),
        "overdosed": overdosed,
    }
    value, error = mean(np.stack([np.asarray(v, float) for v in overall.values()], axis=1))
    summary = pd.DataFrame({"VALUE": value, "SE": error}, index=list(overall))
    kept = 0 if mass is not None else n
    counts = (state.treated[:kept], state.toxic[:kept])
    return Operating(pd.DataFrame(columns), summary, kept, ended[:kept], *counts)
