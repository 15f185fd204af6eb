"""Antigen drives the cells: each paper's equations as printed, by scipy, and the limits that they have."""

from itertools import pairwise

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
from populations import EXAMPLES

TIMES = np.array([0.5, 1, 2, 3, 5, 7, 9, 11, 14, 17, 21, 28, 42, 60, 90, 180.0])


def integrated(rhs, start, times=TIMES, stops=()):
    """States at ``times`` by scipy, restarted at ``stops``; shape (state, time)."""
    edges, y, found = sorted({0.0, *stops, times[-1]}), np.asarray(start, float), []
    options: dict = {"method": "LSODA", "rtol": 1e-11, "atol": 1e-14 * np.max(start)}
    for begin, end in pairwise(edges):
        inside = (begin + 1e-9, end - 1e-9)  # at a stop the equations on either side differ

        def rate(t, y, inside=inside):
            return rhs(np.clip(t, *inside), y)

        wanted = np.append(times[(times > begin) & (times < end)], end)
        run = solve_ivp(rate, (begin, end), y, t_eval=wanted, **options)
        assert run.success, run.message
        found.append(run.y[:, np.isin(wanted, times)])
        y = run.y[:, -1]
    return np.concatenate(found, axis=1)


def example(name):
    """The values of an example population, by name."""
    return {key: value for key, (value, _) in EXAMPLES[name].items()}


def solved(name, values, dose=np.nan, times=TIMES, refine=3):
    """Natural log of every output of a structure at these values, for one patient."""
    structure = STRUCTURES[name]
    with jax.enable_x64(True):
        p, x = as_arguments(structure, jnp.asarray([[values[k]] for k in structure.parameters._fields]),
                            inputs(jnp.array([dose])))  # fmt: skip
        grid = solvers.make_grid(structure, times[:, None], x, refine=refine)
        return {k: np.asarray(v)[:, 0] for k, v in solvers.curves(structure, grid, p, x).items()}


def test_lotka_volterra_is_chaudhurys():
    """If it fails, the predator and prey of the library are not those of BIOMD0000001024."""

    def rhs(t, y):
        c, u = y
        return [0.0018 * c * u - 0.16 * c, 0.15 * u - 1.5e-4 * c * u]

    c, u = integrated(rhs, [10.0, 900.0])
    model = load_model("chaudhury_2020_lotka_volterra")
    np.testing.assert_allclose(np.exp(typical_curve(model, TIMES)), c, rtol=2e-3)
    np.testing.assert_allclose(np.exp(typical_curve(model, TIMES, "tumour")), u, rtol=2e-3)


def test_first_order_is_chaudhurys():
    """If it fails, the closed form is not the solution of the equations of MODEL2109110005."""

    def rhs(t, y):
        ce, cp = y
        return [1.0 * ce, 0.0] if t <= 9.3 else [-(0.0012 + 0.16) * ce, 0.0012 * ce - 0.0032 * cp]

    c = integrated(rhs, [10.0, 0.0], stops=(9.3,)).sum(axis=0)
    np.testing.assert_allclose(np.exp(typical_curve(load_model("chaudhury_2020_first_order"), TIMES)), c, rtol=1e-6)


def test_ec50_is_chaudhurys():
    """If it fails, the EC50 form is not that of BIOMD0000001025: growth to T_max, killing, regrowth and the cure."""

    def rhs(t, y):
        ce, cp, u = y
        f_cure = 1 / (1 + (0.1 / u) ** 3)
        d_u = f_cure * 0.2 * u * (np.log10(1000) - np.log10(u)) / np.log10(1000) - 0.35 * ce * u / (10 + ce + u)
        if t <= 9.3:
            return [8.8 * ce * u / (1 + ce + u), 0.0, d_u]
        return [-(0.0012 + 0.16) * ce, 0.0012 * ce - 0.0032 * cp, d_u]

    ce, cp, u = integrated(rhs, [10.0, 0.0, 900.0], stops=(9.3,))
    model = load_model("chaudhury_2020_ec50")
    np.testing.assert_allclose(np.exp(typical_curve(model, TIMES)), ce + cp, rtol=2e-3)
    np.testing.assert_allclose(np.exp(typical_curve(model, TIMES, "tumour")), u, rtol=2e-3)


