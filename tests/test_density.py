"""The joint density with all that can be estimated: against an independent one, piece by piece and as a whole."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import gammaln

from by_hand import by_hand, correlation_of
from carkinetics.covariates import Covariate
from carkinetics.density import log_joint
from carkinetics.dependence import Correlation, Horseshoe
from carkinetics.layout import make_layout
from carkinetics.population import correlations, population
from carkinetics.priors import log_prior_phi, prior_phi
from everything import (
    CONSTANT_RATIO,
    EVERYTHING,
    KNOWN_RATIO,
    PUBLISHED,
    RANDOM_RATIO,
    assay,
    bounded,
    changed,
    prepared,
    table,
    tied,
)
from tiers import tiered

CONTINUOUS = (
    Covariate("BURDEN", on="cmax"),
    Covariate("AGE", on="alpha", form="exponential", center="mean"),
    Covariate("WBC", on="tmax", form="linear", center=5.0, value=0.02, prior_sd=0.01),
    Covariate("AGE", on="tmax", form="power", center=50, value=0.4, fixed=True),
)
CATEGORICAL = (
    Covariate("SEX", on="foldx", form="categorical"),  # as many of one as of the other: the first is the reference
    Covariate("PRODUCT", on="cmax", form="categorical", reference="B", prior_sd=0.3),
    Covariate("PRODUCT", on="fb", form="categorical", levels=("C", "B"), reference="A", values=(0.3, -0.2)),
)
AFTER = PUBLISHED.with_correlation("cmax", "tmax", "fb", values=(0.5, -0.3, 0.2))
AFTER = replace(AFTER, correlation=replace(AFTER.correlation, prior_sd=(0.2, 0.3, 0.1)))
MODELS = {
    "four families": PUBLISHED.with_assay(assay("n_cells", "negative_binomial", 0.5))
    .with_assay(assay("ddpcr", "combined", 0.4, 20.0))
    .with_assay(assay("flow", "student_t", 0.5, 4.0)),
    "second parameters known": PUBLISHED.with_assay(assay("ddpcr", "combined", 0.4, 20.0, estimated=False)).with_assay(
        assay("flow", "student_t", 0.5, 4.0, ratio=KNOWN_RATIO, estimated=False)
    ),
    "two ratios": PUBLISHED.with_assay(assay("bm", ratio=CONSTANT_RATIO)).with_assay(assay("csf", ratio=RANDOM_RATIO)),
    "continuous": PUBLISHED.with_covariates(*CONTINUOUS),
    "categorical": PUBLISHED.with_covariates(*CATEGORICAL),
    "on what is bounded": bounded(PUBLISHED).with_covariates(
        Covariate("AGE", on="fb", form="linear", center=50, value=0.01), Covariate("SEX", on="fb", form="categorical")
    ),
    "on what does not vary": changed(PUBLISHED, "beta", iiv=0.0).with_covariates(Covariate("BURDEN", on="beta")),
    "on what is known": PUBLISHED.fix("beta").with_covariates(Covariate("BURDEN", on="beta")),
    "horseshoe": PUBLISHED.with_covariates(*CONTINUOUS[:2], *CATEGORICAL[:2], shrinkage=Horseshoe(2.0, 0.5)),
    "horseshoe, scale known": PUBLISHED.with_covariates(*CONTINUOUS, shrinkage=Horseshoe(2.0, 0.5, 0.1)),
    "correlation": PUBLISHED.with_correlation("beta", "tmax", "cmax", eta=1.5),  # not the model's order
    "correlation of a posterior": AFTER,
    "mixture upwards": bounded(PUBLISHED).with_mixture("fb", 0.2, 0.1, "persister"),
    "mixture and correlation": PUBLISHED.with_correlation("tmax", "cmax").with_mixture("cmax", 900.0, 0.3, "poor"),
    "tied and correlated": tied(PUBLISHED).with_correlation("cmax", "alpha", "tmax"),
    "everything": EVERYTHING,
}
FASTER = {"two ratios", "categorical", "horseshoe", "mixture upwards", "everything"}
COMPILED = jax.jit(log_joint, static_argnums=0)


def place(model, obs, seed):
    """A ``phi`` near the model's own, and a ``z``."""
    rng, components = np.random.default_rng(seed), make_layout(model).components
    width = [0.3 * min(c.prior.scale, 1.0) for c in components]
    phi = np.array([c.value for c in components]) + width * rng.normal(size=len(components))
    return phi, rng.normal(size=(len(make_layout(model).random), obs.n_subjects))


