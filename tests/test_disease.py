"""Phenotypes and disease: each paper's equations written again in its own notation, limits, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.model_checks import typical_curve
from carkinetics.model_files import load_model
from carkinetics.structure import inputs
from carkinetics.structures import STRUCTURES
from populations import EXAMPLES

MUELLER_SCHOELL, KIMMEL, LIU = (
    load_model(name) for name in ("mueller_schoell_2021_axicabtagene", "kimmel_2021_axicabtagene", "liu_2022_ball")
)
PHENOTYPES = ("naive", "central_memory", "effector_memory", "effector")
NONE = 1e-30
# Mueller-Schoell's Table S1: baseline volume (mL), transplant, CD4/CD8 on day 7, low expansion.
TABLE_S1 = np.array(
    [
        *((894, 0, 8.94, 0), (102, 0, 0.357, 0), (13.0, 1, 0.126, 0), (264, 0, 4.01, 1), (14.2, 1, 1.34, 0)),
        *((70.5, 1, 0.364, 0), (13.1, 1, 3.56, 0), (142, 0, 0.405, 0), (1118, 0, 0.413, 1), (305, 0, 0.549, 1)),
        *((479, 0, 0.223, 0), (2.54, 1, 0.0512, 0), (34.2, 0, 4.53, 0), (85.7, 1, 0.130, 0), (64.1, 0, 0.0845, 0)),
        *((663, 0, 0.764, 0), (3555, 1, 0.0866, 1), (20.0, 0, 0.182, 0), (32.5, 0, 0.126, 0)),
    ]
).T


def solve(structure, values, times, *, dose=np.nan, refine=solvers.ACCURATE, later=()):
    """Every output's natural log, ``(time, patient)``, by the fit's solver; any of ``values`` may be an array.

    ``later``: the day and dose of a further infusion.
    """
    shape = np.broadcast_shapes(*(np.shape(v) for v in values.values()), np.shape(dose), (1,))
    rows = [jnp.full(shape, 1.0) * jnp.asarray(values[name]) for name in structure.parameters._fields]
    with jax.enable_x64(True):
        further = {k: jnp.full((1, *shape), v) for k, v in zip(("later_day", "later_dose"), later, strict=False)}
        x = inputs(jnp.full(shape, dose), **further)
        grid = solvers.make_grid(structure, np.repeat(np.asarray(times, float)[:, None], shape[0], 1), x, refine=refine)
        p, x = as_arguments(structure, jnp.stack([jnp.asarray(r, float) for r in rows]), x)
        return {name: np.asarray(ln) for name, ln in solvers.curves(structure, grid, p, x).items()}


def typical(model, **changed):
    """A model's typical values by name, some of them changed."""
    return {p.name: p.value for p in model.parameters} | changed


def example(name, **changed):
    return {k: value for k, (value, _) in EXAMPLES[name].items()} | changed


def by_scipy(rhs, start, times):
    run = solve_ivp(rhs, (0, times[-1]), start, t_eval=times, method="LSODA", rtol=1e-11, atol=1e-13)
    assert run.success, run.message
    return run.y


def mueller_schoell(t, y, v1, v52=4.04):
    """Equations 5 to 9 with the paper's numbers."""
    tn, tcm, tem, teff, b = y
    km1, k12, k23, k34, ke, ke4 = 1.13, 0.140, 0.191, 0.355, 0.0104, 0.518
    return [
        v1 * b * tn / (km1 + tn) + 0.0005 * tn - k12 * tn - ke * tn,
        v1 * b * tcm / (km1 + tcm) + 0.007 * tcm + k12 * tn - k23 * tcm - ke * tcm,
        v1 * b * tem / (km1 + tem) + 0.007 * tem + k23 * tcm - k34 * tem - ke * tem,
        k34 * tem - ke4 * teff,
        0.0023 * (1 - b / 5000) * b - (2.57 * tn + v52 * tcm + 3.78 * tem + 4.24 * teff) * b / (276 + b),
    ]


def patients_of_table_s1():
    """What Equations 10 and 11 make of Table S1: vmax1, baseline volume, and who is of the low class."""
    mtv, asct, ratio, low = TABLE_S1
    transplant, cd4cd8, volume = (
        next(c for c in MUELLER_SCHOELL.covariates if c.column == column) for column in ("ASCT", "CD4CD8", "MTV")
    )
    mixture = MUELLER_SCHOELL.mixture
    assert mixture is not None
    reference = MUELLER_SCHOELL["vmax1"].value * np.exp(cd4cd8.value * cd4cd8.design(ratio)[0])
    vmax1 = np.where(low == 1, mixture.value, reference) * (1 + transplant.value * transplant.design(asct)[0])
    return vmax1, MUELLER_SCHOELL["b0"].value * np.exp(volume.value * volume.design(mtv)[0]), low == 1


