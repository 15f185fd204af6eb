"""Times to an event: maximum likelihood of lifelines and statsmodels, truncation, censoring, guards."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.integrate import quad
from scipy.stats import norm

import carkinetics as ck
from responses import modes_only, names, observed
from tiers import tiered

__all__ = ["modes_only"]
REFERENCE = json.loads((Path(__file__).parent / "lifelines.json").read_text(encoding="utf-8"))
TABLE = pd.DataFrame(REFERENCE["table"])


def outcomes(last=False):
    frame = pd.DataFrame({"PFS_TIME": TABLE["t"].values, "PFS_EVENT": TABLE["e"].values}, index=names(len(TABLE)))
    return frame.assign(PFS_LAST=TABLE["last"].values) if last else frame


def fitted(distribution, *, last=False, entry=False, **more):
    """A fit of the stored table: ln exposure is its x, and the covariate its b."""
    columns = pd.DataFrame({"b": TABLE["b"].values}, index=names(len(TABLE)))
    options = ck.ResponseOptions(entry=pd.Series(TABLE["entry"].values, names(len(TABLE))) if entry else None)
    metric = observed(np.exp(TABLE["x"]), window=(0.0, 0.1))
    return ck.tte(
        metric, outcomes(last), seed=1, landmark=None, distribution=distribution, covariates=columns, options=options,
        **more,
    )  # fmt: skip


def on_scale(result, mode):
    """Intercept, effects of x and of b, per unit of them, and the slope's scale."""
    scale, b = result.patients.scale, result.patients.encoder.columns[0]
    x, z = mode["slope"] / scale, mode["b"] / b.scale
    return mode.iloc[0] - x * result.patients.centre - z * b.centre, x, z


def scipys(distribution, kind, theta):
    """The log likelihood in SciPy's distributions: intercept, effects of x and b, and ln shape or ln sigma."""
    eta = theta[0] + theta[1] * TABLE["x"] + theta[2] * TABLE["b"]
    if distribution == "weibull":
        law = stats.weibull_min(np.exp(theta[3]), scale=np.exp(eta))
    elif distribution == "lognormal":
        law = stats.lognorm(np.exp(theta[3]), scale=np.exp(eta))
    else:
        law = stats.fisk(np.exp(-theta[3]), scale=np.exp(eta))
    event, t = TABLE["e"] == 1, TABLE["t"]
    if kind == "_interval":
        return np.where(event, np.log(np.where(event, law.cdf(t) - law.cdf(TABLE["last"]), 1.0)), law.logsf(t)).sum()
    start = law.logsf(TABLE["entry"]) if kind == "_entry" else 0.0
    return (np.where(event, law.logpdf(t), law.logsf(t)) - start).sum()


def newton_step(function, x, h=1e-4):
    """How far the top of a function is, by differences of its values."""
    e = np.eye(len(x)) * h
    slope = np.array([(function(x + d) - function(x - d)) / (2 * h) for d in e])
    curve = np.array(
        [[function(x + a + b) - function(x + a - b) - function(x - a + b) + function(x - a - b) for a in e] for b in e]
    )
    return np.linalg.solve(curve / (4 * h * h), -slope)


@pytest.mark.parametrize("kind", ["", "_entry", "_interval"])
@pytest.mark.parametrize(
    "distribution", tiered(["weibull", "lognormal", "loglogistic"], thorough={"lognormal", "loglogistic"})
)
def test_maxima_are_those_of_scipy_and_lifelines(distribution, kind, modes_only):
    """Right-censored, left-truncated and interval-censored times.

    SciPy's likelihood has its top there, to 1e-6. Lifelines stops its search earlier: its log likelihood is the same
    to 1e-6, and its estimates are to its own accuracy. If it fails, a likelihood, its censoring or its truncation is
    wrong, or its parameters are not what they are called.
    """
    result = fitted(distribution, last=kind == "_interval", entry=kind == "_entry")
    mode, want = result.mode(flat=True), REFERENCE[distribution + kind]
    intercept, x, b = on_scale(result, mode)
    ln_unit = np.log(result.clock.unit)
    if distribution == "weibull":
        shape = np.exp(mode["ln_shape"])
        found = [-(intercept - shape * ln_unit) / shape, -x / shape, -b / shape, mode["ln_shape"]]
    else:
        found = [intercept + ln_unit, x, b, mode["ln_sigma"]]
    step = newton_step(lambda theta: scipys(distribution, kind, theta), np.array(found))
    assert np.abs(step).max() < 1e-6
    place, last = {
        "weibull": ("lambda_", "rho_"), "lognormal": ("mu_", "sigma_"), "loglogistic": ("alpha_", "beta_")
    }[distribution]  # fmt: skip
    theirs = np.array([want[f"{place}|{name}"] for name in ("Intercept", "x", "b")] + [want[f"{last}|Intercept"]])
    theirs[3] *= -1 if distribution == "loglogistic" else 1
    assert scipys(distribution, kind, theirs) == pytest.approx(want["log_likelihood"], abs=1e-6)
    np.testing.assert_allclose(found, theirs, atol=5e-3)