@pytest.mark.parametrize("name", ["barros_2021_hdlm2", "barros_2021_raji"])
def test_cartmath_is_barros(name):
    """If it fails, CARTmath is not the equations of BIOMD0000001019 and BIOMD0000001020."""
    numbers = {
        "barros_2021_hdlm2": (0.265, 0.35, 0.15, 6e-6, 4.5e-8, 0.005, 0.05650026, 1.404029e-12, 3.715843e-6, 2e6),
        "barros_2021_raji": (0.83, 0.8300536, 1.59795, 2.3e-4, 1.248506e-8, 6.89e-7, 0.5071721, 0.0, 3.365388e-8, 1e7),
    }
    phi, pi, epsilon, theta, alpha, mu, rho, beta, gamma, dose = numbers[name]

    def rhs(t, y):
        ct, cm, u = y
        return [
            phi * ct - pi * ct + theta * u * cm - alpha * u * ct,
            epsilon * ct - theta * u * cm - mu * cm,
            rho * u * (1 - beta * u) - gamma * ct * u,
        ]

    times = np.array([0.5, 1, 2, 3, 4, 5, 6.0])
    t0 = {"barros_2021_hdlm2": 2.54222810e7, "barros_2021_raji": 3e6 * np.exp(7 * rho)}[name]
    ct, cm, u = integrated(rhs, [dose, 0.0, t0], times)
    values = (phi, pi, epsilon, theta, alpha, mu, rho, beta, gamma, t0)
    ours = solved("cartmath", dict(zip(STRUCTURES["cartmath"].parameters._fields, values, strict=True)), dose, times)
    np.testing.assert_allclose(np.exp(ours["level"]), ct + cm, rtol=1e-4)
    seen = u > 1.0  # below a cell the output has a floor
    assert seen.sum() >= 3
    np.testing.assert_allclose(np.exp(ours["tumour"])[seen], u[seen], rtol=1e-3, atol=1e-2)
    if name == "barros_2021_hdlm2":
        np.testing.assert_allclose(typical_curve(load_model(name), times), ours["level"], rtol=1e-4)
    else:  # a public simulation of BIOMD0000001020 (Biosimulant/models-oncology), two days after the infusion
        np.testing.assert_allclose(np.exp([ours[k][2] for k in ("level", "tumour")]), [1.28e7, 1.29e8], rtol=5e-3)


def test_exhaustion_is_what_is_written_of_paixao():
    """If it fails, the five equations of the docstring are not those that are solved."""
    v, dose = example("exhaustion"), 2e8

    def rhs(t, y):
        cd, ct, cm, ce, u = y
        kappa = v["kmin"] + v["kmax"] / (1 + (t / v["tk"]) ** v["hk"])
        grown, back = kappa * u / (v["half"] + u) * ct, v["theta"] * u * cm
        out = (v["xi"] + v["eps"] + v["lam"]) * ct
        return [
            -v["beta"] * cd,
            v["eta"] * cd + grown - out + back - v["alpha"] * u * ct,
            v["eps"] * ct - back - v["mu"] * cm,
            v["lam"] * ct - v["delta"] * ce,
            v["r"] * u * (1 - v["b"] * u) - v["gamma"] * u * (cd + ct) / (v["a"] * u + cd + ct),
        ]

    times = TIMES[TIMES <= 60]
    exact = integrated(rhs, [dose, 0.0, 0.0, 0.0, v["t0"]], times)
    ours = solved("exhaustion", v, dose, times)
    expected = dict(zip(("effector", "memory", "exhausted"), exact[1:4], strict=True)) | {
        "level": exact[:4].sum(axis=0)
    }
    for name, cells in expected.items():
        np.testing.assert_allclose(np.exp(ours[name]), cells, rtol=1e-4, err_msg=name)


