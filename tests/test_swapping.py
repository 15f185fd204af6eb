"""Patients at a wrong explanation are taken to a better one: densities by scipy, trials whose truth is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from carkinetics.calibrating import _of, _trial
from carkinetics.dataset import read_dataset
from carkinetics.fitting import quick_fit
from carkinetics.inference.swapping import GAIN, better_places
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.observations import make_observations
from carkinetics.simulation import simulate
from quadrature import ln_shape
from sbc_models import sbc_design, sbc_model
from test_calibration import COHORT

MODEL = load_model("stein_2019_tisagenlecleucel")
NAMES = [p.name for p in MODEL.parameters]
WRONG = 2


def log_posterior(table, z):
    """Of one patient's standardised effects: Stein's curve and normal densities as printed."""
    x = {p.name: np.exp(p.theta + p.iiv * zk) for p, zk in zip(MODEL.parameters, z, strict=True)}
    f = np.log(x["cmax"]) + ln_shape(table["TIME"].to_numpy(), x)
    y, sigma = np.log(table["DV"].to_numpy()), MODEL.assays[0].sigma
    return stats.norm.logpdf(y, f, sigma).sum() - y.sum() + stats.norm.logpdf(z).sum()


def test_whoever_stands_wrong_is_moved_and_nobody_else_is_made_worse():
    """If it fails, one patient at a wrong peak makes the residual SD of all too large, or the right ones are moved."""
    trial = simulate(MODEL, COHORT, seed=4, limits=False)
    samples = trial.table[trial.table["EVID"] == 0]
    with jax.enable_x64(True):
        obs = make_observations(MODEL, read_dataset(trial.table, units={"DV": "copies/ug"}))
        x = np.log(trial.individual[NAMES].to_numpy()).T
        theta, omega = (np.array([getattr(p, a) for p in MODEL.parameters])[:, None] for a in ("theta", "iiv"))
        z = (x - theta) / omega
        z[NAMES.index("tmax"), WRONG] += 6.0
        phi = make_layout(MODEL).start
        found, moved = better_places(MODEL, obs, jnp.asarray(phi), jnp.asarray(z), jax.random.key(1))
    found, moved = np.asarray(found), np.asarray(moved)
    assert moved[WRONG]
    assert moved.sum() <= 2  # the others are where they were drawn, which is near their peaks
    for i, (_, mine) in enumerate(samples.groupby("ID")):
        gain = log_posterior(mine, found[:, i]) - log_posterior(mine, z[:, i])
        assert gain > GAIN if moved[i] else (found[:, i] == z[:, i]).all()


def test_where_nothing_is_finite_others_are_asked():
    """If it fails, a patient whose curve overflows stays where it does, or somebody is moved to where it overflows."""
    trial = simulate(MODEL, COHORT, seed=4, limits=False)
    with jax.enable_x64(True):
        obs = make_observations(MODEL, read_dataset(trial.table, units={"DV": "copies/ug"}))
        z = np.zeros((len(NAMES), COHORT.n))
        z[:, WRONG] = np.nan
        phi = jnp.asarray(make_layout(MODEL).start)
        found, moved = better_places(MODEL, obs, phi, jnp.asarray(z), jax.random.key(1))
    assert bool(moved[WRONG])
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize(
    ("structure", "trials"),
    [
        pytest.param("tumour_escape", (0, 1, 2, 4), marks=pytest.mark.thorough),
        pytest.param("predator_prey", (2, 3, 5, 8), marks=pytest.mark.slow),
    ],
)
def test_relapses_are_found(structure, trials):
    """If it fails, one patient whose tumour returns is read as noise of all: sigma was 2 to 5 times too large."""
    model, design = sbc_model(structure), sbc_design(structure)
    for k in trials:
        trial = _trial(model, design, _of(20, k), None)
        data = read_dataset(trial.table, units={"TIME": "day", "DV": "copies/ug"})
        fit = quick_fit(model, data, seed=1)
        ln_sigma = fit.tree["posterior"].to_dataset()["phi"].values[..., -1]
        true = trial.phi[-1]
        assert abs(ln_sigma.mean() - true) < 4 * ln_sigma.std(), (structure, k)
        assert abs(ln_sigma.mean() - true) < 0.35, (structure, k)
