"""Stiff structures: the papers' equations written again, and what the linearly implicit steps promise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.model_checks import typical_curve
from carkinetics.model_files import load_model
from carkinetics.structure import inputs
from carkinetics.structures import STRUCTURES
from populations import POPULATIONS
from tiers import tiered

TIMES = np.array([0.0, 0.02, 0.5, 2, 5, 9, 14, 21, 28, 60, 120, 240, 365])
SINGH = load_model("singh_2021_idecabtagene")
BY_NAME = {p.label: p for p in POPULATIONS}
STIFF = [p for p in POPULATIONS if p.structure.stiff]
each = pytest.mark.parametrize("population", STIFF, ids=[p.label for p in STIFF])


def solved(population, x, *, times=TIMES, refine=1, factor=(), **changed) -> dict[str, Any]:
    """The natural log of every output of the typical patient, with some parameters changed."""
    with jax.enable_x64(True):
        values = np.concatenate([population.values(**changed), np.reshape(factor, (-1, 1))])
        grid = solvers.make_grid(population.structure, times[:, None], x, refine=refine)
        p, x = as_arguments(population.structure, jnp.asarray(values), x)
        return {k: np.asarray(v)[:, 0] for k, v in solvers.curves(population.structure, grid, p, x).items()}


def singh_by_scipy(dose, times):
    """The supplement's equations in its own states: concentrations in blood and marrow, complexes per L of marrow."""
    kexp, ec50, rm, kel_e, kel_m, k12, k21 = 1.73, 10.0, 2e-5, 113.0, 0.219, 1.71, 0.176
    kkill, kc50, kg, tumour_0, vb, vt = 0.343, 2.24, 0.008, 2.5e9, 5.0, 3.65
    kon, koff = 7.103e4 * 86400 / 6.02214076e23, 2.385e-3 * 86400
    car, taa = 15000.0, 12590.0

    def rhs(t, y):
        e_pb, m_pb, e_t, m_t, cplx, tumour = y
        per_cart, per_tumour = cplx / (e_t + m_t), cplx / tumour
        grow = kexp * per_cart / (ec50 + per_cart)
        kill = kkill * per_tumour / (kc50 + per_tumour)
        return [
            (-k12 * vb * e_pb + k21 * vt * e_t) / vb - kel_e * e_pb,
            (-k12 * vb * m_pb + k21 * vt * m_t) / vb - kel_m * m_pb,
            (k12 * vb * e_pb - k21 * vt * e_t) / vt + grow * e_t - rm * e_t,
            (k12 * vb * m_pb - k21 * vt * m_t) / vt + rm * e_t,
            kon * ((e_t + m_t) * car - cplx) * (tumour * taa - cplx) - koff * cplx,
            kg * tumour - kill * tumour,
        ]

    start = [dose / vb, 0.0, 1e-6, 0.0, 0.0, tumour_0]  # the code's guard against 0 / 0
    run = solve_ivp(rhs, (0, times[-1]), start, t_eval=times, method="LSODA", rtol=1e-9, atol=1e-7)
    assert run.success
    return np.log(0.002 * (run.y[0] + run.y[1])), np.log(run.y[5]), np.log(0.002 * (run.y[2] + run.y[3]))


def test_singh_is_the_supplements_equations():
    """If it fails, complexes per tumour cell as a state are another model than complexes per L, or a unit is wrong."""
    level, tumour, marrow = singh_by_scipy(450e6, TIMES)
    for output, expected in (("level", level), ("tumour", tumour)):
        np.testing.assert_allclose(typical_curve(SINGH, TIMES, output), expected, atol=2e-3)
    found = typical_curve(SINGH, TIMES, "level_bm")
    np.testing.assert_allclose(found[1:], marrow[1:], atol=2e-3)  # at day 0: their guard, our none


@pytest.mark.thorough
def test_a_tumours_burden_moves_singhs_peak_and_the_dose_does_not():
    """If it fails, the central finding of the paper is lost: 16 times the dose, nearly the same peak."""
    population = BY_NAME["singh_2021_idecabtagene"]
    times = np.append(0.0, np.linspace(1.0, 60.0, 60))

    def peak(dose, burden):
        return solved(population, population.inputs(dose=dose), times=times, b0=burden)["level"][1:].max()

    assert abs(peak(800e6, 2.5e9) - peak(50e6, 2.5e9)) < np.log(1.2)
    assert peak(450e6, 1.25e10) - peak(450e6, 5e8) > np.log(1000)


