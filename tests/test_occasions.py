"""A structure with occasions is the sum of its own curves, or its ODE with parameters that change at an infusion."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jaxtyping import Array, Float

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.errors import ModelError
from carkinetics.structure import Course, inputs
from carkinetics.structures import STRUCTURES
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.structures.occasions import MOST, Occasions, factors
from one_patient import by_scipy
from populations import POPULATIONS
from test_expansion_contraction import TYPICAL
from test_infusion_phase import Cells, Doses, curve
from tiers import tiered

STEIN = Occasions(STRUCTURES["expansion_contraction"], ("cmax", "tmax"))
TIMES = np.array([0.0, 1.0, 5.0, 9.3, 20.0, 40.0, 40.001, 44.0, 49.0, 60.0, 168.0])
DAY = 40.0
CLOSED = {name: s for name, s in STRUCTURES.items() if s.closed_form}
REPEATABLE = {name: s for name, s in STRUCTURES.items() if s.repeatable}


def later(*given, dose=jnp.nan, **others):
    """Inputs of one patient with these further infusions, (day, cells)."""
    days, cells = (jnp.array([[g[k]] for g in given], float).reshape(len(given), 1) for k in range(2))
    return inputs(jnp.array([dose], float), later_day=days, later_dose=cells, **others)


def typical(name):
    """Typical values and dose of a structure, from a published model or an example."""
    found = next(p for p in POPULATIONS if p.structure is STRUCTURES[name])
    return dict(zip(found.names, found.values()[:, 0].tolist(), strict=True)), found.dose


def values_in(base, values, varying, *, n=2, **given):
    """The base's values, then the factors; 1 where none is given."""
    return [*values.values(), *(given.get(f, 1.0) for v in varying for f in factors(v, n))]


def test_two_infusions_agree_with_fifty_digits():
    """If it fails, what is seen of two infusions is not the sum of two of Stein's curves, each with its own peak."""
    own = {"cmax_occ1": 0.7, "cmax_occ2": 2.5, "tmax_occ1": 1.3, "tmax_occ2": 0.8}
    found = curve(STEIN, values_in(STEIN.base, TYPICAL, STEIN.varying, **own), TIMES, later((DAY, 1e8)))["level"]
    with mpmath.workdps(50):

        def level(t, k):
            v = {name: mpmath.mpf(float(x)) for name, x in TYPICAL.items()}
            v["cmax"] *= mpmath.mpf(own[f"cmax_occ{k}"])
            v["tmax"] *= mpmath.mpf(own[f"tmax_occ{k}"])
            s = t - v["tmax"]
            if s < 0:
                return v["cmax"] * v["foldx"] ** (s / v["tmax"])
            return v["cmax"] * ((1 - v["fb"]) * mpmath.exp(-v["alpha"] * s) + v["fb"] * mpmath.exp(-v["beta"] * s))

        for t, ln in zip(map(mpmath.mpf, TIMES.tolist()), found, strict=True):
            exact = mpmath.log(level(t, 1) + (level(t - 40, 2) if t > 40 else 0))
            assert abs(ln - float(exact)) <= 1e-12 * max(1, abs(float(exact)))


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_one_infusion_is_the_base(name):
    """If it fails, patients with one infusion are fitted by another model, whatever others have."""
    base, values = CLOSED[name], typical(name)[0]
    structure = Occasions(base, ("tmax", "alpha"), 3)
    plain = curve(base, values.values(), TIMES)
    with jax.enable_x64(True):
        never = later((jnp.inf, 0.0), (jnp.inf, 0.0))
    for x in (None, never):
        found = curve(structure, values_in(base, values, structure.varying, n=3, tmax_occ2=9.0), TIMES, x)
        for output in base.outputs:
            np.testing.assert_allclose(found[output], plain[output], rtol=1e-12)
    moved = curve(base, (values | {"tmax": 1.5 * values["tmax"]}).values(), TIMES)
    found = curve(structure, values_in(base, values, structure.varying, n=3, tmax_occ1=1.5), TIMES, never)
    np.testing.assert_allclose(found["level"], moved["level"], rtol=1e-12)