def test_without_tumour_nothing_grows():
    """If it fails, cells grow without the antigen that is said to drive them."""
    model = load_model("chaudhury_2020_ec50")
    ec50 = {p.name: p.value for p in model.parameters} | {"u0": 1e-30}
    level = solved("antigen_expansion", ec50)["level"]
    np.testing.assert_allclose(level[TIMES <= 9], np.log(10.0), atol=1e-9)
    prey = {p.name: p.value for p in load_model("chaudhury_2020_lotka_volterra").parameters} | {"u0": 1e-30}
    early = TIMES <= 60
    np.testing.assert_allclose(
        solved("predator_prey", prey)["level"][early], np.log(10) - 0.16 * TIMES[early], atol=1e-9
    )
    gone = example("exhaustion") | {"t0": 1e-30}
    cells = np.exp(solved("exhaustion", gone, 2e8)["level"])
    assert (np.diff(cells) < 0).all()


def test_first_order_and_expansion_contraction_are_one_model():
    """If it fails, rates and peak are translated wrongly: both are bi-exponential after the same growth."""
    v = {"e0": 10.0, "rho": 0.8, "tmax": 9.3, "alpha": 0.16, "conv": 0.004, "beta": 0.0032}
    leave = v["alpha"] + v["conv"]
    stein = {"foldx": np.exp(0.8 * 9.3), "tmax": 9.3, "cmax": 10 * np.exp(0.8 * 9.3), "alpha": leave,
             "fb": v["conv"] / (leave - v["beta"]), "beta": v["beta"]}  # fmt: skip
    expected = solved("expansion_contraction", stein)["level"]
    np.testing.assert_allclose(solved("first_order_expansion", v)["level"], expected, rtol=1e-12)
    delayed = {k: v[k] for k in ("tmax", "alpha", "conv", "beta")} | {"foldx": stein["foldx"], "cmax": stein["cmax"]}
    np.testing.assert_allclose(solved("effector_memory", delayed | {"delay": 0.0})["level"], expected, rtol=1e-12)


def test_the_delay_waits():
    """If it fails, effectors convert before the delay is over, or lose cells by converting."""
    v = example("effector_memory") | {"tmax": 9.0, "delay": 12.0}
    level, never = solved("effector_memory", v)["level"], solved("effector_memory", v | {"delay": 1e4})["level"]
    waiting, after = TIMES <= 21, TIMES >= 60
    np.testing.assert_allclose(level[waiting], never[waiting], rtol=1e-12)
    assert (level[after] > never[after] + 0.1).all()
    # Nobody dies: conversion moves cells and loses none.
    kept = solved("effector_memory", v | {"alpha": 0.0, "beta": 0.0})["level"]
    np.testing.assert_allclose(kept[TIMES >= 9], np.log(v["cmax"]), rtol=1e-10)


def test_equal_rates_are_a_limit_and_not_a_hole():
    """If it fails, the level jumps where effectors and memory leave at the same rate."""
    v = {"e0": 10.0, "rho": 0.8, "tmax": 9.3, "alpha": 0.01, "conv": 0.01, "beta": 0.02}
    s = np.maximum(TIMES - 9.3, 0.0)
    expected = np.log(10) + 0.8 * np.minimum(TIMES, 9.3) - 0.02 * s + np.log1p(0.01 * s)
    for beta in (0.02, 0.02 + 1e-12, 0.02 - 1e-9, 0.02 + 1e-7):
        found = solved("first_order_expansion", v | {"beta": beta})["level"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_tumour_below_the_threshold_is_cured():
    """If it fails, a fraction of a cell grows back, or a tumour above the threshold does not."""
    ec50 = {p.name: p.value for p in load_model("chaudhury_2020_ec50").parameters} | {"e0": 1e-9, "rho": 1e-9}
    stays, comes = (solved("antigen_expansion", ec50 | {"u0": u0})["tumour"] for u0 in (1e-3, 1.0))
    assert stays[-1] < np.log(1e-3) + 0.1
    assert comes[-1] == pytest.approx(np.log(1000.0), abs=0.1)


def test_waves_conserve_what_lotka_and_volterra_conserve():
    """If it fails, waves grow or fade by the solver's error."""
    model = load_model("chaudhury_2020_lotka_volterra")
    times = np.linspace(1.0, 365.0, 200)
    c, u = (np.exp(typical_curve(model, times, output)) for output in ("level", "tumour"))
    conserved = 0.0018 * u - 0.16 * np.log(u) + 1.5e-4 * c - 0.15 * np.log(c)
    np.testing.assert_allclose(conserved, conserved[0], rtol=1e-3)
    assert np.ptp(np.log(u)) > 10