@pytest.mark.parametrize("name", tiered(MODELS, thorough=set(MODELS) - FASTER))
def test_the_joint_density_equals_an_independent_one(name):
    """If it fails, what is sampled is not the model: a prior, an effect, a class, a row or a Jacobian is wrong."""
    given = MODELS[name]
    frame = table(4, tuple(a.name for a in given.assays), samples=5)
    model, obs = prepared(given, frame)
    assert {g.kind for g in obs.rows} == {"quantified", "below", "above", "between"}
    for seed in range(2):
        phi, z = place(model, obs, seed)
        with jax.enable_x64(True):
            found = float(COMPILED(model, obs, jnp.asarray(phi), jnp.asarray(z)))
        assert found == pytest.approx(by_hand(given, frame, phi, z), rel=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["everything", pytest.param("four families", marks=pytest.mark.slow)])
def test_every_slope_is_finite_and_the_densitys(name):
    """If it fails, a gradient sampler follows something else than the density, or a component moves nothing."""
    model, obs = prepared(MODELS[name], table(3, tuple(a.name for a in MODELS[name].assays), samples=4))
    phi, z = place(model, obs, seed=1)
    n, at = len(phi), np.concatenate([phi, z.ravel()])

    def density(x):
        return log_joint(model, obs, x[:n], x[n:].reshape(z.shape))

    with jax.enable_x64(True):
        slope = np.asarray(jax.jit(jax.grad(density))(jnp.asarray(at)))
        h = 2e-4 * np.eye(len(at))
        ends = np.asarray(
            jax.jit(lambda x: jax.lax.map(density, x))(
                jnp.asarray([at + k * h for k in (-2, -1, 1, 2)]).reshape(-1, len(at))
            )
        )
    ends = ends.reshape(4, -1)
    wanted = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * 2e-4)  # fourth order
    np.testing.assert_allclose(slope, wanted, rtol=1e-6, atol=1e-6)
    assert (np.abs(slope) > 1e-9).all()


@pytest.mark.parametrize(("k", "eta"), [(2, 1.0), (3, 2.0), (4, 0.7)])
def test_partial_correlations_have_the_priors_density_of_a_matrix(k, eta):
    """If it fails, the prior on correlations is not LKJ: of a matrix proportional to its determinant to eta - 1.

    Against the determinant, with Lewandowski's constant (J Multivar Anal 2009;100:1989-2001) and a numerical Jacobian.
    """
    names = ("cmax", "tmax", "beta", "alpha")[:k]
    model = PUBLISHED.with_correlation(*names, eta=eta)
    layout, rng = make_layout(model), np.random.default_rng(k)
    constant = 0.0
    for j in range(1, k):
        b = eta + (k - 1 - j) / 2
        constant += (k - j) * ((2 * eta - 2 + k - j) * np.log(2) + 2 * gammaln(b) - gammaln(2 * b))
    rows, columns = np.tril_indices(k, -1)

    def entries(x):
        return correlation_of(np.tanh(x), k)[rows, columns]

    for _ in range(3):
        x = rng.normal(0, 0.7, len(rows))
        h = 1e-5 * np.eye(len(x))
        jacobian = np.array([(entries(x + e) - entries(x - e)) / 2e-5 for e in h])
        matrix = correlation_of(np.tanh(x), k)
        wanted = (eta - 1) * np.linalg.slogdet(matrix)[1] - constant + np.linalg.slogdet(jacobian)[1]
        phi = layout.start.copy()
        phi[layout.correlations] = x
        with jax.enable_x64(True):
            found = np.asarray(log_prior_phi(model, jnp.asarray(phi)))[layout.correlations].sum()
            whole = np.asarray(correlations(layout, jnp.asarray(phi)))
        assert found == pytest.approx(wanted, abs=1e-6)
        at = [[p.name for p in model.parameters].index(n) for n in names]
        np.testing.assert_allclose(whole[np.ix_(at, at)], matrix, atol=1e-12)