@pytest.mark.parametrize("name", sorted(CLOSED))
@pytest.mark.parametrize("phase", [False, True])
def test_further_infusions_are_the_sum_of_the_bases_curves(name, phase):
    """If it fails, a second or third curve begins at another day, or with the parameters of another infusion."""
    base, values = CLOSED[name], typical(name)[0]
    if phase and not base.falls_by:
        base, values = InfusionPhase(base), values | {"c0": 300.0, "kd": 4.0}
    structure = Occasions(base, ("cmax" if "cmax" in values else "rho", "alpha"), 3)
    first = structure.varying[0]
    with jax.enable_x64(True):
        x = later((DAY, 1e8), (45.0, 0.0))
    own = {f"{first}_occ2": 0.5, f"{first}_occ3": 1.4, "alpha_occ1": 0.6}
    found = curve(structure, values_in(base, values, structure.varying, n=3, **own), TIMES, x)
    wanted = {output: np.zeros(len(TIMES)) for output in base.outputs}
    for k, day in enumerate((0.0, DAY, 45.0)):
        changed = values | {v: values[v] * own.get(f"{v}_occ{k + 1}", 1.0) for v in structure.varying}
        own_days = TIMES - day
        each = curve(base, changed.values(), own_days[own_days > 0] if k else own_days)
        for output in base.outputs:
            wanted[output][own_days > 0 if k else own_days >= 0] += np.exp(each[output])
    for output in base.outputs:
        np.testing.assert_allclose(np.exp(found[output]), wanted[output], rtol=1e-11)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("expansion_contraction", "effector_memory") else [pytest.mark.slow])
        for n in CLOSED
    ],
)
def test_the_sum_is_the_ode_of_as_many_expansions(name):
    """If it fails, the states of a further infusion begin early, or its closed form is of another model."""
    base, values = CLOSED[name], typical(name)[0]
    structure = Occasions(base, ("tmax",), 3)
    with jax.enable_x64(True):
        x = inputs(jnp.nan, later_day=jnp.array([DAY, jnp.inf]), later_dose=jnp.array([1e8, 0.0]))
        p = structure.parameters(*map(jnp.asarray, values_in(base, values, structure.varying, n=3, tmax_occ2=0.7)))
        times = jnp.asarray(TIMES[1:])
        exact = solvers.reference_curve(structure, times, p, x)
        for output, ln in structure.curve(times, p, x).items():
            np.testing.assert_allclose(ln, exact[output], atol=1e-7)


def test_treatments_and_what_is_measured_keep_the_days_of_the_table():
    """If it fails, tocilizumab of day 43 acts on day 43 of a second infusion, or that of day 5 no more."""
    structure, values = Occasions(STRUCTURES["expansion_contraction"], ("cmax",)), TYPICAL
    times = np.array([44.0, 47.0, 60.0])
    rho = np.log(values["foldx"]) / values["tmax"]

    def treated(since):
        with jax.enable_x64(True):
            x = later((DAY, 1e8), since=jnp.array([[since]]), factor=jnp.zeros((1, 1)))
            grid = solvers.make_grid(structure, times[:, None], x)
            p = [[v] for v in values_in(structure.base, values | {"cmax": 1e4}, structure.varying, cmax_occ1=1e-12)]
            return np.asarray(
                solvers.curves(structure, grid, *as_arguments(structure, jnp.array([*p, [0.5]]), x))["level"]
            )[:, 0]

    plain = treated(np.inf)
    grown = np.minimum(times - DAY, values["tmax"])
    np.testing.assert_allclose(treated(43.0) - plain, -0.5 * rho * (grown - 3.0), rtol=1e-9)
    np.testing.assert_allclose(treated(5.0) - plain, -0.5 * rho * grown, rtol=1e-9)
    np.testing.assert_allclose(treated(52.0) - plain, 0.0, atol=1e-12)


class Counted(Doses):
    """Doses whose loss follows a course: its value at the day of the table."""

    regressors = ("wbc",)
    name = "counted"

    def curve(self, t, p, x):
        return {"level": jnp.log(x.dose) - p.loss * t + jnp.log(x.course["wbc"](t))}


