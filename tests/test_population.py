"""The joint density of a population: against an independent one in NumPy and SciPy, row by row."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, log_ndtr

from carkinetics import observations, priors
from carkinetics.dataset import read_dataset
from carkinetics.density import log_joint
from carkinetics.errors import DataWarning, ModelError
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model, parse_model
from carkinetics.model_parts import Assay, Prior
from carkinetics.observations import make_observations
from tiers import tiered

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
FLOW = Assay(
    name="flow",
    output="level",
    matrix="PB",
    unit="copies/ug",
    error="lognormal",
    sigma=0.9,
    prior=Prior("lognormal", np.log(0.9), 0.4),
)


def edited(*changes):
    """The published model with lines of its file replaced."""
    text = PUBLISHED.toml
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return parse_model(text)


FEWER = edited(  # beta without between-patient variability, and fb on the logit scale
    ("omega_var = 0.86", "no_iiv = true"),
    ('value = 0.0079\nunit = "1"\ntransform = "log"\nomega_var = 0.80', 'value = 0.0079\nunit = "1"\n'
     'transform = "logit"\nomega_sd = 0.7'),
)  # fmt: skip
HALF = PUBLISHED.with_priors(
    {
        "omega.cmax": Prior("halfnormal", 0.0, 0.8),
        "omega.beta": Prior("halfnormal", 0.0, 1.3),
        "sigma.qpcr": Prior("halfnormal", 0.0, 0.6),
        "tmax": Prior("normal", 2.0, 0.3),
    }
)
MODELS = {
    "published": PUBLISHED,
    "fixed": PUBLISHED.fix("beta", "foldx"),
    "fewer": FEWER,
    "fewer fixed": FEWER.fix("beta"),
    "half-normal": HALF,
    "two assays": PUBLISHED.with_assay(FLOW),
}


def table(n=5, assays=("qpcr",), seed=1):
    """Samples of every kind: quantified, below, above, and intervals given from either end."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        for assay in assays:
            for t in sorted(rng.choice([0, 2, 4, 7, 9, 11, 14, 21, 28, 60, 90, 180, 365], 9, replace=False)):
                dv = float(np.exp(rng.normal(6, 2)))
                cens, limit = [(0, np.nan), (1, np.nan), (-1, np.nan), (1, dv / 5), (-1, dv * 3)][rng.integers(5)]
                rows.append((f"P{i:02d}", float(t), dv, assay, cens, limit))
    return pd.DataFrame(rows, columns=["ID", "TIME", "DV", "DVID", "CENS", "LIMIT"])


