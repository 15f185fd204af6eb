"""How a trial behaves when it is run many times: shares and means with their Monte Carlo errors."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.trials.analysis import DONE
from carkinetics.trials.parts import Trial
from carkinetics.trials.simulation import everywhere, exposure_of, exposures

PATIENTS = 4000  # whose average probabilities are the true rates
_SEED = 20_200_101


def true_rates(trial: Trial, *, patients: int = PATIENTS, seed: int = _SEED) -> pd.DataFrame:
    """What is true at every level, on average over patients of the trial's population.

    Returns
    -------
    DataFrame
        ``LEVEL DOSE DLT DLT_SE ORR ORR_SE``: rates of patients who are not lost, and Monte Carlo errors. Who is dead on
        the response's day is no responder.
    """
    random, columns = np.random.default_rng(seed), sorted(trial.population)
    people = pd.DataFrame({c: trial.population[c].draw(random.random(patients)) for c in columns})
    exposed = exposures(trial, everywhere(trial, people, (1.0,), seed))
    shape = (patients, len(trial.levels))
    found: dict[str, np.ndarray] = {"LEVEL": np.arange(1, shape[1] + 1), "DOSE": np.array(trial.levels)}
    for name, what in (("DLT", trial.toxicity), ("ORR", trial.response)):
        p = what.chance(exposure_of(what, exposed, shape))
        if name == "ORR" and trial.death is not None:  # who died before is no responder
            p = p * trial.death.survival(what.day, exposure_of(trial.death, exposed, shape))
        found |= {name: p.mean(axis=0), f"{name}_SE": p.std(axis=0) / np.sqrt(patients)}
    return pd.DataFrame(found)


@dataclass(frozen=True, eq=False, repr=False)
class ManyTrials:
    """Operating characteristics of a trial.

    Attributes
    ----------
    trial : Trial
    seed : int
    analyse : str
    replicates : DataFrame
        One row a trial; see :func:`carkinetics.trials.analysis.analysed` for the columns. Empty where a trial was not
        analysed; ``analysis`` says why.
    truth : DataFrame
        Of :func:`true_rates`.
    """

    trial: Trial
    seed: int
    analyse: str
    replicates: pd.DataFrame
    truth: pd.DataFrame

    def __repr__(self) -> str:
        return f"ManyTrials({self.trial.name}, {len(self.replicates)} trials, analyse={self.analyse!r})"

    def _of(self, name: str) -> Float[np.ndarray, " trial"]:
        if name not in self.replicates:
            return np.full(len(self.replicates), np.nan)
        return pd.to_numeric(self.replicates[name], errors="coerce").to_numpy(float)

    @property
    def table(self) -> pd.DataFrame:
        """One row a level.

        Returns
        -------
        DataFrame
            ``LEVEL DOSE TRUE_DLT TRUE_ORR``; ``SELECTED`` (share of trials in which the design selects it), ``PLANNED``
            (share of the analysed ones in which the plan does), ``PATIENTS``, ``DLT``, ``ORR`` (mean per trial),
            ``COVERED_DLT``, ``COVERED_ORR`` (share in which the plan's 90 % interval holds the true rate); each with
            ``_SE``, its Monte Carlo standard error.
        """
        rows, selected, planned = [], self._of("selected"), self._of("planned")
        for k, true in enumerate(self.truth.to_dict("records"), start=1):
            row = {"LEVEL": k, "DOSE": true["DOSE"], "TRUE_DLT": true["DLT"], "TRUE_ORR": true["ORR"]}
            of = {"SELECTED": _equals(selected, k), "PLANNED": _equals(planned, k)}
            of |= {name.upper(): self._of(f"{name}_{k}") for name in ("patients", "dlt", "orr")}
            for name in ("DLT", "ORR"):
                low, high = (self._of(f"rate_{name.lower()}_{k}_{end}") for end in ("low", "high"))
                inside = ((low <= true[name]) & (true[name] <= high)).astype(float)
                of[f"COVERED_{name}"] = np.where(np.isnan(low), np.nan, inside)
            for name, values in of.items():
                row[name], row[f"{name}_SE"] = _mean(values)
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def summary(self) -> pd.DataFrame:
        """Of the whole trial.

        Returns
        -------
        DataFrame
            ``VALUE SE N``, of N trials. ``stopped`` by the design; ``correct``: the design selects a level that its
            target asks for; ``analysed`` of those that were not stopped; ``none_planned``: no level is admissible;
            ``planned_best``: the plan picks the level of the highest true utility among those whose true DLT rate is at
            most its target; ``more``: the plan says that more is better; means of ``p_more``, ``patients``, ``dlt``,
            ``orr``, ``pfs_events``, ``deaths``, ``dropouts``, ``months``, ``samples`` and ``below``.
        """
        stopped, selected, planned = (self._of(c) for c in ("stopped", "selected", "planned"))
        of = {"stopped": stopped}
        design = self.trial.assignment.design
        if design is not None and design.target is not None:
            right = 1 + np.flatnonzero(design.wanted(self.truth["DLT"].to_numpy()))
            of["correct"] = np.isin(selected, right).astype(float)
        if "analysis" in self.replicates:
            done = (self.replicates["analysis"] == DONE).to_numpy(float)
            of["analysed"] = np.where(stopped == 1, np.nan, done)
            of |= {"none_planned": _equals(planned, 0), "planned_best": _equals(planned, self.best)}
            of |= {"more": self._of("more"), "p_more": self._of("p_more")}
        for name in ("patients", "dlt", "orr", "pfs_events", "deaths", "dropouts", "months", "samples", "below"):
            of[name] = self._of(name)
        rows = {name: (*_mean(x), int(np.isfinite(x).sum())) for name, x in of.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["VALUE", "SE", "N"])

    @property
    def best(self) -> int:
        """The level of the highest true utility whose true DLT rate is at most its target; 0 where there is none."""
        dlt, orr = self.truth["DLT"].to_numpy(), self.truth["ORR"].to_numpy()
        utility = self.trial.response.weight * orr + self.trial.toxicity.weight * dlt
        allowed = dlt <= self.trial.toxicity.target
        return int(np.where(allowed, utility, -np.inf).argmax()) + 1 if allowed.any() else 0

    @property
    def failures(self) -> pd.Series:
        """Trials that were not analysed, counted by the reason."""
        if "analysis" not in self.replicates:
            return pd.Series(dtype=int)
        reasons = self.replicates["analysis"]
        return reasons[reasons != DONE].value_counts()

    def __str__(self) -> str:
        with pd.option_context("display.width", 220, "display.max_columns", 40):
            parts = [repr(self), self.table.to_string(index=False, float_format=_short)]
            parts.append(self.summary.to_string(float_format=_short))
        if len(self.failures):
            parts.append("not analysed: " + "; ".join(f"{n} {str(why)[:60]}" for why, n in self.failures.items()))
        return "\n".join(parts)


def _short(x: float) -> str:
    return f"{x:.3g}"


def _equals(values: Float[np.ndarray, " trial"], level: int) -> Float[np.ndarray, " trial"]:
    return np.where(np.isnan(values), np.nan, values == level)


def _mean(values: Float[np.ndarray, " trial"]) -> tuple[float, float]:
    """Of those that are known, with the standard error; of a single one none is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else float("nan")
    return float(known.mean()), float(error)
