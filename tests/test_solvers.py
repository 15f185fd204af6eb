"""The fixed grid and the implicit solver against an independent integrator, and against what a grid must be."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from carkinetics import solvers
from carkinetics.structure import AbstractStructure, inputs
from carkinetics.structure import level as emptied
from carkinetics.structures import STRUCTURES
from carkinetics.structures.expansion_contraction import ExpansionContraction, States

TIMES = np.array([0, 1, 4, 7, 11, 14, 17, 21, 28, 42, 56, 84, 112, 140, 168.0])
B = STRUCTURES["effector_memory_antigen"]


class SteinByOde(ExpansionContraction):
    """Stein's equations without their closed form: a rate that jumps at a time that is a parameter."""

    name = "stein_by_ode"
    closed_form = property(lambda self: False)

    def to_coordinates(self, y, p):
        return jnp.log(y.effector), y.memory

    def from_coordinates(self, u, p):
        return States(emptied(u[0]), u[1])


def stein_patients(n=60, seed=0):
    rng = np.random.default_rng(seed)
    theta = np.log([3900, 9.3, 24000, 0.16, 0.0079, 0.0032])
    omega = np.sqrt([2.4, 0.38, 0.65, 0.91, 0.8, 0.86])
    return np.exp(theta[:, None] + omega[:, None] * rng.standard_normal((6, n)))


def antigen_patients(n=40, seed=0):
    rng = np.random.default_rng(seed)
    theta = np.log([5, 1.2, 20, 5e-5, 0.16, 0.002, 0.005])
    omega = np.array([0.8, 0.25, 0.8, 0.8, 0.4, 0.7, 0.6])
    return np.exp(theta[:, None] + omega[:, None] * rng.standard_normal((7, n)))


def level(structure, x, *, refine=1, times=TIMES):
    n = x.shape[1]
    none = inputs(jnp.full(n, jnp.nan))
    grid = solvers.make_grid(structure, np.repeat(times[:, None], n, 1), none, refine=refine)
    p = structure.parameters(*x)
    return solvers.curves(structure, grid, p, none)["level"]


def test_fixed_grid_is_near_the_closed_form_and_converges_to_it():
    """If it fails, breakpoints are stepped over, or the order of the method is lost."""
    with jax.enable_x64(True):
        x = jnp.asarray(stein_patients())
        exact = np.asarray(level(ExpansionContraction(), x))
        error = [np.abs(np.asarray(level(SteinByOde(), x, refine=r)) - exact).max() for r in (1, 2, 4)]
    assert error[0] < 0.02
    assert error[1] < error[0] / 6
    assert error[2] < error[1] / 6


def test_gradient_through_a_moving_breakpoint_equals_the_closed_forms():
    """If it fails, the gradient with respect to tmax is silently wrong, as with an undeclared jump."""
    with jax.enable_x64(True):
        x = jnp.asarray(stein_patients())
        found = jax.grad(lambda x: level(SteinByOde(), x, refine=8).sum())(x) * x
        exact = jax.grad(lambda x: level(ExpansionContraction(), x).sum())(x) * x
    np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3)


def by_scipy(x, times=TIMES):
    """The antigen structure's equations written again, solved by LSODA."""
    e0, rho, b0, kill, alpha, conv, beta = x

    def rhs(t, y):
        e, m, b = y
        return [(rho * b / (1 + b) - alpha - conv) * e, conv * e - beta * m, -kill * e * b]

    run = solve_ivp(rhs, (0, times[-1]), [e0, 0.0, b0], t_eval=times, method="LSODA", rtol=1e-10, atol=1e-12)
    return np.log(run.y[0] + run.y[1])


def test_nonlinear_structure_against_scipy():
    """If it fails, the antigen structure's right-hand side, its coordinates or the stepping is wrong."""
    x = antigen_patients()
    expected = np.stack([by_scipy(column) for column in x.T], axis=1)
    with jax.enable_x64(True):
        coarse, fine = (np.asarray(level(B, jnp.asarray(x), refine=r)) for r in (1, 4))
    assert np.abs(fine - expected).max() < 1e-3
    assert np.abs(coarse - expected).max() < 0.06


