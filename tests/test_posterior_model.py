"""A posterior that becomes a prior: its means, SDs and correlations, through the file and in the density."""

import dataclasses
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from carkinetics.covariates import Covariate
from carkinetics.dataset import read_dataset
from carkinetics.density import log_joint
from carkinetics.dependence import Mixture, PriorCorrelation
from carkinetics.errors import ModelError
from carkinetics.fit_result import population_draws
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model, models_folder, parse_model
from carkinetics.model_parts import Prior
from carkinetics.model_writing import to_toml
from carkinetics.observations import make_observations
from carkinetics.priors import log_prior, log_prior_phi, prior_phi

FILES = sorted(models_folder().glob("*.toml"))


def phi_of(fit):
    """The posterior's draws on the sampler's scale, ``(draw, phi)``."""
    names, draws = population_draws(fit)
    flat = draws.reshape(-1, len(names))
    logs = [n.startswith(("omega ", "sigma ")) for n in names]
    return names, np.where(logs, np.log(np.where(logs, flat, 1.0)), flat)


@pytest.fixture(scope="module")
def posterior(small_fit):
    return small_fit.to_model(name="next")


def test_the_prior_is_the_posteriors_gaussian(small_fit, posterior):
    """If it fails, the next trial starts from another prior than this trial's posterior."""
    names, phi = phi_of(small_fit)
    mean, covariance = phi.mean(axis=0), np.cov(phi.T, ddof=0)
    assert make_layout(posterior).phi_names == names
    assert max(abs(np.corrcoef(phi.T)[np.triu_indices(len(names), 1)])) > 0.2  # else the test below sees no matrix
    gaussian = stats.multivariate_normal(mean, covariance)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for _ in range(5):
            at = mean + 2 * phi.std(axis=0) * rng.standard_normal(len(mean))
            assert float(log_prior(posterior, jnp.asarray(at))) == pytest.approx(gaussian.logpdf(at), rel=1e-9)
        drawn = np.asarray(prior_phi(posterior, jax.random.key(3), 20_000))
    z = stats.norm.isf(0.5e-4)
    np.testing.assert_array_less(abs(drawn.mean(axis=0) - mean), z * np.sqrt(np.diag(covariance) / 20_000))
    off = abs(np.corrcoef(drawn.T) - np.corrcoef(phi.T))
    assert off.max() < stats.norm.isf(0.5e-4 / 78) / np.sqrt(20_000)


@pytest.mark.thorough
def test_the_joint_density_has_the_correlations(small_trial, posterior):
    """If it fails, a sampler ignores what the last trial has said about parameters together."""
    data = read_dataset(small_trial.table, units={"DV": "copies/ug"})
    alone = dataclasses.replace(posterior, prior_correlation=None)
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        obs, z = make_observations(posterior, data), jnp.zeros((6, data.n_subjects))
        for _ in range(3):
            phi = jnp.asarray(np.asarray([p.prior.loc for p in posterior.parameters]))
            phi = jnp.concatenate([phi, jnp.zeros(7)]) + 0.1 * rng.standard_normal(13)
            more = log_joint(posterior, obs, phi, z) - log_joint(alone, obs, phi, z)
            expected = log_prior(posterior, phi) - log_prior_phi(posterior, phi).sum()
            assert abs(float(expected)) > 0.01
            assert float(more) == pytest.approx(float(expected), rel=1e-6)


def test_the_file_is_the_model(small_fit, tmp_path):
    """If it fails, writing a model and reading it again is another prior."""
    model = small_fit.to_model(tmp_path / "mine.toml")
    assert model.name == "mine"
    assert load_model(tmp_path / "mine.toml") == model
    assert not list(tmp_path.glob("*.part"))
    assert tomllib.loads(model.toml)["prior_correlation"]["names"][0] == "foldx"
    with pytest.raises(ModelError, match=r"ends in \.toml"):
        small_fit.to_model(tmp_path / "mine.nc")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_published_model_survives_being_written(path):
    """If it fails, a part of a model is lost or rounded when it is written."""
    model = load_model(path)
    again = parse_model(to_toml(model))
    assert dataclasses.replace(again, toml=model.toml) == model


