"""``method="laplace"``: exact where the likelihood is Gaussian, close where it is not, and never shown as sampled."""

import math

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from scipy.special import logsumexp

matplotlib.use("Agg")

from carkinetics import cli, plots
from carkinetics.dataset import read_dataset
from carkinetics.demo import read_trial
from carkinetics.diagnostics import gof
from carkinetics.errors import FitError, FitWarning
from carkinetics.fit_file import load_fit
from carkinetics.fit_result import Fit
from carkinetics.fitting import fit
from carkinetics.inference import approximation
from carkinetics.inference.approximation import averages, axes, factor_of
from carkinetics.inference.coordinates import transport
from carkinetics.inference.laplace import OMEGA_BOUNDS, find_modes, widen
from carkinetics.inference.tuning import Tuner
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model, parse_model
from carkinetics.model_parts import Prior
from carkinetics.observations import make_observations
from test_coordinates import LINE, Line

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
# b is log-normal, so that the level is not linear in what is normal.
CURVED = parse_model(
    """
schema = 1
name = "curved"
structure = "line"
[parameters]
a = {value = 2.0, unit = "1", transform = "identity", omega_sd = 0.9}
b = {value = 0.4, unit = "1", transform = "log", omega_sd = 0.5}
c = {value = 0.1, unit = "1", transform = "identity", no_iiv = true}
[assays]
one = {output = "level", matrix = "PB", unit = "copies/ug", error = "lognormal", sigma = 0.3}
two = {output = "level", matrix = "PB", unit = "copies/ug", error = "lognormal", sigma = 0.7}
""",
    structures=[Line()],
)
START = np.array([2.0, -0.4, 0.1, math.log(0.9), math.log(0.5), math.log(0.3), math.log(0.7)])
NAMES = ["a", "b", "c", "omega a", "omega b", "sigma one", "sigma two"]


def table(n, spread=1.0, seed=0, dose=1e8):
    """Lines with random intercepts and slopes, by two assays, all quantified; the last patient has a dose only."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        a, b = rng.normal(2.0, 0.9 * spread), rng.normal(-0.4, 0.5)
        rows.append((f"P{i:02d}", 0.0, np.nan, dose, 1, ""))
        for assay, sigma in (("one", 0.3), ("two", 0.7)) if i < n - 1 else ():
            for t in (0.0, 1.0, 2.0, 3.0)[: rng.integers(1, 5)]:
                rows.append((f"P{i:02d}", t, math.exp(a + b * t + 0.1 * t**2 + rng.normal(0, sigma)), 0, 0, assay))
    return pd.DataFrame(rows, columns=["ID", "TIME", "DV", "AMT", "EVID", "DVID"])


def read(frame):
    with pytest.warns(UserWarning):  # the patient without samples
        return read_dataset(frame, units={"DV": "copies/ug"})


def log_prior(model, phi):
    """Log prior density in phi, by SciPy; ``phi`` has shape (..., 7)."""
    priors = [p.prior for p in model.parameters] + [p.prior_omega for p in model.parameters if p.iiv]
    priors += [a.prior for a in model.assays]
    assert [p.family for p in priors] == ["normal"] * 3 + ["lognormal"] * 4
    # A log-normal prior of omega is a normal one of ln omega, Jacobian included.
    return sum(stats.norm.logpdf(phi[..., k], p.loc, p.scale) for k, p in enumerate(priors))


def of_patients(frame):
    """Times, log values and assay numbers of every patient with samples."""
    samples = frame[frame["EVID"] == 0]
    for _, rows in samples.groupby("ID"):
        yield rows["TIME"].to_numpy(), np.log(rows["DV"].to_numpy()), (rows["DVID"] == "two").to_numpy().astype(int)


def exact_line(frame, phi):
    """Log marginal posterior of the linear model: patients' samples are jointly normal; ``phi``: (draw, 7)."""
    omega, sigma = np.exp(phi[:, 3:5]), np.exp(phi[:, 5:7])
    total = log_prior(LINE, phi)
    for t, y, assay in of_patients(frame):
        x = np.vander(t, 3, increasing=True)
        half = x[None, :, :2] * omega[:, None, :]
        spread = half @ np.swapaxes(half, 1, 2) + sigma[:, assay, None] ** 2 * np.eye(len(t))
        residual = y - phi[:, :3] @ x.T
        square = np.einsum("di,di->d", residual, np.linalg.solve(spread, residual[..., None])[..., 0])
        total = total - 0.5 * (square + np.linalg.slogdet(spread)[1])
    return total