@pytest.mark.thorough
def test_the_ladder_is_the_papers_equations_for_all_its_patients():
    """If it fails, a rate stands on the wrong rung, or a large tumour's first days are stepped too coarsely."""
    vmax1, b0, _ = patients_of_table_s1()
    np.testing.assert_allclose(b0, TABLE_S1[0], rtol=1e-12)
    times = np.array([0, 1, 3, 7, 14, 21, 28, 60.0])
    ours = solve(STRUCTURES["phenotype_ladder"], typical(MUELLER_SCHOELL, vmax1=vmax1, b0=b0), times)
    coarse = solve(STRUCTURES["phenotype_ladder"], typical(MUELLER_SCHOELL, vmax1=vmax1, b0=b0), times, refine=1)
    for i in range(len(b0)):
        paper = by_scipy(lambda t, y, i=i: mueller_schoell(t, y, vmax1[i]), [0.1] * 4 + [b0[i]], times)
        for name, expected in zip((*PHENOTYPES, "tumour"), paper, strict=True):
            seen = expected > 1e-9  # scipy steps levels, and ends a tumour somewhere below
            np.testing.assert_allclose(np.exp(ours[name][seen, i]), expected[seen], rtol=2e-4)
        np.testing.assert_allclose(np.exp(ours["level"][:, i]), paper[:4].sum(0), rtol=1e-4)
        np.testing.assert_allclose(np.exp(coarse["level"][:, i]), paper[:4].sum(0), rtol=5e-3)


@pytest.mark.thorough
def test_the_reference_class_has_its_published_medians():
    """If it fails, covariates or the tumour act otherwise than in Mueller-Schoell's predictions (Table S2)."""
    vmax1, b0, low = patients_of_table_s1()
    times = np.linspace(0, 28, 1121)
    ln = solve(STRUCTURES["phenotype_ladder"], typical(MUELLER_SCHOELL, vmax1=vmax1, b0=b0), times)["level"]
    cmax, tmax = np.exp(ln.max(0)), times[ln.argmax(0)]
    assert np.median(cmax[~low]) == pytest.approx(13.8, rel=0.1)
    assert np.median(tmax[~low]) == pytest.approx(12.0, rel=0.05)
    assert np.median(tmax[low]) == pytest.approx(23.5, rel=0.1)
    assert low.sum() == 4
    assert np.median(cmax[low]) < np.median(cmax[~low]) / 1.8


def test_ten_times_the_imputed_cells_change_the_time_of_the_peak_alone():
    """If it fails, the imputed start decides the height of the peak, which the paper rules out (figure S5)."""
    times = np.linspace(0, 40, 801)
    values = typical(MUELLER_SCHOELL, t0=np.array([0.01, 0.1, 1.0]), vmax1=0.012576, b0=102.0)
    ln = solve(STRUCTURES["phenotype_ladder"], values, times)["level"]
    peaks = np.exp(ln.max(0))
    np.testing.assert_allclose(peaks, peaks[1], rtol=0.08)
    assert (np.diff(times[ln.argmax(0)]) < -2).all()


def test_without_tumour_cells_only_run_down_the_ladder():
    """If it fails, cells expand without antigen, or what leaves a rung does not arrive at the next."""
    times = np.array([0, 2, 7, 14, 28, 60.0])
    ours = solve(STRUCTURES["phenotype_ladder"], typical(MUELLER_SCHOELL, b0=NONE), times)
    down = np.diag([0.0005 - 0.140 - 0.0104, 0.007 - 0.191 - 0.0104, 0.007 - 0.355 - 0.0104, -0.518])
    down += np.diag([0.140, 0.191, 0.355], -1)
    expected = np.stack([expm(down * t) @ np.full(4, 0.1) for t in times])
    for name, level in zip(PHENOTYPES, expected.T, strict=True):
        np.testing.assert_allclose(np.exp(ours[name][:, 0]), level, rtol=1e-4)
    lossless = typical(MUELLER_SCHOELL, b0=NONE, ke=NONE, ke4=NONE, kp_naive=NONE, kp_memory=NONE)
    kept = solve(STRUCTURES["phenotype_ladder"], lossless, times)["level"]
    np.testing.assert_allclose(np.exp(kept[:, 0]), 0.4, rtol=1e-4)


