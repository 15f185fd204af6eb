"""The stress test: draws that are the priors', and every count again in NumPy."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import log_ndtr

import carkinetics as ck
from amplification import factor
from carkinetics.demo import read_trial
from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import Parameter, Prior
from carkinetics.structure import AbstractStructure

STEIN = ck.load_model("stein_2019_tisagenlecleucel")
DAYS = np.arange(1, 11.0)
DOSES = {"P1": 1e6, "P2": 3e6, "P3": 2e9}  # the last one in a wrong unit


class Rate(NamedTuple):
    k: object
    size: object


class Cells(NamedTuple):
    cells: object


class Grower(AbstractStructure[Rate, Cells]):
    """Growth at k per day and 1e6 cells of dose, stepped on the natural scale: overflows at large doses."""

    name, parameters, states, outputs = "grower", Rate, Cells, ("level",)

    def initial(self, p, x):
        return Cells(p.size)

    def rhs(self, t, y, p, x):
        return Cells(p.k * x.dose / 1e6 * y.cells)

    def output(self, y, p):
        return {"level": jnp.log(y.cells)}


class Kinked(Grower):
    """Finite everywhere; its gradient is not where k < 1, since the square root is vertical at 0."""

    name = "kinked"

    def curve(self, t, p, x):
        return {"level": jnp.sqrt(jnp.maximum(p.k - 1, 0.0)) + 0.0 * t}


def parameter(name, value, omega):
    """A log-normal parameter; its priors are wide."""
    prior, prior_omega = Prior("normal", np.log(value), 1.0), Prior("lognormal", np.log(omega), 0.3)
    return Parameter(name, value, "1/day", "log", omega, False, prior, prior_omega)


def toy(structure):
    parameters = (parameter("k", 1.0, 0.8), parameter("size", 1.0, 0.2))
    return Model(structure.name, structure, parameters, STEIN.assays)


def three_patients():
    """One sample a day for ten days, which makes every step of the solver half a day."""
    doses = pd.DataFrame({"ID": list(DOSES), "AMT": list(DOSES.values()), "EVID": 1, "TIME": 0.0, "DVID": ""})
    samples = pd.DataFrame({"ID": np.repeat(list(DOSES), 10), "TIME": np.tile(DAYS, 3), "DV": np.tile(DAYS + 4, 3)})
    table = pd.concat([doses, samples.assign(AMT=0.0, EVID=0, DVID="qpcr")], ignore_index=True)
    return ck.read_dataset(table.assign(MDV=table["EVID"]), units={"DV": "copies/ug", "TIME": "day"})


@pytest.fixture(scope="module")
def trial(small_trial):
    return read_trial(small_trial)


def stein(t, p):
    """Stein's curve as printed; ln level."""
    s = t - p["tmax"]
    after = np.log((1 - p["fb"]) * np.exp(-p["alpha"] * s) + p["fb"] * np.exp(-p["beta"] * s))
    before = np.log(p["foldx"]) * s / p["tmax"]
    return np.log(p["cmax"]) + np.where(t < p["tmax"], before, after)


def by_hand(test, data):
    """Per case, whether Stein's curve and the log likelihood of the patient's samples are finite."""
    curve, density = [], []
    with np.errstate(all="ignore"):
        for case in test.cases.to_dict("records"):
            mine = data.subject == data.subjects.index(case["ID"])
            f, y, cens = stein(data.time[mine], case), np.log(data.dv[mine]), data.cens[mine]
            sigma = test.population["sigma qpcr"][case["draw"]]
            rows = np.where(cens == 0, stats.norm.logpdf(y, f, sigma), log_ndtr((y - f) / sigma))
            curve.append(np.isfinite(f).all())
            density.append(np.isfinite(rows).all())
    return np.array(curve), np.array(density)


def test_the_published_model_survives_its_own_priors(trial):
    """If it fails, sane priors are called dangerous, or a case is missing."""
    found = ck.stress_test(STEIN, trial, seed=1, draws=50)
    assert found.shares() == {"failed solve": 0, "non-finite density": 0, "non-finite gradient": 0}
    assert len(found.cases) == 50 * 12
    assert list(found.table().index) == list(trial.subjects)
    assert (found.table() == 0).all(axis=None)
    assert "50 draws" in repr(found)
    assert "slowest" not in repr(found)  # a closed form takes no steps


def test_the_draws_are_the_priors(trial):
    """If it fails, another prior is tried than the one that the fit uses."""
    found = ck.stress_test(STEIN, trial, seed=2, draws=1500)
    wanted = {p.name: stats.norm(p.prior.loc, p.prior.scale) for p in STEIN.parameters}
    wanted |= {f"omega {p.name}": stats.norm(p.prior_omega.loc, p.prior_omega.scale) for p in STEIN.parameters}
    wanted |= {"sigma qpcr": stats.norm(STEIN.assays[0].prior.loc, STEIN.assays[0].prior.scale)}
    assert list(found.population) == list(wanted)
    for name, distribution in wanted.items():
        assert stats.kstest(np.log(found.population[name]), distribution.cdf).pvalue > 1e-4, name
    drawn = found.population.loc[found.cases["draw"]].reset_index(drop=True)
    for p in STEIN.parameters:
        z = np.log(found.cases[p.name] / drawn[p.name]) / drawn[f"omega {p.name}"]
        assert stats.kstest(z, stats.norm.cdf).pvalue > 1e-4, p.name


