"""A structure with an infusion phase is its base plus a falling exponential, after each dose, however it is solved."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jaxtyping import Array, Float

from carkinetics import solvers
from carkinetics.density import as_arguments, compiled_ln_curves
from carkinetics.errors import ModelError
from carkinetics.model_files import load_model
from carkinetics.structure import AbstractStructure, inputs
from carkinetics.structures import STRUCTURES
from carkinetics.structures.infusion_phase import InfusionPhase
from one_patient import by_scipy, typical
from test_expansion_contraction import TYPICAL

STEIN = InfusionPhase(STRUCTURES["expansion_contraction"])
TIMES = np.array([0.0, 0.02, 0.5, 1.0, 2.0, 3.0, 7.0, 14.0, 28.0, 168.0])


def curve(structure, values, times=TIMES, x=None, *, refine=solvers.ACCURATE):
    """ln of every output of one patient, as a fit computes it."""
    with jax.enable_x64(True):
        x = inputs(jnp.array([jnp.nan])) if x is None else x
        grid = solvers.make_grid(structure, times[:, None], x, refine=refine)
        p, x = as_arguments(structure, jnp.asarray(list(values), float)[:, None], x)
        return {k: np.asarray(v)[:, 0] for k, v in solvers.curves(structure, grid, p, x).items()}


def stein(**phase):
    return curve(STEIN, [*TYPICAL.values(), *phase.values()])["level"]


class Cells(NamedTuple):
    cells: Float[Array, "*n"]


class Loss(NamedTuple):
    loss: Float[Array, "*n"]


class Doses(AbstractStructure[Loss, Cells]):
    """Cells are infused and lost, in closed form: ``sum_k dose_k exp(-loss (t - t_k))``."""

    name = "doses"
    parameters, states, outputs = Loss, Cells, ("level",)
    uses_dose = True

    def curve(self, t, p, x):
        cells = x.dose * jnp.exp(-p.loss * t)
        for day, dose in zip(x.later_day, x.later_dose, strict=True):
            cells = cells + jnp.where(t > day, dose * jnp.exp(-p.loss * jnp.maximum(t - day, 0.0)), 0.0)
        return {"level": jnp.log(cells)}

    def initial(self, p, x):
        return Cells(x.dose + 0 * p.loss)

    def rhs(self, t, y, p, x):
        return Cells(-p.loss * y.cells)

    def output(self, y, p):
        return {"level": jnp.log(y.cells)}

    def infuse(self, y, dose, p):
        return Cells(y.cells + dose)


def test_the_closed_form_agrees_with_fifty_digits():
    """If it fails, what falls is not c0 exp(-kd t), or digits are lost where one of the two parts is tiny."""
    for c0, kd in [(300.0, 4.0), (1e9, 0.3), (1e-6, 40.0)]:
        found = stein(c0=c0, kd=kd)
        with mpmath.workdps(50):
            v = {k: mpmath.mpf(float(x)) for k, x in TYPICAL.items()}
            for t, ln in zip(map(mpmath.mpf, TIMES.tolist()), found, strict=True):
                s = t - v["tmax"]
                rise = v["cmax"] * v["foldx"] ** (s / v["tmax"])
                fall = v["cmax"] * ((1 - v["fb"]) * mpmath.exp(-v["alpha"] * s) + v["fb"] * mpmath.exp(-v["beta"] * s))
                exact = mpmath.log((rise if s < 0 else fall) + mpmath.mpf(c0) * mpmath.exp(-mpmath.mpf(kd) * t))
                assert abs(ln - float(exact)) <= 1e-12 * max(1, abs(float(exact)))


def test_limits():
    """If it fails, an infusion that is not seen changes the curve, or day 0 is not the base and c0."""
    base = curve(STEIN.base, TYPICAL.values())["level"]
    np.testing.assert_allclose(stein(c0=1e-300, kd=4.0), base, rtol=1e-14)
    np.testing.assert_allclose(np.exp(stein(c0=300.0, kd=4.0)[0]), np.exp(base[0]) + 300.0, rtol=1e-13)
    np.testing.assert_allclose(np.exp(stein(c0=300.0, kd=1e-300)), np.exp(base) + 300.0, rtol=1e-13)
    found = stein(c0=300.0, kd=4.0)
    np.testing.assert_allclose(found[TIMES >= 14], base[TIMES >= 14], rtol=1e-13)
    assert (found[TIMES <= 1] > base[TIMES <= 1] + 0.1).all()


def test_an_ode_falls_as_its_equations_by_scipy_do():
    """If it fails, the solver steps over the first hours, or the phase enters the equations of the cells."""
    values = typical("saturable_growth")
    c0, kd = 3000.0, 4.0

    def rate(t, y, middle):
        e, m = y
        if middle < values["tlag"]:
            growth = 0.0
        elif middle < values["tmax"]:
            growth = values["vmax"] * e / (values["km"] + e)
        else:
            growth = -(values["delta_e"] + values["r"]) * e
        return [growth, values["r"] * e - values["delta_m"] * m]

    states = by_scipy(rate, [values["e0"], 0.0], [values["tlag"], values["tmax"]], TIMES)
    wanted = np.log(states.sum(axis=1) + c0 * np.exp(-kd * TIMES))
    wrapped = InfusionPhase(STRUCTURES["saturable_growth"])
    assert not wrapped.closed_form
    np.testing.assert_allclose(curve(wrapped, [*values.values(), c0, kd])["level"], wanted, atol=1e-5)
    np.testing.assert_allclose(curve(wrapped, [*values.values(), c0, kd], refine=1)["level"], wanted, atol=2e-3)


@pytest.mark.parametrize("base", [Doses(), STRUCTURES["competition"]], ids=["closed form", "ODE"])
def test_every_infusion_falls_in_proportion_to_its_dose(base):
    """If it fails, a split dose or a second infusion is seen as large as the first, too early, or not at all."""
    kimmel = [p.value for p in load_model("kimmel_2021_axicabtagene").parameters]
    values = kimmel if base.name == "competition" else [0.1]
    c0, kd, reference = 300.0, 3.0, 2e8
    times = np.array([0.0, 0.3, 1.0, 2.0, 6.0, 6.1, 6.5, 7.0, 10.0])
    with jax.enable_x64(True):
        later = {"later_day": jnp.array([[1.0], [6.0], [jnp.inf]]), "later_dose": jnp.array([[6e8], [1e8], [0.0]])}
        x = inputs(jnp.array([1e8]), **later)
    plain = curve(base, values, times, x)
    found = curve(InfusionPhase(base, reference), [*values, c0, kd], times, x)
    infused = np.zeros(len(times))
    for day, dose in [(0.0, 1e8), (1.0, 6e8), (6.0, 1e8)]:
        there = (times > day) | (day == 0)  # a sample at the time of a further infusion is drawn before it
        infused += np.where(there, dose / reference * np.exp(-kd * np.clip(times - day, 0, None)), 0.0)
    np.testing.assert_allclose(np.exp(found["level"]), np.exp(plain["level"]) + c0 * infused, rtol=1e-9)
    for other in base.outputs[1:]:
        np.testing.assert_allclose(found[other], plain[other], rtol=1e-9)


@pytest.mark.thorough
def test_the_closed_form_of_several_infusions_is_its_ode():
    """If it fails, a solver check of such a fit compares two different models."""
    wrapped = InfusionPhase(Doses(), 2e8)
    times = np.array([0.5, 1.0, 2.0, 6.0])
    with jax.enable_x64(True):
        x = inputs(jnp.array(1e8), later_day=jnp.array([1.0]), later_dose=jnp.array([6e8]))
        p = wrapped.parameters(*map(jnp.asarray, (0.1, 3e8, 3.0)))
        exact = solvers.reference_curve(wrapped, jnp.asarray(times), p, x)["level"]
        np.testing.assert_allclose(wrapped.curve(jnp.asarray(times), p, x)["level"], exact, atol=1e-8)


def test_gradients_are_finite_with_infusions_that_never_come():
    """If it fails, patients with fewer infusions than others give NaN to the sampler."""
    wrapped = InfusionPhase(Doses(), 2e8)
    with jax.enable_x64(True):
        x = inputs(jnp.array(1e8), later_day=jnp.array([1.0, jnp.inf]), later_dose=jnp.array([6e8, 0.0]))

        def total(ln_p):
            p = wrapped.parameters(*jnp.exp(ln_p))
            return wrapped.curve(jnp.array([0.0, 1.0, 2.0, 300.0]), p, x)["level"].sum()

        for place in [(-2.0, 20.0, 1.0), (-2.0, -69.0, 1.0), (-2.0, 20.0, 9.0), (-2.0, 20.0, -69.0)]:
            assert jnp.isfinite(jax.grad(total)(jnp.array(place))).all()


def test_equal_bases_share_a_compiled_program():
    """If it fails, every model with an infusion phase is compiled anew, or two models share one program."""
    again = InfusionPhase(STRUCTURES["expansion_contraction"])
    assert again == STEIN
    assert hash(again) == hash(STEIN)
    assert again.parameters is STEIN.parameters
    assert InfusionPhase(STRUCTURES["lag_expansion_contraction"]) != STEIN
    assert InfusionPhase(STRUCTURES["competition"], 1e8) != InfusionPhase(STRUCTURES["competition"], 2e8)
    with jax.enable_x64(True):
        x = inputs(jnp.array([jnp.nan]))
        grid = solvers.make_grid(STEIN, TIMES[:, None], x)
        values = jnp.array([*TYPICAL.values(), 300.0, 4.0])[:, None]
        compiled_ln_curves(STEIN, grid, values, x)
        before = compiled_ln_curves._cache_size()
        compiled_ln_curves(again, grid, values, x)
        assert compiled_ln_curves._cache_size() == before
        compiled_ln_curves(STEIN.base, grid, values[:-2], x)
        assert compiled_ln_curves._cache_size() == before + 1


def test_the_rest_is_the_bases():
    """If it fails, a wrapped structure is solved on another grid, or is refused treatments, regressors or doses."""
    for name, base in STRUCTURES.items():
        if base.falls_by:
            continue
        wrapped = InfusionPhase(base, 1e8 if base.uses_dose else None)
        for same in ("outputs", "stiff", "uses_dose", "treatable", "regressors", "refine", "closed_form", "repeatable"):
            assert getattr(wrapped, same) == getattr(base, same), (name, same)
        assert wrapped.parameters._fields == (*base.parameters._fields, "c0", "kd")
        assert wrapped.states._fields == (*base.states._fields, "infused")


def test_structures_that_fall_early_are_refused_with_the_reason():
    """If it fails, two terms of a model describe the same samples, and neither is known."""
    fall = {name for name, s in STRUCTURES.items() if s.falls_by}
    assert fall == {"four_phases", "sites_exchange", "exhaustion", "car_binding", "cytokines"}
    for name in fall:
        with pytest.raises(ModelError, match=f"{name} needs no infusion phase: its level falls early by "):
            InfusionPhase(STRUCTURES[name], 1e8 if STRUCTURES[name].uses_dose else None)
    with pytest.raises(ModelError, match="the infusion phase that it has"):
        InfusionPhase(STEIN)


class Rates(NamedTuple):
    kd: Float[Array, "*n"]


def test_a_base_that_does_not_fit_is_refused():
    """If it fails, one parameter is two, or c0 belongs to no dose."""

    class Taken(Doses):
        parameters = Rates
        uses_dose = False

    with pytest.raises(ModelError, match="doses has kd already"):
        InfusionPhase(Taken())
    for dose in (None, 0.0, float("nan")):
        with pytest.raises(ModelError, match="needs the typical_dose"):
            InfusionPhase(Doses(), dose)
    with pytest.raises(ModelError, match="does not use the dose"):
        InfusionPhase(STRUCTURES["expansion_contraction"], 1e8)


def samples(c0, kd, cmax, days):
    """Noise-free quantified samples (above 10) of a patient."""
    values = [*(TYPICAL | {"cmax": cmax}).values(), c0, kd]
    t = np.array(days, float)
    ln = curve(STEIN, values, t)["level"]
    return t[ln > np.log(10)], ln[ln > np.log(10)]


def test_guesses_come_from_the_side_that_shows_them():
    """If it fails, the sampler starts with the infusion for a peak, or with a fall that the samples do not have."""
    found = STEIN.guess(*samples(3000.0, 3.0, 24000.0, [0.05, 0.4, 1, 2, 4, 7, 9.3, 14, 21, 60]))
    assert found["c0"] == pytest.approx(3000, rel=0.05)
    assert found["kd"] == pytest.approx(3.0, rel=0.05)
    assert found["cmax"] == pytest.approx(24000, rel=0.01)
    assert found["tmax"] == 9.3
    # The infusion is seen higher than the peak of a patient in whom little grows.
    poor = STEIN.guess(*samples(3000.0, 3.0, 100.0, [0.05, 0.4, 9.3, 14]))
    assert poor["cmax"] == pytest.approx(100, rel=0.01)
    alone = STEIN.guess(*samples(3000.0, 3.0, 1e-9, [0.05, 4, 9.3]))
    assert set(alone) == {"c0"}
    assert alone["c0"] == pytest.approx(3000, rel=0.06)
    late = samples(3000.0, 3.0, 24000.0, [4, 7, 9.3, 14])
    assert STEIN.guess(*late) == STEIN.base.guess(*late)
    rising = STEIN.guess(np.array([0.1, 0.9, 9.0]), np.log([20.0, 40.0, 900.0]))  # no fall to tell a rate from
    assert "kd" not in rising
