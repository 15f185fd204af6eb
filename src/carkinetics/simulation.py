"""Virtual patients: individual parameters drawn from a model, their curves, and the table an assay would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics import solvers
from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import Assay
from carkinetics.population import ln_curves, make_layout, natural
from carkinetics.structure import inputs


@dataclass(frozen=True)
class Cohort:
    """Who is simulated.

    Attributes
    ----------
    n : int
        Patients.
    times : sequence of float
        Sampling days, the same for all.
    dose_per_kg : (float, float)
        Range of the dose in viable CAR+ cells per kg, drawn uniformly on the log scale.
    weight : (float, float)
        Range of the body weight in kg, drawn uniformly.
    """

    n: int
    times: Sequence[float]
    dose_per_kg: tuple[float, float] = (1e6, 5e6)
    weight: tuple[float, float] = (40.0, 90.0)


@dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated patients.

    Attributes
    ----------
    table : DataFrame
        What the study would record, one row per dose and sample: ``ID TIME DV AMT EVID DVID MDV CENS`` and
        ``WT DOSE_PER_KG``; :func:`carkinetics.read_dataset` reads it.
    individual : DataFrame
        The true individual parameters, natural scale, one row per patient.
    truth : dict
        The population parameters that were drawn from: ``cmax``, ``omega cmax``, ``sigma qpcr``.
    """

    table: pd.DataFrame
    individual: pd.DataFrame
    truth: dict[str, float]


def simulate(model: Model, cohort: Cohort, *, seed: int) -> Simulation:
    """Simulate a cohort from a model: between-patient variability, residual error, and the assays' limits.

    Values below an assay's ``lloq`` come back left-censored at it (``CENS = 1``). The same seed gives the
    same patients.

    Raises
    ------
    ModelError
        The cohort is empty or its times are not increasing days from 0 on.
    """
    times = _refuse(cohort, seed)
    random = np.random.default_rng([seed, 0])
    layout = make_layout(model)
    theta = np.array([p.theta for p in model.parameters])
    omega = np.array([p.iiv for p in model.parameters])
    transformed = theta[:, None] + omega[:, None] * random.standard_normal((len(theta), cohort.n))
    weight = random.uniform(*cohort.weight, cohort.n).round(1)
    low, high = cohort.dose_per_kg
    # Three significant digits, as a protocol writes a dose; never outside the range.
    per_kg = np.exp(random.uniform(np.log(low), np.log(high), cohort.n))
    per_kg = np.clip(np.array([float(f"{x:.3g}") for x in per_kg]), low, high)
    with jax.enable_x64(True):
        values = natural(layout, jnp.asarray(transformed))
        grid = np.broadcast_to(times[:, None], (len(times), cohort.n))
        x = inputs(per_kg * weight)
        on = solvers.make_grid(model.structure, grid, x)
        curves = ln_curves(model.structure, on, values, x)
        levels = {name: np.asarray(curve) for name, curve in curves.items()}
    width = len(str(cohort.n))
    ids = [f"V{i + 1:0{width}d}" for i in range(cohort.n)]
    people = pd.DataFrame({"ID": ids, "WT": weight, "DOSE_PER_KG": per_kg})
    names = [q.name for q in model.parameters]
    individual = pd.DataFrame(
        {n: np.asarray(v) for n, v in zip(names, values, strict=True)}, index=pd.Index(ids, name="ID")
    )
    samples = [_samples(people, times, assay, levels[assay.output], random) for assay in model.assays]
    return Simulation(_records(people, samples), individual, truth_of(model))


def _samples(
    people: pd.DataFrame,
    times: Float[np.ndarray, " time"],
    assay: Assay,
    ln_level: Float[np.ndarray, "time subject"],
    random: np.random.Generator,
) -> pd.DataFrame:
    """What one assay reports: the level with residual error, left-censored at the assay's limit."""
    limit = assay.lloq or 0.0
    dv = np.exp(ln_level + assay.sigma * random.standard_normal(ln_level.shape))
    below = dv < limit
    return people.loc[people.index.repeat(len(times))].assign(
        TIME=np.tile(times, len(people)),
        DV=np.where(below, limit, dv).T.ravel(),
        AMT=0.0,
        EVID=0,
        DVID=assay.name,
        MDV=0,
        CENS=below.T.ravel().astype(int),
    )


def _records(people: pd.DataFrame, samples: list[pd.DataFrame]) -> pd.DataFrame:
    """Dose and sample records, one below the other, by patient and time."""
    at_infusion: dict[str, Any] = {"TIME": 0.0, "DV": np.nan, "EVID": 1, "DVID": "", "MDV": 1, "CENS": 0}
    doses = people.assign(AMT=people["DOSE_PER_KG"] * people["WT"], **at_infusion)
    table = pd.concat([doses, *samples], ignore_index=True)
    table = table.sort_values(["ID", "TIME", "EVID"], ascending=[True, True, False], ignore_index=True)
    return table[["ID", "TIME", "DV", "AMT", "EVID", "DVID", "MDV", "CENS", "WT", "DOSE_PER_KG"]]


def _refuse(cohort: Cohort, seed: int) -> np.ndarray:
    """Sampling days, if the cohort can be simulated."""
    times = np.asarray(cohort.times, float)
    if isinstance(cohort.n, bool) or not isinstance(cohort.n, int | np.integer) or cohort.n < 1:
        raise ModelError(f"cohort: n = {cohort.n!r} must be a whole number above 0.")
    increasing = times.ndim == 1 and times.size > 0 and np.isfinite(times).all() and (np.diff(times) > 0).all()
    if not increasing or times[0] < 0:
        raise ModelError("cohort: times must be increasing, finite days from 0 on.")
    for name in ("dose_per_kg", "weight"):
        low, high = getattr(cohort, name)
        if not 0 < low <= high < np.inf:
            raise ModelError(f"cohort: {name} = ({low:g}, {high:g}) must be a range above 0, the lower end first.")
    refuse_seed(seed)
    return times


def refuse_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number from 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ModelError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")


def truth_of(model: Model) -> dict[str, float]:
    """The population parameters that a model draws from, by the names of the parameter table."""
    truth = {p.name: p.value for p in model.parameters}
    truth |= {f"omega {p.name}": p.iiv for p in model.parameters if p.iiv}
    return truth | {f"sigma {a.name}": a.sigma for a in model.assays}