def test_courses_and_doses_are_those_of_the_infusion():
    """If it fails, the second infusion reads the white count of its own day 0, or grows from the first one's dose."""
    structure = Occasions(Counted(), ("loss",))
    with jax.enable_x64(True):
        course = {"wbc": Course(jnp.array([[0.0], [43.0]]), jnp.array([[1.0], [5.0]]), "locf")}
        x = later((DAY, 3e8), dose=1e8, course=course)
    found = curve(structure, [0.1, 1.0, 2.0], np.array([39.0, 41.0, 44.0]), x)["level"]
    first = 1e8 * np.exp(-0.1 * np.array([39.0, 41.0, 44.0])) * [1, 1, 5]
    second = 3e8 * np.exp(-0.2 * np.array([0.0, 1.0, 4.0])) * [0, 1, 5]
    np.testing.assert_allclose(np.exp(found), first + second, rtol=1e-12)


def test_infusions_of_no_cells_are_none():
    """If it fails, cells come from a dose of 0, or it leaves NaN."""
    structure = Occasions(Doses(), ("loss",))
    times = np.array([1.0, 39.0, 41.0, 60.0])
    with jax.enable_x64(True):
        nothing, some = later((DAY, 0.0), dose=1e8), later((DAY, 2e8), dose=0.0)
    found = curve(structure, [0.1, 1.0, 2.0], times, nothing)["level"]
    np.testing.assert_allclose(found, np.log(1e8) - 0.1 * times, rtol=1e-12)
    found = curve(structure, [0.1, 1.0, 2.0], times, some)["level"]
    np.testing.assert_allclose(found[2:], np.log(2e8) - 0.2 * (times[2:] - DAY), rtol=1e-12)
    assert (found[:2] < -1e3).all()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if s.stiff else []) for n, s in sorted(REPEATABLE.items())],
)
def test_without_deviations_an_ode_is_the_base(name):
    """If it fails, counting infusions changes the states or the steps."""
    base, (values, dose) = STRUCTURES[name], typical(name)
    structure = Occasions(base, base.parameters._fields[:2], 3)
    with jax.enable_x64(True):
        course = {r: Course(jnp.zeros((1, 1)), jnp.full((1, 1), 5000.0), "locf") for r in base.regressors}
        x = later((6.0, dose), (20.0, dose / 3), dose=dose, course=course)
    plain = curve(base, values.values(), TIMES[:-1], x, refine=1)
    found = curve(structure, values_in(base, values, structure.varying, n=3), TIMES[:-1], x, refine=1)
    for output in base.outputs:
        np.testing.assert_allclose(found[output], plain[output], rtol=1e-12, atol=1e-12)


class Grown(Doses):
    """Cells that are lost, as an ODE alone; the level is counted in units of the loss."""

    name = "grown"

    @property
    def closed_form(self):
        return False

    def output(self, y, p):
        return {"level": jnp.log(y.cells) - jnp.log(p.loss)}

    def to_coordinates(self, y, p):
        return jnp.log(y.cells / p.loss)

    def from_coordinates(self, u, p):
        return Cells(jnp.exp(u) * p.loss)


@pytest.mark.thorough
def test_an_odes_parameters_change_at_the_infusion():
    """If it fails, rates, outputs or the solver's coordinates are those of another infusion. Against exponentials."""
    structure, (a, b, c) = Occasions(Grown(), ("loss",), 3), (0.1, 0.3, 0.05)
    times = np.array([1.0, 6.0, 6.5, 12.0, 30.0, 31.0, 40.0])
    with jax.enable_x64(True):
        x = later((6.0, 2e8), (20.0, 0.0), (30.0, 4e8), dose=1e8)
    with jax.enable_x64(True), pytest.raises(ModelError, match="takes 3 infusions, got 4"):
        Occasions(Doses(), ("loss",), 3).curve(times, None, x)
    found = curve(structure, [0.1, 1.0, b / a, c / a], times, x)["level"]
    at6 = 1e8 * np.exp(-a * 6)
    at30 = (at6 + 2e8) * np.exp(-b * 24)
    cells = np.select(
        [times <= 6, times <= 30],
        [1e8 * np.exp(-a * times), (at6 + 2e8) * np.exp(-b * (times - 6))],
        (at30 + 4e8) * np.exp(-c * (times - 30)),
    )
    loss = np.select([times <= 6, times <= 30], [a, b], c)
    np.testing.assert_allclose(found, np.log(cells / loss), atol=1e-9)
    with jax.enable_x64(True):
        one = inputs(jnp.array(1e8), later_day=x.later_day[:, 0], later_dose=x.later_dose[:, 0])
        p = structure.parameters(*map(jnp.asarray, (0.1, 1.0, b / a, c / a)))
        exact = solvers.reference_curve(structure, jnp.asarray(times), p, one)["level"]
    np.testing.assert_allclose(exact, np.log(cells / loss), atol=1e-7)