def exact_curved(frame, phi):
    """Log marginal posterior (up to a constant) of the curved model, each patient summed over a fine grid of (a, b)."""
    grid = np.linspace(-6, 6, 181)
    z = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    total = np.empty(len(phi))
    for d, (theta, omega, sigma) in enumerate((p[:3], np.exp(p[3:5]), np.exp(p[5:7])) for p in phi):
        a, b = theta[0] + omega[0] * z[:, :1], np.exp(theta[1] + omega[1] * z[:, 1:])
        total[d] = log_prior(CURVED, phi[d])
        for t, y, assay in of_patients(frame):
            rows = stats.norm.logpdf(y, a + b * t + theta[2] * t**2, sigma[assay])
            total[d] += logsumexp(rows.sum(1) + stats.norm.logpdf(z).sum(1))
    return total


def differences(density, phi, h=1e-4):
    """Slope of a density by central differences."""
    step = h * np.eye(len(phi))
    return (density(phi + step) - density(phi - step)) / (2 * h)


@pytest.fixture(scope="module")
def line():
    frame = table(16)
    with jax.enable_x64(True):
        return frame, make_observations(LINE, read(frame))


@pytest.mark.thorough
def test_the_slope_is_that_of_the_exact_marginal_posterior_where_the_model_is_linear(line):
    """If it fails, the approximation climbs something else than the posterior of the population."""
    frame, obs = line
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        settled = jax.jit(lambda obs, phi: widen(LINE, obs, phi, jnp.zeros((2, 16)), jnp.array(False)))
        visit = jax.jit(lambda *x: approximation.place(LINE, *x))
        for _ in range(4):
            phi, far = START + rng.normal(0, 0.4, 7), START + rng.normal(0, 0.4, 7)
            wanted = differences(lambda p: exact_line(frame, p), phi)
            start = settled(obs, jnp.asarray(phi))
            np.testing.assert_allclose(approximation.marginal_slope(LINE, obs, start), wanted, rtol=1e-5, atol=1e-4)
            # The same from another population's map, in the few rounds that a search has for it.
            near = transport(LINE, obs, settled(obs, jnp.asarray(far)))
            np.testing.assert_allclose(visit(obs, near, jnp.asarray(phi)).slope, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.thorough
def test_the_slope_vanishes_at_the_exact_mode_where_the_model_is_linear(line):
    """If it fails, the population's mode is not that of the exact marginal posterior."""
    frame, obs = line
    mode = optimize.minimize(lambda p: -exact_line(frame, p[None])[0], START, method="BFGS", options={"gtol": 1e-7}).x
    with jax.enable_x64(True):
        start = widen(LINE, obs, jnp.asarray(mode), jnp.zeros((2, 16)), jnp.array(False))
        slope = np.asarray(approximation.marginal_slope(LINE, obs, start))
        sd = np.sqrt(
            np.diag(np.asarray(transport(LINE, obs, start).scale) @ np.asarray(transport(LINE, obs, start).scale).T)
        )
    assert (np.abs(slope * sd) < 1e-3).all()  # a Newton step in posterior SDs


def started(model, obs, phi):
    with jax.enable_x64(True):
        at = find_modes(model, obs, jnp.asarray(phi), jnp.zeros((2, obs.n_subjects)))
        return widen(model, obs, *at, jnp.array(True))


@pytest.mark.thorough
def test_the_gaussian_has_the_exact_posteriors_mean_and_width_where_the_model_is_linear(line):
    """If it fails, estimates or their standard errors are not the posterior's, in the case that is easiest."""
    frame, obs = line
    with jax.enable_x64(True):
        found = approximation.approximate(LINE, obs, started(LINE, obs, START))
        centre, scale = np.asarray(found.map_.centre), np.asarray(found.map_.scale)
    assert found.last_move < approximation.CLOSE
    assert found.at_bound == found.uninformed == []
    assert (found.decrement < 1e-2).all()
    # The exact posterior's moments, by importance sampling from a wider Student-t.
    t = stats.multivariate_t(centre, 1.3 * scale @ scale.T, df=5, seed=1)
    draws = t.rvs(40_000)
    weight = np.exp((w := exact_line(frame, draws) - t.logpdf(draws)) - logsumexp(w))
    assert 1 / (weight**2).sum() > 8_000
    mean = weight @ draws
    sd = np.sqrt(weight @ (draws - mean) ** 2)
    assert (np.abs(centre - mean) < 0.15 * sd).all()
    np.testing.assert_allclose(np.sqrt(np.diag(scale @ scale.T)), sd, rtol=0.1)


@pytest.mark.thorough
def test_where_the_model_is_curved_it_is_close_and_not_exact():
    """If it fails, patients' Gaussians are worse than an approximation by Gaussians has to be."""
    frame = table(10, seed=4)
    frame.loc[frame["EVID"] == 0, "DV"] *= np.exp(0.8 * frame.loc[frame["EVID"] == 0, "TIME"])  # rising lines
    phi = START.copy()
    phi[1] = math.log(0.4)
    with jax.enable_x64(True):
        obs = make_observations(CURVED, read(frame))
        start = widen(CURVED, obs, jnp.asarray(phi), jnp.zeros((2, 10)), jnp.array(False))
        slope = np.asarray(approximation.marginal_slope(CURVED, obs, start))
        scale = np.asarray(transport(CURVED, obs, start).scale)
    sd = np.sqrt(np.diag(scale @ scale.T))
    off = np.abs(slope - differences(lambda p: exact_curved(frame, p), phi)) * sd  # of a step, in posterior SDs
    assert off.max() < 0.2
    assert off.max() > 1e-5


def test_no_direction_is_wider_than_the_prior():
    """If it fails, a parameter that the samples do not inform runs away, or has a wider interval than its prior."""
    model = PUBLISHED.with_priors({"omega.beta": Prior("halfnormal", 0.0, 1.3)})
    rng = np.random.default_rng(1)
    information = rng.normal(size=(13, 13)) * 3
    guarded, names = approximation.at_least_the_priors(model, information + information.T)
    priors = [p.prior for p in model.parameters] + [p.prior_omega for p in model.parameters]
    priors.append(model.assays[0].prior)
    # ln |normal| has the variance pi^2 / 8, whatever its scale.
    variance = np.array([np.pi**2 / 8 if p.family == "halfnormal" else p.scale**2 for p in priors])
    assert np.linalg.eigvalsh(np.diag(variance) - np.linalg.inv(guarded)).min() > -1e-9
    assert names
    assert set(names) <= set(make_layout(model).phi_names)
    enough = np.diag(2 / variance)
    same, none = approximation.at_least_the_priors(model, enough)
    np.testing.assert_allclose(same, enough, rtol=1e-10, atol=1e-10)
    assert none == []


@pytest.mark.thorough
def test_an_uninformed_parameter_keeps_its_prior():
    """Two patients say nearly nothing: the result is the prior's width, not more, and the verdict is no failure."""
    frame = table(3)
    result = fit(LINE, read(frame), seed=1, method="laplace", progress=False)
    omega = np.log(result.tree["posterior"]["omega"].sel(parameter="b").values)
    assert 0.5 * LINE["b"].prior_omega.scale < omega.std() <= LINE["b"].prior_omega.scale * (1 + 1e-9)


@pytest.mark.thorough
def test_an_omega_at_its_bound_is_named():
    """If it fails, a bound passes for an estimate."""
    result = fit(LINE, read(table(20, spread=8.0)), seed=1, method="laplace", progress=False)
    check = result.check()
    assert check.status == "warning"
    assert any("omega a" in reason and "bound" in reason for reason in check.reasons)
    assert float(np.exp(np.log(result.tree["posterior"]["omega"].sel(parameter="a")).mean())) == pytest.approx(
        OMEGA_BOUNDS[1]
    )


class Broken(Line):
    """A line whose slope in c is not a number in patients with more than 5e8 cells."""

    name = "broken"

    def curve(self, t, p, x):
        nothing = jnp.where(x.dose > 5e8, jnp.sqrt(p.c - p.c), 0.0)
        return {"level": p.a + p.b * t + p.c * t**2 + nothing}


BROKEN = parse_model(LINE.toml.replace('structure = "line"', 'structure = "broken"'), structures=[Broken()])


@pytest.mark.thorough
def test_what_is_not_finite_is_named_by_patient_and_parameter():
    """If it fails, a user with 200 patients is told that something, somewhere, is not a number."""
    frame = table(5)
    frame.loc[(frame["ID"] == "P02") & (frame["EVID"] == 1), "AMT"] = 9e8
    data = read(frame)
    with pytest.raises(FitError, match=r"P02 \(a, b, c\)\. .*with_priors") as error:
        fit(BROKEN, data, seed=1, method="laplace", progress=False)
    assert "P01" not in str(error.value)
    # NUTS goes on from the data alone, and says the same.
    with jax.enable_x64(True), pytest.warns(FitWarning, match=r"non-centred.*P02 \(a, b, c\)"):
        _, notes = Tuner(BROKEN, make_observations(BROKEN, data), "nuts").first(data)
    assert "P02 (a, b, c)" in notes[0]


def test_it_is_labelled_wherever_it_is_shown(rich_fit, tmp_path):
    """If it fails, an approximation passes for a sampled posterior."""
    again = load_fit(rich_fit.save(tmp_path / "fit.nc"))
    for each in (rich_fit, again):
        assert each.method == "laplace"
        assert "Laplace approximation" in repr(each)
        found = each.parameters()
        assert not {"R-hat", "ESS"} & set(found.columns)
        assert (found["method"] == "Laplace approximation, not sampled").all()
        check = each.check()
        assert check.status in ("approximation", "warning")
        assert "Laplace approximation, not sampled" in str(check)
        assert "R-hat" not in str(check)
    pd.testing.assert_frame_equal(found, rich_fit.parameters())
    titles = [plots.individuals(rich_fit, n=2), plots.posteriors(rich_fit)]
    titles.append(plots.observed_predicted(gof(rich_fit), label=rich_fit.label))
    for drawn in titles:
        assert "Laplace approximation" in drawn[0].figure.get_supxlabel()
        matplotlib.pyplot.close(drawn[0].figure)


def test_a_sampled_fit_is_not_labelled(small_fit):
    """If it fails, the label says nothing."""
    assert small_fit.method == "importance"
    assert small_fit.label == ""
    assert "method" not in small_fit.parameters()
    assert {"R-hat", "ESS"} <= set(small_fit.parameters())


@pytest.mark.thorough
def test_the_table_is_the_gaussians_and_not_the_draws(small_trial):
    """If it fails, estimates and intervals carry the noise of a thousand draws, and change with the seed."""
    data = read_trial(small_trial)
    quick, other = (fit(PUBLISHED, data, seed=seed, method="laplace", progress=False) for seed in (1, 2))
    exact = ["TV", "2.5 %", "97.5 %", "IIV CV %", "IIV 2.5 %", "IIV 97.5 %"]
    np.testing.assert_allclose(other.parameters()[exact], quick.parameters()[exact], rtol=1e-8)
    posterior = quick.tree["posterior"].to_dataset()
    assert not np.array_equal(posterior["theta"], other.tree["posterior"]["theta"])
    theta = posterior["theta"].sel(parameter="alpha").values
    row, end = quick.parameters().loc["alpha"], stats.norm.ppf(0.975)
    wanted = np.exp(theta.mean() + theta.std() * np.array([0, -end, end]))
    np.testing.assert_allclose(row[["TV", "2.5 %", "97.5 %"]].astype(float), wanted, rtol=1e-10)
    sigma = np.log(posterior["sigma"].values)
    assert quick.parameters().loc["sigma qpcr", "TV"] == pytest.approx(np.exp(sigma.mean()), rel=1e-10)


@pytest.mark.thorough
def test_draws_of_a_patient_without_samples_are_the_populations(small_trial):
    """If it fails, patients' draws do not follow the population's, or their uncertainty is another's."""
    frame = small_trial.table
    data = read(frame[(frame["ID"] != "V02") | (frame["EVID"] == 1)].reset_index(drop=True))
    result = fit(PUBLISHED, data, seed=1, method="laplace", progress=False)
    posterior = result.tree["posterior"].to_dataset().sel(parameter="cmax")
    z = (posterior["eta"] / posterior["omega"]).sel(subject="V02").values
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    others = (posterior["eta"] / posterior["omega"]).drop_sel(subject="V02").std(("chain", "draw"))
    assert float(others.max()) < 0.8


def test_a_search_that_did_not_end_fails_and_a_lost_patient_is_named(rich_fit):
    """If it fails, numbers from nowhere are shown as an approximation."""
    for changes, status, said in (
        ('"last_move": 0.2', "warning", "0.20"),
        ('"last_move": 3.0', "failed", "3.00"),
        ('"last_move": NaN', "failed", "nan"),
        ('"last_move": 0.0, "lost": ["V07"]', "warning", "V07"),
    ):
        tree = rich_fit.tree.copy()
        given = '{"lost": [], "at_bound": [], ' + changes + "}"
        tree.attrs = rich_fit.tree.attrs | {"approximation": given}
        check = Fit(rich_fit.model, rich_fit.data, tree).check()
        assert check.status == status
        assert said in check.reasons[0]


def test_options_that_make_no_sense_are_refused(small_trial, tmp_path):
    """If it fails, a checkpoint is asked for and never written."""
    with pytest.raises(FitError, match="checkpoint"):
        fit(PUBLISHED, read_trial(small_trial), seed=1, method="laplace", checkpoint=tmp_path / "kept")


@pytest.mark.thorough
def test_the_command_line_says_so(tmp_path, capsys, small_trial):
    """If it fails, who reads the terminal or the folder takes an approximation for a result."""
    path, out = tmp_path / "trial.csv", tmp_path / "out"
    small_trial.table.to_csv(path, index=False)
    assert cli.main(["fit", str(path), "--method", "laplace", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Laplace approximation, not sampled") >= 8  # every row of the table, and the verdict
    assert "R-hat" not in shown
    assert "Laplace approximation" in (out / "parameters.csv").read_text()
    assert load_fit(out / "fit.nc").method == "laplace"


def test_a_covariance_that_is_none_is_a_fit_error():
    """If it fails, samples that do not tell parameters apart end in an error of linear algebra."""
    with pytest.raises(FitError, match="do not tell some parameters apart"):
        factor_of(np.array([[1.0, 2.0], [2.0, 1.0]]))
    np.testing.assert_array_equal(factor_of(np.eye(2)), np.eye(2))


@pytest.mark.parametrize("square", [5.0, 3.0])
def test_averages_are_those_of_quadrature(square):
    """Quadratic slopes in five dimensions, by a product of Gauss-Hermite rules; nearer nodes, cubic along every axis.

    If it fails, a Gaussian is as wide as its nodes are far.
    """
    n, random = 5, np.random.default_rng(3)
    a, b, c = (random.standard_normal((n,) * k) for k in (1, 2, 3))
    cubic = np.diag(random.standard_normal(n)) * (square == 3.0)
    scale = np.linalg.cholesky(np.eye(n) + 0.3 * np.ones((n, n)))

    def slopes(u):  # of standardised coordinates
        return a + u @ b.T + np.einsum("ijk,mj,mk->mi", c, u, u) + u**3 @ cubic.T

    nodes = axes(n, square)
    slope, information = averages(nodes, scale, slopes(nodes))
    x, w = np.polynomial.hermite_e.hermegauss(4)
    u = np.stack(np.meshgrid(*[x] * n, indexing="ij"), -1).reshape(-1, n)
    weight = np.prod(np.stack(np.meshgrid(*[w] * n, indexing="ij"), -1).reshape(-1, n), axis=1)
    weight /= weight.sum()
    np.testing.assert_allclose(slope, weight @ slopes(u), rtol=1e-10)
    expected = -np.linalg.solve(scale.T, np.einsum("m,mi,mj->ij", weight, u, slopes(u)))
    np.testing.assert_allclose(information, 0.5 * (expected + expected.T), rtol=1e-9, atol=1e-12)
