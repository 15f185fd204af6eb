"""Fits of structures unlike the first one: stiff, and with a dose and further infusions that enter the equations."""

import numpy as np
import pytest

from carkinetics.cohort import Cohort
from carkinetics.dataset import read_dataset
from carkinetics.fitting import fit
from carkinetics.inference.chains import Settings
from carkinetics.model_files import load_model, parse_model
from carkinetics.simulation import simulate

SHORT = Settings(pilot=50, warmup=50, draws=100, max_draws=100, proposals=16)
TIMES = (1.0, 4.0, 7.0, 11.0, 14.0, 21.0, 28.0, 56.0)
RELEASE = {
    "e0": (5.0, 0.8), "rho": (1.2, 0.0), "b0": (20.0, 0.0), "kill": (5e-5, 0.6), "alpha": (0.16, 0.4),
    "conv": (0.002, 0.0), "beta": (0.005, 0.0), "p_il6": (1.0, 0.0), "d_il6": (4.0, 0.0), "base_il6": (1.0, 0.0),
    "p_ifng": (1.0, 0.0), "d_ifng": (4.0, 0.0), "base_ifng": (1.0, 0.0),
}  # fmt: skip


def release():
    """Cytokines driven by activation: stiff. Only what the samples show varies."""
    from carkinetics.structures import STRUCTURES

    text = 'schema = 1\nname = "release"\nstructure = "cytokine_release"\n'
    for name in STRUCTURES["cytokine_release"].parameters._fields:
        value, omega = RELEASE.get(name, (1.0, 0.0))
        spread = f"omega_sd = {omega}" if omega else "no_iiv = true\nfixed = true"
        text += f'[parameters.{name}]\nvalue = {value}\nunit = "x"\ntransform = "log"\n{spread}\n'
    text += '[assays.qpcr]\noutput = "level"\nmatrix = "PB"\nunit = "copies/ug"\nerror = "lognormal"\nsigma = 0.4\n'
    return parse_model(text)


def competition():
    """Kimmel's model with two random effects, split doses and a second infusion."""
    model = load_model("kimmel_2021_axicabtagene")
    model = model.with_values({f"sigma.{a.name}": 0.4 for a in model.assays})
    model = model.with_values({"omega.kc": 0.4, "omega.b0": 0.5})
    return model.fix(*(p.name for p in model.parameters if not p.iiv))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "infusions"),
    [(release, ((0.0, 1.0),)), (competition, ((0.0, 0.3), (1.0, 0.7), (40.0, 1.0)))],
    ids=["stiff", "infusions"],
)
def test_a_fit_of_another_structure_runs_to_its_end(model, infusions):
    """If it fails, a published structure can be simulated and not fitted."""
    model = model()
    trial = simulate(model, Cohort(n=8, times=TIMES, infusions=infusions), seed=1)
    data = read_dataset(trial.table)
    result = fit(model, data, seed=1, chains=2, settings=SHORT, progress=False)
    numbers = result.check().numbers
    assert numbers["draws"] == 200
    ipred = result.tree["posterior"]["ipred"].values
    assert np.isfinite(ipred).all()
    # The posterior's curves go through the samples: residuals have about the SD that they were simulated with.
    residual = np.log(data.dv) - np.log(ipred).mean(axis=(0, 1))
    assert 0.2 < residual[data.cens == 0].std() < 0.7