def test_competition_changes_its_growth_at_the_infusion_as_by_scipy():
    """If it fails, a published ODE goes on with the parameters of the first infusion."""
    base, (values, dose) = STRUCTURES["competition"], typical("competition")
    structure = Occasions(base, base.parameters._fields[:1])
    name, times, second = structure.varying[0], np.array([1.0, 6.0, 10.0, 14.0, 30.0]), 6.0
    with jax.enable_x64(True):
        x = later((second, dose), dose=dose)
        found = curve(structure, values_in(base, values, [name], **{f"{name}_occ2": 1.3}), times, x)["level"]
        single = jax.tree.map(lambda a: a[..., 0], inputs(jnp.array([dose])))
        places = [base.parameters(*map(jnp.asarray, (values | {name: values[name] * f}).values())) for f in (1, 1.3)]

    def run(p, start, days):
        def rate(t, y, middle):
            with jax.enable_x64(True):
                return np.array(
                    [float(r) for r in base.rhs(jnp.asarray(t), base.states(*map(jnp.asarray, y)), p, single)]
                )

        return by_scipy(rate, start, [], days)

    with jax.enable_x64(True):
        begin = [float(s) for s in base.initial(places[0], single)]
        before = run(places[0], begin, np.array([0.0, 1.0, 6.0]))
        y = base.infuse(base.states(*map(jnp.asarray, before[-1])), jnp.asarray(dose), places[1])
        after = run(places[1], [float(s) for s in y], times[2:] - second)
        wanted = [
            float(base.output(base.states(*map(jnp.asarray, s)), places[0])["level"]) for s in [*before[1:], *after]
        ]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    tiered(
        ["expansion_contraction", "four_phases", "effector_memory", "smooth_gates"],
        thorough={"four_phases", "smooth_gates"},
    ),
)
def test_gradients_are_finite(name):
    """If it fails, infusions that never come, or samples at an infusion's time, give NaN to the sampler."""
    base, values = STRUCTURES[name], typical(name)[0]
    structure = Occasions(base, ("tmax", "alpha"), 3)
    with jax.enable_x64(True):
        x = inputs(jnp.nan, later_day=jnp.array([DAY, jnp.inf]), later_dose=jnp.array([1e8, 0.0]))
        start = jnp.log(jnp.asarray(values_in(base, values, structure.varying, n=3)))
        gradient = jax.jit(
            jax.grad(
                lambda ln: structure.curve(
                    jnp.array([0.0, 9.3, DAY, DAY + 9.3, 400.0]), structure.parameters(*jnp.exp(ln)), x
                )["level"].sum()
            )
        )
        own = len(values)
        for k in range(own, len(start)):
            for place in (0.0, -30.0, 8.0):
                found = gradient(start.at[k].set(place))
                assert jnp.isfinite(found).all(), (structure.parameters._fields[k], place)
        found = gradient(start)
        names = structure.parameters._fields
        for v in structure.varying:  # a factor of all infusions is the parameter
            each = sum(float(found[names.index(f)]) for f in factors(v, 3))
            assert each == pytest.approx(float(found[names.index(v)]), rel=1e-9)
            assert found[names.index(f"{v}_occ3")] == 0


