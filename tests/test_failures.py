"""Failed solves and non-finite densities: nothing is raised in a chain, and afterwards the patient is named."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import carkinetics as ck
from amplification import factor
from carkinetics.errors import FitError, FitWarning
from carkinetics.inference.chains import Block
from carkinetics.inference.failures import MOVES, PLACES, around_divergences, failures
from carkinetics.inference.solver_check import DRAWS, solver_error
from carkinetics.model import Model
from carkinetics.model_parts import Parameter, Prior
from carkinetics.observations import make_observations
from carkinetics.structure import AbstractStructure

STEIN = ck.load_model("stein_2019_tisagenlecleucel")
DOSES = {"P1": 1e6, "P2": 1e6, "P3": 1e8, "P4": 1e6, "P5": 1e6}
DAYS = np.array([1.0, 2, 4, 6, 9, 12])
STEPS = ((4, 1 / 2), (6, 2 / 3), (8, 3 / 4))  # how many, and how long (day): equal ones between samples, 0.8 at most


class Rate(NamedTuple):
    k: object


class Cells(NamedTuple):
    cells: object
    rate: object


class Limited(AbstractStructure[Rate, Cells]):
    """Loss at k per day from 1000 cells, which no formula gives once k times the dose exceeds ``limit``."""

    name, parameters, states, outputs = "limited", Rate, Cells, ("level",)

    def __init__(self, limit):
        self.limit = limit

    def curve(self, t, p, x):
        return {"level": jnp.log(1000.0) - p.k * t + jnp.where(p.k * x.dose < self.limit, 0.0, jnp.nan)}

    def initial(self, p, x):
        return Cells(jnp.full_like(p.k, 1000.0), jnp.where(p.k * x.dose < self.limit, p.k, jnp.nan))

    def rhs(self, t, y, p, x):
        return Cells(-y.rate * y.cells, jnp.zeros_like(y.rate))

    def output(self, y, p):
        return {"level": jnp.log(y.cells)}


class LimitedOde(Limited):
    """The same, stepped."""

    closed_form = property(lambda self: False)


def model(structure):
    prior, prior_omega = Prior("normal", np.log(0.2), 0.5), Prior("lognormal", np.log(0.3), 0.3)
    k = Parameter("k", 0.2, "1/day", "log", 0.3, False, prior, prior_omega)
    return Model("limited", structure, (k,), STEIN.assays, toml=STEIN.toml)


@pytest.fixture(scope="module")
def data():
    """Five patients who lose 0.2 per day, give or take; P3 had a hundred times the others' dose."""
    rng = np.random.default_rng(1)
    rows = []
    for patient, dose in DOSES.items():
        rows.append({"ID": patient, "TIME": 0.0, "AMT": dose, "EVID": 1, "MDV": 1})
        k = 0.2 * np.exp(0.3 * rng.standard_normal())
        for t in DAYS:
            dv = 1000 * np.exp(-k * t + 0.5 * rng.standard_normal())
            rows.append({"ID": patient, "TIME": t, "DV": dv, "AMT": 0.0, "EVID": 0, "MDV": 0})
    return ck.read_dataset(pd.DataFrame(rows).assign(DVID="qpcr"), units={"DV": "copies/ug", "TIME": "day"})


def draws(n, seed=0):
    """Places near the truth, as a chain would leave them: ln k, ln omega, ln sigma, and z."""
    rng = np.random.default_rng(seed)
    phi = np.log([0.2, 0.3, 0.5]) + 0.2 * rng.standard_normal((n, 3))
    rest = {name: np.zeros(n) for name in ("lp", "energy", "acceptance_rate", "step_size")}
    rest |= {"diverging": np.zeros(n, bool), "n_steps": np.ones(n, int)}
    return Block(phi=phi, z=rng.standard_normal((n, 1, 5)), stats=rest)


def individual(block):
    """Every patient's k, computed here; shape (draw, subject)."""
    return np.exp(block.phi[:, :1] + np.exp(block.phi[:, 1:2]) * block.z[:, 0])


def impossible(block, limit):
    """Which cases no formula gives, computed here; shape (draw, subject)."""
    return individual(block) * np.array(list(DOSES.values())) >= limit


@pytest.mark.parametrize("structure", [Limited, LimitedOde])
def test_failures_are_those_of_the_formula(structure, data):
    """If it fails, a failure is charged to the wrong patient, or one patient's NaN reaches another's gradient."""
    block, limit = draws(40), 0.2e8
    with jax.enable_x64(True):
        problem = model(structure(limit))
        obs = make_observations(problem, data)
        found = jax.jit(jax.vmap(lambda phi, z: failures(problem, obs, phi, z)))(block.phi, block.z)
    expected = impossible(block, limit)
    assert 5 < expected[:, 2].sum() < 35
    for each in found:
        np.testing.assert_array_equal(each, expected)


