"""Shrinkage, sensitivity and identifiability: by hand, in closed form, and on priors that say too much."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from carkinetics.diagnostics import gof
from carkinetics.information import _log_prior, identifiability, sensitivity, shrinkage
from carkinetics.layout import make_layout


def test_shrinkage_by_hand(small_fit):
    """If it fails, shrinkage is of other SDs than Savic and Karlsson's."""
    table, posterior = shrinkage(small_fit), small_fit.tree["posterior"].to_dataset()
    for p in small_fit.model.parameters:
        eta = posterior["eta"].sel(parameter=p.name).values
        means = [np.mean(eta[:, :, i].astype(float)) for i in range(eta.shape[2])]
        center = sum(means) / len(means)
        sd = (sum((m - center) ** 2 for m in means) / (len(means) - 1)) ** 0.5
        omega = posterior["omega"].sel(parameter=p.name).values.mean()
        assert table.loc[p.name, "SHRINKAGE %"] == pytest.approx(100 * (1 - sd / omega), abs=1e-10)
    ipred = np.median(posterior["ipred"].values, axis=(0, 1)).astype(float)
    seen = small_fit.data.cens == 0
    residual = np.log(small_fit.data.dv / ipred)[seen] / float(posterior["sigma"].mean())
    expected = 100 * (1 - residual.std(ddof=1))
    assert table.loc["qpcr", "SHRINKAGE %"] == pytest.approx(expected, abs=1e-12)
    assert table["KIND"].tolist() == ["eta"] * 6 + ["epsilon"]


def test_shrinkage_of_numbers_on_paper(small_fit):
    """Means of -1, 0 and 1 in one third of the patients each, omega 2: 1 - SD / 2, to the last digit."""
    posterior = small_fit.tree["posterior"].to_dataset().copy(deep=True)
    posterior["eta"].loc[{"parameter": "cmax"}] = np.tile([-1.0, 0.0, 1.0], 4)
    posterior["omega"].loc[{"parameter": "cmax"}] = 2.0
    posterior["eta"].loc[{"parameter": "beta"}] = 0.25 * np.tile([-1.0, 0.0, 1.0], 4)
    posterior["omega"].loc[{"parameter": "beta"}] = 2.0
    posterior["ipred"].values[:] = small_fit.data.dv * np.exp(0.25)
    tree = small_fit.tree.copy()
    tree["posterior"] = posterior
    table = shrinkage(dataclasses.replace(small_fit, tree=tree))
    sd = np.sqrt(8 / 11)
    assert table.loc["cmax", "SHRINKAGE %"] == pytest.approx(100 * (1 - sd / 2), abs=1e-12)
    assert table.loc["beta", "SHRINKAGE %"] == pytest.approx(100 * (1 - sd / 8), abs=1e-12)
    assert table.loc["beta", "FLAG"] and "covariates mislead" in table.loc["beta", "NOTE"]
    flags = table["SHRINKAGE %"] > 30
    assert (table["FLAG"] == flags).all()
    assert (table["NOTE"][~flags] == "").all()