def test_a_piecewise_hazard_is_a_poisson_regression(modes_only):
    """Events in pieces of time are Poisson counts with the log of the time at risk as offset (Holford 1980).

    If it fails, time at risk is put into a wrong piece.
    """
    cuts = (3.0, 8.0, 20.0)
    columns = pd.DataFrame({"b": TABLE["b"].values}, index=names(len(TABLE)))
    metric = observed(np.exp(TABLE["x"]), window=(0.0, 0.1))
    options = ck.ResponseOptions(cuts=cuts)
    result = ck.tte(
        metric, outcomes(), seed=1, landmark=None, distribution="piecewise", covariates=columns, options=options
    )
    mode, edges, rows = result.mode(flat=True), [0, *cuts, np.inf], []
    for _, row in TABLE.iterrows():
        for k in range(4):
            spent = min(row["t"], edges[k + 1]) - edges[k]
            if spent > 0:
                rows.append([k, spent, row["e"] * (edges[k] < row["t"] <= edges[k + 1]), row["x"], row["b"]])
    k, spent, event, x, b = np.array(rows).T
    design = np.column_stack([*(k == j for j in range(4)), x, b]).astype(float)
    want = sm.GLM(event, design, family=sm.families.Poisson(), offset=np.log(spent)).fit(tol=1e-13).params
    _, of_x, of_b = on_scale(result, mode)
    assert of_x == pytest.approx(want[4], abs=1e-7)
    assert of_b == pytest.approx(want[5], abs=1e-7)
    back = of_x * result.patients.centre + of_b * result.patients.encoder.columns[0].centre
    np.testing.assert_allclose(mode.to_numpy()[:4] - np.log(result.clock.unit) - back, want[:4], atol=1e-6)


def test_a_hazard_with_a_piece_for_each_event_is_coxs(modes_only):
    """Without censoring and ties the slopes of Cox's partial likelihood (Breslow 1974).

    If it fails, hazards are not proportional.
    """
    rng = np.random.default_rng(3)
    x, n = rng.normal(size=25), 25
    days = np.sort(rng.exponential(np.exp(-0.7 * x))) * 0 + rng.exponential(np.exp(-0.7 * x)) * 50 + 1
    frame = pd.DataFrame({"OS_TIME": days, "OS_EVENT": 1}, index=names(n))
    cuts = tuple(np.sort(days)[:-1])
    result = ck.tte(
        observed(np.exp(x), window=(0.0, 0.1)), frame, seed=1, landmark=None, distribution="piecewise",
        options=ck.ResponseOptions(cuts=cuts),
    )  # fmt: skip
    want = sm.PHReg(days, x[:, None], status=np.ones(n)).fit().params[0]
    assert result.mode(flat=True)["slope"] / result.patients.scale == pytest.approx(want, abs=1e-6)


def test_exponential_times_have_a_closed_form():
    """Without an effect the rate is events per time at risk; if it fails, nothing else can be right."""
    result = ck.tte(
        observed(np.exp(TABLE["x"]), window=(0.0, 0.1)), outcomes(), seed=1, landmark=None, form="flat",
        distribution="exponential",
    )  # fmt: skip
    rate = TABLE["e"].sum() / TABLE["t"].sum()
    assert np.exp(result.mode(flat=True)["ln_rate"]) / result.clock.unit == pytest.approx(rate, rel=1e-9)
    survival = result.predict(1.0, at=12.0)
    assert np.median(survival) == pytest.approx(np.exp(-12 * rate), abs=0.03)

    def density(a):  # of ln rate in units of the crude rate
        return np.exp(TABLE["e"].sum() * a - np.exp(a) * TABLE["e"].sum() + norm.logpdf(a, 0, 2.5))

    total = quad(density, -2, 2)[0]
    mean = quad(lambda a: a * density(a), -2, 2)[0] / total
    sd = np.sqrt(quad(lambda a: (a - mean) ** 2 * density(a), -2, 2)[0] / total)
    assert result.draws["ln_rate"].mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(2000))
    assert result.draws["ln_rate"].std() == pytest.approx(sd, rel=0.05)
    want = np.log(total) - TABLE["e"].sum() * np.log(1.0)
    assert result.posterior.log_evidence == pytest.approx(want, abs=0.02)


