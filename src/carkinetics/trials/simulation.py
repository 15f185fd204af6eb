"""One trial, end to end: patients, levels, toxicity, response, survival, and the tables that it would leave."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from carkinetics.cohort import Cohort, inputs_for
from carkinetics.new_exposures import Wanted, new_exposures
from carkinetics.simulation import Simulation, refuse_seed, simulate
from carkinetics.trials.enrolment import Enrolled, Fates, enrol, gaps, known
from carkinetics.trials.parts import YEAR, Binary, Hazard, Link, Trial

_NEVER = np.inf
_FIRST_DAY = 0.01  # nobody has an event on the day of the infusion itself
_GOLDEN = 0x9E3779B1  # odd, so that no two replicates of a run have the same seed


@dataclass(frozen=True, eq=False, repr=False)
class SimulatedTrial:
    """What a trial left, and the truth.

    Attributes
    ----------
    trial : Trial
    seed : int
    table : DataFrame
        Infusions and samples, for :func:`carkinetics.read_dataset`.
    patients : DataFrame
        One row a patient: ``ID ARM COHORT LEVEL`` and the dose, ``DAY`` (of the infusion, in the trial), covariates,
        ``DLT`` and ``ORR`` (or what the file calls them; empty where they cannot be told), ``PFS_TIME PFS_EVENT
        OS_TIME OS_EVENT``, ``FOLLOW_UP`` (days) and ``OUT`` (why it ended: death, dropout, end). What
        :func:`carkinetics.logistic`, :func:`carkinetics.tte` and a design's ``recommend`` read.
    truth : DataFrame
        By ID: individual parameters, exposures, probabilities, and days of events that nobody saw.
    population : dict
        The population parameters of the kinetics.
    enrolled : Enrolled
        With every decision of the design.
    """

    trial: Trial
    seed: int
    table: pd.DataFrame
    patients: pd.DataFrame
    truth: pd.DataFrame
    population: dict[str, float]
    enrolled: Enrolled

    def __repr__(self) -> str:
        at = np.bincount(self.patients["LEVEL"], minlength=len(self.trial.levels) + 1)[1:].tolist()
        toxic = int(self.patients[self.trial.toxicity.name].sum())
        word = ", stopped" if self.enrolled.stopped else ""
        return f"SimulatedTrial({self.trial.name}, patients by level {at}, {toxic} with a DLT{word})"


def replicate_seed(seed: int, replicate: int) -> int:
    """The seed of one of many trials: it depends on the number of the trial, and on nothing else.

    ``simulate_trial(trial, seed=replicate_seed(seed, r))`` is trial ``r`` of ``simulate_trials(trial, n, seed=seed)``.
    """
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (first + replicate * _GOLDEN) % 2**32


def simulate_trial(trial: Trial, *, seed: int) -> SimulatedTrial:
    """Simulate one trial.

    Every patient has random numbers of their own for each thing that can happen, whatever the level: at a higher level
    the same patient is more exposed, and has a toxicity if there was one at a lower level.

    Parameters
    ----------
    trial : Trial
    seed : int
        The same seed gives the same trial.

    Returns
    -------
    SimulatedTrial
        Days since each patient's own infusion; levels in the assays' units.
    """
    refuse_seed(seed)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    n, columns = trial.enrolment.patients, sorted(trial.population)
    who, luck = streams[0].random((n, len(columns))), streams[1].random((n, 7))
    missed = streams[2].random((len(trial.sampling), len(all_days(trial)), n))
    people = pd.DataFrame({c: trial.population[c].draw(who[:, k]) for k, c in enumerate(columns)})
    kinetics = everywhere(trial, people, all_days(trial), seed)
    exposed = exposures(trial, kinetics)
    fates = _fates(trial, exposed, luck)
    enrolled = enrol(trial, fates)
    seen = _seen(trial, fates, enrolled)
    chosen = _chosen(trial, kinetics, enrolled)
    table = _sampled(trial, chosen, seen["FOLLOW_UP"].to_numpy(), missed)
    truth = _truth(trial, chosen, exposed, fates, enrolled)
    return SimulatedTrial(trial, seed, table, _patients(trial, chosen, seen, enrolled), truth, kinetics.truth, enrolled)


def all_days(trial: Trial) -> tuple[float, ...]:
    """Days on which anything is sampled."""
    return tuple(sorted({d for s in trial.sampling for d in s.days}))


def everywhere(trial: Trial, people: pd.DataFrame, days: tuple[float, ...], seed: int) -> Simulation:
    """The kinetics of every patient at every level: the levels one below the other."""
    dose = None if trial.per_kg else trial.levels[0]
    cohort = Cohort(n=len(people), times=days, levels=trial.levels, covariates=people, dose=dose)
    return simulate(trial.model, cohort, seed=seed)


def exposures(trial: Trial, kinetics: Simulation) -> dict[Link, Float[np.ndarray, "patient level"]]:
    """What outcomes depend on, of the true curves."""
    asked = {k: Wanted(k.exposure, k.assay, trial.curves) for k in trial.links}
    people = kinetics.people.reset_index(drop=True)
    x = inputs_for(trial.model, kinetics.cohort, people)
    found = new_exposures(trial.model, list(dict.fromkeys(asked.values())), kinetics.individual.to_numpy().T, x, {})
    return {k: found[w].reshape(len(trial.levels), -1).T for k, w in asked.items()}


def exposure_of(
    what: Binary | Hazard, exposed: dict[Link, Float[np.ndarray, "patient level"]], shape: tuple[int, int]
) -> Float[np.ndarray, "patient level"]:
    """The exposure that an outcome depends on; 1 where it depends on none."""
    return exposed[what.link] if what.link.exposure else np.ones(shape)


def _fates(trial: Trial, exposed: dict[Link, np.ndarray], luck: Float[np.ndarray, "patient 7"]) -> Fates:
    shape = (len(luck), len(trial.levels))

    def when(hazard: Hazard | None, u: Float[np.ndarray, " patient"]) -> Float[np.ndarray, "patient level"]:
        if hazard is None:
            return np.full(shape, _NEVER)
        x = exposure_of(hazard, exposed, shape)
        days = np.stack([hazard.day(u, x[:, k]) for k in range(shape[1])], axis=1)
        return np.maximum(days, _FIRST_DAY)

    toxic = luck[:, :1] < trial.toxicity.chance(exposure_of(trial.toxicity, exposed, shape))
    responds = luck[:, 1:2] < trial.response.chance(exposure_of(trial.response, exposed, shape))
    rate = trial.follow_up.dropout / YEAR
    lost = -np.log1p(-luck[:, 5]) / rate if rate > 0 else np.full(len(luck), _NEVER)
    return Fates(
        toxic=toxic,
        responds=responds,
        onset=luck[:, 2] * trial.toxicity.day,
        progressed=when(trial.progression, 1 - luck[:, 3]),
        died=when(trial.death, 1 - luck[:, 4]),
        lost=np.maximum(lost, _FIRST_DAY),
        gap=gaps(trial, 1 - luck[:, 6]),
    )


def _seen(trial: Trial, fates: Fates, enrolled: Enrolled) -> pd.DataFrame:
    """Outcomes on the day on which the data are cut."""
    of, day = fates.of(enrolled.level), enrolled.day
    cut = day.max(initial=0.0) + trial.follow_up.after - day
    planned = np.minimum(trial.follow_up.days, cut)
    died, progressed = of.died[:, 0], of.progressed[:, 0]
    end = np.minimum(np.minimum(died, of.lost), planned)
    found = known(trial, of, planned)
    failed = np.minimum(progressed, died)
    return pd.DataFrame(
        {
            trial.toxicity.name: found["DLT"],
            trial.response.name: found["ORR"],
            "PFS_TIME": np.maximum(np.round(np.minimum(failed, end), 2), _FIRST_DAY),
            "PFS_EVENT": (failed <= end).astype(int),
            "OS_TIME": np.maximum(np.round(end, 2), _FIRST_DAY),
            "OS_EVENT": (died <= end).astype(int),
            "FOLLOW_UP": np.round(end, 2),
            "OUT": np.where(died <= end, "death", np.where(of.lost <= end, "dropout", "end")),
        }
    )


def _chosen(trial: Trial, kinetics: Simulation, enrolled: Enrolled) -> Simulation:
    """The patients who were infused, at the levels that they got."""
    n, m = trial.enrolment.patients, len(enrolled.level)
    at: Int[np.ndarray, " m"] = (enrolled.level - 1) * n + np.arange(m)
    ids = [f"P{k + 1:0{len(str(n))}d}" for k in range(m)]
    rows = pd.MultiIndex.from_product([[1], ids], names=["REP", "ID"])
    people = kinetics.people.iloc[at].set_axis(rows).assign(LEVEL=enrolled.level)
    samples, curves = (x.isel(subject=at).assign_coords(subject=ids) for x in (kinetics.samples, kinetics.curves))
    parameters = kinetics.parameters.iloc[at].set_axis(rows)
    return replace(kinetics, people=people, samples=samples, curves=curves, parameters=parameters)


def _sampled(
    trial: Trial, chosen: Simulation, end: Float[np.ndarray, " m"], missed: Float[np.ndarray, "assay day patient"]
) -> pd.DataFrame:
    """The table without what was not sampled: other days of an assay, missed samples, days after the last one."""
    table, days = chosen.table, np.array(all_days(trial))
    who = {name: k for k, name in enumerate(chosen.individual.index)}
    patient = table["ID"].map(who).to_numpy(int)
    keep = (table["EVID"] != 0).to_numpy()
    for k, s in enumerate(trial.sampling):
        mine = (table["DVID"] == s.assay).to_numpy() & table["TIME"].isin(s.days).to_numpy()
        place = np.searchsorted(days, table["TIME"].to_numpy())
        place = np.minimum(place, len(days) - 1)
        keep = keep | (mine & (missed[k][place, patient] >= s.missed))
    keep = keep & (table["TIME"].to_numpy() <= end[patient])
    return table[keep].reset_index(drop=True)


def _patients(trial: Trial, chosen: Simulation, seen: pd.DataFrame, enrolled: Enrolled) -> pd.DataFrame:
    people = chosen.people.loc[1].drop(columns="CLASS", errors="ignore").reset_index()
    first = ["ID", "LEVEL", trial.dose_column]
    when = {"ARM": enrolled.arm, "COHORT": enrolled.cohort, "DAY": np.round(enrolled.day, 2)}
    return pd.concat([people[first].assign(**when), people.drop(columns=first), seen], axis=1)


def _truth(
    trial: Trial, chosen: Simulation, exposed: dict[Link, np.ndarray], fates: Fates, enrolled: Enrolled
) -> pd.DataFrame:
    who, shape = np.arange(len(enrolled.level)), (trial.enrolment.patients, len(trial.levels))
    got = (who, enrolled.level - 1)
    found = {f"{k.exposure} ({k.assay})": x[got] for k, x in exposed.items()}
    for what in (trial.toxicity, trial.response):
        found[f"P({what.name})"] = what.chance(exposure_of(what, exposed, shape))[got]
    of = fates.of(enrolled.level)
    found |= {"onset": np.where(of.toxic[:, 0], of.onset, _NEVER), "responds": of.responds[:, 0]}
    found |= {"progressed": of.progressed[:, 0], "died": of.died[:, 0], "lost": of.lost}
    return chosen.individual.assign(**found)
