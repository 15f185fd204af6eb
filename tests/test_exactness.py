"""What is sampled is the posterior: against quadrature, a conjugate model's integrals, and plain NUTS.

Every comparison takes the method of inference from the fixture ``method``: it decides whether a method is safe.
"""

import dataclasses
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from arviz_stats.base.array import array_stats
from jaxtyping import Array, Float
from numpyro.infer import MCMC, NUTS
from scipy import integrate, optimize, stats

from agreement import LIMIT, PROBABILITIES, Facts, disagreements, facts_of, tail
from carkinetics.dataset import read_dataset
from carkinetics.demo import read_trial, virtual_trial
from carkinetics.density import joint
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.inference.chains import Settings
from carkinetics.inference.gates import convergence
from carkinetics.model_files import load_model
from carkinetics.model_parts import Prior
from carkinetics.observations import make_observations
from carkinetics.structure import AbstractStructure
from one_way import OneWay
from quadrature import Patient, Problem, importance_sample, log_integrand, log_marginal, weighted_quantiles

PUBLISHED = load_model("stein_2019_tisagenlecleucel")


@dataclasses.dataclass(frozen=True)
class Trial:
    """Eight patients, of whom only cmax and a ``second`` parameter are unknown, with the priors on the omegas."""

    second: str
    days: tuple[float, ...]
    lloq: float
    omega: tuple[float, float]
    sigma: float
    prior_omega: tuple[Prior, Prior]

    @property
    def model(self):
        """The published model with all else known, and the same in everybody."""
        random = ("cmax", self.second)
        parameters = tuple(
            p if p.name in random else dataclasses.replace(p, iiv=0.0, fixed=True) for p in PUBLISHED.parameters
        )
        priors = {f"omega.{name}": prior for name, prior in zip(random, self.prior_omega, strict=True)}
        return dataclasses.replace(PUBLISHED, parameters=parameters).with_priors(priors)

    def table(self, seed=1, n=8):
        """Simulated here, not by the library."""
        rng, rows = np.random.default_rng(seed), []
        problem = Problem(self.second, known(self.second), (), ())
        for i in range(n):
            ln_cmax, ln_second = np.log([24000, typical(self.second)]) + np.array(self.omega) * rng.standard_normal(2)
            ln_level = ln_cmax + problem.ln_shape(np.array(self.days), np.array(ln_second))
            dv = np.exp(ln_level + self.sigma * rng.standard_normal(len(self.days)))
            for day, value in zip(self.days, dv, strict=True):
                rows.append((f"P{i}", day, max(value, self.lloq), "qpcr", int(value < self.lloq)))
        return pd.DataFrame(rows, columns=["ID", "TIME", "DV", "DVID", "CENS"])

    def problem(self):
        """The same model and data for the quadrature."""
        patients = []
        for _, rows in self.table().groupby("ID"):
            below = rows["CENS"].to_numpy() == 1
            day, ln_dv = rows["TIME"].to_numpy(), np.log(rows["DV"].to_numpy())
            patients.append(Patient(day[~below], ln_dv[~below], day[below], ln_dv[below]))
        centres = [stats.norm(np.log(24000), 1.5), stats.norm(np.log(typical(self.second)), 0.7)]  # the file's prior_sd
        scales = [stats.halfnorm(scale=p.scale) if p.family == "halfnormal" else lognormal(p) for p in self.prior_omega]
        return Problem(
            self.second, known(self.second), (*centres, *scales, stats.lognorm(s=0.5, scale=0.56)), tuple(patients)
        )


def known(second):
    """Stein 2019, Table 1."""
    table = {"foldx": 3900, "tmax": 9.3, "alpha": 0.16, "fb": 0.0079, "beta": 0.0032}
    return {name: float(value) for name, value in table.items() if name != second}


def typical(second):
    return {"alpha": 0.16, "beta": 0.0032}[second]


def lognormal(prior):
    return stats.lognorm(s=prior.scale, scale=np.exp(prior.loc))


