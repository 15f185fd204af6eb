"""First values from the patients' own samples: sensible, of the right shape, and not led by one odd sample."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest

from carkinetics.cohort import Cohort
from carkinetics.dataset import read_dataset
from carkinetics.inference.guess import starting_values
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.model_parts import Assay, Prior
from carkinetics.simulation import simulate

MODEL = load_model("stein_2019_tisagenlecleucel")
NAMES = [p.name for p in MODEL.parameters]
OMEGA = np.array([p.iiv for p in MODEL.parameters])
TIMES = (1.0, 4.0, 7.0, 9.0, 11.0, 14.0, 17.0, 21.0, 28.0, 60.0, 90.0, 180.0, 365.0)


def read(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(frame, units={"DV": "copies/ug"})


def curve(cmax, tmax=9.3, alpha=0.16, days=(4, 7, 9.3, 11, 14, 21, 28, 60, 120)):
    """Noise-free samples of one patient by Stein's equations."""
    t = np.array(days, float)
    s = np.maximum(t - tmax, 0)
    decline = np.log((1 - 0.0079) * np.exp(-alpha * s) + 0.0079 * np.exp(-0.0032 * s))
    return t, np.exp(np.log(cmax) + np.log(3900) / 9.3 * np.minimum(t - tmax, 0) + decline)


