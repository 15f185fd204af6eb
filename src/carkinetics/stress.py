"""``stress_test``: what the priors allow, tried on the data's patients before a fit meets it."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from carkinetics.dataset import Dataset
from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.inference.cache import use_compile_cache
from carkinetics.inference.failures import Failures, failures
from carkinetics.inference.solver_check import Distance, distance
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations, make_observations
from carkinetics.population import natural, population
from carkinetics.priors import prior_phi
from carkinetics.simulation import refuse_seed

REFERENCE_STEPS = 2000  # a curve that needs more counts as unsolved: one such patient holds up all others
FAULTS = ("failed solve", "non-finite density", "non-finite gradient")
REFERENCE = ("unsolved", "solver error", "steps")


@dataclass(frozen=True, eq=False, repr=False)
class StressTest:
    """What happened to every patient at every draw from the priors.

    Attributes
    ----------
    model : str
    seed : int
    cases : DataFrame
        One row per draw and patient, by ``draw`` and ``ID``. ``failed solve``: the curve is not finite at one of
        the patient's samples; ``non-finite density``: the log likelihood of these samples; ``non-finite
        gradient``: its gradient in the population parameters and the patient's random effects. Unless the
        structure has a closed form, what the reference solver says: ``unsolved``, whether it failed; ``solver
        error``, the largest difference of ln level (missing where either solver failed); ``steps``, how many
        it took. Then the individual parameters, natural scale.
    population : DataFrame
        One row per ``draw``: typical values (natural scale), ``omega <parameter>`` and ``sigma <assay>``.
    """

    model: str
    seed: int
    cases: pd.DataFrame
    population: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row per patient, in the data's order: draws of each fault, of ``unsolved``; the largest of the rest."""
        rows = self.cases.groupby("ID", sort=False)
        counts = [name for name in (*FAULTS, "unsolved") if name in self.cases]
        largest = [name for name in ("solver error", "steps") if name in self.cases]
        return rows[counts].sum().astype(int).join(rows[largest].max())

    def shares(self) -> dict[str, float]:
        """Share of draws in which at least one patient has the fault: a chain would reject all of that draw."""
        return {name: float(self.cases.groupby("draw")[name].any().mean()) for name in FAULTS}

    def worst(self, n: int = 10) -> pd.DataFrame:
        """The ``n`` worst cases, by fault, then by solver error and steps: with the values that reproduce them."""
        order = [name for name in (*FAULTS, *REFERENCE) if name in self.cases]
        return self.cases.sort_values(order, ascending=False, kind="stable", ignore_index=True).head(n)

    def __repr__(self) -> str:
        table, draws = self.table(), len(self.population)
        lines = [f"Stress test of {self.model}: {draws} draws from the priors, {len(table)} patients, seed {self.seed}"]
        for name, share in self.shares().items():
            hit = table[name][table[name] > 0].sort_values(ascending=False, kind="stable")
            who = f"; patients (draws): {listed(f'{i} ({k})' for i, k in hit.items())}" if len(hit) else ""
            lines.append(f"- {name}: {100 * share:.3g} % of draws{who}")
        return "\n".join(lines + self._reference())

    def _reference(self) -> list[str]:
        """What the reference solver says, if it was asked."""
        cases = self.cases
        if "steps" not in cases:
            return []
        slowest = cases.iloc[int(np.argmax(cases["steps"]))]
        lines = [
            f"- reference solver: it failed in {cases['unsolved'].sum()} of {len(cases)} solves",
            f"- slowest: patient {slowest['ID']}, draw {slowest['draw']}, {slowest['steps']} steps of the reference",
        ]
        error = cases["solver error"].dropna()
        if len(error):
            worst = cases.iloc[int(np.nanargmax(cases["solver error"]))]
            lines[0] += (
                f"; ln level is {error.quantile(0.95):.2g} off or less in 95 % of the others, {error.max():.2g} in the "
                f"worst (patient {worst['ID']}, draw {worst['draw']})"
            )
        return lines


