"""What priors expect, against simulation by hand."""

import numpy as np
import pytest

import carkinetics as ck


@pytest.mark.thorough
def test_quantiles_are_of_trials_from_the_priors(small_trial):
    """If it fails, the band is of one population, or of patients without residual error."""
    model = ck.load_model("stein_2019_tisagenlecleucel")
    data = ck.read_dataset(small_trial.table, units={"DV": "copies/ug"})
    found = ck.prior_predictive(model, data, seed=3, replicates=300)
    assert list(found) == ["TIME", "DVID", "LOW", "MEDIAN", "HIGH"]
    # Peak of a patient: cmax of the population's prior, its spread, and the residual, all log-normal.
    p, assay = model["cmax"], model.assays[0]
    rng = np.random.default_rng(1)
    omega = np.exp(rng.normal(p.prior_omega.loc, p.prior_omega.scale, 100_000))
    ln = rng.normal(p.prior.loc, p.prior.scale, 100_000) + omega * rng.standard_normal(100_000)
    assert found["HIGH"].max() < 3 * np.exp(np.quantile(ln, 0.95)) * np.exp(1.65 * assay.sigma)
    alone = ck.simulate(model, ck.Cohort(n=4000, times=[14.0]), seed=1, limits=False).samples["dv"].values
    at = found.iloc[(found["TIME"] - 14.0).abs().argmin()]
    width = np.log(at["HIGH"] / at["LOW"])
    assert width > 1.2 * np.log(np.quantile(alone, 0.95) / np.quantile(alone, 0.05))
    assert at["MEDIAN"] == pytest.approx(np.median(alone), rel=0.5)


def test_the_figure_has_the_samples(small_trial, tmp_path):
    """If it fails, priors are judged without the data they are of."""
    model = ck.load_model("stein_2019_tisagenlecleucel")
    data = ck.read_dataset(small_trial.table, units={"DV": "copies/ug"})
    axes = ck.plots.prior_predictive(ck.prior_predictive(model, data, seed=3, replicates=20), data)
    ck.plots.save(axes, tmp_path / "prior.png")
    assert (tmp_path / "prior.png").stat().st_size > 5000
    points = sum(len(line.get_xdata()) for line in axes[0].lines[1:])
    assert points == data.n_obs
