"""León-Triana's reduced model against its printed equations, solved by scipy, and what follows from them."""

import dataclasses

import numpy as np
from scipy.integrate import solve_ivp

from carkinetics.model_checks import typical_curves
from carkinetics.model_files import load_model
from carkinetics.solvers import ACCURATE

MODEL = load_model("leon_triana_2021_ball")
TIMES = np.array([0, 3, 7, 10, 14, 21, 28, 56, 84, 168, 280, 365.0])


def equations_4(t, y):
    """Equations 4a to 4c with the numbers of BIOMD0000001011, in cells and days."""
    car, leukaemia, b = y
    rho_c, tau_c, rho_l, alpha, tau_b = 0.25 * 4.5e-11, 14, 1 / 30, 4.5e-11, 60
    growth = rho_c * (leukaemia + b) - 1 / tau_c
    return [growth * car, (rho_l - alpha * car) * leukaemia, -(alpha * car + 1 / tau_b) * b]


def test_the_typical_patient_solves_the_printed_equations():
    """If it fails, structure or numbers are not those of the paper: a sign, a unit, a parameter in another's place."""
    run = solve_ivp(equations_4, (0, 365), [1e7, 5e10, 2.5e10], "Radau", TIMES, rtol=1e-10, atol=1e-6)
    assert run.success, run.message
    ours = typical_curves(MODEL, TIMES, refine=ACCURATE)
    np.testing.assert_allclose(ours[["level", "tumour", "b_cells"]].to_numpy(), run.y.T, rtol=1e-4)


def test_killing_does_not_tell_leukaemia_from_b_cells():
    """If it fails, CAR-T cells kill one target faster than the other, which they do not in the paper."""
    ours = typical_curves(MODEL, TIMES, refine=ACCURATE)
    np.testing.assert_allclose(ours["tumour"] / ours["b_cells"], 2 * np.exp((1 / 30 + 1 / 60) * TIMES), rtol=1e-4)


def test_without_an_infusion_leukaemia_does_not_make_car_t_cells():
    """If it fails, the trace of cells that stands for none grows with the leukaemia, into cells from nowhere."""
    ours = typical_curves(dataclasses.replace(MODEL, typical_dose=0.0), TIMES)
    assert (ours["level"] < 1e-20).all()
    np.testing.assert_allclose(ours["tumour"], 5e10 * np.exp(TIMES / 30), rtol=1e-4)
