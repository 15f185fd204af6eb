"""The quick Gaussian is that of many rounds, and arrays that are filled up say the same."""

import jax
import numpy as np
import pytest

import carkinetics as ck
from carkinetics import fitting
from carkinetics.demo import read_trial, virtual_trial
from carkinetics.fitting import quick_fit
from carkinetics.observations import Fill, make_observations, row_positions

FILL = Fill((("quantified", "lognormal", 224), ("below", "lognormal", 96), ("between", "lognormal", 32)), 16)
DAYS = (1.0, 4, 7, 10, 14, 21, 28, 42)


@pytest.fixture(scope="module")
def trial():
    """Only the peak and its day differ between patients, so that programs are small."""
    model = ck.load_model("stein_2019_tisagenlecleucel").fix("foldx", "alpha", "fb", "beta")
    model = model.with_values({f"omega.{p}": 0 for p in ("foldx", "alpha", "fb", "beta")})
    return model, ck.read_dataset(
        ck.simulate(model, ck.Cohort(n=20, times=DAYS), seed=4).table, units={"DV": "copies/ug"}
    )


@pytest.fixture(scope="module")
def both(trial):
    """The quick fit with filled arrays, and the usual one."""
    model, data = trial
    return quick_fit(model, data, seed=1, fill=FILL), ck.fit(model, data, seed=1, method="laplace", progress=False)


@pytest.mark.thorough
def test_the_quick_gaussian_is_that_of_many_rounds(both):
    """If it fails, trials by the thousand are analysed by another approximation than method="laplace"."""
    (mean, cov), (usual, usual_cov) = (
        (d.mean(0), np.cov(d.T)) for d in (f.tree["posterior"]["phi"].values[0] for f in both)
    )
    sd = np.sqrt(np.diag(usual_cov))
    assert np.abs((mean - usual) / sd).max() < 0.15
    assert np.abs(np.log(np.sqrt(np.diag(cov)) / sd)).max() < 0.15
    assert both[0].check().numbers["last_move"] < 0.3


@pytest.mark.thorough
def test_individual_parameters_are_the_usual_ones(both):
    """If it fails, exposures of the quick fit are of other patients."""
    first, second = (np.log(f.tree["posterior"]["individual"].sel(parameter="cmax").values[0]) for f in both)
    assert np.abs(first.mean(0) - second.mean(0)).max() < 0.1 * second.std(0).max() + 0.05
    assert first.shape == second.shape == (1000, 20)


@pytest.mark.thorough
@pytest.mark.parametrize("first", ["none", "far off"])
def test_a_short_start_that_leads_nowhere_is_followed_by_a_long_one(trial, both, monkeypatch, first):
    """If it fails, one trial in a hundred has no fit for want of a few rounds."""
    model, data = trial
    starts, search = [], fitting.approximate_quickly

    def leads_nowhere_once(model, obs, start):
        starts.append(np.asarray(start.phi))
        if len(starts) > 1:
            return search(model, obs, start)
        if first == "none":
            raise ck.FitError("no Gaussian approximation")
        return search(model, obs, start)._replace(last_move=2.0)

    monkeypatch.setattr(fitting, "approximate_quickly", leads_nowhere_once)
    again = quick_fit(model, data, seed=1, fill=FILL)
    assert len(starts) == 2 and np.abs(starts[0] - starts[1]).max() > 0
    phi, usual = (f.tree["posterior"]["phi"].values[0] for f in (again, both[0]))
    np.testing.assert_allclose(phi.mean(0), usual.mean(0), atol=0.1 * usual.std(0).max())


@pytest.mark.thorough
def test_filled_arrays_say_the_same(trial):
    """If it fails, rows that belong to nobody count."""
    from carkinetics.density import log_joint
    from carkinetics.layout import make_layout

    model, data = trial
    with jax.enable_x64(True):
        plain, filled = make_observations(model, data), make_observations(model, data, fill=FILL)
        layout = make_layout(model)
        z = np.random.default_rng(1).standard_normal((len(layout.random), 20))
        values = [
            float(log_joint(model, o, jax.numpy.asarray(layout.start), jax.numpy.asarray(z))) for o in (plain, filled)
        ]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert filled.grid.time.shape == (16, 20)
    assert {(g.kind, g.end - g.begin) for g in filled.rows} == {("quantified", 224), ("below", 96), ("between", 32)}
    at = row_positions(model, data, filled.rows)
    np.testing.assert_array_equal(np.asarray(filled.subject)[at], data.subject)
    np.testing.assert_allclose(np.asarray(filled.ln_dv)[at], np.log(data.dv))


def test_more_rows_than_the_filling_are_taken(trial):
    """If it fails, a trial with many samples is cut."""
    model, data = trial
    found = make_observations(model, data, fill=Fill((("quantified", "lognormal", 50),), 2))
    sizes = {g.kind: g.end - g.begin for g in found.rows}
    assert sizes["quantified"] % 50 == 0 and sizes["quantified"] >= (data.cens == 0).sum()
    assert int((np.asarray(found.subject) < 20).sum()) == data.n_obs


def test_a_wrong_seed_is_refused():
    """If it fails, a seed that cannot be is taken."""
    model = ck.load_model("stein_2019_tisagenlecleucel")
    data = read_trial(virtual_trial(1, patients=3))
    with pytest.raises(ck.FitError, match="seed"):
        quick_fit(model, data, seed=-1)