def read(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(frame, units={"DV": "copies/ug"})


def place(model, n, seed=2):
    """A random ``phi`` and ``z``, not at the model's own values."""
    rng = np.random.default_rng(seed)
    free, random = [p for p in model.parameters if not p.fixed], [p for p in model.parameters if p.iiv]
    phi = [*(p.theta + rng.normal(0, 0.3) for p in free), *(np.log(p.iiv) + rng.normal(0, 0.3) for p in random)]
    return np.array([*phi, *(np.log(a.sigma) + rng.normal(0, 0.3) for a in model.assays)]), rng.normal(
        size=(len(random), n)
    )


def of_scale(prior, x):
    """Log density of ln x, where x is an omega or a sigma."""
    if prior.family == "lognormal":
        return stats.lognorm.logpdf(x, s=prior.scale, scale=np.exp(prior.loc)) + np.log(x)
    return stats.halfnorm.logpdf(x, scale=prior.scale) + np.log(x)


def ln_level(t, p):
    """Stein's curve as printed."""
    if t < p["tmax"]:
        return np.log(p["cmax"] / p["foldx"]) + np.log(p["foldx"]) / p["tmax"] * t
    s = t - p["tmax"]
    return np.log(p["cmax"]) + np.log((1 - p["fb"]) * np.exp(-p["alpha"] * s) + p["fb"] * np.exp(-p["beta"] * s))


def by_hand(model, frame, phi, z):
    """The whole joint density, one patient and one row after another."""
    values, total = list(phi), stats.norm.logpdf(z).sum()
    theta = {p.name: p.theta if p.fixed else values.pop(0) for p in model.parameters}
    omega = {p.name: np.exp(values.pop(0)) for p in model.parameters if p.iiv}
    sigma = {a.name: np.exp(values.pop(0)) for a in model.assays}
    assert not values
    for p in model.parameters:
        if not p.fixed:
            total += stats.norm.logpdf(theta[p.name], p.prior.loc, p.prior.scale)
        if p.iiv:
            total += of_scale(p.prior_omega, omega[p.name])
    total += sum(of_scale(a.prior, sigma[a.name]) for a in model.assays)
    inverse = {"log": np.exp, "logit": expit, "identity": lambda x: x}
    for i, subject in enumerate(sorted(set(frame["ID"]))):
        effect = dict(zip(omega, z[:, i], strict=True))
        p = {
            q.name: inverse[q.transform](theta[q.name] + omega.get(q.name, 0) * effect.get(q.name, 0))
            for q in model.parameters
        }
        for row in frame[frame["ID"] == subject].itertuples():
            if not np.isnan(row.DV):
                f, s = ln_level(row.TIME, p), sigma[row.DVID]
                total += likelihood(row.DV, row.CENS, row.LIMIT, f, s)
    return total


def likelihood(dv, cens, limit, f, s):
    if cens == 0:
        return -0.5 * ((np.log(dv) - f) / s) ** 2 - np.log(s * dv * np.sqrt(2 * np.pi))
    a, b = (np.log(x) - f for x in ((0.0 + limit, dv) if cens == 1 else (dv, limit)))
    if np.isnan(limit):
        return log_ndtr(b / s) if cens == 1 else log_ndtr(-a / s)
    if a > 0:  # the tail in which the difference keeps its digits
        a, b = -b, -a
    return log_ndtr(b / s) + np.log1p(-np.exp(log_ndtr(a / s) - log_ndtr(b / s)))


COMPILED = jax.jit(log_joint, static_argnums=0)


def found(model, data, phi, z):
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        return float(COMPILED(model, obs, jnp.asarray(phi), jnp.asarray(z)))


@pytest.mark.parametrize("name", tiered(MODELS, thorough={"fixed", "fewer", "fewer fixed"}))
def test_the_joint_density_equals_an_independent_one(name):
    """If it fails, what is sampled is not the model: a prior, a Jacobian, an effect or a kind of row is wrong."""
    model = MODELS[name]
    frame = table(assays=tuple(a.name for a in model.assays))
    data = read(frame)
    rows = make_observations(model, data).rows
    assert [g.kind for g in rows] == ["quantified", "below", "above", "between"]
    for seed in range(3):
        phi, z = place(model, data.n_subjects, seed)
        assert found(model, data, phi, z) == pytest.approx(by_hand(model, frame, phi, z), rel=1e-11)


def test_every_component_of_phi_and_z_matters():
    """If it fails, a parameter is in the vector but not in the density (or its gradient is not finite)."""
    data = read(table())
    phi, z = place(PUBLISHED, 5)
    with jax.enable_x64(True):
        obs = make_observations(PUBLISHED, data)
        gradients = jax.jit(jax.grad(lambda *x: log_joint(PUBLISHED, obs, *x), (0, 1)))
        of_phi, of_z = gradients(jnp.asarray(phi), jnp.asarray(z))
    for gradient, x in ((np.asarray(of_phi), phi), (np.asarray(of_z), z)):
        assert np.isfinite(gradient).all()
        for place_ in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[place_] = 1e-6
            up, down = ((phi + s, z) if x is phi else (phi, z + s) for s in (step, -step))
            slope = (by_hand(PUBLISHED, table(), *up) - by_hand(PUBLISHED, table(), *down)) / 2e-6
            assert gradient[place_] == pytest.approx(slope, rel=2e-5, abs=1e-5)


def test_the_order_of_the_rows_changes_nothing():
    """If it fails, the posterior depends on how the table was sorted."""
    frame = table(assays=("qpcr", "flow"))
    model = MODELS["two assays"]
    phi, z = place(model, 5)
    wanted = found(model, read(frame), phi, z)
    for seed in range(3):
        assert found(model, read(frame.sample(frac=1, random_state=seed)), phi, z) == pytest.approx(wanted, abs=1e-10)


def test_the_order_of_the_patients_changes_nothing():
    """If it fails, a patient's random effects are read from another patient's column."""
    frame = table()
    phi, z = place(PUBLISHED, 5)
    wanted = found(PUBLISHED, read(frame), phi, z)
    order = [3, 0, 4, 2, 1]  # patient i becomes number order[i]
    renamed = frame.assign(ID=frame["ID"].map({f"P{i:02d}": f"Q{k:02d}" for i, k in enumerate(order)}))
    assert found(PUBLISHED, read(renamed), phi, z[:, np.argsort(order)]) == pytest.approx(wanted, abs=1e-10)
    assert abs(found(PUBLISHED, read(renamed), phi, z) - wanted) > 1  # the test can fail


def ragged():
    """One patient with 300 samples and 20 with two: a grid would be 93 % padding."""
    rng = np.random.default_rng(5)
    times = [("P00", t) for t in np.linspace(0, 300, 300)] + [
        (f"P{i:02d}", t) for i in range(1, 21) for t in rng.uniform(0, 100, 2)
    ]
    frame = pd.DataFrame(times, columns=["ID", "TIME"]).assign(DVID="qpcr", LIMIT=np.nan)
    frame["DV"], frame["CENS"] = np.exp(rng.normal(6, 2, len(frame))), rng.choice([-1, 0, 0, 1], len(frame))
    return frame


@pytest.mark.parametrize("frame", [ragged(), table()], ids=["ragged", "even"])
def test_padded_and_flat_layouts_agree(frame, monkeypatch):
    """If it fails, one patient with many samples changes everybody's predictions."""
    data, values = read(frame), []
    phi, z = place(PUBLISHED, data.n_subjects)
    for padding in (10**6, 0):
        monkeypatch.setattr(observations, "_MAX_PADDING", padding)
        with jax.enable_x64(True):
            assert make_observations(PUBLISHED, data).flat is (padding == 0)
        values.append(found(PUBLISHED, data, phi, z))
    assert values[0] == pytest.approx(values[1], abs=1e-10)
    assert values[0] == pytest.approx(by_hand(PUBLISHED, frame, phi, z), rel=1e-11)


def test_only_an_extremely_ragged_table_is_laid_out_flat():
    """If it fails, either the grid of a ragged table fills the memory, or ordinary tables lose their grid."""
    assert make_observations(PUBLISHED, read(ragged())).flat
    assert not make_observations(PUBLISHED, read(table())).flat


def test_a_patient_without_samples_adds_only_its_random_effects():
    """If it fails, a patient who was dosed and never sampled breaks the density or enters the likelihood."""
    dose = pd.DataFrame({"ID": [f"P{i:02d}" for i in range(6)], "TIME": 0.0, "AMT": 2e8, "EVID": 1, "MDV": 1})
    frame = pd.concat([table().assign(EVID=0), dose], ignore_index=True)
    data = read(frame)
    assert data.n_subjects == 6
    phi, z = place(PUBLISHED, 6)
    wanted = found(PUBLISHED, read(table()), phi, z[:, :5]) + stats.norm.logpdf(z[:, 5]).sum()
    assert found(PUBLISHED, data, phi, z) == pytest.approx(wanted, abs=1e-9)


def test_two_assays_of_one_output_have_their_own_residual():
    """If it fails, flow cytometry's error is used for qPCR, or the table's order of assays for the model's."""
    frame = table(assays=("qpcr", "flow"))
    data = read(frame)
    assert data.assays == ("flow", "qpcr")  # not the model's order: the table's is alphabetical
    model = MODELS["two assays"]
    assert [a.name for a in make_layout(model).assays] == ["qpcr", "flow"]
    phi, z = place(model, 5)
    other = phi.copy()
    other[-1] += 0.5
    assert found(model, data, other, z) == pytest.approx(by_hand(model, frame, other, z), rel=1e-11)
    only = frame[frame["DVID"] == "flow"]
    assert found(model, read(only), phi, z) == pytest.approx(by_hand(model, only, phi, z), rel=1e-11)
    assert found(model, read(table()), other, z) - found(model, read(table()), phi, z) == pytest.approx(
        of_scale(FLOW.prior, np.exp(other[-1])) - of_scale(FLOW.prior, np.exp(phi[-1])), abs=1e-9
    )  # without flow samples its sigma has the prior only


def test_an_assay_that_the_model_does_not_have_is_refused():
    """If it fails, rows of an unknown assay are read as another's, or the message does not say which."""
    with pytest.raises(ModelError, match=r"no assay 'flow'; it has qpcr.*with_assay"):
        make_observations(PUBLISHED, read(table(assays=("qpcr", "flow"))))


def test_doses_are_added_up_and_missing_ones_are_missing():
    """If it fails, a dose that is split in two counts as one half, or as another patient's."""
    dose = pd.DataFrame({"ID": ["P00", "P00", "P03"], "TIME": [0.0, 1.0, 0.0], "AMT": [1e8, 2e8, 5e8]}).assign(EVID=1)
    data = read(pd.concat([table().assign(EVID=0), dose], ignore_index=True))
    with pytest.warns(DataWarning, match=r"1 patients have further infusions \(P00\)"):
        obs = make_observations(PUBLISHED, data)
    np.testing.assert_array_equal(obs.inputs.dose, [3e8, np.nan, np.nan, 5e8, np.nan])


def counted(model):
    """A compiled density, and how often it was traced."""
    traces = []

    @jax.jit
    def density(obs, phi, z):
        traces.append(1)
        return log_joint(model, obs, phi, z)

    return density, traces


@pytest.mark.parametrize("name", ["published", "half-normal"])
def test_other_data_of_the_same_shape_do_not_recompile(name):
    """If it fails, every dataset and every bootstrap replicate pays the compilation again."""
    model = MODELS[name]
    density, traces = counted(model)
    phi, z = place(model, 5)
    first = table()
    second = first.assign(DV=first["DV"] * 1.7, LIMIT=first["LIMIT"] * 1.7, TIME=first["TIME"] * 1.1)
    with jax.enable_x64(True):
        for frame in (first, second):
            value = float(density(make_observations(model, read(frame)), jnp.asarray(phi), jnp.asarray(z)))
            assert value == pytest.approx(by_hand(model, frame, phi, z), rel=1e-11)
        assert len(traces) == 1
        third = first.assign(CENS=0, LIMIT=np.nan)
        density(make_observations(model, read(third)), jnp.asarray(phi), jnp.asarray(z))
    assert len(traces) == 2  # the counter counts


def test_row_order_says_where_the_rows_went():
    """If it fails, predictions are written beside other samples than their own."""
    data = read(table(assays=("qpcr", "flow")))
    obs = make_observations(MODELS["two assays"], data)
    at = observations.row_positions(MODELS["two assays"], data)
    assert len(set(at)) == data.n_obs
    np.testing.assert_array_equal(obs.subject[at], data.subject)
    np.testing.assert_array_equal(np.asarray(obs.grid.time).reshape(-1)[np.asarray(obs.cell)][at], data.time)
    upper = np.fmax(data.dv, np.where(data.cens == 0, np.nan, data.limit))
    np.testing.assert_allclose(np.exp(obs.ln_dv[at]), upper, rtol=1e-12)
    np.testing.assert_array_equal(at < obs.n_quantified, data.cens == 0)
    # What fills up belongs to nobody.
    rest = np.setdiff1d(np.arange(obs.n_obs), at)
    assert len(rest) > 0
    assert (np.asarray(obs.subject)[rest] == obs.n_subjects).all()
    with jax.enable_x64(True):
        assert not np.asarray(obs.real)[rest].any()


def test_a_few_more_rows_need_no_other_program():
    """If it fails, every simulated trial, with a sample more or fewer below the limit, waits for a compiler."""
    data = read(table())
    more = dataclasses.replace(data, cens=np.where(np.arange(data.n_obs) < 3, 1 - np.abs(data.cens), data.cens))
    few, many = (jax.tree.flatten(make_observations(PUBLISHED, d)) for d in (data, more))
    assert [x.shape for x in few[0]] == [x.shape for x in many[0]]
    assert few[1] == many[1]  # what is static
    assert (data.cens != more.cens).any()


def test_observations_are_in_double_precision_and_leave_the_global_setting_alone():
    """If it fails, log copies lose seven digits, or importing the library changes the user's other code."""
    obs = make_observations(PUBLISHED, read(table()))
    assert obs.ln_dv.dtype == obs.grid.time.dtype == np.float64
    assert not jax.config.jax_enable_x64  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["published", "fewer fixed", "half-normal", "two assays"])
