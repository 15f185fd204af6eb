"""Exchange of blood with marrow, lymph node and spinal fluid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.structure import inputs
from carkinetics.structures import STRUCTURES
from populations import EXAMPLES, POPULATIONS

SITES = next(p for p in POPULATIONS if p.structure.name == "sites_exchange")
TIMES = np.array([0.0, 0.5, 2, 5, 9, 11, 14, 21, 28, 60, 120, 240, 365])
NAMES = ("bm", "ln", "csf")
NO_EXCHANGE = dict.fromkeys(("kin_bm", "kin_ln", "kin_csf"), 1e-30)


def levels(*, times=TIMES, **changed) -> dict[str, np.ndarray]:
    """Every output (not its log) of one patient."""
    with jax.enable_x64(True):
        x = SITES.inputs()
        grid = solvers.make_grid(SITES.structure, times[:, None], x)
        p, x = as_arguments(SITES.structure, jnp.asarray(SITES.values(**changed)), x)
        return {k: np.exp(np.asarray(v)[:, 0]) for k, v in solvers.curves(SITES.structure, grid, p, x).items()}


def test_sites_against_numbers_of_cells():
    """If it fails, a flux leaves blood and does not arrive, arrives in another site, or a size counts twice.

    Written in numbers of cells with rate constants out of and back into blood, in the order blood, sites.
    """
    value = {k: v for k, (v, _) in EXAMPLES["sites_exchange"].items()}
    out = np.array([value[f"kin_{s}"] for s in NAMES])
    back = out / np.array([value[f"ratio_{s}"] * value[f"size_{s}"] for s in NAMES])
    size = np.array([value[f"size_{s}"] for s in NAMES])

    def rhs(t, y, rate):
        blood, sites = y[:2], y[2:].reshape(3, 2)
        flow = out[:, None] * blood - back[:, None] * sites
        return np.concatenate([rate * blood - flow.sum(axis=0), flow.ravel()])

    rho, tmax = np.log(value["foldx"]) / value["tmax"], value["tmax"]
    first = value["cmax"] / value["foldx"] * np.array([1 - value["fb"], value["fb"]])
    y, found = np.concatenate([first, np.zeros(6)]), []
    for begin, end, rate in (
        (0.0, tmax, np.array([rho, rho])),
        (tmax, 365.0, -np.array([value["alpha"], value["beta"]])),
    ):
        wanted = np.array([t for t in TIMES if begin <= t <= end])
        run = solve_ivp(
            rhs,
            (begin, end),
            y,
            t_eval=np.unique(np.append(wanted, end)),
            args=(rate,),
            method="Radau",
            rtol=1e-9,
            atol=1e-9,
        )
        found.append(run.y[:, : len(wanted)])
        y = run.y[:, -1]
    cells = np.concatenate(found, axis=1).reshape(4, 2, -1).sum(axis=1)
    ours = levels()
    np.testing.assert_allclose(ours["level"], cells[0], rtol=2e-3)
    for k, name in enumerate(NAMES):
        np.testing.assert_allclose(ours[f"level_{name}"][1:], cells[k + 1, 1:] / size[k], rtol=2e-3)


def test_without_growth_and_loss_no_cell_is_lost():
    """If it fails, exchange makes or loses cells."""
    value = {k: v for k, (v, _) in EXAMPLES["sites_exchange"].items()}
    found = levels(foldx=1.0, alpha=1e-30, beta=1e-30)
    total = found["level"] + sum(value[f"size_{s}"] * found[f"level_{s}"] for s in NAMES)
    np.testing.assert_allclose(total, value["cmax"], rtol=1e-6)
    assert found["level"][-1] < 0.8 * value["cmax"]  # and yet they have moved


def test_fast_exchange_is_a_constant_ratio():
    """If it fails, the ratio at equilibrium is not what its parameter says."""
    found = levels(kin_bm=300.0, kin_ln=300.0, kin_csf=30.0)
    for name in NAMES:
        ratio = EXAMPLES["sites_exchange"][f"ratio_{name}"][0]
        np.testing.assert_allclose(found[f"level_{name}"][2:] / found["level"][2:], ratio, rtol=0.01)


def test_fast_exchange_dilutes_growth_and_loss_by_the_share_that_is_in_blood():
    """If it fails, cells grow or die outside of blood."""
    value = {k: v for k, (v, _) in EXAMPLES["sites_exchange"].items()}
    found = levels(kin_bm=3000.0, kin_ln=3000.0, kin_csf=3000.0, fb=1e-12, times=np.array([0.0, 4.0, 8.0, 14.0, 18.0]))
    in_blood = 1 / (1 + sum(value[f"ratio_{s}"] * value[f"size_{s}"] for s in NAMES))
    rho = np.log(value["foldx"]) / value["tmax"]
    growth, loss = (np.log(found["level"][i + 1] / found["level"][i]) / 4 for i in (1, 3))
    assert growth == pytest.approx(rho * in_blood, rel=2e-3)
    assert loss == pytest.approx(-value["alpha"] * in_blood, rel=2e-3)


def test_without_exchange_blood_is_expansion_contraction():
    """If it fails, the simplest limit is not the published model of blood."""
    stein = STRUCTURES["expansion_contraction"]
    with jax.enable_x64(True):
        p = stein.parameters(*(jnp.array(EXAMPLES["sites_exchange"][k][0]) for k in stein.parameters._fields))
        expected = np.exp(np.asarray(stein.curve(jnp.asarray(TIMES), p, inputs())["level"]))
    found = levels(**NO_EXCHANGE)
    np.testing.assert_allclose(found["level"], expected, rtol=2e-3)
    for name in NAMES:
        assert (found[f"level_{name}"] < 1e-9 * found["level"]).all()
