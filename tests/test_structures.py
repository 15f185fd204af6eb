"""Every structure, at every published population: finite, differentiable, and solved as accurately as promised."""

import itertools
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.structure import inputs
from carkinetics.structures import STRUCTURES
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.structures.occasions import Occasions
from populations import CORNERS, HORIZON, POPULATIONS, WITH_OCCASIONS, WITH_PHASE

TIMES = np.array([0, 1, 3, 5, 7, 9, 11, 14, 17, 21, 28, 42, 56, 84, 112, 140, 168, 365.0])
DRAWS = 1000
FAST, ACCURATE = 2e-3, 1e-5  # relative error of every output
# An output that has fallen this far below its own largest value is compared on that scale: nobody measures it.
FLOOR = 1e-12


def times_of(population):
    """Days on which a population is solved: a year, or as long as it lives."""
    last = HORIZON.get(population.label, np.inf)
    return np.array([t for t in TIMES if t <= last])


# Structures whose programs take longest to compile.
LARGE = {
    "phenotype_ladder_cd4_cd8",
    "exhaustion",
    "liu_2022_ball",
    "chaudhury_2020_ec50",
    "mueller_schoell_2021_axicabtagene",
    "leon_triana_2021_ball",
    "chaudhury_2020_lotka_volterra",
    "kimmel_2021_axicabtagene",
}


def tier(population):
    """The fast one has every structure but large ones once; stiff ones, which take longest, are in the slow one."""
    if population.structure.stiff:
        return [pytest.mark.slow]
    first = next(p for p in POPULATIONS if p.structure is population.structure)
    fast = first is population and population.structure.name in STRUCTURES and population.label not in LARGE
    return [] if fast else [pytest.mark.thorough]


def those(which):
    """Populations of such structures, each in its tier."""
    chosen = [pytest.param(p, id=p.label, marks=tier(p)) for p in POPULATIONS if which(p.structure)]
    return pytest.mark.parametrize("population", chosen)


each = pytest.mark.parametrize("population", POPULATIONS, ids=[p.label for p in POPULATIONS])


def curves(population, values, x, *, times=TIMES, refine=1):
    """Natural log of every output, ``(time, patient)``, by the solver that a fit uses."""
    n = values.shape[1]
    grid = solvers.make_grid(population.structure, np.repeat(times[:, None], n, 1), x, refine=refine)
    p, x = as_arguments(population.structure, jnp.asarray(values), x)
    return solvers.curves(population.structure, grid, p, x)


class Solved(NamedTuple):
    """The typical patient, every corner, and drawn patients, solved at once: one program is compiled."""

    places: list[str]
    ln: dict[str, np.ndarray]
    gradient: np.ndarray


@cache
def solved(population) -> Solved:
    """Natural log of every output, ``(time, patient)``, and the gradient of its sum in the logs of all parameters."""
    corners = CORNERS[population.structure.name]
    places = ["typical", *corners, *(f"draw {i}" for i in range(DRAWS))]
    with jax.enable_x64(True):
        special = [population.values(), *(population.values(**changed) for changed in corners.values())]
        values = jnp.asarray(np.concatenate([*special, population.values(DRAWS)], axis=1))
        x = population.twice(len(places))
        times = times_of(population)
        grid = solvers.make_grid(population.structure, np.repeat(times[:, None], len(places), 1), x)

        def total(ln_scale):
            found = solvers.curves(
                population.structure, grid, *as_arguments(population.structure, values * jnp.exp(ln_scale), x)
            )
            return sum(v.sum() for v in found.values()), found

        (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.zeros_like(values))
        return Solved(places, {k: np.asarray(v) for k, v in found.items()}, np.asarray(gradient))


def test_every_structure_has_a_population_and_corners():
    """If it fails, a structure is in the library and none of the tests below sees it."""
    alone = {p.structure.name for p in POPULATIONS if not isinstance(p.structure, InfusionPhase | Occasions)}
    assert alone == set(STRUCTURES) == {name for name in CORNERS if " with " not in name}
    phases = [p for p in POPULATIONS if isinstance(p.structure, InfusionPhase)]
    assert {p.label.removesuffix(" with infusion phase") for p in phases} == set(WITH_PHASE)
    occasions = [p for p in POPULATIONS if isinstance(p.structure, Occasions)]
    assert {p.label.removesuffix(" with occasions") for p in occasions} == set(WITH_OCCASIONS)
    assert all(CORNERS.values())


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_structures_are_described(name):
    """If it fails, `carkinetics models NAME` has no equations or no source to show."""
    structure = STRUCTURES[name]
    assert structure.name == name
    assert "References" in type(structure).__doc__
    assert "doi:" in type(structure).__doc__
    assert structure.outputs[0] == "level"


@those(lambda structure: True)
def test_finite_at_the_typical_values_in_the_corners_and_over_the_population(population):
    """If it fails, a fit or a simulation of this model meets NaN: where the paper's patients are, or at an edge."""
    found = solved(population)
    places = np.array(found.places)
    for name, ln in found.ln.items():
        assert np.isfinite(ln).all(), (name, list(places[~np.isfinite(ln).all(axis=0)]))
    wrong = ~np.isfinite(found.gradient)
    assert not wrong.any(), (list(places[wrong.any(axis=0)]), list(np.array(population.names)[wrong.any(axis=1)]))