def test_without_antigen_singhs_cells_follow_the_linear_exchange():
    """If it fails, cells grow without antigen, or are lost or found between blood and marrow."""
    population = BY_NAME["singh_2021_idecabtagene"]
    times = np.array([0.0, 0.01, 0.1, 1.0, 10.0, 50.0])
    found = solved(population, population.inputs(), times=times, b0=1e-30, rm=1e-30)
    generator = np.array([[-1.71 - 113.0, 0.176], [1.71, -0.176]])
    rate, vector = np.linalg.eig(generator)
    cells = (vector * np.linalg.solve(vector, [450e6, 0.0])) @ np.exp(rate[:, None] * times)
    np.testing.assert_allclose(found["level"], np.log(0.002 * cells[0] / 5), atol=1e-4)
    np.testing.assert_allclose(found["level_bm"][1:], np.log(0.002 * cells[1, 1:] / 3.65), atol=1e-4)


PATIENTS = {  # Table S2 and the captions: rE, dE, aE, KBC, P_IL6, P_IL10, P_IFNg (pg/uL), baselines, B0, dose (1e9)
    "upn1": (16.16, 23.04, 2.4e-2, 0.19, 1.8e-3, 0.7e-3, 0.3e-3, (1.7, 4.5, 2.3), 4.14, 1.1),
    "upn3": (14.40, 1.44, 0.12, 2.21, 0.6e-2, 1.7e-2, 0.6e-2, (1.0, 0.5, 1.7), 0.93, 0.014),
}
SHARE = ((0.0, 0.1), (1.0, 0.3), (2.0, 0.6))


def hardiansyah_by_scipy(patient, times, share=SHARE, *, r_and_d=True):
    """Eqs. 1 to 9 in the paper's states and units, infusion by infusion; Eq. 7 with the effectors that Eq. 5 loses."""
    r_e, d_e, a_e, k_bc, p_6, p_10, p_g, base, b_0, dose = PATIENTS[patient]
    r_m, d_m, a_m, k_in, k_out, h, r_b, d_b = 5.09e-2, 0.408, 1.0, 76.78, 1.84, 1e5, 9.30e-3, 7.60e-3
    if not r_and_d:
        r_e = d_e = r_m = d_m = 0.0

    def rhs(t, y):
        b, il6, il10, ifng, e_pb, e_t, m_pb, m_t = y
        f = b / (b + h)
        made = 1e9 * b * 1e9 * e_pb / 1e15 * 1e3  # per 1e15 cells squared; pg/uL in pg/mL
        inhibited = 0.59 + (1 - 0.59) * 650 / (il10 + 650)
        return [
            r_b * b - d_b * b - k_bc * e_pb * b,
            3.96 * base[0] + p_6 * made - 3.96 * il6,
            4.68 * base[1] + p_10 * made - 4.68 * il10,
            1.51 * base[2] + p_g * made * inhibited - 1.51 * ifng,
            r_e * e_pb * b - d_e * e_pb - k_in * e_pb + k_out * e_t - a_e * e_pb * (1 - f) + a_m * m_pb * f,
            k_in * e_pb - k_out * e_t,
            r_m * m_pb - d_m * m_pb - k_in * m_pb + k_out * m_t + a_e * e_pb * (1 - f) - a_m * m_pb * f,
            k_in * m_pb - k_out * m_t,
        ]

    y, found = np.array([b_0, *base, 0.0, 0.0, 0.0, 0.0]), []
    for i, (day, part) in enumerate(share):
        y[4] += part * dose
        until = share[i + 1][0] if i + 1 < len(share) else times[-1]
        wanted = times[(times >= day) & (times < until)] if i + 1 < len(share) else times[times >= day]
        run = solve_ivp(
            rhs, (day, until), y, t_eval=np.unique(np.append(wanted, until)), method="LSODA", rtol=1e-9, atol=1e-13
        )
        assert run.success
        found.append(run.y[:, : len(wanted)])
        y = run.y[:, -1].copy()
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("patient", tiered(PATIENTS, thorough={"upn1"}))
def test_hardiansyah_is_the_papers_equations_with_its_three_infusions(patient):
    """If it fails, an equation, a unit of the cytokines' production or a later infusion is wrong."""
    population = BY_NAME[f"hardiansyah_2019_{patient}"]
    dose = 1e9 * PATIENTS[patient][-1]
    times = np.array([0.0, 0.5, 1.5, 2.5, 3.5, 5, 9, 14, 20, 28, 60, 150, 350])
    b, il6, il10, ifng, e, _, m, _ = hardiansyah_by_scipy(patient, times)
    days, doses = np.array([[1.0], [2.0]]), np.array([[0.3 * dose], [0.6 * dose]])
    with jax.enable_x64(True):
        x = inputs(jnp.array([0.1 * dose]), later_day=jnp.asarray(days), later_dose=jnp.asarray(doses))
    found = solved(population, x, times=times)
    expected = {"level": e + m, "memory": m, "tumour": b, "il6": il6, "il10": il10, "ifng": ifng}
    assert set(found) == set(expected)
    for output, values in expected.items():
        late = slice(1, None) if output == "memory" else slice(None)  # none at the infusion
        np.testing.assert_allclose(found[output][late], np.log(values[late]), atol=2e-3, err_msg=output)