def test_equal_structures_share_a_compiled_program():
    """If it fails, every model with occasions is compiled anew, or two models share one program."""
    again = Occasions(STRUCTURES["expansion_contraction"], ("cmax", "tmax"))
    assert again == STEIN
    assert hash(again) == hash(STEIN)
    assert again.parameters is STEIN.parameters
    assert again.states is STEIN.states
    assert Occasions(STRUCTURES["expansion_contraction"], ("cmax",)) != STEIN
    assert Occasions(STRUCTURES["expansion_contraction"], ("cmax", "tmax"), 3) != STEIN
    assert Occasions(STRUCTURES["lag_expansion_contraction"], ("cmax", "tmax")) != STEIN


def test_the_rest_is_the_bases():
    """If it fails, a wrapped structure is solved on another grid, or is refused treatments, regressors or doses."""
    taken = {name: s for name, s in STRUCTURES.items() if s.closed_form or s.repeatable}
    assert len(taken) == len(CLOSED) + len(REPEATABLE) == 13
    for name, base in taken.items():
        v = base.parameters._fields[0]
        wrapped = Occasions(base, (v,), 3)
        for same in ("outputs", "stiff", "uses_dose", "treatable", "regressors", "refine", "closed_form", "falls_by"):
            assert getattr(wrapped, same) == getattr(base, same), (name, same)
        assert wrapped.repeatable
        assert wrapped.max_infusions == 3
        assert base.max_infusions is None
        assert wrapped.parameters._fields == (*base.parameters._fields, f"{v}_occ1", f"{v}_occ2", f"{v}_occ3")
        assert len(wrapped.states._fields) == (3 if base.closed_form else 1) * len(base.states._fields) + 1


class Seen(NamedTuple):
    occasion: Float[Array, "*n"]


class Losses(NamedTuple):
    loss: Float[Array, "*n"]
    loss_occ2: Float[Array, "*n"]


def test_bases_that_cannot_have_occasions_are_refused_with_the_reason():
    """If it fails, a second expansion is invented for equations that do not say what an infusion adds."""
    for name, base in STRUCTURES.items():
        if not (base.closed_form or base.repeatable):
            with pytest.raises(ModelError, match=f"{name} cannot have occasions: it has no closed form"):
                Occasions(base, base.parameters._fields[:1])

    class Two(Doses):
        outputs = ("level", "tumour")

    class Taken(Doses):
        states = Seen

    class Loses(Doses):
        parameters = Losses

    with pytest.raises(ModelError, match="its tumour is no sum"):
        Occasions(Two(), ("loss",))
    with pytest.raises(ModelError, match="doses has occasion already"):
        Occasions(Taken(), ("loss",))
    with pytest.raises(ModelError, match="doses has loss_occ2 already"):
        Occasions(Loses(), ("loss",))
    with pytest.raises(ModelError, match="has occasions already"):
        Occasions(STEIN, ("alpha",))
    with pytest.raises(ModelError, match="belongs inside"):
        InfusionPhase(STEIN)
    for wrong in ((), ("cmaxx",), ("loss", "loss")):
        with pytest.raises(ModelError, match="each named once"):
            Occasions(Doses(), wrong)
    for n in (1, 0, -1, MOST + 1, True):
        with pytest.raises(ModelError, match="occasions; n is the largest number"):
            Occasions(Doses(), ("loss",), n)


def test_later_rows_of_a_kept_structure_are_its_own():
    """If it fails, the base's other infusions are counted twice: in its own curve and as occasions."""
    structure = Occasions(Doses(), ("loss",))
    times = np.array([1.0, 41.0, 60.0])
    with jax.enable_x64(True):
        x = later((DAY, 2e8), dose=1e8)
    found = curve(structure, [0.1, 1.0, 1.0], times, x)["level"]
    plain = curve(Doses(), [0.1], times, x)["level"]
    np.testing.assert_allclose(found, plain, rtol=1e-13)


def test_guesses_are_the_bases():
    """If it fails, the sampler starts anywhere."""
    t, ln = np.array([1.0, 9.0, 20.0]), np.log([10.0, 5000.0, 900.0])
    assert STEIN.guess(t, ln) == STEIN.base.guess(t, ln)