def test_prior_densities_are_scipys(small_fit):
    """If it fails, sensitivity to the prior is that to something else."""
    layout, found = make_layout(small_fit.model), _log_prior(small_fit)
    phi = small_fit.tree["posterior"].to_dataset()["phi"].values
    expected = np.zeros(phi.shape[:2])
    for k, component in enumerate(layout.components):  # normal ones, and logs of log-normal ones
        expected += stats.norm.logpdf(phi[..., k], component.prior.loc, component.prior.scale)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def with_gaussian(fit, ratio, draws=20_000):
    """Draws of a Gaussian posterior whose prior has ``ratio`` times the information of the likelihood."""
    layout, rng = make_layout(fit.model), np.random.default_rng(1)
    scale = np.array([c.prior.scale for c in layout.components])
    loc = np.array([c.prior.loc for c in layout.components])
    sd = scale / np.sqrt(1 + 1 / ratio)
    phi = loc + sd * rng.standard_normal((2, draws // 2, len(scale)))
    ln = -0.5 * (((phi - loc) / scale) ** 2 / ratio).sum(-1, keepdims=True)
    posterior = xr.Dataset({"phi": (("chain", "draw", "component"), phi)}, coords={"component": layout.phi_names})
    tree = fit.tree.copy()
    tree["posterior"] = posterior
    tree["log_likelihood"] = xr.Dataset({"dv": (("chain", "draw", "obs"), ln)})
    return dataclasses.replace(fit, tree=tree)


def test_sensitivity_tells_a_prior_that_speaks_from_one_that_does_not(small_fit):
    """If it fails, a prior that decides the answer goes unnoticed, or every prior is called strong."""
    quiet, loud = (sensitivity(with_gaussian(small_fit, ratio)) for ratio in (1 / 200, 20.0))
    assert (quiet["PRIOR"] < 0.05).all() and (quiet["LIKELIHOOD"] > 0.05).all()
    assert (quiet["NOTE"] == "").all()
    assert (loud["PRIOR"] > 0.05).all() and (loud["LIKELIHOOD"] < 0.05).all()
    assert (loud["NOTE"] == "the prior tells more than the data").all()


def test_equal_prior_and_likelihood_matter_equally(small_fit):
    """If it fails, the two columns are on different scales: with equal information they are the same by symmetry."""
    table = sensitivity(with_gaussian(small_fit, 1.0))
    np.testing.assert_allclose(table["PRIOR"], table["LIKELIHOOD"], rtol=1e-6)


def test_contraction_and_pairs_by_hand(small_fit):
    """If it fails, what is unknown is called known, or the wrong pair is named."""
    found, layout = identifiability(small_fit, pairs=5), make_layout(small_fit.model)
    phi = small_fit.tree["posterior"].to_dataset()["phi"].values.reshape(-1, layout.n_phi)
    prior = small_fit.tree["prior"].to_dataset()["phi"].values.reshape(-1, layout.n_phi)
    for k, name in enumerate(layout.phi_names):
        row = found.parameters.loc[name]
        assert row["CONTRACTION %"] == pytest.approx(100 * (1 - phi[:, k].var() / prior[:, k].var()), rel=1e-12)
    assert found.parameters["CONTRACTION %"].is_monotonic_increasing
    every = {}
    for i, a in enumerate(layout.phi_names):
        for j, b in enumerate(layout.phi_names[:i]):
            every[frozenset((a, b))] = stats.pearsonr(phi[:, i], phi[:, j])[0]
    expected = sorted(every.values(), key=abs, reverse=True)[:5]
    np.testing.assert_allclose(found.pairs["CORRELATION"], expected, rtol=1e-10)
    for row in found.pairs.itertuples():
        assert every[frozenset((row.A, row.B))] == pytest.approx(row.CORRELATION, rel=1e-10)


def test_a_posterior_that_is_the_prior_is_named(small_fit):
    """If it fails, a parameter of which the data say nothing looks estimated."""
    posterior = small_fit.tree["posterior"].to_dataset().copy(deep=True)
    rng, k = np.random.default_rng(1), make_layout(small_fit.model).phi_names.index("beta")
    prior = make_layout(small_fit.model).priors[k]
    posterior["phi"].values[..., k] = rng.normal(prior.loc, prior.scale, posterior["phi"].shape[:2])
    tree = small_fit.tree.copy()
    tree["posterior"] = posterior
    found = identifiability(dataclasses.replace(small_fit, tree=tree)).parameters
    typical = [p.name for p in small_fit.model.parameters]
    # The least contracted comes first; of omega beta twelve patients say nothing either.
    assert next(name for name in found.index if name in typical) == "beta"
    assert found.loc["beta", "NOTE"] in ("the posterior is the prior", "the prior has a say")
    assert found.loc["cmax", "NOTE"] == ""


def test_every_row_of_gof_counts_in_the_epsilon(small_fit):
    """If it fails, censored rows enter, or quantified ones do not."""
    assert gof(small_fit)["IWRES"].notna().sum() == (small_fit.data.cens == 0).sum()