def stress_test(model: Model, data: Dataset, *, seed: int, draws: int = 200, refine: int = 1) -> StressTest:
    """Try a model on the data's patients at draws from its priors, before a fit meets what they allow.

    Population parameters are drawn from their priors and random effects from a standard normal, independently of
    the data's values: what is asked is whether curves, densities and gradients stay finite at these patients'
    doses and times, how far the fixed-grid solver is from the reference, and which patient takes it longest.
    A non-finite density does not harm a fit by itself: its proposal is rejected. Many of them are a sign of
    priors that allow the impossible, or of a structure that overflows.

    Parameters
    ----------
    seed : int
        From 0 to 2**32 - 1. The same seed tries the same draws.
    draws : int
        From the priors.
    refine : int
        Divides the steps of the fixed-grid solver, as in :class:`carkinetics.Settings`.

    Raises
    ------
    ModelError
        The seed, ``draws`` or ``refine`` is out of range, or an assay of the table is not one of the model's.
    """
    refuse_seed(seed)
    for name, value in {"draws": draws, "refine": refine}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{name} = {value!r} must be a whole number above 0.")
    use_compile_cache()
    with jax.enable_x64(True):
        obs = make_observations(model, data, refine=refine)
        tried = jax.tree.map(np.asarray, _try(model, obs, seed, draws))
        solved = None if model.structure.closed_form else _solve(model, obs, tried.transformed)
    return StressTest(model.name, seed, _cases(model, data, tried, solved), _population(model, tried))


class _Tried(NamedTuple):
    """Draws from the priors and what is not finite there; the leading axis is the draw."""

    failures: Failures
    transformed: Float[Array, "draw parameter subject"]
    individual: Float[Array, "draw parameter subject"]
    typical: Float[Array, "draw parameter"]
    omega: Float[Array, "draw random"]
    sigma: Float[Array, "draw assay"]


def _try(model: Model, obs: Observations, seed: int, draws: int) -> _Tried:
    layout = make_layout(model)

    def one(obs, phi, z):
        of = population(layout, phi, obs.design)
        transformed = of.individual(z)
        individual, typical = (natural(layout, x) for x in (transformed, of.typical[:, 0]))
        return _Tried(failures(model, obs, phi, z), transformed, individual, typical, of.omega, of.residual[0])

    of_phi, of_z = jax.random.split(jax.random.key(seed))
    phi = prior_phi(model, of_phi, draws)
    z = jax.random.normal(of_z, (draws, len(layout.random), obs.n_subjects))
    return jax.jit(lambda obs, phi, z: jax.lax.map(lambda at: one(obs, *at), (phi, z)))(obs, phi, z)


def _solve(model: Model, obs: Observations, transformed: Float[np.ndarray, "draw parameter subject"]) -> Distance:
    """The reference's curves; the leading axis is the draw."""
    layout = make_layout(model)
    one = partial(distance, layout, max_steps=REFERENCE_STEPS)
    solved = jax.jit(lambda obs, x: jax.lax.map(lambda each: one(obs, each), x))(obs, jnp.asarray(transformed))
    return jax.tree.map(np.asarray, solved)


def _cases(model: Model, data: Dataset, tried: _Tried, solved: Distance | None) -> pd.DataFrame:
    draws, _, subjects = tried.individual.shape
    columns = dict(zip(FAULTS, tried.failures, strict=True))
    if solved is not None:
        error = np.where(solved.failed | solved.unsolved, np.nan, solved.ln_level)
        columns |= dict(zip(REFERENCE, (solved.unsolved, error, solved.steps), strict=True))
    columns |= {p.name: tried.individual[:, i] for i, p in enumerate(model.parameters)}
    where = {"draw": np.repeat(np.arange(draws), subjects), "ID": list(data.subjects) * draws}
    return pd.DataFrame(where | {name: np.asarray(x).ravel() for name, x in columns.items()})


def _population(model: Model, tried: _Tried) -> pd.DataFrame:
    random = [p.name for p in model.parameters if p.iiv]
    names = [p.name for p in model.parameters] + [f"omega {n}" for n in random]
    names += [f"sigma {a.name}" for a in model.assays]
    values = np.concatenate([tried.typical, tried.omega, tried.sigma], axis=1)
    return pd.DataFrame(values, columns=names, index=pd.RangeIndex(len(values), name="draw"))