@those(lambda structure: structure.uses_dose)
def test_without_a_dose_there_are_no_cells(population):
    """If it fails, cells come from nowhere, or a dose of 0 breaks the curve."""
    with jax.enable_x64(True):
        x = population.inputs(dose=0.0)
        found = curves(population, population.values(), x)
        assert not np.isnan(found["level"]).any()
        least = np.exp(np.asarray(curves(population, population.values(), population.inputs())["level"])).max()
        assert (np.exp(np.asarray(found["level"])) <= 1e-9 * least).all()


def _between(rhs, low, high, t, y):
    return np.asarray(rhs(np.clip(t, low, high), y))


def by_scipy(population, values, x, times):
    """The natural states at ``times`` of one patient, by DOP853 or Radau at 1e-12, from breakpoint to breakpoint."""
    structure = population.structure
    p, x = as_arguments(structure, jnp.asarray(values[:, 0]), jax.tree.map(lambda a: a[..., 0], x))
    start, back = jax.flatten_util.ravel_pytree(structure.initial(p, x))
    rhs = jax.jit(lambda t, y: jax.flatten_util.ravel_pytree(structure.rhs(t, back(y), p, x))[0])
    jac = jax.jit(jax.jacfwd(rhs, argnums=1))
    stops = sorted({0.0, *(float(b) for b in structure.breakpoints(p, x) if 0 < b < times[-1]), times[-1]})
    y, found = np.asarray(start), {0.0: np.asarray(start)}
    scale = np.maximum(np.abs(y), 1e-9)
    options: dict = {"rtol": 1e-12, "atol": 1e-14 * scale, "method": "DOP853"}
    if structure.stiff:
        options |= {"method": "Radau", "jac": lambda t, y: np.asarray(jac(t, y))}
    for begin, end in itertools.pairwise(stops):
        inside = 1e-12 * (end - begin)  # a rate that jumps at an end belongs to one side
        wanted = np.append(times[(times > begin) & (times < end)], end)
        rate = partial(_between, rhs, begin + inside, end - inside)
        run = solve_ivp(rate, (begin, end), y, t_eval=wanted, **options)
        assert run.success, run.message
        found |= dict(zip(wanted, run.y.T, strict=True))
        y = run.y[:, -1]
    states = jax.vmap(back)(jnp.asarray(np.stack([found[t] for t in times])))
    return {k: np.asarray(v) for k, v in jax.vmap(lambda y: structure.output(y, p))(states).items()}


def relative_error(ours, exact):
    """The largest relative error of every output; below its floor, on the floor's scale."""
    errors = {}
    for name, ln in exact.items():
        level, found = np.exp(ln), np.exp(np.asarray(ours[name]).reshape(ln.shape))
        errors[name] = float(np.max(np.abs(found - level) / np.maximum(level, FLOOR * level.max())))
    return errors


@those(lambda structure: True)
def test_solvers_agree(population):
    """If it fails, the fixed grid is coarser than promised at the published values, or the reference is not one."""
    with jax.enable_x64(True):
        values, x = population.values(), population.inputs()
        p, one = as_arguments(population.structure, jnp.asarray(values[:, 0]), jax.tree.map(lambda a: a[..., 0], x))
        times = times_of(population)
        exact = solvers.reference_curve(population.structure, jnp.asarray(times), p, one, tol=1e-10)
        exact = {k: np.asarray(v) for k, v in exact.items()}
        scipys = by_scipy(population, values, x, times)
        fast = curves(population, values, x, times=times)
        accurate = curves(population, values, x, times=times, refine=solvers.ACCURATE)
    for name, error in relative_error(scipys, exact).items():
        assert error <= 1e-6, ("the two references", name, error)
    for name, error in relative_error(accurate, exact).items():
        assert error <= ACCURATE, ("accurate", name, error)
    for name, error in relative_error(fast, exact).items():
        assert error <= FAST, ("fast", name, error)


# Published for one mouse, whose numbers, each drawn by itself, let cells grow for ever in a quarter of the patients.
NO_POPULATION = {"barros_2021_raji"}
SPREAD, APART, SOME = 0.3, 0.05, 0.01  # least omega; error of ln level; share of patients in whom it may be larger