def test_log_prior_phi_is_the_prior_part_of_the_joint_density(name):
    """If it fails, the Laplace start uses other priors than the sampler."""
    model = MODELS[name]
    phi, _ = place(model, 1)
    with jax.enable_x64(True):
        terms = np.asarray(priors.log_prior_phi(model, jnp.asarray(phi)))
    free, random = [p for p in model.parameters if not p.fixed], [p for p in model.parameters if p.iiv]
    wanted = [stats.norm.logpdf(x, p.prior.loc, p.prior.scale) for p, x in zip(free, phi, strict=False)]
    scales = [p.prior_omega for p in random] + [a.prior for a in model.assays]
    wanted += [of_scale(prior, np.exp(x)) for prior, x in zip(scales, phi[len(free) :], strict=True)]
    np.testing.assert_allclose(terms, wanted, rtol=1e-12)


def test_a_model_in_which_all_typical_values_are_known_still_has_a_density():
    """If it fails, a fit for individual predictions only (maximum a posteriori) is impossible."""
    model = PUBLISHED.fix(*(p.name for p in PUBLISHED.parameters))
    data = read(table())
    phi, z = place(model, 5)
    assert len(phi) == 7
    assert found(model, data, phi, z) == pytest.approx(by_hand(model, table(), phi, z), rel=1e-11)


def test_a_model_without_any_random_effect_is_refused_or_has_a_density():
    """If it fails, a naive pooled model ends in a traceback out of JAX instead of a density or a ModelError."""
    model = dataclasses.replace(
        PUBLISHED, parameters=tuple(dataclasses.replace(p, iiv=0.0) for p in PUBLISHED.parameters)
    )
    data = read(table())
    phi, z = place(model, 5)
    try:
        value = found(model, data, phi, z)
    except ModelError:
        return
    assert value == pytest.approx(by_hand(model, table(), phi, z), rel=1e-11)