def two_lineages(t, y, p):
    """The ladder for CD4 and CD8 cells in one vector: (TN, TCM, TEM, TEff) of CD4, of CD8, and the tumour."""
    four, eight, b = np.array(y[:4]), np.array(y[4:8]), y[8]
    kp = np.array([p["kp_naive"], p["kp_memory"], p["kp_memory"]])
    leave = np.array([p["k12"], p["k23"], p["k34"]])
    rates = []
    for own, v in ((four, p["vmax1"] / p["ratio"]), (eight, p["vmax1"])):
        rate = np.zeros(4)
        rate[:3] = (v * b / (p["km1"] + four[:3] + eight[:3]) + kp - leave - p["ke"]) * own[:3]
        rate[1:] += leave * own[:3]
        rate[3] -= p["ke4"] * own[3]
        rates.extend(rate)
    kill = np.array([p[f"vmax5_{i}"] for i in range(1, 5)]) @ (four + eight)
    return [*rates, p["k5"] * (1 - b / p["k0"]) * b - kill * b / (p["km5"] + b)]


def test_two_lineages_are_the_written_equations():
    """If it fails, a lineage is fed by the other's cells, or kills without being counted."""
    p = example("phenotype_ladder_cd4_cd8", ratio=1.6)
    times = np.array([0, 3, 7, 14, 28.0])
    start = np.repeat([p["cd4_share"], 1 - p["cd4_share"]], 4) * p["t0"]
    paper = by_scipy(lambda t, y: two_lineages(t, y, p), [*start, p["b0"]], times)
    ours = {k: np.exp(v[:, 0]) for k, v in solve(STRUCTURES["phenotype_ladder_cd4_cd8"], p, times).items()}
    np.testing.assert_allclose(ours["cd4"], paper[:4].sum(0), rtol=1e-4)
    np.testing.assert_allclose(ours["cd8"], paper[4:8].sum(0), rtol=1e-4)
    np.testing.assert_allclose(ours["level"], paper[:8].sum(0), rtol=1e-4)
    for i, name in enumerate(PHENOTYPES):
        np.testing.assert_allclose(ours[name], paper[i] + paper[i + 4], rtol=1e-4)
    np.testing.assert_allclose(ours["tumour"], paper[8], rtol=1e-4)


def test_lineages_that_expand_alike_are_the_ladder():
    """If it fails, splitting the cells in two changes their sum, or a lineage gains where none is faster."""
    times = np.array([0, 3, 7, 14, 28, 60.0])
    alike = example("phenotype_ladder_cd4_cd8", ratio=1.0)
    two = solve(STRUCTURES["phenotype_ladder_cd4_cd8"], alike, times)
    one = solve(STRUCTURES["phenotype_ladder"], alike, times)
    for name, ln in one.items():
        np.testing.assert_allclose(two[name], ln, atol=1e-6)
    np.testing.assert_allclose(np.exp(two["cd4"] - two["level"]), alike["cd4_share"], rtol=1e-6)
    faster = solve(STRUCTURES["phenotype_ladder_cd4_cd8"], alike | {"ratio": 1.12}, times)
    assert (np.diff(np.exp(faster["cd8"] - faster["level"])[:4, 0]) > 1e-4).all()
    idle = solve(STRUCTURES["phenotype_ladder_cd4_cd8"], alike | {"ratio": 1.12, "b0": NONE}, times)
    np.testing.assert_allclose(np.exp(idle["cd4"] - idle["level"]), alike["cd4_share"], rtol=1e-6)


def kimmel(t, y):
    """Equations 2.1 to 2.3 in Table 1's cells of the whole body, with figure 2b's growth rate."""
    n, c, b = y
    kn, kc, total = 2.50e11, 6.96e10, n + c
    rc = 0.0251 + 0.525 * (total - kn) ** 2 / (0.423 * total**2 + (total - kn) ** 2)
    killed = 1.15 * c / (2.024e9 + c)
    return [-0.170 * n * np.log(total / kn), -rc * c * np.log(total / kc), (0.01 - killed) * b]