def table(**levels):
    """Noise-free patients with the peaks given."""
    parts = []
    for name, cmax in levels.items():
        t, dv = curve(cmax)
        parts.append(pd.DataFrame({"ID": name, "TIME": t, "DV": dv}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("changes", [(), ("beta",), ("beta", "foldx", "cmax")], ids=str)
def test_lengths_and_order_follow_the_layout(changes):
    """If it fails, the start of one parameter is used as another one's."""
    flow = Assay("flow", "level", "PB", "copies/ug", "lognormal", 0.9, Prior("lognormal", -0.1, 0.4))
    model = MODEL.fix(*changes).with_assay(flow)
    parameters = tuple(dataclasses.replace(p, iiv=0.0) if p.name == "fb" else p for p in model.parameters)
    model = dataclasses.replace(model, parameters=parameters)
    data = read(table(A=24000.0, B=9000.0))
    phi, z = starting_values(model, data)
    layout = make_layout(model)
    assert phi.shape == (layout.n_phi,) == (6 - len(changes) + 5 + 2,)
    assert z.shape == (5, 2)
    np.testing.assert_allclose(phi[-7:-2], np.log([p.iiv for p in parameters if p.iiv]), rtol=1e-12)
    np.testing.assert_allclose(phi[-2:], np.log([0.56, 0.9]), rtol=1e-12)


def test_typical_values_are_the_median_patient_and_z_the_distance_from_it():
    """If it fails, the sampler starts at the published population although the study is another one."""
    data = read(table(A=3000.0, B=12000.0, C=90000.0))
    phi, z = starting_values(MODEL, data)
    k = NAMES.index("cmax")
    assert phi[k] == pytest.approx(np.log(12000), rel=1e-6)
    np.testing.assert_allclose(z[k], np.log([3000 / 12000, 1, 90000 / 12000]) / OMEGA[k], atol=1e-6)
    assert phi[NAMES.index("tmax")] == pytest.approx(np.log(9.3), rel=1e-6)
    for name in ("foldx", "beta"):  # no guess is made of these
        assert phi[NAMES.index(name)] == pytest.approx(MODEL[name].theta, rel=1e-12)
        assert (z[NAMES.index(name)] == 0).all()


def test_fixed_typical_values_stay():
    """If it fails, z is measured from a typical value that the model does not have."""
    data = read(table(A=3000.0, B=12000.0, C=90000.0))
    _, z = starting_values(MODEL.fix("cmax"), data)
    k = NAMES.index("cmax")
    np.testing.assert_allclose(z[k], np.clip(np.log(np.array([3000, 12000, 90000]) / 24000) / OMEGA[k], -2.5, 2.5))


def test_patients_without_quantified_samples_start_typical():
    """If it fails, a limit is taken for a level, or a patient without samples gets NaN."""
    frame = table(A=24000.0, B=9000.0).assign(EVID=0, CENS=0, AMT=0.0)
    low = pd.DataFrame({"ID": "C", "TIME": [4.0, 11.0, 28.0], "DV": 50.0, "CENS": 1, "EVID": 0, "AMT": 0.0})
    none = pd.DataFrame({"ID": ["D"], "TIME": [0.0], "AMT": [1e8], "EVID": [1], "MDV": [1]})
    data = read(pd.concat([frame, low, none], ignore_index=True))
    assert data.subjects == ("A", "B", "C", "D")
    phi, z = starting_values(MODEL, data)
    assert (z[:, 2:] == 0).all()
    assert (z[NAMES.index("cmax"), :2] != 0).all()
    assert np.isfinite(phi).all()


def test_without_any_quantified_sample_the_start_is_the_model():
    """If it fails, a median of nothing is taken, with a warning or a NaN."""
    low = pd.DataFrame({"ID": ["A", "A", "B"], "TIME": [4.0, 11.0, 28.0], "DV": 50.0, "CENS": 1})
    both = pd.concat([low, table(C=24000.0)], ignore_index=True)
    data = read(both)
    only = dataclasses.replace(data, cens=np.ones_like(data.cens))
    phi, z = starting_values(MODEL, only)
    np.testing.assert_allclose(phi[:6], [p.theta for p in MODEL.parameters])
    assert (z == 0).all()


def test_an_outlier_is_clipped_and_does_not_lead():
    """If it fails, one value in the wrong unit throws its patient, or the population, far away."""
    data = read(table(A=20000.0, B=24000.0, C=2.4e11))
    phi, z = starting_values(MODEL, data)
    k = NAMES.index("cmax")
    assert phi[k] == pytest.approx(np.log(24000), rel=1e-6)
    assert z[k, 2] == 2.5
    assert np.abs(z).max() <= 2.5


def test_a_whole_study_in_another_unit_stays_within_the_priors_reach():
    """If it fails, typical values start where the prior says that they cannot be."""
    data = read(table(A=2e13, B=2.4e13, C=2.8e13))
    phi, _ = starting_values(MODEL, data)
    k, prior = NAMES.index("cmax"), MODEL["cmax"].prior
    assert phi[k] == pytest.approx(prior.loc + 2.5 * prior.scale, rel=1e-12)


def test_samples_before_the_infusion_are_no_peak():
    """If it fails, a contaminated pre-dose sample becomes the peak at a negative time."""
    data = read(table(A=24000.0, B=9000.0))
    time, dv = data.time.copy(), data.dv.copy()
    time[0], dv[0] = -1.0, 9e5  # the reader refuses it; a Dataset made otherwise may have it
    early, keep = dataclasses.replace(data, time=time, dv=dv), np.arange(data.n_obs) > 0
    rows = {k: getattr(data, k)[keep] for k in ("subject", "assay", "time", "dv", "cens", "limit")}
    for found, wanted in zip(
        starting_values(MODEL, early), starting_values(MODEL, dataclasses.replace(data, **rows)), strict=True
    ):
        np.testing.assert_allclose(found, wanted)


def test_the_start_is_near_simulated_patients():
    """If it fails, the start is no better than the published population for every patient."""
    simulation = simulate(MODEL, Cohort(n=100, times=TIMES), seed=3)
    data = read(simulation.table)
    phi, z = starting_values(MODEL, data)
    k = NAMES.index("cmax")
    truth = np.log(simulation.individual.loc[list(data.subjects), "cmax"])
    guess = phi[k] + OMEGA[k] * z[k]
    assert np.corrcoef(guess, truth)[0, 1] > 0.7
    assert abs(phi[k] - np.log(24000)) < 0.7
    assert np.isfinite(phi).all()
    assert np.isfinite(z).all()