def test_the_seed_decides(trial):
    """If it fails, a user cannot find a draw again."""
    first, again, other = (ck.stress_test(STEIN, trial, seed=s, draws=5) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first.cases, again.cases)
    assert not (first.cases["cmax"] == other.cases["cmax"]).any()


@pytest.mark.thorough
def test_an_absurd_omega_is_counted_as_numpy_counts_it(trial):
    """An SD of 500 of ln cmax: levels beyond the largest float, for some patients of some draws."""
    found = ck.stress_test(STEIN.with_priors({"omega.cmax": Prior("lognormal", np.log(500), 0.2)}), trial, seed=5)
    curve, density = by_hand(found, trial)
    assert 0.05 < np.mean(~curve) < 0.3
    np.testing.assert_array_equal(found.cases["failed solve"], ~curve)
    np.testing.assert_array_equal(found.cases["non-finite density"], ~density)
    failed = found.cases.assign(bad=~curve)
    assert found.table()["failed solve"].to_dict() == failed.groupby("ID")["bad"].sum().to_dict()
    assert found.shares()["failed solve"] == failed.groupby("draw")["bad"].any().mean()
    worst = found.worst(5)
    assert worst["failed solve"].all()
    assert ((worst["cmax"] == 0) | np.isinf(worst["cmax"])).all()
    assert worst["ID"][0] in repr(found)


def test_a_density_fails_where_the_curve_does_not(trial):
    """A residual SD beyond floating point: the curve is innocent, and every patient of the draw is hit."""
    found = ck.stress_test(STEIN.with_priors({"sigma.qpcr": Prior("lognormal", 0.0, 300.0)}), trial, seed=6)
    curve, density = by_hand(found, trial)
    assert curve.all()
    assert 0.1 < np.mean(~density) < 0.9
    np.testing.assert_array_equal(found.cases["non-finite density"], ~density)
    assert not found.cases["failed solve"].any()


def test_a_gradient_fails_alone_and_only_for_its_patient():
    """If it fails, one patient's NaN is charged to all, or a density that is finite hides it."""
    found = ck.stress_test(toy(Kinked()), three_patients(), seed=7, draws=100)
    assert not found.cases[["failed solve", "non-finite density"]].any(axis=None)
    below = found.cases["k"] < 1
    assert 0.2 < below.mean() < 0.8
    np.testing.assert_array_equal(found.cases["non-finite gradient"], below)


@pytest.mark.thorough
def test_the_fixed_grid_against_its_closed_form():
    """Two steps a day multiply by the method's polynomial each, where the ODE multiplies by exp(r)."""
    found = ck.stress_test(toy(Grower()), three_patients(), seed=8, draws=100)
    cases = found.cases
    rate = cases["k"] * cases["ID"].map(DOSES) / 1e6
    with np.errstate(over="ignore"):
        each = factor(rate / 2)
        last = cases["size"] * each**20
    np.testing.assert_array_equal(cases["failed solve"], ~np.isfinite(last))
    counts = found.table()["failed solve"]
    assert (counts["P1"], counts["P2"]) == (0, 0)
    assert 20 < counts["P3"] < 80
    exact = 10 * rate + np.log(cases["size"]) < 700  # what the ODE reaches, and a float can hold
    assert not cases["unsolved"][exact].any()
    assert cases["unsolved"][10 * rate > 710].all()
    both = exact & np.isfinite(last)
    np.testing.assert_allclose(cases["solver error"][both], 10 * np.abs(2 * np.log(each) - rate)[both], atol=1e-5)
    steps = cases[both].groupby("ID")["steps"].mean()
    assert steps["P2"] > steps["P1"]  # P2 grows three times as fast
    slowest = cases.loc[cases["steps"].idxmax()]
    assert f"slowest: patient {slowest['ID']}, draw {slowest['draw']}, {slowest['steps']} steps" in repr(found)
    assert list(found.table()["steps"]) == [cases["steps"][cases["ID"] == i].max() for i in DOSES]


@pytest.mark.thorough
def test_smaller_steps_are_nearer():
    """If it fails, ``refine`` is not what the fit means by it."""
    coarse, fine = (ck.stress_test(toy(Grower()), three_patients(), seed=8, draws=20, refine=r) for r in (1, 4))
    few = coarse.cases["k"].between(1.0, 5.0) & (coarse.cases["ID"] == "P1")
    assert few.sum() > 5
    assert (fine.cases["solver error"] < coarse.cases["solver error"] / 20)[few].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"draws": 0}, "draws = 0"),
        ({"draws": True}, "draws"),
        ({"refine": 0}, "refine"),
    ],
)
def test_impossible_options_are_refused(trial, options, message):
    """If it fails, a slip of the pen compiles for a while and then breaks."""
    with pytest.raises(ModelError, match=message):
        ck.stress_test(STEIN, trial, **{"seed": 1} | options)
