"""Over many trials from the prior the truth is anywhere among the draws, as often here as there."""

import dataclasses
import warnings

import numpy as np
import pytest
from scipy import stats

from carkinetics.cohort import Cohort
from carkinetics.dataset import read_dataset
from carkinetics.errors import DataWarning
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.inference.chains import Settings
from carkinetics.model_files import load_model
from carkinetics.model_parts import Prior
from carkinetics.rank_statistics import ecdf_band, leaves, ranks, thinned
from carkinetics.simulation import simulate
from quadrature import ln_shape

REPLICATIONS = 200
DRAWS = 100  # that a truth is ranked among, nearly independent
INSIDE = 0.999  # probability with which one quantity stays in its band
COHORT = Cohort(n=8, times=(4, 9, 14, 28, 84, 168))
# Calibration holds among trials chosen by their data alone. One number of censored samples means one shape of the
# arrays, compiled once, and leaves out trials in which all or none is below the limit.
BELOW = 8

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
WIDTHS = {  # SD of the typical value's log; median of omega
    "foldx": (0.5, 0.5),
    "tmax": (0.2, 0.3),
    "cmax": (0.5, 0.8),
    "alpha": (0.4, 0.5),
    "fb": (0.5, 0.7),
    "beta": (0.5, 0.5),
}
# Narrower than the file's, so that a trial drawn from them could be a trial; the least informed omega may be zero.
PRIORS = {name: Prior("normal", PUBLISHED[name].theta, sd) for name, (sd, _) in WIDTHS.items()}
PRIORS |= {f"omega.{name}": Prior("lognormal", np.log(omega), 0.4) for name, (_, omega) in WIDTHS.items()}
PRIORS |= {"omega.beta": Prior("halfnormal", 0.0, 0.5), "sigma.qpcr": Prior("lognormal", np.log(0.5), 0.3)}
MODEL = PUBLISHED.with_priors(PRIORS)


def drawn(prior, rng):
    """One draw from a prior."""
    if prior.family == "halfnormal":
        return prior.scale * abs(rng.standard_normal())
    x = prior.loc + prior.scale * rng.standard_normal()
    return np.exp(x) if prior.family == "lognormal" else x


def from_prior(rng):
    """The model with its population parameters drawn from their priors."""
    parameters = tuple(
        dataclasses.replace(p, value=float(np.exp(drawn(p.prior, rng))), iiv=float(drawn(p.prior_omega, rng)))
        for p in MODEL.parameters
    )
    assays = tuple(dataclasses.replace(a, sigma=float(drawn(a.prior, rng))) for a in MODEL.assays)
    return dataclasses.replace(MODEL, parameters=parameters, assays=assays)


def truth_of(model):
    """As :func:`carkinetics.fit_result.population_draws`."""
    theta = [np.log(p.value) for p in model.parameters]
    return np.array([*theta, *(p.iiv for p in model.parameters), *(a.sigma for a in model.assays)])


def log_likelihood(trial, sigma):
    """Of the trial's samples, given its individual parameters."""
    samples = trial.table[trial.table["EVID"] == 0]
    p = trial.individual.loc[samples["ID"]].to_dict("series")
    ln_level = np.log(p["cmax"].to_numpy()) + ln_shape(
        samples["TIME"].to_numpy(), {name: x.to_numpy() for name, x in p.items()}
    )
    ln_dv, below = np.log(samples["DV"].to_numpy()), samples["CENS"].to_numpy() == 1
    z = (ln_dv - ln_level) / sigma
    return np.where(below, stats.norm.logcdf(z), stats.norm.logpdf(z) - np.log(sigma) - ln_dv).sum()


def trial_from_prior(seed):
    """A trial with the right number of samples below the limit, and the truth of what is ranked."""
    rng = np.random.default_rng(seed)
    while True:
        model = from_prior(rng)
        trial = simulate(model, COHORT, seed=int(rng.integers(2**32)))
        if (trial.table["CENS"] == 1).sum() == BELOW:
            truth = truth_of(model)
            return trial, np.append(truth, log_likelihood(trial, truth[-1]))