TRIALS = {
    # Both effects are seen in every patient, one of them in a curve that bends and is cut off at the limit.
    "identified": Trial(
        second="alpha",
        days=(7, 10, 17, 28, 56),
        lloq=200,
        omega=(0.8, 0.6),
        sigma=0.4,
        prior_omega=(Prior("lognormal", np.log(0.8), 0.7), Prior("lognormal", np.log(0.95), 0.7)),
    ),
    # Late samples hardly tell one patient's loss rate from another's: nothing keeps its omega away from zero, and
    # the density of ln omega falls to the left no faster than omega itself. Here samplers fail.
    "barely identified": Trial(
        second="beta",
        days=(10, 17, 28, 90, 180),
        lloq=100,
        omega=(0.8, 0.3),
        sigma=0.56,
        prior_omega=(Prior("halfnormal", 0.0, 1.0), Prior("halfnormal", 0.0, 1.0)),
    ),
}
NAMES = ["cmax", "second", "ln omega cmax", "ln omega second", "ln sigma"]
SMALL_OMEGAS = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module", params=[pytest.param("identified", marks=pytest.mark.slow), "barely identified"])
def trial(request):
    return TRIALS[request.param]


@pytest.fixture(scope="module")
def exact(trial):
    """The posterior by quadrature and importance sampling."""
    return posterior_of(trial)


@cache
def posterior_of(trial):
    return importance_sample(trial.problem(), n=2048)


def facts_of_points(points, weights):
    """As :func:`agreement.facts_of`, of weighted points."""
    mean = weights @ points / weights.sum()
    sd = np.sqrt(weights @ (points - mean) ** 2 / weights.sum())
    quantiles = np.stack([weighted_quantiles(x, weights, PROBABILITIES) for x in points.T])
    return np.concatenate([mean[:, None], sd[:, None], quantiles], axis=1)


def kurtosis_of_points(points, weights):
    """Of weighted points, by quantity."""
    off = points - weights @ points / weights.sum()
    return (weights @ off**4 / weights.sum()) / (weights @ off**2 / weights.sum()) ** 2


def tails(draws, exact):
    """As :func:`agreement.disagreements`, of the probability that the second omega is small."""
    found = []
    for omega in SMALL_OMEGAS:
        below = np.log(omega)
        wanted, error = exact.facts(lambda x, w, below=below: w @ (x[:, 3] < below) / w.sum())
        apart = tail(draws[..., 3], float(wanted), float(error), below)
        if not apart <= LIMIT:
            found.append(f"P(omega < {omega}): wanted {wanted:.3g}, {apart:.1f} errors apart")
    return found


def logs(draws):
    """Population draws with ln omega and ln sigma in the place of omega and sigma."""
    return np.concatenate([draws[..., :2], np.log(draws[..., 2:])], axis=-1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "omega"), [("identified", 0.6), ("barely identified", 0.03), ("barely identified", 1.5)]
)
def test_quadrature_is_the_integral(name, omega):
    """The reference against an adaptive integration, of a patient with censored samples."""
    problem = TRIALS[name].problem()
    patient = next(p for p in problem.patients if len(p.day_below))
    phi = np.array([np.log(20000), np.log(typical(problem.second)) + 0.2, np.log(0.9), np.log(omega), np.log(0.5)])

    def integrand(z1, z2):
        return np.exp(float(log_integrand(problem, patient, phi, np.array(z1), np.array(z2))) + 30)

    wanted, _ = integrate.dblquad(integrand, -8, 8, -8, 8, epsabs=0, epsrel=1e-6)
    assert np.exp(log_marginal(problem, patient, phi[None], (40, 60))[0] + 30) == pytest.approx(wanted, rel=1e-5)
    assert log_marginal(problem, patient, phi[None])[0] == pytest.approx(np.log(wanted) - 30, abs=1e-3)


def test_laplace_differs_as_laplace_does():
    """The error of Laplace's approximation against quadrature falls as one over the number of samples.

    If it fails, the quadrature is not exact: Tierney and Kadane 1986, doi:10.1080/01621459.1986.10478240.
    """
    problem = TRIALS["identified"].problem()
    patient = next(p for p in problem.patients if not len(p.day_below))
    phi = np.array([np.log(24000), np.log(0.16), np.log(0.8), np.log(0.6), np.log(0.4)])
    scaled = []
    for m in (8, 16, 32, 64):
        repeated = Patient(np.tile(patient.day, m), np.tile(patient.ln_dv, m), *patient[2:])

        def minus_log(z, repeated=repeated):
            return -float(log_integrand(problem, repeated, phi, np.array(z[0]), np.array(z[1])))

        mode = optimize.minimize(minus_log, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
        hessian = second_differences(minus_log, mode.x, 1e-3)
        laplace = -mode.fun + np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(hessian)[1]
        scaled.append(m * (laplace - log_marginal(problem, repeated, phi[None], (40, 80))[0]))
    assert abs(scaled[-1]) > 0.01
    np.testing.assert_allclose(scaled[2:], scaled[-1], rtol=0.1)


def second_differences(f, x, h):
    e = h * np.eye(len(x))
    return np.array([[(f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)) / (4 * h * h) for a in e] for b in e])


