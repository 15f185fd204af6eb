"""What the engine estimates beside typical values is found again in simulated trials."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from carkinetics.cohort import Cohort
from carkinetics.covariates import Covariate
from carkinetics.dataset import read_dataset
from carkinetics.demo import MODEL, SCHEDULE
from carkinetics.errors import FitWarning
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.inference.chains import Settings
from carkinetics.model_files import load_model
from carkinetics.model_writing import to_toml
from carkinetics.simulation import simulate
from everything import RANDOM_RATIO, assay, read

pytestmark = pytest.mark.slow
PUBLISHED = load_model(MODEL)


def intervals(result, share=0.99):
    """Equal-tailed intervals of all population parameters; effects and log odds as they are sampled."""
    names, draws = population_draws(result)
    low, high = np.quantile(draws, ((1 - share) / 2, (1 + share) / 2), axis=(0, 1))
    return dict(zip(names, zip(low, high, strict=True), strict=True))


def holds(found, name, truth):
    low, high = found[name]
    return low <= truth <= high


def test_effects_and_a_correlation_are_found():
    """If it fails, covariates or correlated effects are estimated as something else, or a null effect is not null."""
    rng, n = np.random.default_rng(4), 70
    people = pd.DataFrame({
        "BURDEN": np.exp(rng.normal(3, 1, n)),
        "PRODUCT": rng.choice(["a", "b"], n),
        "AGE": rng.uniform(20, 80, n),
    })  # fmt: skip
    truth = PUBLISHED.with_covariates(
        Covariate("BURDEN", on="cmax", center=20.0, value=0.5),
        Covariate("PRODUCT", on="tmax", form="categorical", reference="a", levels=("b",), values=(0.5,)),
    ).with_correlation("tmax", "cmax", values=(0.6,))
    table = simulate(truth, Cohort(n, SCHEDULE, covariates=people), seed=5).table
    model = PUBLISHED.with_covariates(
        Covariate("BURDEN", on="cmax"),
        Covariate("PRODUCT", on="tmax", form="categorical", reference="a"),
        Covariate("AGE", on="cmax", form="exponential"),
    ).with_correlation("tmax", "cmax")
    result = fit(model, read(table), seed=1, progress=False)
    assert result.check().numbers["rhat"] <= 1.01
    found = intervals(result)
    print(found, result.tree.attrs["seconds"])
    assert holds(found, "e_burden_cmax", 0.5) and found["e_burden_cmax"][0] > 0
    assert holds(found, "e_product_b_tmax", 0.5) and found["e_product_b_tmax"][0] > 0
    assert holds(found, "e_age_cmax", 0.0) and max(np.abs(found["e_age_cmax"])) * 17 < 0.7  # of one SD of age
    low, high = np.tanh(found["corr tmax cmax"])
    assert 0 < low <= 0.6 <= high
    for p in PUBLISHED.parameters:
        if p.name not in ("cmax", "tmax"):  # their centres are these patients'
            assert holds(found, p.name, p.theta), p.name


def test_a_ratio_its_spread_and_the_weight_of_tails_are_found():
    """If it fails, marrow is on another level than it was, or outliers are not told from noise."""
    truth = PUBLISHED.with_assay(assay("bm", "student_t", 0.5, 3.0, ratio=RANDOM_RATIO))
    trial = simulate(truth, Cohort(50, SCHEDULE, dose=2e8), seed=6)
    model = PUBLISHED.with_assay(
        assay("bm", "student_t", 0.7, 6.0, ratio="value = 1.0\nomega_sd = 0.7\nprior_sd = 1.0")
    )
    result = fit(model, read(trial.table), seed=1, progress=False)
    assert result.check().numbers["rhat"] <= 1.01
    found = intervals(result)
    print(found, result.tree.attrs["seconds"])
    assert holds(found, "ratio_bm", np.log(0.7)) and np.ptp(found["ratio_bm"]) < 0.6
    assert holds(found, "omega ratio_bm", 0.4) and found["omega ratio_bm"][1] < 0.7
    assert holds(found, "nu bm", 3.0) and found["nu bm"][1] < 8
    assert holds(found, "sigma bm", 0.5) and holds(found, "sigma qpcr", PUBLISHED.assays[0].sigma)


def test_two_classes_of_patients_are_found():
    """If it fails, the share of non-expanders, or who they are, is not what was simulated."""
    truth = PUBLISHED.with_mixture("cmax", 300.0, 0.2, "non-expander")
    trial = simulate(truth, Cohort(80, SCHEDULE, dose=2e8), seed=7)
    model = PUBLISHED.with_mixture("cmax", 1000.0, 0.4, "non-expander")
    result = fit(model, read(trial.table), seed=1, progress=False)
    assert result.check().numbers["rhat"] <= 1.01
    posterior = result.tree["posterior"].to_dataset()
    share = 1 - posterior["share_second"].values
    low, high = np.quantile(share, (0.005, 0.995))
    print(share.mean(), low, high, result.tree.attrs["seconds"])
    assert low <= 0.80 <= high and high - low < 0.4
    low, high = np.quantile(np.log(posterior["tv_second"].values), (0.005, 0.995))
    assert low <= np.log(300.0) <= high
    chance = posterior["second"].mean(("chain", "draw")).to_series()
    second = (trial.people.xs(1, level="REP")["CLASS"] == "non-expander").loc[chance.index]
    brier = float(((chance - second) ** 2).mean())
    print(brier, second.mean())
    assert brier < 0.05  # 0.16 for who knows the share alone


def test_the_share_of_a_published_mixture_is_found():
    """Mueller-Schoell 2021: four phenotypes and a tumour; the reference class has a share of 0.803.

    What is estimated is what tells the classes apart: expansion with its class and covariates, killing, residuals; the
    rest is the paper's. The fit begins at a share of a half. If it fails, classes of an ODE are not marginalised right.
    """
    rng, n = np.random.default_rng(1), 60
    burden, transplant = np.exp(rng.normal(np.log(85.7), 1.0, n)), rng.binomial(1, 0.3, n)
    ratio = np.exp(rng.normal(0, 0.7, n))
    people = pd.DataFrame({"MTV": burden, "ASCT": transplant, "CD4CD8": ratio})
    truth = load_model("mueller_schoell_2021_axicabtagene")
    trial = simulate(truth, Cohort(n, (3, 7, 10, 14, 21, 28), dose=2e8, covariates=people), seed=3)
    mixture = truth.mixture
    assert mixture is not None
    free = ("vmax1", "vmax5_2")
    model = truth.fix(*[p.name for p in truth.parameters if p.name not in free])
    model = replace(model, mixture=replace(mixture, probability=0.5), toml="")
    model = replace(model, toml=to_toml(model))
    data = read_dataset(trial.table, units={"DV": {a.name: a.unit for a in truth.assays}})
    settings = Settings(pilot=100, warmup=100, draws=300, max_draws=600, proposals=24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        result = fit(model, data, seed=1, settings=settings, progress=False)
    assert result.check().numbers["rhat"] <= 1.01
    posterior = result.tree["posterior"].to_dataset()
    share = 1 - posterior["share_second"].values
    low, high = np.quantile(share, (0.025, 0.975))
    chance = posterior["second"].mean(("chain", "draw")).to_series()
    second = (trial.people.xs(1, level="REP")["CLASS"] == mixture.label).loc[chance.index]
    brier = float(((chance - second) ** 2).mean())
    print(share.mean(), low, high, 1 - second.mean(), brier, result.tree.attrs["seconds"], result.check(), sep="\n")
    assert low <= 0.803 <= high and high - low < 0.35
    assert abs(share.mean() - (1 - second.mean())) < 0.08  # 49 of the 60 are of the reference class
    assert brier < 0.08  # 0.15 for who knows the share alone
