"""A posterior with covariates, correlations, classes, Student's nu and a ratio that becomes a prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from carkinetics.cohort import Cohort
from carkinetics.covariates import Covariate
from carkinetics.fit_result import Check, Fit, phi_draws
from carkinetics.fitting import fit
from carkinetics.inputs import resolved
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model, parse_model
from carkinetics.model_writing import to_toml
from carkinetics.population import correlations, population
from carkinetics.priors import log_prior, prior_phi
from carkinetics.simulation import simulate
from everything import PUBLISHED, RANDOM_RATIO, assay, read, tied

MODEL = (
    tied(PUBLISHED)
    .with_assay(assay("bm", "student_t", 0.5, 4.0, ratio=RANDOM_RATIO))
    .with_covariates(
        Covariate("BURDEN", on="cmax", value=0.3),
        Covariate("P", on="fb", form="categorical", levels=("b", "c"), reference="a", values=(0.3, -0.2)),
        Covariate("BURDEN", on="tmax", center=20.0, value=0.1, fixed=True),
    )
    .with_correlation("cmax", "beta", "tmax", values=(0.4, 0.1, -0.2))
    .with_mixture("cmax", 300.0, 0.3, "poor")
)


def trial():
    """A table of ten patients, simulated from the model."""
    rng = np.random.default_rng(3)
    people = pd.DataFrame({"BURDEN": np.exp(rng.normal(3, 1, 10)), "P": [*"abcabcabca"]})
    source = dataclasses.replace(MODEL, covariates=tuple(dataclasses.replace(c, center=20.0) for c in MODEL.covariates))
    days = [1.0, 4, 7, 11, 14, 21, 28, 56, 112]
    return simulate(source, Cohort(10, days, covariates=people), seed=2).table


class Drawn(Fit):
    """A fit of which only the draws matter."""

    def check(self):
        return Check("ok", (), {})


@pytest.fixture(scope="module")
def posterior():
    """Draws that are correlated, and the model that they become."""
    data = read(trial())
    model, _ = resolved(MODEL, data)
    layout, rng = make_layout(model), np.random.default_rng(1)
    root = rng.normal(size=(layout.n_phi, layout.n_phi)) * 0.1
    phi = layout.start + rng.normal(size=(2, 300, layout.n_phi)) @ root + 0.1 * rng.normal(size=layout.n_phi)
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"phi": (("chain", "draw", "component"), phi)})})
    tree.attrs = {"seed": 1}
    found = Drawn(model, data, tree)
    return found, found.to_model(name="next")


@pytest.mark.slow
def test_of_a_fit_too():
    """If it fails, the draws that a fit keeps are not those that its model is made of."""
    found = fit(MODEL, read(trial()), seed=1, method="laplace", progress=False)
    model = found.to_model(name="next")
    np.testing.assert_allclose(make_layout(model).start, phi_draws(found).mean(axis=0), rtol=1e-9, atol=1e-9)
    again = fit(model, read(trial()), seed=1, method="laplace", progress=False)
    before, after = (phi_draws(f).std(axis=0) for f in (found, again))
    assert (after < 1.1 * before).all()  # the same patients twice: nothing is less known than before


def test_the_prior_is_the_posteriors_gaussian(posterior):
    """If it fails, the next trial starts from another prior than this trial's posterior."""
    found, model = posterior
    phi = phi_draws(found)
    mean, covariance = phi.mean(axis=0), np.cov(phi.T, ddof=0)
    layout = make_layout(model)
    assert layout.phi_names == make_layout(found.model).phi_names
    names = set(layout.phi_names)
    assert {"e_burden_cmax", "e_p_b_fb", "e_p_c_fb", "step cmax", "odds poor", "nu bm", "ratio_bm"} < names
    assert {"corr cmax beta", "corr cmax tmax", "corr beta tmax", "omega ratio_bm"} < names
    assert "omega alpha" not in names and "e_burden_tmax" not in names
    gaussian, rng = stats.multivariate_normal(mean, covariance), np.random.default_rng(1)
    with jax.enable_x64(True):
        for _ in range(5):
            at = mean + 2 * phi.std(axis=0) * rng.standard_normal(len(mean))
            assert float(log_prior(model, jnp.asarray(at))) == pytest.approx(gaussian.logpdf(at), rel=1e-8)
        drawn = np.asarray(prior_phi(model, jax.random.key(3), 20_000))
    z = stats.norm.isf(0.5e-4)
    np.testing.assert_array_less(abs(drawn.mean(axis=0) - mean), z * np.sqrt(np.diag(covariance) / 20_000))
    np.testing.assert_allclose(drawn.std(axis=0), phi.std(axis=0), rtol=0.03)
    np.testing.assert_allclose(layout.start, mean, rtol=1e-9, atol=1e-9)  # the model's numbers are the means


def test_the_population_is_the_same(posterior):
    """If it fails, the same vector stands for another population once it was a posterior."""
    found, model = posterior
    phi = phi_draws(found)[3]
    with jax.enable_x64(True):
        each = [population(make_layout(m), jnp.asarray(phi), jnp.ones((4, 2))) for m in (found.model, model)]
        for a, b in zip(*map(jax.tree.leaves, each), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        layout = make_layout(model)
        matrix = np.asarray(correlations(layout, jnp.asarray(layout.start)))
    at = np.array(layout.correlated)
    np.testing.assert_allclose(matrix[np.ix_(at, at)], model.correlation.matrix, atol=1e-10)


def test_the_file_is_the_model(posterior, tmp_path):
    """If it fails, writing a posterior and reading it again is another prior."""
    found, model = posterior
    assert dataclasses.replace(parse_model(to_toml(model)), toml=model.toml) == model
    written = found.to_model(tmp_path / "mine.toml")
    assert load_model(tmp_path / "mine.toml") == written
    assert model["alpha"].iiv == model["tmax"].iiv
    assert [c.center for c in model.covariates] == [c.center for c in found.model.covariates]


def test_the_next_trial_can_be_fitted_and_simulated(posterior):
    """If it fails, a posterior is a prior that no fit accepts."""
    _, model = posterior
    trial = simulate(model, Cohort(6, [4.0, 11, 14, 28, 112], covariates={"BURDEN": 25.0, "P": "b"}), seed=2)
    assert np.isfinite(trial.samples["dv"]).all()
    again = simulate(model, Cohort(6, [4.0, 11]), seed=2, replicates=3, uncertainty=True)
    assert again.population["cmax"].nunique() == 3