def test_parts_that_the_published_models_lack_survive_too():
    """If it fails, covariates, classes or odd names are lost when a model is written."""
    model = dataclasses.replace(
        load_model("stein_2019_tisagenlecleucel"),
        covariates=(
            Covariate(
                column="BURDEN %",
                on="foldx",
                center=10.0,
                value=0.1 + 0.2,
                source='a "quoted" source',
                confidence="high",
            ),
            Covariate(column="SEX", on="cmax", form="categorical", reference="F", levels=("M",), values=(0.3,)),
        ),
        mixture=Mixture("foldx", 1e-300, 0.25, "poor"),
        notes=("line\nbreak", "ümläut"),
    )
    again = parse_model(to_toml(model))
    assert dataclasses.replace(again, toml=model.toml) == model


def test_treatments_that_act_are_written_with_their_priors():
    """If it fails, a posterior with a treatment cannot be the next prior, or its factor's prior is lost."""
    model = load_model("stein_2019_tisagenlecleucel").with_treatments("tocilizumab")
    model = model.with_priors({"f_tocilizumab": Prior("normal", 0.3, 0.7)})
    correlation = PriorCorrelation(("cmax", "f_tocilizumab"), ((1.0, 0.5), (0.5, 1.0)))
    model = dataclasses.replace(model, prior_correlation=correlation)
    again = parse_model(to_toml(model))
    assert again.parameters == model.parameters
    assert [t.name for t in again.acting] == ["tocilizumab"]
    assert again.with_treatments("tocilizumab") == again
    with jax.enable_x64(True):
        phi = jnp.linspace(0.0, 1.0, len(make_layout(model).phi_names))
        assert float(log_prior(again, phi)) == float(log_prior(model, phi)) != float(log_prior_phi(model, phi).sum())
        without = again.with_treatments("steroids")
        assert without.prior_correlation is not None and without.prior_correlation.names == ("cmax",)
        assert jnp.isfinite(log_prior(without, phi))


def test_replaced_priors_lose_their_correlations(posterior):
    """If it fails, a prior that was widened by hand still moves with the others."""
    assert posterior.prior_correlation is not None
    changed = posterior.with_values({"cmax": 100.0, "omega.tmax": 0.3, "sigma.qpcr": 0.4})
    assert set(posterior.prior_correlation.names) - set(changed.prior_correlation.names) == {
        "cmax",
        "omega tmax",
        "sigma qpcr",
    }
    fixed = posterior.fix("beta")
    assert "beta" not in fixed.prior_correlation.names
    widened = posterior.with_priors({"cmax": posterior["cmax"].prior})
    assert "cmax" not in widened.prior_correlation.names
    with jax.enable_x64(True):
        kept = np.array([n not in ("cmax", "beta") for n in posterior.prior_correlation.names])
        matrix = np.array(posterior.prior_correlation.matrix)[np.ix_(kept, kept)]
        np.testing.assert_array_equal(np.array(widened.fix("beta").prior_correlation.matrix), matrix)
        assert np.isfinite(log_prior(fixed, jnp.zeros(12)))


@pytest.mark.parametrize(
    ("names", "matrix", "said"),
    [
        (("a", "a"), ((1.0, 0.0), (0.0, 1.0)), "all different"),
        (("a", "b"), ((1.0, 0.0),), "2 by 2"),
        (("a", "b"), ((1.0, 0.2), (0.3, 1.0)), "symmetric"),
        (("a", "b"), ((2.0, 0.2), (0.2, 1.0)), "ones on its diagonal"),
        (("a", "b"), ((1.0, 1.0), (1.0, 1.0)), "positive definite"),
        (("a", "b"), ((1.0, float("nan")), (float("nan"), 1.0)), "symmetric"),
    ],
)
def test_matrices_that_cannot_be_are_refused(names, matrix, said):
    """If it fails, an impossible prior gives a density of NaN."""
    with pytest.raises(ModelError, match=said):
        PriorCorrelation(names, matrix)


def test_an_unknown_name_is_refused_with_the_nearest(posterior):
    """If it fails, a misspelt name in the matrix is ignored."""
    wrong = PriorCorrelation(("cmaxx", "tmax"), ((1.0, 0.1), (0.1, 1.0)))
    with jax.enable_x64(True), pytest.raises(ModelError, match="Did you mean 'cmax'"):
        log_prior(dataclasses.replace(posterior, prior_correlation=wrong), jnp.zeros(13))