@pytest.mark.parametrize(
    "population",
    [
        pytest.param(p, id=p.label, marks=pytest.mark.slow if p.structure.stiff else pytest.mark.thorough)
        for p in POPULATIONS
        if not p.structure.closed_form and p.structure.name in STRUCTURES and p.label not in NO_POPULATION
    ],
)
def test_patients_far_from_the_typical_one_are_solved_too(population):
    """If it fails, steps that are right for the typical patient are unstable in others, who get 1e28 cells."""
    far = replace(population, omega=np.maximum(population.omega, SPREAD))
    n, times = DRAWS, times_of(population)
    times = times[times <= 168]
    with jax.enable_x64(True):
        values, x = far.values(n, seed=7), far.inputs(n)
        name = population.structure.outputs[0]
        finer = 4 if population.structure.stiff else 8
        exact, found = (np.asarray(curves(far, values, x, times=times, refine=r)[name]) for r in (finer, 1))
        apart = np.abs(found - exact).max(0)
        assert np.isfinite(exact).all()
        wrong = ~(apart <= APART)
        assert wrong.mean() <= SOME, (population.label, wrong.mean(), values[:, np.argmax(apart)])
        # The finer grid is one of ours: beside the adaptive solver, as far as that comes to an end, in a few patients.
        beside = 0
        for i in {0, 1, int(np.argmax(np.where(wrong, apart, 0.0)))}:
            p, one = as_arguments(far.structure, jnp.asarray(values[:, i]), jax.tree.map(lambda a, i=i: a[..., i], x))
            adaptive = np.asarray(solvers.reference_curve(far.structure, jnp.asarray(times), p, one)[name])
            if np.isfinite(adaptive).all():
                np.testing.assert_allclose(exact[:, i], adaptive, atol=APART)
                beside += 1
        assert beside


@each
def test_coordinates_change_nothing_but_the_coordinates(population):
    """If it fails, the solver steps another ODE than the one that is written down."""
    structure = population.structure
    with jax.enable_x64(True):
        values = population.values(20, seed=3)
        p, x = as_arguments(structure, jnp.asarray(values), population.inputs(20))
        y = structure.initial(p, x)
        y = jax.tree.map(lambda v: jnp.broadcast_to(v, 20) * jnp.linspace(0.3, 3.0, 20) + 1e-3, y)
        u = structure.to_coordinates(y, p)
        back, rate = jax.jvp(
            lambda u: structure.from_coordinates(u, p), (u,), (solvers._rate(structure, p, x)(jnp.array(2.5), u),)
        )
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(y), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
        natural = structure.rhs(jnp.array(2.5), y, p, x)
        for a, b in zip(jax.tree.leaves(rate), jax.tree.leaves(natural), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))


@those(lambda structure: structure.treatable)
def test_treatments_act_on_growth_from_their_day_on(population):
    """If it fails, tocilizumab acts before it is given, or not at all, or a factor of 1 does something."""
    times = np.linspace(0.0, 20.0, 41)
    with jax.enable_x64(True):

        def treated(*given):
            x = population.inputs()
            since = jnp.array([[day] for day, _ in given])
            x = inputs(x.dose, course=x.course, since=since, factor=jnp.zeros_like(since))
            values = np.concatenate([population.values(), [[f] for _, f in given]])
            return np.asarray(curves(population, values, x, times=times, refine=8)["level"])[:, 0]

        plain = np.asarray(curves(population, population.values(), population.inputs(), times=times, refine=8)["level"])
        plain = plain[:, 0]
        np.testing.assert_allclose(treated((3.0, 1.0), (5.0, 1.0)), plain, atol=2e-5)
        np.testing.assert_allclose(treated((np.inf, 3.0), (np.inf, 0.1)), plain, atol=2e-5)
        slower = treated((3.0, 0.5), (np.inf, 2.0))
        np.testing.assert_allclose(slower[times <= 3], plain[times <= 3], atol=2e-5)
        assert slower[times == 6.0] < plain[times == 6.0] - 0.01
        # Two that undo each other: from the second on, growth is as it was without any.
        both = treated((3.0, 0.5), (3.0, 2.0))
        np.testing.assert_allclose(both, plain, atol=2e-5)


@pytest.mark.thorough
@those(lambda structure: structure.repeatable and structure.uses_dose)  # else each infusion is a whole one
def test_a_dose_split_within_seconds_is_one_dose(population):
    """If it fails, later infusions are lost, counted twice, or put into another state than the first."""
    times = np.array([0.0, 1.0, 5.0, 10.0, 30.0])
    with jax.enable_x64(True):
        x, values = population.inputs(), population.values()
        half, soon = x.dose / 2, jnp.array([[1e-6]])
        split = inputs(half, course=x.course, later_day=soon, later_dose=half[None])
        lost = inputs(half, course=x.course, later_day=soon + 100, later_dose=half[None])
        whole = curves(population, values, x, times=times, refine=8)["level"]
        two = curves(population, values, split, times=times, refine=8)["level"]
        one = curves(population, values, lost, times=times, refine=8)["level"]
        np.testing.assert_allclose(two[1:], whole[1:], atol=1e-4)
        assert np.abs(np.asarray(one - whole)[1]).max() > 0.01
        # The reference goes from infusion to infusion, too.
        late = inputs(half, course=x.course, later_day=jnp.array([[6.3]]), later_dose=half[None])
        ours = curves(population, values, late, times=times, refine=2 * solvers.ACCURATE)["level"]
        p, single = as_arguments(
            population.structure, jnp.asarray(values[:, 0]), jax.tree.map(lambda a: a[..., 0], late)
        )
        exact = solvers.reference_curve(population.structure, jnp.asarray(times), p, single)["level"]
        np.testing.assert_allclose(ours[:, 0], exact, atol=ACCURATE)