def test_cells_are_only_moved_where_nothing_grows_or_dies():
    """If it fails, conversion or exchange makes or loses cells: the misprint of Eq. 7 is back."""
    structure = STRUCTURES["cytokines"]
    population = BY_NAME["hardiansyah_2019_upn1"]
    with jax.enable_x64(True):
        values = population.values(r_e=0.0, d_e=0.0, r_m=0.0, d_m=0.0, h=1.0)
        p, x = as_arguments(structure, jnp.asarray(values), population.inputs())
        y = structure.states(*(jnp.array([v]) for v in (1.0, 0.5, 30.0, 9.0, 2.0, 5.0, 5.0, 5.0)))
        rate = structure.rhs(jnp.array(1.0), y, p, x)
    moved = np.array([rate.effector, rate.memory, rate.effector_tissue, rate.memory_tissue])
    assert np.abs(moved.sum()) < 1e-12 * np.abs(moved).max()
    assert np.abs(rate.memory + rate.memory_tissue).max() > 0.1  # the conversion is not idle


def test_without_cells_cytokines_stay_at_their_baseline_and_b_cells_grow():
    """If it fails, cytokines come from nowhere."""
    population = BY_NAME["hardiansyah_2019_upn1"]
    found = solved(population, population.inputs(dose=0.0))
    for output, base in (("il6", 1.7), ("il10", 4.5), ("ifng", 2.3)):
        np.testing.assert_allclose(found[output], np.log(base), atol=1e-9)
    np.testing.assert_allclose(found["tumour"], np.log(4.14) + 0.0017 * TIMES, atol=1e-9)


def test_cytokine_release_has_the_cells_of_effector_memory_antigen():
    """If it fails, adding cytokines has changed the cells."""
    release, cells = BY_NAME["cytokine_release"], BY_NAME["effector_memory_antigen"]
    found = solved(release, release.inputs(), refine=4)
    expected = solved(cells, cells.inputs(), refine=4)
    for output in ("level", "antigen"):
        np.testing.assert_allclose(found[output], expected[output], atol=2e-4)


def test_fast_cytokines_follow_their_production():
    """If it fails, production is not what antigen and effectors do together, or loss is not first order.

    At a loss rate far above all others a cytokine is its baseline plus production over loss.
    """
    population = BY_NAME["cytokine_release"]
    times = np.array([0.0, 2.0, 4.0, 6.0, 8.0])
    changed = {"d_il6": 1e5, "p_il6": 3e4, "alpha": 1e-9, "conv": 1e-12}
    found = solved(population, population.inputs(), times=times, refine=4, **changed)
    antigen, effector = np.exp(found["antigen"]), np.exp(found["level"])  # conv is nil: no memory
    expected = 2.0 + 0.3 * effector * antigen / (1 + antigen)
    np.testing.assert_allclose(np.exp(found["il6"][1:]), expected[1:], rtol=1e-3)
    assert expected[-1] > 10 * expected[1]


