"""The parameter table and the verdict, against the draws and hand-made cases."""

import jax
import numpy as np
import pytest
from scipy.stats import lognorm, norm

from carkinetics.fit_result import Fit, population_draws
from carkinetics.fit_tree import _replicates
from carkinetics.inference.gates import convergence
from carkinetics.layout import make_layout


def spoiled(fit, **changes) -> Fit:
    """A copy of a fit with other sample statistics or attributes."""
    tree = fit.tree.copy(deep=True)
    tree.attrs = dict(fit.tree.attrs)
    for name, value in changes.items():
        if name in tree.attrs:
            tree.attrs[name] = value
        else:
            tree["sample_stats"][name].values[...] = value
    return Fit(model=fit.model, data=fit.data, tree=tree)


def test_parameter_table_by_hand(small_fit):
    """TV, RSE, interval, IIV and shrinkage are what their names say, computed here from the draws."""
    table, posterior = small_fit.parameters(), small_fit.tree["posterior"].to_dataset()
    tv = posterior["tv"].sel(parameter="cmax").values
    row = table.loc["cmax"]
    assert row["TV"] == pytest.approx(tv.mean())
    assert row["RSE %"] == pytest.approx(100 * tv.std() / tv.mean())
    assert [row["2.5 %"], row["97.5 %"]] == pytest.approx(np.percentile(tv, [2.5, 97.5]))
    omega = posterior["omega"].sel(parameter="cmax").values
    assert row["IIV CV %"] == pytest.approx(np.median(100 * np.sqrt(np.exp(omega**2) - 1)))
    eta = posterior["eta"].sel(parameter="cmax").values.astype(float).mean((0, 1))
    assert row["shrinkage %"] == pytest.approx(100 * (1 - eta.std(ddof=1) / omega.mean()), rel=1e-6)
    assert table.loc["sigma qpcr", "TV"] == pytest.approx(float(posterior["sigma"].mean()))
    assert list(table.index) == [*posterior["parameter"].values, "sigma qpcr"]


def test_eta_and_individual_are_one(small_fit):
    """individual = inverse transform of theta + eta, for every draw."""
    posterior = small_fit.tree["posterior"].to_dataset()
    expected = np.exp(posterior["theta"].values[:, :, None, :] + posterior["eta"].values)
    np.testing.assert_allclose(posterior["individual"].values, expected, rtol=2e-5)


def test_convergence_agrees_with_arviz_on_a_tree(small_fit):
    """R-hat and ESS are ArviZ's, whichever way they are asked."""
    import arviz as az

    names, draws = population_draws(small_fit)
    rhat, bulk, tail = convergence(draws)
    theta = small_fit.tree["posterior"].to_dataset()[["theta"]]
    k = names.index("alpha")
    pick = {"parameter": "alpha"}
    assert rhat[k] == pytest.approx(float(az.rhat(theta)["theta"].sel(pick)))
    assert bulk[k] == pytest.approx(float(az.ess(theta)["theta"].sel(pick)))
    assert tail[k] == pytest.approx(float(az.ess(theta, method="tail", prob=(0.05, 0.95))["theta"].sel(pick)))


def test_a_short_fit_is_never_called_ok(small_fit):
    """100 draws cannot have 400 effective ones: the fit says so."""
    check = small_fit.check()
    assert check.status in ("warning", "failed")
    assert "ESS" in str(check)


def test_divergences_and_interruption_are_said(small_fit, small_nuts):
    """A divergence, an interruption and a patient who is stuck each appear in the verdict."""
    assert "divergent" in str(spoiled(small_nuts, diverging=True).check())
    assert spoiled(small_nuts, diverging=True).check().status == "failed"
    stuck = spoiled(small_fit, renewed=False).check()
    assert "Patient V01's parameters were renewed 0 times < 400" in str(stuck)
    assert "interrupted" in str(spoiled(small_fit, complete=0).check())
    lost = spoiled(small_fit, solver_unsolved='{"V03": 2, "V11": 1}', solver_draws=8).check()
    assert (
        "reference solver failed at posterior draws, unchecked there: patients V03 (2 of 8) and V11 (1 of 8)."
        in str(lost)
    )
    assert lost.numbers["solver_unsolved"] == 3
    assert "not finite at posterior draws: patient V02 (1 of 8)" in str(
        spoiled(small_fit, solver_failed='{"V02": 1}', solver_draws=8).check()
    )
    assert "finite" not in str(small_fit.check())
    assert "tree depth" in str(spoiled(small_nuts, reached_max_treedepth=True).check())


def test_chains_that_disagree_fail(small_fit):
    """R-hat above 1.05 is a failed fit, and the parameter is named."""
    tree = small_fit.tree.copy(deep=True)
    tree.attrs = dict(small_fit.tree.attrs)
    phi = tree["posterior"]["phi"]
    phi.values[0, :, list(phi["component"].values).index("alpha")] += 5
    check = Fit(model=small_fit.model, data=small_fit.data, tree=tree).check()
    assert check.status == "failed"
    assert "alpha" in check.reasons[0]