@pytest.mark.thorough
def test_gradient_of_the_fixed_grid_equals_finite_differences():
    """If it fails, the checkpointed reverse pass is not the derivative of what is computed."""
    with jax.enable_x64(True):
        ln_x = jnp.log(jnp.asarray(antigen_patients(n=5)))

        def total(ln_x):
            return level(B, jnp.exp(ln_x)).sum()

        gradient = np.asarray(jax.grad(total)(ln_x))
        for k in range(7):
            step = np.zeros((7, 5))
            step[k, 3] = 1e-5
            difference = (total(ln_x + step) - total(ln_x - step)) / 2e-5
            assert gradient[k, 3] == pytest.approx(float(difference), rel=1e-5, abs=1e-5)


def test_reference_agrees_with_scipy():
    """If it fails, the standard that fits are checked against is not one."""
    with jax.enable_x64(True):
        x = antigen_patients(n=3)
        for column in x.T:
            found = solvers.reference_curve(B, jnp.asarray(TIMES), B.parameters(*map(jnp.asarray, column)), inputs())
            np.testing.assert_allclose(found["level"], by_scipy(column), atol=1e-7)


class Fast(NamedTuple):
    k: object


class Pair(NamedTuple):
    a: object
    b: object


class Stiff(AbstractStructure[Fast, Pair]):
    """A fast exchange beside a slow loss: y_a relaxes at k = 1e5 per day to y_b, which falls at 0.1."""

    name, parameters, states, outputs, stiff = "stiff", Fast, Pair, ("level",), True

    def initial(self, p, x):
        return Pair(jnp.zeros_like(p.k), jnp.ones_like(p.k))

    def rhs(self, t, y, p, x):
        return Pair(p.k * (y.b - y.a), -0.1 * y.b)

    def output(self, y, p):
        return {"level": jnp.log(y.a)}


def test_stiff_structure_by_the_implicit_solver():
    """If it fails, stiff structures are stepped explicitly, or the implicit solver's answer is wrong."""
    with jax.enable_x64(True):
        times = np.repeat(np.array([1.0, 10.0, 50.0])[:, None], 2, 1)
        none = inputs(jnp.full(2, jnp.nan))
        grid = solvers.make_grid(Stiff(), times, none)
        k = jnp.array([1e5, 3e3])
        found = solvers.curves(Stiff(), grid, Fast(k), none)["level"]
        exact = np.log(k * np.exp(-0.1 * times) / (k - 0.1))
    np.testing.assert_allclose(found, exact, atol=1e-4)  # a local tolerance of 1e-6


def test_a_failed_solve_is_not_finite_and_does_not_raise():
    """If it fails, one impossible draw ends a whole chain, or passes as a value."""
    with jax.enable_x64(True):
        none = inputs(jnp.array([jnp.nan]))
        grid = solvers.make_grid(Stiff(), np.array([[1.0], [10.0]]), none)
        found = solvers.curves(Stiff(), grid, Fast(jnp.array([jnp.nan])), none)["level"]
    assert not np.isfinite(np.asarray(found)).any()


def test_every_sample_is_a_steps_end_and_no_step_is_too_long():
    """If it fails, levels are interpolated, or a step strides over the peak."""
    rng = np.random.default_rng(2)
    columns = [np.sort(rng.uniform(0, 200, 12)) for _ in range(5)]
    columns.append(np.r_[0.0, 1e-4, 5, 5 + 1e-10, 100, np.full(7, 100.0)])
    with jax.enable_x64(True):
        grid = solvers.make_grid(B, np.stack(columns, axis=1), inputs(jnp.zeros(6)))
        ends, at = np.asarray(grid.ends), np.asarray(grid.at)
    np.testing.assert_array_equal(np.take_along_axis(ends, at, axis=0), np.stack(columns, axis=1))
    steps = np.diff(np.concatenate([np.zeros((1, ends.shape[1])), ends]), axis=0)
    assert (steps >= 0).all()
    for before, longest in solvers.GRADES:
        assert steps[ends <= before].max() <= longest * (1 + 1e-9)