def test_far_correlations_keep_a_finite_density():
    """If it fails, a chain that comes near a correlation of one gets stuck at a density that is not a number."""
    model = PUBLISHED.with_correlation("cmax", "tmax")
    layout = make_layout(model)
    for x in (-400.0, -20.0, 20.0, 400.0):
        phi = layout.start.copy()
        phi[layout.correlations] = x
        with jax.enable_x64(True):
            value, slope = jax.value_and_grad(lambda p: log_prior_phi(model, p).sum())(jnp.asarray(phi))
        assert np.isfinite(value) and np.isfinite(slope).all()
        # (eta = 2): the density of atanh falls as exp(-4 |x|)
        assert float(slope[layout.correlations.start]) == pytest.approx(-4 * np.sign(x), rel=1e-6)


def test_the_density_of_individual_parameters_is_scipys():
    """If it fails, correlated patients or classes have another distribution than the model says."""
    model, obs = prepared(EVERYTHING, table(assays=("qpcr", "flow")))
    layout = make_layout(model)
    phi, z = place(model, obs, seed=4)
    with jax.enable_x64(True):
        of = population(layout, jnp.asarray(phi), obs.design)
        x = np.asarray(of.varying(jnp.asarray(z)))
        found = np.asarray(of.log_density(jnp.asarray(x)))
        back = np.asarray(of.whitened(jnp.asarray(x)))
        matrix, share = np.asarray(correlations(layout, jnp.asarray(phi))), float(jax.nn.sigmoid(of.log_odds))
        second = np.asarray(of.second_class(jnp.asarray(z)))
    omega, step = np.asarray(of.omega), np.asarray(of.step)
    assert omega[list(layout.random).index(3)] == omega[list(layout.random).index(1)]  # alpha's is tmax's
    assert (np.abs(matrix[np.triu_indices(len(matrix), 1)]) > 1e-4).sum() == 3
    spread = np.diag(omega) @ matrix @ np.diag(omega)
    for i in range(obs.n_subjects):
        of_class = [
            stats.multivariate_normal(np.asarray(of.centre())[:, i] + k * step, spread).pdf(x[:, i]) for k in (0, 1)
        ]
        dense = (1 - share) * of_class[0] + share * of_class[1]
        assert found[i] - 0.5 * len(x) * np.log(2 * np.pi) == pytest.approx(np.log(dense), rel=1e-11)
        assert second[i] == pytest.approx(share * of_class[1] / dense, rel=1e-10)
    np.testing.assert_allclose(back, z, atol=1e-11)


@pytest.mark.thorough
def test_draws_of_the_prior_have_the_priors_distributions():
    """If it fails, prior predictive checks and calibration start from another prior than the sampler's."""
    model, _ = prepared(EVERYTHING, table(assays=("qpcr", "flow")))
    layout, n = make_layout(model), 4000
    with jax.enable_x64(True):
        phi = np.asarray(prior_phi(model, jax.random.key(1), n))
        matrices = np.asarray(jax.vmap(lambda x: correlations(layout, x))(jnp.asarray(phi[:2000])))
        exact = dist.LKJ(3, 2.0).sample(jax.random.key(2), (2000,))
    at = np.ix_(layout.correlated, layout.correlated)
    for i, j in ((1, 0), (2, 0), (2, 1)):
        ours = np.array([m[at][i, j] for m in matrices])
        assert stats.ks_2samp(ours, np.asarray(exact)[:, i, j]).pvalue > 1e-3
    for k, c in enumerate(layout.components):
        p = c.prior
        known = {
            "normal": stats.norm(p.loc, p.scale),
            "lognormal": stats.lognorm(s=p.scale, scale=np.exp(p.loc)),
            "halfnormal": stats.halfnorm(scale=p.scale),
            "halfcauchy": stats.halfcauchy(scale=p.scale),
            "lkj": stats.beta(p.scale, p.scale),
        }[p.family]
        x = (1 + np.tanh(phi[:, k])) / 2 if p.family == "lkj" else np.exp(phi[:, k]) if c.log else phi[:, k]
        assert stats.kstest(x, known.cdf).pvalue > 1e-4, c.name


def test_without_correlation_or_classes_nothing_is_added():
    """If it fails, a model without them pays for them, or an empty block changes the order of ``phi``."""
    model, obs = prepared(PUBLISHED, table())
    assert make_layout(model).phi_names[:6] == [p.name for p in PUBLISHED.parameters]
    with jax.enable_x64(True):
        of = population(make_layout(model), jnp.asarray(make_layout(model).start), obs.design)
    assert of.factor is None and of.step is None and of.typical.shape == (6, 1)
    with pytest.raises(ValueError, match="not positive definite"):
        Correlation(("a", "b", "c"), values=(0.9, 0.9, -0.9))