def quantities(result):
    """Names and draws (chain, draw, quantity): the population parameters and the log likelihood."""
    names, draws = population_draws(result)
    log_lik = result.tree["log_likelihood"]["dv"].values.astype(float).sum(-1)
    return [*names, "log likelihood"], np.concatenate([draws, log_lik[..., None]], axis=-1)


def test_the_band_holds_uniform_ranks_as_often_as_it_says():
    """If it fails, honest samplers are refused, or wrong ones pass."""
    rng = np.random.default_rng(5)
    for probability in (0.5, 0.95):
        band = ecdf_band(REPLICATIONS, DRAWS, probability)
        outside = sum(leaves(rng.integers(0, DRAWS + 1, REPLICATIONS), DRAWS, band) for _ in range(2000))
        assert stats.binomtest(outside, 2000, 1 - probability).pvalue > 0.001


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("nothing", []),
        ("too narrow", ["mu", "log likelihood"]),
        ("shifted", ["mu"]),
        ("the prior", ["log likelihood"]),
    ],
)
def test_wrong_posteriors_leave_the_band(wrong, found):
    """A normal mean with a normal prior: an honest posterior stays, a wrong one is found, even the prior itself."""
    rng, rank = np.random.default_rng(6), []
    for _ in range(REPLICATIONS):
        mu = rng.standard_normal()
        y = mu + rng.standard_normal(4)
        mean, sd = y.sum() / 5, 5**-0.5
        mean, sd = {
            "nothing": (mean, sd),
            "too narrow": (mean, 0.75 * sd),
            "shifted": (mean + 0.4 * sd, sd),
            "the prior": (0.0, 1.0),
        }[wrong]
        draws = mean + sd * rng.standard_normal(DRAWS)
        log_lik = stats.norm.logpdf(y[:, None], np.append(draws, mu)).sum(0)
        rank.append(ranks(np.stack([draws, log_lik[:-1]], axis=1), np.array([mu, log_lik[-1]])))
    band = ecdf_band(REPLICATIONS, DRAWS, INSIDE)
    leaving = [n for n, r in zip(("mu", "log likelihood"), np.array(rank).T, strict=True) if leaves(r, DRAWS, band)]
    assert leaving == found


def test_every_chain_gives_as_many_draws():
    """Thinning takes chains evenly and from end to end."""
    draws = np.arange(2000.0).reshape(4, 500, 1)
    np.testing.assert_array_equal(np.bincount((thinned(draws, 25)[:, 0] // 500).astype(int)), [25] * 4)
    assert {0.0, 499.0, 1999.0} <= set(thinned(draws, 25)[:, 0])


@pytest.mark.slow
def test_the_truth_is_anywhere_among_the_draws(method):
    """If it fails, intervals do not hold what they say: density, transforms, simulation or sampler are wrong."""
    names, every, failed = [], [], []
    for seed in range(REPLICATIONS):
        trial, truth = trial_from_prior(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # odd trials are part of the prior
            data = read_dataset(trial.table, units={"TIME": "day", "DV": "copies/ug"})
        settings = Settings(draws=500, max_draws=4000)
        result = fit(MODEL, data, seed=seed, method=method, settings=settings, progress=False)
        names, draws = quantities(result)
        every.append(ranks(thinned(draws, DRAWS // draws.shape[0]), truth))
        check = result.check()
        if check.status == "failed":
            failed.append((seed, check))
        print(seed, check.status, check.numbers["ess_bulk"], every[-1].tolist(), flush=True)
    band = ecdf_band(REPLICATIONS, DRAWS, INSIDE)
    assert [name for name, rank in zip(names, np.array(every).T, strict=True) if leaves(rank, DRAWS, band)] == []
    assert len(failed) <= REPLICATIONS // 50, failed  # they are ranked all the same: to leave them out would hide them