@pytest.mark.thorough
def test_the_reference_is_finer_than_what_it_judges(trial, exact):
    """If it fails, the reference is at fault and not the sampler."""
    assert exact.khat < 0.3
    assert exact.ess > 10_000
    problem, phi = trial.problem(), exact.draws(1, 400, seed=2)[0]
    difference = problem.log_likelihood(phi) - problem.log_likelihood(phi, (40, 80))
    assert np.abs(difference).mean() < 1e-3


@pytest.mark.thorough
def test_what_is_wrong_is_found_out(exact):
    """A comparison that lets these pass decides nothing: a tail cut off, a spread off by a tenth, a shift."""
    wanted, honest = Facts(*exact.facts(facts_of_points)), exact.draws(4, 2000, seed=1)
    assert not disagreements(NAMES, facts_of(honest), wanted)
    assert not tails(honest, exact)
    mean, sd = wanted.value[:, 0], wanted.value[:, 1]
    for wrong in (mean + 0.9 * (honest - mean), mean + 1.1 * (honest - mean), honest + 0.1 * sd):
        assert len(disagreements(NAMES, facts_of(wrong), wanted)) >= 5
    if np.mean(honest[..., 3] < np.log(0.05)) > 0.01:
        cut = np.maximum(honest[..., 3], np.log(0.05))
        assert tails(np.where(np.arange(5) == 3, cut[..., None], honest), exact)


def compared(trial, exact, method, seed):
    """A fit's check, and where its draws are not those of the exact posterior."""
    data = read_dataset(trial.table(), units={"DV": "copies/ug"})
    result = fit(trial.model, data, seed=seed, method=method, settings=Settings(draws=3000), progress=False)
    names, draws = population_draws(result)
    assert names == ["cmax", trial.second, "omega cmax", f"omega {trial.second}", "sigma qpcr"]
    draws = logs(draws)
    found, wanted = facts_of(draws), Facts(*exact.facts(facts_of_points))
    # As in `tails`: the SD's error is that of a sampler which visits the tails as often as it should.
    kurtosis = exact.facts(kurtosis_of_points)[0]
    ess = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="sd")
    found.error[:, 1] = np.maximum(found.error[:, 1], wanted.value[:, 1] * np.sqrt((kurtosis - 1) / (4 * ess)))
    return result.check(), disagreements(NAMES, found, wanted) + tails(draws, exact)


@pytest.mark.thorough
def test_draws_agree_with_quadrature(trial, exact, method):
    """If it fails, the sampler misses part of the posterior, or samples another one: here that is the whole case."""
    check, apart = compared(trial, exact, method, seed=1)
    assert check.status == "ok", check
    assert apart == []


@pytest.mark.slow
def test_draws_agree_whatever_the_seed(method):
    """If it fails, a fit that says it is sound is wrong now and then: one seed in eight is enough to harm."""
    trial = TRIALS["barely identified"]
    runs = {seed: compared(trial, posterior_of(trial), method, seed) for seed in range(2, 10)}
    wrong = {seed: apart for seed, (check, apart) in runs.items() if apart and check.status != "failed"}
    assert wrong == {}
    assert sum(check.status == "ok" for check, _ in runs.values()) >= 7, [str(check) for check, _ in runs.values()]


class LevelParameters(NamedTuple):
    a: Float[Array, "*n"]


class LevelStates(NamedTuple):
    level: Float[Array, "*n"]


class Level(AbstractStructure[LevelParameters, LevelStates]):
    """ln level = a at all times: with normal random effects all is normal, given omega and sigma."""

    name = "level"
    parameters = LevelParameters
    states = LevelStates
    outputs = ("level",)

    def curve(self, t, p, x):
        return {"level": p.a + 0 * t}

    def initial(self, p, x):
        return LevelStates(jnp.exp(p.a))

    def rhs(self, t, y, p, x):
        return LevelStates(0 * y.level)

    def output(self, y, p):
        return {"level": jnp.log(y.level)}