def test_a_hazard_ratio_per_tenfold_is_known_per_doubling():
    """HR 0.60 per tenfold exposure is 0.857 per doubling (Cmax and progression, liso-cel in mantle cell lymphoma).

    If it fails, ratios are given for other steps than their names say.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1.0, 80)
    days = rng.exponential(100, 80) + 28
    frame = pd.DataFrame({"PFS_TIME": days, "PFS_EVENT": 1}, index=names(80))
    prior = {"slope": ck.Prior("normal", float(np.log(0.60) / np.log(10) * np.std(x)), 1e-6)}
    result = ck.tte(observed(np.exp(x)), frame, seed=1, distribution="exponential", prior=prior)
    table = result.effects()
    assert list(table["RATIO"]) == ["hazard ratio"] * 2
    assert table["MEDIAN"][1] == pytest.approx(0.60, abs=1e-4)
    assert round(table["MEDIAN"][0], 3) == 0.857


@pytest.mark.parametrize(
    "distribution",
    tiered(
        ["exponential", "weibull", "piecewise", "lognormal", "loglogistic"], thorough={"exponential", "loglogistic"}
    ),
)
def test_survival_is_the_integral_of_the_density(distribution):
    """If it fails, events and censored times belong to different distributions."""
    import jax
    import jax.numpy as jnp

    from carkinetics.response.survival import Survival

    cuts = (0.4, 1.1) if distribution == "piecewise" else ()
    terms = Survival("linear", distribution=distribution, cuts=cuts)
    theta = np.linspace(-0.3, 0.5, len(terms.names))
    with jax.enable_x64(True):
        for eta in (-1.0, 0.7):

            def density(t, eta=eta):
                return float(jnp.exp(terms.log_density(jnp.asarray(theta), jnp.asarray(eta), jnp.asarray(t))))

            got = float(jnp.exp(terms.log_survival(jnp.asarray(theta), jnp.asarray(eta), jnp.asarray(1.3))))
            want = 1 - quad(density, 0, 1.3, points=[1e-6, *cuts], epsabs=1e-10, limit=200)[0]
            assert got == pytest.approx(want, abs=1e-7)


def test_the_landmark_leaves_out_and_counts():
    """If it fails, patients with an early event are at risk when their exposure is not known, or vanish in silence."""
    result = ck.tte(observed(np.exp(TABLE["x"]), window=(0.0, 5.0)), outcomes(), seed=1, landmark=5.0)
    gone = TABLE["t"] <= 5.0
    assert len(result.patients.ids) == (~gone).sum()
    events = int((gone & (TABLE["e"] == 1)).sum())
    note = next(n for n in result.check().notes if "not at risk" in n)
    assert f"{gone.sum()} patients" in note and f"{events} with an event" in note
    assert result.predict(1.0, at=5.0) == pytest.approx(1.0)
    with pytest.raises(ck.ModelError, match="from 5 on"):
        result.predict(1.0, at=4.0)


def test_both_clocks_agree_where_the_hazard_has_no_memory(modes_only):
    """If it fails, time before the landmark is counted."""
    metric = observed(np.exp(TABLE["x"]), window=(0.0, 5.0))
    rates = []
    for clock in ("landmark", "infusion"):
        options = ck.ResponseOptions(clock=clock)
        result = ck.tte(metric, outcomes(), seed=1, landmark=5.0, distribution="exponential", options=options)
        rates.append(result.mode(flat=True).to_numpy())
    np.testing.assert_allclose(rates[0], rates[1], atol=1e-8)


def test_a_metric_that_reaches_past_the_landmark_is_refused():
    """If it fails, patients had to live to be measured, and that is called an effect."""
    metric = observed(np.exp(TABLE["x"]), window=(0.0, 28.0))
    with pytest.raises(ck.DataError, match="immortal time"):
        ck.tte(metric, outcomes(), seed=1, landmark=14.0)
    with pytest.raises(ck.DataError, match="immortal time"):
        ck.tte(metric, outcomes(), seed=1, landmark=None)
    with pytest.warns(ck.FitWarning, match="immortal time"):
        result = ck.tte(metric, outcomes(), seed=1, landmark=5.0, allow_immortal_time=True)
    assert any(r.startswith("immortal time:") for r in result.check().reasons)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PFS_TIME": 0.0}, "not above 0: patients P001"),
        ({"PFS_TIME": -3.0}, "not above 0: patients P001"),
        ({"PFS_EVENT": 0.5}, "event code"),
        ({"PFS_TIME": np.nan}, "P001"),
    ],
)  # fmt: skip
def test_times_that_are_none_name_the_patient(change, said):
    """If it fails, an event on day 0 or a code of 0.5 goes into the likelihood."""
    frame = outcomes().astype(float)
    for column, value in change.items():
        frame.loc["P001", column] = value
    with pytest.raises(ck.DataError, match=said):
        ck.tte(observed(np.exp(TABLE["x"]), window=(0.0, 0.1)), frame, seed=1, landmark=None)


def test_no_events_at_all_are_survived():
    """If it fails, a trial without an event gives a hazard of zero or NaN."""
    frame = outcomes().assign(PFS_EVENT=0)
    result = ck.tte(observed(np.exp(TABLE["x"]), window=(0.0, 0.1)), frame, seed=1, landmark=None)
    assert np.isfinite(result.posterior.draws).all()
    assert any(r.startswith("few events:") for r in result.check().reasons)


def test_other_causes_censor():
    """If it fails, a death from another cause counts as progression."""
    frame = outcomes()
    frame.loc[frame["PFS_EVENT"] == 0, "PFS_EVENT"] = 2
    metric = observed(np.exp(TABLE["x"]), window=(0.0, 0.1))
    one, other = (ck.tte(metric, f, seed=1, landmark=None) for f in (outcomes(), frame))
    np.testing.assert_array_equal(one.posterior.draws, other.posterior.draws)