def test_competition_is_the_papers_in_its_own_cells():
    """If it fails, the file's cells/uL and mL are not the paper's cells, or a rate has the wrong sign."""
    times = np.array([0, 2, 5, 7, 10, 14, 28, 60, 90.0])
    n, c, b = by_scipy(kimmel, [3.00e9, 1.80e8, 9.486e10], times)
    unrounded = KIMMEL.with_values({"kc": 6.96e10 / 5e8, "kb": 2.024e9 / 5e8})
    for output, cells, unit in (("level", c, 5e8), ("normal", n, 5e8), ("tumour", b, 1e9)):
        seen = cells > 1e3  # scipy steps cells: fewer are its rounding
        ours = np.exp(typical_curve(unrounded, times, output))
        np.testing.assert_allclose(ours[seen], cells[seen] / unit, rtol=2e-4)
        file = np.exp(typical_curve(KIMMEL, times, output))
        np.testing.assert_allclose(file[seen][:4], cells[seen][:4] / unit, rtol=0.02)


def test_alone_in_the_niche_normal_cells_follow_gompertz():
    """If it fails, normal T cells feel CAR-T cells that were never infused, or the tumour feels normal T cells."""
    times = np.array([0, 5, 10, 30, 100.0])
    found = solve(STRUCTURES["competition"], typical(KIMMEL), times, dose=0.0)
    expected = np.log(500) + np.log(6 / 500) * np.exp(-0.170 * times)
    np.testing.assert_allclose(found["normal"][:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(found["tumour"][:, 0], np.log(94.86) + 0.01 * times, atol=1e-5)


def test_one_niche_for_both_leaves_their_ratio_to_the_rates():
    """If it fails, CAR-T cells are lost in another way than by their smaller share of the niche."""
    times = np.array([0, 5, 10, 30, 300.0])
    same = typical(KIMMEL, kc=500.0, rho=0.17, b=NONE)
    found = solve(STRUCTURES["competition"], same, times, dose=1.8e8)
    np.testing.assert_allclose(found["level"] - found["normal"], np.log(0.36 / 6), atol=1e-5)
    smaller = solve(STRUCTURES["competition"], typical(KIMMEL), times, dose=1.8e8)
    assert smaller["level"][-1, 0] < np.log(1e-3)
    assert smaller["normal"][-1, 0] == pytest.approx(np.log(500), abs=1e-3)


def test_a_second_infusion_needs_another_lymphodepletion():
    """If it fails, the model does not say what its paper concludes from it: the niche is full (section 3g)."""
    times = np.array([0, 7.0, 89, 90, 90.001, 97, 120])
    level = np.exp(
        solve(STRUCTURES["competition"], typical(KIMMEL), times, dose=1.8e8, later=(90.0, 1.8e8))["level"][:, 0]
    )
    assert level[1] / level[0] > 50
    assert level[4] - level[3] == pytest.approx(0.36, rel=1e-3)
    assert level[4] > level[5] > level[6]


def test_a_treatment_slows_growth_and_not_decline():
    """If it fails, a drug that stops expansion keeps the cells that are there from contracting."""
    times = np.array([0, 5, 7, 12, 20, 40.0])
    plain = solve(STRUCTURES["competition"], typical(KIMMEL), times, dose=1.8e8)["level"]

    def treated(day):
        # The factor comes after the structure's own parameters.
        structure, values = STRUCTURES["competition"], typical(KIMMEL)
        with jax.enable_x64(True):
            x = inputs(jnp.array([1.8e8]), since=jnp.array([[day]]), factor=jnp.array([[0.2]]))
            grid = solvers.make_grid(structure, times[:, None], x, refine=solvers.ACCURATE)
            p = structure.parameters(*(jnp.array([values[k]]) for k in structure.parameters._fields))
            return np.asarray(solvers.curves(structure, grid, p, x)["level"])

    np.testing.assert_allclose(treated(10.0), plain, atol=1e-5)
    assert (treated(2.0)[1:3] < plain[1:3] - 0.3).all()


def liu(t, y, p):
    """The authors' Mlxtran equations (NegR), in their notation but for the log of nB, which scipy cannot do without."""
    ln_nb, nta, ntn, nbn = y
    nb = np.exp(ln_nb)
    activated = p["ka"] * nb / (nb + p["kact"]) * ntn
    return [
        p["rb"] * (1 - nb / p["bmax"]) - p["kill"] / (nb + p["k"]) * nta,
        nb / (nb + p["kr"]) * p["rta"] * nta + activated - p["lta"] * nta,
        -activated - p["ltn"] * ntn,
        p["rneg"] * nbn * (1 - nbn / p["bmax"]) + p["km"] * nb - p["kill"] / p["kneg"] * nbn / (nbn + p["kn"]) * nta,
    ]


@pytest.mark.parametrize("escape", [{}, {"bneg0": 19.89}, {"bneg0": 0.5, "km": 1e-4}, {"bneg0": 0.0, "km": 1e-3}])
def test_escape_is_the_authors_equations(escape):
    """If it fails, cells are activated without being used up, or antigen-negative ones are killed as the others."""
    p = typical(LIU, **escape)
    times = np.array([0, 2, 5, 7, 10, 14, 21, 28, 60, 120.0])
    paper = by_scipy(lambda t, y: liu(t, y, p), [np.log(p["b0"]), 0, p["tn0"], p["bneg0"]], times)
    ours = solve(STRUCTURES["tumour_escape"], p, times)
    np.testing.assert_allclose(np.exp(ours["level"][:, 0]), paper[1] + 1e-9, rtol=1e-4)
    np.testing.assert_allclose(ours["tumour"][:, 0], paper[0], atol=1e-3)
    np.testing.assert_allclose(np.exp(ours["tumour_negative"][:, 0]), paper[3] + NONE, rtol=1e-4)


def test_tumours_that_nobody_attacks_are_logistic():
    """If it fails, growth is not logistic, and a logistic tumour alone is no special case of this structure."""
    times = np.array([0, 10, 30, 90, 365.0])

    def logistic(start, rate, room):
        return np.log(room) - np.log1p((room / start - 1) * np.exp(-rate * times))

    # Without growth of theirs as well: in 50 days the least number of cells would be enough.
    p = typical(LIU, tn0=NONE, rta=NONE, b0=12.0, bneg0=3.0, rneg=0.1)
    found = solve(STRUCTURES["tumour_escape"], p, times)
    np.testing.assert_allclose(found["tumour"][:, 0], logistic(12.0, 0.069, 2939.1), atol=1e-5)
    np.testing.assert_allclose(found["tumour_negative"][:, 0], logistic(3.0, 0.1, 2939.1), atol=1e-5)


def test_cells_without_antigen_are_never_activated():
    """If it fails, CAR-T cells are activated, or grow, by cells that lack the antigen."""
    times = np.array([0, 5, 10, 30.0])
    found = solve(STRUCTURES["tumour_escape"], typical(LIU, b0=NONE, bneg0=2000.0), times)
    np.testing.assert_allclose(np.exp(found["level"]), 1e-9, rtol=1e-6)
    seen = solve(STRUCTURES["tumour_escape"], typical(LIU), times)
    assert seen["level"].max() > np.log(100)


def test_a_relapse_without_antigen_comes_where_there_are_such_cells():
    """If it fails, the one relapse that CAR-T cells cannot see is not the one that grows while they persist."""
    times = np.array([0, 28.0, 120, 200])
    found = solve(STRUCTURES["tumour_escape"], typical(LIU, bneg0=np.array([0.0, 19.89])), times)
    assert (found["tumour_negative"][:, 0] < -60).all()
    assert found["tumour_negative"][2, 1] > np.log(1000)
    assert (found["tumour"][1:] < 0).all()


def test_bystanders_killed_alike_keep_their_share():
    """If it fails, killing differs between the two kinds of leukaemia where every number says that it is the same."""
    times = np.array([0, 3, 7, 14, 28.0])
    values = typical(LIU, kneg=1.0, k=1e9, kn=1e9, kill=1e7, bmax=1e9, rneg=0.069, bneg0=10.0)
    found = solve(STRUCTURES["tumour_escape"], values, times)
    assert found["tumour"][-1, 0] < found["tumour"][0, 0] - 5
    np.testing.assert_allclose(found["tumour_negative"] - found["tumour"], np.log(10 / 2200.24), atol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("model", [MUELLER_SCHOELL, KIMMEL, LIU], ids=lambda m: m.name)
def test_patients_around_the_typical_one_are_solved_as_well(model):
    """If it fails, the grid is fine enough for the published values alone."""
    times = np.array([0, 3, 7, 14, 28, 60, 120.0])
    z = np.random.default_rng(3).standard_normal((len(model.parameters), 20))
    values = {
        p.name: p.value * np.exp(0.2 * z[i]) if p.transform == "log" else p.value
        for i, p in enumerate(model.parameters)
    }
    dose = model.typical_dose
    fast, fine = (solve(model.structure, values, times, dose=dose, refine=r) for r in (1, 8))
    error = np.abs(np.exp(fast["level"] - fine["level"]) - 1).max(0)
    assert np.median(error) < 2e-3
    assert (error < 2e-2).all()