LEVEL = """
schema = 1
name = "level"
structure = "level"
[parameters]
a = {value = 5.0, unit = "1", transform = "identity", omega_sd = 0.5, prior_sd = 2.0}
[assays]
qpcr = {output = "level", matrix = "PB", unit = "copies/ug", error = "lognormal", sigma = 0.4}
"""


def test_draws_agree_with_a_hierarchical_normal_model(method, tmp_path):
    """If it fails, the sampler is wrong where nothing is hard: population, spreads and patients are known to 1e-6."""
    rng = np.random.default_rng(3)
    ln_dv = [5.3 + 0.4 * rng.standard_normal() + 0.5 * rng.standard_normal(n) for n in (1, 1, 2, 3, 3, 4, 5, 6)]
    rows = [(f"P{i}", float(t + 1), float(np.exp(y)), "qpcr") for i, of in enumerate(ln_dv) for t, y in enumerate(of)]
    wanted = OneWay(ln_dv, (300, 120)).facts()
    np.testing.assert_allclose(wanted, OneWay(ln_dv, (410, 170)).facts(), rtol=1e-6, atol=1e-6)
    (tmp_path / "level.toml").write_text(LEVEL)
    model = load_model(str(tmp_path / "level.toml"), structures=[Level()])
    model = model.with_priors(
        {"omega.a": Prior("halfnormal", 0.0, 1.0), "sigma.qpcr": Prior("lognormal", np.log(0.4), 0.5)}
    )
    data = read_dataset(pd.DataFrame(rows, columns=["ID", "TIME", "DV", "DVID"]), units={"DV": "copies/ug"})
    result = fit(model, data, seed=1, method=method, settings=Settings(draws=3000), progress=False)
    assert result.check().status == "ok", result.check()
    _, draws = population_draws(result)
    patients = result.tree["posterior"]["individual"].values[..., 0].astype(float)
    draws = np.concatenate([draws[..., :1], np.log(draws[..., 1:]), patients], axis=-1)
    names = ["mu", "ln omega", "ln sigma", *data.subjects]
    assert not disagreements(names, facts_of(draws), Facts(wanted, np.zeros_like(wanted)))


@pytest.mark.slow
def test_draws_agree_with_plain_nuts(method):
    """If it fails, the coordinates change a full model's posterior: plain NUTS samples the joint density as it is."""
    data = read_trial(virtual_trial(1, patients=12))
    with jax.enable_x64(True):
        obs = make_observations(PUBLISHED, data)
        kernel = NUTS(joint, target_accept_prob=0.9)
        mcmc = MCMC(
            kernel, num_warmup=1000, num_samples=4000, num_chains=4, chain_method="vectorized", progress_bar=False
        )
        mcmc.run(jax.random.key(1), PUBLISHED, obs, extra_fields=("diverging",))
        assert np.mean(mcmc.get_extra_fields()["diverging"]) < 1e-3
        sites = {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}
    settings = Settings(draws=4000, max_tree_depth=12)  # so deep that no trajectory is cut
    result = fit(PUBLISHED, data, seed=1, method=method, settings=settings, progress=False)
    assert result.check().status == "ok", result.check()
    names, draws = population_draws(result)
    plain = np.stack([sites[site_of(name)] for name in names], axis=-1)
    assert convergence(plain)[0].max() < 1.01
    assert not disagreements(names, facts_of(draws), facts_of(plain))
    parameters = [p.name for p in PUBLISHED.parameters]
    theta = np.stack([sites[f"theta.{name}"] for name in parameters], axis=-1)
    omega = np.stack([sites[f"omega.{name}"] for name in parameters], axis=-1)
    individual = np.exp(theta[:, :, None] + omega[:, :, None] * np.swapaxes(sites["z"], 2, 3))
    ours = np.log(result.tree["posterior"]["individual"].values.astype(float))
    pairs = [f"{name} of {subject}" for subject in data.subjects for name in parameters]
    flat = (x.reshape(*x.shape[:2], -1) for x in (ours, np.log(individual)))
    assert not disagreements(pairs, *map(facts_of, flat), limit=5.0)  # of 360 honest comparisons one in 5000 runs


def site_of(name):
    """NumPyro's name of a population parameter."""
    kind, _, rest = name.rpartition(" ")
    return f"{kind}.{rest}" if kind else f"theta.{rest}"
