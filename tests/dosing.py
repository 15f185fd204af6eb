"""Trials whose posterior is known in closed form, and what a dose then truly does, by quadrature."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

import carkinetics as ck
from carkinetics.layout import make_layout

LEVELS = (1e6, 3e6, 1e7)
CENTRE = 3e6  # dose of the typical patient
MODEL = "stein_2019_tisagenlecleucel"
DRAWS = 400


class GivenFit(ck.Fit):
    """A fit whose draws were not sampled by the library; its check says what a test wants."""

    status = "ok"

    def check(self):
        """What the test wants."""
        return ck.Check(self.status, ("The chains disagree.",) if self.status != "ok" else (), {})


class FailedFit(GivenFit):
    """One that failed."""

    status = "failed"


def given_fit(model, data, phi, kind=GivenFit):
    """A fit with these draws of phi."""
    ds = xr.Dataset({"phi": (("chain", "draw", "component"), np.asarray(phi, float)[None])})
    tree = xr.DataTree.from_dict({"posterior": ds})
    tree.attrs["method"] = "importance"
    return kind(model, data, tree)


def peak_model():
    """Only the peak differs between patients and with the dose; the rest is known."""
    model = ck.load_model(MODEL)
    others = [p.name for p in model.parameters if p.name != "cmax"]
    parameters = [p if p.name == "cmax" else dataclasses.replace(p, iiv=0.0) for p in model.parameters]
    model = dataclasses.replace(model, parameters=tuple(parameters)).fix(*others)
    effect = ck.Covariate("DOSE_PER_KG", on="cmax", center=CENTRE, value=0.3, prior_sd=1.0)
    return model.with_covariates(effect)


@dataclass(frozen=True)
class Truth:
    """ln cmax = mu + beta ln(dose / CENTRE) + omega eta; logit of response and of grades linear in standardised it."""

    mu: float
    beta: float
    omega: float
    response: tuple[float, float] = (0.0, 1.0)
    thresholds: tuple[float, ...] = (-1.0, 0.0, 1.5, 3.0)
    slope: float = 1.0


# Prior of the trials: normal given omega, inverse gamma for its square (shape, scale), as regression has it.
A0, B0 = 6.0, 4.0
M0 = np.array([10.0, 0.3])
V0 = np.diag([1.0, 0.3])


def drawn_truth(rng):
    """From the prior."""
    omega2 = B0 / rng.gamma(A0)
    mu, beta = rng.multivariate_normal(M0, omega2 * V0)
    cumulative = np.cumsum(rng.dirichlet(np.ones(5)))[:4]
    c = np.log(cumulative / (1 - cumulative))
    return Truth(mu, beta, np.sqrt(omega2), (rng.normal(-0.3, 1.0), rng.normal(0.7, 1.0)), tuple(c), rng.normal(0.7, 1))


RESPONSE_PRIOR = {"intercept": ck.Prior("normal", -0.3, 1.0), "slope": ck.Prior("normal", 0.7, 1.0)}
GRADE_PRIOR = {"slope": ck.Prior("normal", 0.7, 1.0)}


@dataclass(frozen=True)
class Trial:
    """Doses and peaks of patients, and the scale on which responses were made."""

    dose: np.ndarray
    ln_peak: np.ndarray

    @property
    def u(self):
        """Standardised."""
        return (self.ln_peak - self.ln_peak.mean()) / self.ln_peak.std()


def drawn_trial(truth, n, rng):
    """Doses evenly spread over a decade on the log scale."""
    dose = np.exp(rng.uniform(np.log(LEVELS[0]), np.log(LEVELS[-1]), n))
    return Trial(dose, truth.mu + truth.beta * np.log(dose / CENTRE) + truth.omega * rng.standard_normal(n))


def posterior_phi(model, trial, rng, draws=DRAWS):
    """Draws of the population given the peaks: regression with its conjugate prior, exactly."""
    x = np.column_stack([np.ones(len(trial.dose)), np.log(trial.dose / CENTRE)])
    precision = np.linalg.inv(V0) + x.T @ x
    mean = np.linalg.solve(precision, np.linalg.inv(V0) @ M0 + x.T @ trial.ln_peak)
    a = A0 + len(x) / 2
    b = B0 + 0.5 * (trial.ln_peak @ trial.ln_peak + M0 @ np.linalg.inv(V0) @ M0 - mean @ precision @ mean)
    omega2 = b / rng.gamma(a, size=draws)
    root = np.linalg.cholesky(np.linalg.inv(precision))
    coefficients = mean + np.sqrt(omega2)[:, None] * (rng.standard_normal((draws, 2)) @ root.T)
    values = {"cmax": coefficients[:, 0], "e_dose_per_kg_cmax": coefficients[:, 1], "omega cmax": 0.5 * np.log(omega2)}
    names = [c.name for c in make_layout(model).components]
    return np.column_stack([values.get(name, np.full(draws, np.log(0.5))) for name in names])


def table_of(trial):
    """The trial's records: one sample a patient, at the peak."""
    n = len(trial.dose)
    ids = [f"P{i:03d}" for i in range(n)]
    doses = pd.DataFrame({"ID": ids, "TIME": 0.0, "DV": np.nan, "AMT": trial.dose * 70, "EVID": 1, "MDV": 1})
    samples = pd.DataFrame({"ID": ids, "TIME": 9.3, "DV": np.exp(trial.ln_peak), "AMT": 0.0, "EVID": 0, "MDV": 0})
    table = pd.concat([doses, samples], ignore_index=True).assign(DVID="qpcr", CENS=0, WT=70.0)
    return table.assign(DOSE_PER_KG=np.tile(trial.dose, 2))