@pytest.mark.thorough
def test_the_solver_check_counts_draws_by_patient(data):
    """If it fails, ``fit.check()`` blames the wrong patient, or does not tell the solver from its reference."""
    block, limit = draws(DRAWS), 0.2e8
    with jax.enable_x64(True):
        problem = model(LimitedOde(limit))
        found = solver_error(problem, make_observations(problem, data), [block])
    expected = impossible(block, limit).sum(0)
    assert 0 < expected[2] < DRAWS
    np.testing.assert_array_equal(found.failed, expected)
    np.testing.assert_array_equal(found.unsolved, expected)
    assert found.draws == DRAWS
    k = individual(block)
    error = np.abs(sum(n * (np.log(factor(-k * h)) + k * h) for n, h in STEPS))
    assert found.largest == pytest.approx(np.where(impossible(block, limit), 0, error).max(), rel=1e-2)


class TooFast(LimitedOde):
    """Loses all cells of P3 within a step: the grid's polynomial grows instead, where a level cannot be negative."""

    name = "too_fast"

    def initial(self, p, x):
        return Cells(jnp.full_like(p.k, 1e30), p.k * x.dose / 1e6)


def test_a_solver_that_fails_where_the_reference_does_not(data):
    """Loss of k times 100 per day: the ODE has an answer (until the level is below any float), the grid has none."""
    block = draws(DRAWS)
    block = block._replace(z=np.zeros_like(block.z), phi=np.tile(np.log([0.05, 0.3, 0.5]), (DRAWS, 1)))
    with jax.enable_x64(True):
        problem = model(TooFast(np.inf))
        found = solver_error(problem, make_observations(problem, data), [block])
    # P3 loses 5 per day, and steps of three quarters of a day multiply by more than 1: the grid has its own answer.
    assert factor(-5 * 0.75) > 1
    error = sum(n * (np.log(factor(-5 * h)) + 5 * h) for n, h in STEPS)
    np.testing.assert_array_equal(found.failed, 0)
    assert found.subject == 2
    assert found.largest == pytest.approx(error, rel=1e-6)
    np.testing.assert_array_equal(found.unsolved, 0)


def test_a_solver_that_fails_late_has_failed(data):
    """1e8 per day multiplies a day by 4e30: beyond any float after ten days, and not at the first samples."""
    block = draws(DRAWS)
    block = block._replace(z=np.zeros_like(block.z), phi=np.tile(np.log([1e6, 0.3, 0.5]), (DRAWS, 1)))
    with jax.enable_x64(True):
        problem = model(TooFast(np.inf))
        found = solver_error(problem, make_observations(problem, data), [block])
    assert found.failed[2] == DRAWS


def test_around_divergences_only_the_patient_at_the_edge_is_named(data):
    """Draws that stay where k is allowed, as a chain's do: the edge is found beside them."""
    block, limit = draws(400), 0.25e8
    kept = ~impossible(block, limit).any(axis=1)
    block = jax.tree.map(lambda x: x[kept], block)
    with jax.enable_x64(True):
        problem = model(Limited(limit))
        obs = make_observations(problem, data)
        calm = around_divergences(problem, obs, [block], seed=1)
        edge = block._replace(stats=block.stats | {"diverging": np.arange(len(block.phi)) % 10 == 0})
        found = around_divergences(problem, obs, [edge], seed=1)
    assert (calm.places, calm.failed.sum()) == (0, 0)
    assert found.places == PLACES * MOVES
    assert found.failed[2] > 0.05 * found.places
    assert found.failed[[0, 1, 3, 4]].sum() == 0


@pytest.mark.thorough
def test_a_fit_goes_on_and_names_the_patient(data, tmp_path):
    """If it fails, one patient's impossible values end the chains, or their divergences have no name."""
    settings = ck.Settings(pilot=100, warmup=100, draws=200, max_draws=200)
    fit = ck.fit(model(Limited(0.26e8)), data, seed=2, method="nuts", chains=2, settings=settings, progress=False)
    check = fit.check()
    assert check.numbers["divergences"] > 0
    named = [r for r in check.reasons if "not finite" in r]
    assert len(named) == 1
    assert "patient P3 (" in named[0]
    assert f"of {PLACES * MOVES})" in named[0]
    assert check.status != "ok"
    kept = fit.tree["posterior"]["individual"].sel(subject="P3").values
    assert (kept * DOSES["P3"] < 0.26e8 * (1 + 1e-6)).all()


@pytest.mark.thorough
def test_no_start_names_the_patient(data):
    """If it fails, the user learns that no start was found, and not in whom."""
    settings = ck.Settings(pilot=25, warmup=25, draws=25, max_draws=25)
    said = r"the curve of patient\(s\) P3 is not finite"
    with pytest.warns(FitWarning, match=r"Laplace start failed.*P3 \(k\)"), pytest.raises(FitError, match=said):
        ck.fit(model(Limited(2e6)), data, seed=2, chains=1, settings=settings, progress=False)