@pytest.mark.thorough
def test_a_treatment_that_slows_growth_lowers_the_cytokines():
    """If it fails, a treatment on growth does not reach what the cells make."""
    population = BY_NAME["cytokine_release"]
    with jax.enable_x64(True):
        never, early = jnp.array([[jnp.inf]]), jnp.array([[3.0]])
    peaks = []
    for since in (never, early):
        x = inputs(population.inputs().dose, since=since, factor=jnp.zeros_like(since))
        peaks.append(solved(population, x, factor=[0.5], times=np.linspace(0.0, 10.0, 21))["il6"].max())
    assert peaks[1] < peaks[0] - 1.0


@each
def test_refine_divides_the_steps_of_a_stiff_structure(population):
    """If it fails, ``Settings(refine=2)`` does nothing for a stiff model, or fast transients are stepped over."""
    with jax.enable_x64(True):
        x = population.inputs()
        grids = [solvers.make_grid(population.structure, TIMES[:, None], x, refine=r) for r in (1, 2)]
    coarse, fine = (np.asarray(g.ends)[:, 0] for g in grids)
    assert len(fine) > 1.7 * len(coarse)
    assert np.diff(coarse)[0] <= 0.0025 + 1e-12
    assert np.diff(fine).max() <= np.diff(coarse).max()


@pytest.mark.thorough
@pytest.mark.parametrize("label", ["singh_2021_idecabtagene", "cytokine_release", "sites_exchange"])
def test_errors_fall_with_the_steps(label):
    """If it fails, the method is not of the order that its coefficients promise: one of them is mistyped."""
    population = BY_NAME[label]
    exact = solved(population, population.inputs(), refine=8)
    coarse, fine = (solved(population, population.inputs(), refine=r) for r in (1, 2))
    error = [max(np.abs(found[k] - exact[k]).max() for k in exact) for found in (coarse, fine)]
    assert error[1] < error[0] / 10
    assert error[0] < 2e-3


def test_short_steps_follow_every_infusion():
    """If it fails, what a later infusion disturbs is stepped over."""
    with jax.enable_x64(True):
        x = inputs(jnp.array([1e8]), later_day=jnp.array([[7.3]]), later_dose=jnp.array([[1e8]]))
        ends = np.asarray(solvers.make_grid(STRUCTURES["car_binding"], np.array([[0.0], [60.0]]), x).ends)[:, 0]
    after = ends[ends > 7.3][0] - 7.3
    assert 0 < after <= 0.0025 + 1e-12
    assert 7.3 in ends


@pytest.mark.thorough
@each
def test_gradients_equal_finite_differences_in_both_directions(population):
    """If it fails, the sampler's (reverse) or the start's (forward) derivative is not that of what is computed."""
    times = np.array([0.0, 1.0, 5.0, 12.0, 30.0])
    with jax.enable_x64(True):
        values, x = jnp.asarray(population.values(1, seed=4)), population.inputs()
        grid = solvers.make_grid(population.structure, times[:, None], x)

        @jax.jit
        def total(ln_scale):
            p, of = as_arguments(population.structure, values * jnp.exp(ln_scale)[:, None], x)
            return sum(v[1:].sum() for v in solvers.curves(population.structure, grid, p, of).values())

        at = jnp.zeros(len(values))
        gradient = np.asarray(jax.jit(jax.grad(total))(at))
        basis = np.random.default_rng(1).standard_normal((4, len(values)))
        forward = jax.jit(lambda v: jax.jvp(total, (at,), (v,))[1])
        for direction in basis:
            step = 1e-5 * direction
            difference = float(total(step) - total(-step)) / 2e-5
            assert float(gradient @ direction) == pytest.approx(difference, rel=1e-4, abs=1e-4)
            assert float(forward(jnp.asarray(direction))) == pytest.approx(float(gradient @ direction), rel=1e-8)
    assert np.isfinite(gradient).all()
