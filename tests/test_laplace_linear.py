"""The Laplace slope with covariates, correlated effects and a ratio, where the exact marginal posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from by_hand import correlation_of, lkj
from carkinetics.covariates import Covariate
from carkinetics.inference import approximation
from carkinetics.inference.laplace import widen
from carkinetics.inputs import resolved
from carkinetics.layout import make_layout
from carkinetics.model_files import parse_model
from carkinetics.observations import make_observations
from test_coordinates import LINE, Line
from test_laplace_fit import differences, read, table
from tiers import tiered

RATIO = "sigma = 0.7, ratio = {value = 0.7, omega_sd = 0.4}"
WITH_RATIO = parse_model(LINE.toml.replace("sigma = 0.7", RATIO), structures=[Line()])
COVARIATES = (
    Covariate("AGE", on="a", form="exponential", center=50.0, value=0.02, prior_sd=0.03),
    Covariate("SEX", on="b", form="categorical", reference="F", levels=("M",), values=(0.3,)),
    Covariate("AGE", on="c", form="linear", center=50.0, value=0.001, prior_sd=0.01),  # on what does not vary
)
MODELS = {
    "ratio": WITH_RATIO,
    "covariates": LINE.with_covariates(*COVARIATES),
    "correlation": LINE.with_correlation("a", "b"),
    "all of them": WITH_RATIO.with_covariates(*COVARIATES).with_correlation("ratio_two", "a", "b"),
}


def trial(n=16):
    """The table of lines, with covariates that move them."""
    frame = table(n)
    number = frame["ID"].str[1:].astype(int)
    frame = frame.assign(AGE=30.0 + 37 * number % 41, SEX=np.where(number % 3 == 0, "M", "F"))
    frame["DV"] *= np.exp(0.02 * (frame["AGE"] - 50) + np.where(frame["SEX"] == "M", 0.3, 0.0) * frame["TIME"])
    frame.loc[frame["DVID"] == "two", "DV"] *= 0.7
    return frame


def exact(model, frame, phi):
    """Log marginal posterior, up to a constant: samples of a patient are jointly normal."""
    take = iter(phi).__next__
    theta, total = {}, 0.0
    for p in model.parameters:
        theta[p.name] = take()
        total += stats.norm.logpdf(theta[p.name], p.prior.loc, p.prior.scale)
    beta = {}
    for c in model.covariates:
        beta[c.on] = take()
        total += stats.norm.logpdf(beta[c.on], c.values[0] if c.values else c.value, c.prior_sd or 0.7)
    random = [p for p in model.parameters if p.iiv]
    ln_omega = [take() for _ in random]
    total += sum(
        stats.norm.logpdf(x, p.prior_omega.loc, p.prior_omega.scale) for x, p in zip(ln_omega, random, strict=True)
    )
    matrix = np.eye(len(random))
    if model.correlation is not None:
        k = len(model.correlation.parameters)
        x = np.array([take() for _ in range(k * (k - 1) // 2)])
        at = [[p.name for p in random].index(n) for n in model.correlation.parameters]
        matrix[np.ix_(at, at)] = correlation_of(np.tanh(x), k)
        total += lkj(x, k, model.correlation.eta)
    ln_sigma = [take() for _ in model.assays]
    total += sum(stats.norm.logpdf(x, a.prior.loc, a.prior.scale) for x, a in zip(ln_sigma, model.assays, strict=True))
    spread = np.diag(np.exp(ln_omega)) @ matrix @ np.diag(np.exp(ln_omega))
    varies = [p.name in [q.name for q in random] for p in model.parameters]
    for _, rows in frame[frame["EVID"] == 0].groupby("ID"):
        two = (rows["DVID"] == "two").to_numpy()
        x = np.vander(rows["TIME"], 3, increasing=True)
        x = np.column_stack([x, two]) if len(theta) == 4 else x
        age, male = rows["AGE"].iloc[0] - 50, float(rows["SEX"].iloc[0] == "M")
        moved = {"a": age, "b": male, "c": age}
        middle = [theta[n] + beta.get(n, 0.0) * moved.get(n, 0.0) for n in theta]
        noise = np.diag(np.exp(2 * np.asarray(ln_sigma))[two.astype(int)])
        covariance = x[:, varies] @ spread @ x[:, varies].T + noise
        total += stats.multivariate_normal(x @ middle, covariance).logpdf(np.log(rows["DV"]))
    return total


@pytest.mark.parametrize("name", tiered(MODELS, thorough={"all of them", "correlation", "ratio"}))
def test_the_slope_is_that_of_the_exact_marginal_posterior(name):
    """If it fails, effects, correlations or ratios are drawn to another place than their posterior's."""
    frame, rng = trial(), np.random.default_rng(3)
    data = read(frame)
    model, _ = resolved(MODELS[name], data)
    layout = make_layout(model)
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        z = jnp.zeros((len(layout.random), obs.n_subjects))
        settled = jax.jit(lambda phi: widen(model, obs, phi, z, jnp.array(False)))
        slope = jax.jit(lambda start: approximation.marginal_slope(model, obs, start))
        for _ in range(3):
            phi = layout.start + rng.normal(0, 0.3, layout.n_phi) * [min(c.prior.scale, 1) for c in layout.components]
            found = np.asarray(slope(settled(jnp.asarray(phi))))
            wanted = differences(lambda p: np.array([exact(model, frame, x) for x in np.atleast_2d(p)]), phi, h=1e-5)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
            assert (np.abs(wanted) > 1e-3).all()