def peak_metric(trial):
    """The peaks, exactly known."""
    n = len(trial.dose)
    ids = tuple(f"P{i:03d}" for i in range(n))
    draws = np.exp(trial.ln_peak)[None]
    return ck.Metric("cmax", "copies/ug", ids, draws, ("model",) * n, ("",) * n, "qpcr", (0.0, 90.0))


def outcomes_of(trial, truth, rng):
    """Responses and grades of the patients."""
    index = pd.Index([f"P{i:03d}" for i in range(len(trial.dose))])
    a, b = truth.response
    orr = rng.random(len(trial.u)) < 1 / (1 + np.exp(-a - b * trial.u))
    above = 1 / (1 + np.exp(np.array(truth.thresholds)[:, None] - truth.slope * trial.u))
    grade = (rng.random(len(trial.u)) < above).sum(axis=0)
    return pd.Series(orr.astype(int), index, name="ORR"), pd.Series(grade, index, name="CRS")


def true_rates(trial, truth, dose):
    """Rates of response and of grade 3 at a dose, over patients, by Gauss-Hermite quadrature."""
    eta, weight = np.polynomial.hermite_e.hermegauss(60)
    ln = truth.mu + truth.beta * np.log(dose / CENTRE) + truth.omega * eta
    u = (ln - trial.ln_peak.mean()) / trial.ln_peak.std()
    a, b = truth.response
    p = 1 / (1 + np.exp(-a - b * u))
    q = 1 / (1 + np.exp(truth.thresholds[2] - truth.slope * u))
    return float(weight @ p / weight.sum()), float(weight @ q / weight.sum())


def responses_of(trial, truth, rng, seed):
    """Fitted to the trial."""
    orr, crs = outcomes_of(trial, truth, rng)
    metric = peak_metric(trial)
    efficacy = ck.logistic(metric, orr, seed=seed, prior=RESPONSE_PRIOR)
    return efficacy, ck.ordinal(metric, crs, seed=seed, levels=range(5), prior=GRADE_PRIOR)


def planned(truth, n, seed, *, options=None, levels=LEVELS, weights=(1.0, -1.5)):
    """A trial, its plan, and the true rates at every level (level, 2)."""
    rng = np.random.default_rng([seed, 7])
    model, trial = peak_model(), drawn_trial(truth, n, rng)
    data = ck.read_dataset(table_of(trial), units={"DV": "copies/ug"})
    fit = given_fit(model, data, posterior_phi(model, trial, rng))
    efficacy, toxicity = responses_of(trial, truth, rng, seed)
    plan = ck.recommend(
        fit,
        efficacy=ck.Endpoint(efficacy, weight=weights[0]),
        toxicity=ck.Endpoint(toxicity, at=3, weight=weights[1]),
        levels=levels,
        seed=seed,
        dose_column="DOSE_PER_KG",
        options=options or ck.DoseOptions(draws=DRAWS, simulated=50),
    )
    return plan, np.array([true_rates(trial, truth, d) for d in levels])