def test_tree_has_the_contracts_groups_names_and_dimensions(small_fit):
    """ArviZ and every later function find their way by these names."""
    tree = small_fit.tree
    groups = {"posterior", "prior", "posterior_predictive", "log_likelihood", "sample_stats", "observed_data"}
    assert groups | {"constant_data"} <= set(tree.children)
    dims = {name: v.dims[2:] for name, v in tree["posterior"].to_dataset().items()}
    assert dims == {
        "tv": ("parameter",),
        "phi": ("component",),
        "theta": ("parameter",),
        "omega": ("parameter",),
        "sigma": ("assay",),
        "eta": ("subject", "parameter"),
        "individual": ("subject", "parameter"),
        "ipred": ("obs",),
        "pred": ("obs",),
    }
    for needed in ("model_toml", "data_sha256", "seed", "versions", "settings"):
        assert tree.attrs[needed] not in ("", None)


def test_log_likelihood_group_by_hand(small_fit):
    """The pointwise log likelihood is scipy's, in the dataset's order of rows."""
    data, tree = small_fit.data, small_fit.tree
    draw = {"chain": 0, "draw": 50}
    ipred = tree["posterior"]["ipred"].isel(**draw).values.astype(float)
    sigma = float(tree["posterior"]["sigma"].isel(**draw).values[0])
    found = tree["log_likelihood"]["dv"].isel(**draw).values
    quantified = data.cens == 0
    density = lognorm(sigma, scale=ipred[quantified]).logpdf(data.dv[quantified])
    np.testing.assert_allclose(found[quantified], density, rtol=1e-4, atol=1e-4)
    below = norm.logcdf((np.log(data.dv[~quantified]) - np.log(ipred[~quantified])) / sigma)
    np.testing.assert_allclose(found[~quantified], below, rtol=1e-3, atol=1e-4)


def test_lp_is_the_models_density(small_fit):
    """``lp`` is the model's own log density, not that of the sampler's coordinates."""
    import jax

    from carkinetics.density import log_joint
    from carkinetics.observations import make_observations

    posterior = small_fit.tree["posterior"].to_dataset().isel(chain=1, draw=20)
    omega = posterior["omega"].values
    phi = np.concatenate([posterior["theta"].values, np.log(omega), np.log(posterior["sigma"].values)])
    z = (posterior["eta"].values.astype(float) / omega).T
    with jax.enable_x64(True):
        obs = make_observations(small_fit.model, small_fit.data)
        expected = float(log_joint(small_fit.model, obs, jax.numpy.asarray(phi), jax.numpy.asarray(z)))
    assert float(small_fit.tree["sample_stats"]["lp"].isel(chain=1, draw=20)) == pytest.approx(expected, abs=1e-2)


def test_the_patient_about_whom_chains_disagree_is_named(small_fit):
    """If it fails, a fit that did not converge does not say on whose account."""
    tree = small_fit.tree.copy(deep=True)
    tree.attrs = dict(small_fit.tree.attrs)
    eta = tree["posterior"]["eta"].values
    eta[0, :, 3, 2] += 10 * eta[:, :, 3, 2].std()
    check = Fit(model=small_fit.model, data=small_fit.data, tree=tree).check()
    name = small_fit.model.parameters[2].name
    assert check.status == "failed"
    assert f"The chains disagree most about patient {small_fit.data.subjects[3]} ({name}, R-hat " in str(check)


@pytest.mark.parametrize(("patient", "population", "named"), [(0.5, 0.5, True), (0.42, 0.5, True), (0.3, 0.5, False)])
def test_a_patient_is_named_who_disagrees_a_little_as_the_population_does(small_fit, patient, population, named):
    """If it fails, chains that barely disagree leave the reader without a place to look at, or with a wrong one."""
    tree = small_fit.tree.copy(deep=True)
    tree.attrs = dict(small_fit.tree.attrs)
    posterior = tree["posterior"]
    n = posterior.sizes["draw"] // 2
    half = norm.ppf((np.random.default_rng(4).permutation(n) + 0.5) / n)
    same = 1 + 0.1 * np.tile(half, 2)  # in every half of every chain: R-hat is less than 1 until a chain is moved
    for name in ("phi", "eta"):
        values = posterior[name].values
        values[:] = same.reshape(1, -1, *[1] * (values.ndim - 2))
    posterior["eta"].values[0, :, 3, 2] += 0.1 * patient
    posterior["phi"].values[0, :, 1] += 0.1 * population
    check = Fit(model=small_fit.model, data=small_fit.data, tree=tree).check()
    assert 1.01 < check.numbers["rhat"] < 1.05
    assert (f"disagree most about patient {small_fit.data.subjects[3]} (" in str(check)) == named


def test_replicates_of_a_heavy_tail_are_numbers(small_fit):
    """If it fails, a fit with Student-t residuals warns of an overflow, or stores infinite replicates."""
    model = small_fit.model.with_residual("student_t", values={"sigma": 30.0, "nu": 1.01})
    layout = make_layout(model)
    phi = np.tile(layout.start, (1, 200, 1))
    ipred = np.full((1, 200, small_fit.data.n_obs), 1e4, np.float32)
    with jax.enable_x64(True):
        found = _replicates(model, small_fit.data, phi, ipred, np.random.default_rng(1))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (found >= 0.99 * np.finfo(np.float32).max).any()
