"""Models with all that can be estimated, and a table for them."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from carkinetics.covariates import Covariate
from carkinetics.dataset import read_dataset
from carkinetics.dependence import Horseshoe
from carkinetics.inputs import resolved
from carkinetics.model_files import load_model, parse_model
from carkinetics.model_parts import Assay, Prior
from carkinetics.observations import make_observations

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
TIMES = [0, 2, 4, 7, 9, 11, 14, 21, 28, 60, 90, 180, 365]


def changed(model, name, **fields):
    """A model with other facts about a parameter; its prior moves to where its value then is."""
    found = replace(model[name], **fields)
    found = replace(found, prior=replace(found.prior, loc=found.theta))
    return replace(model, parameters=tuple(found if p.name == name else p for p in model.parameters))


def tied(model):
    """``alpha`` varies as much as ``tmax``."""
    return changed(model, "alpha", iiv=model["tmax"].iiv, omega_of="tmax")


def bounded(model):
    """``fb`` lies below 0.3."""
    return changed(model, "fb", transform="logit", low=0.0, high=0.3, iiv=0.9)


def assay(name, error="lognormal", sigma=0.6, second=None, *, ratio=None, estimated=True, **more):
    """An assay; its second residual parameter is estimated or known, its ratio a table of a model file."""
    prior = Prior("lognormal", float(np.log(sigma)), 0.4)
    own = {} if second is None else {"second": second}
    if second is not None and estimated:
        own["prior_second"] = Prior("lognormal", float(np.log(second)), 0.3)
    if ratio is not None:
        own["ratio"] = of_ratio(name, ratio)
    return Assay(name, "level", "PB", "copies/ug", error, sigma, prior, **own, **more)


def of_ratio(name, lines):
    """The parameter that a table ``ratio`` of an assay stands for."""
    head, tail = PUBLISHED.toml.split("\n[assays.qpcr]\n")
    return parse_model(f"{head}\n[assays.{name}.ratio]\n{lines}\n[assays.{name}]\n{tail}").assays[0].ratio


RANDOM_RATIO = "value = 0.7\nomega_sd = 0.4"
CONSTANT_RATIO = "value = 0.7\nno_iiv = true"
KNOWN_RATIO = "value = 0.7\nomega_sd = 0.4\nfixed = true"

EVERYTHING = (
    bounded(tied(PUBLISHED))
    .with_priors({"omega.foldx": Prior("halfnormal", 0.0, 1.0), "omega.tmax": Prior("halfnormal", 0.0, 0.8)})
    .with_assay(assay("flow", "student_t", 0.5, 5.0, ratio=RANDOM_RATIO))
    .with_covariates(
        Covariate("BURDEN", on="cmax"),
        Covariate("AGE", on="alpha", form="exponential", center="mean"),
        Covariate("PRODUCT", on="cmax", form="categorical", reference="B"),
        Covariate("SEX", on="fb", form="categorical"),
        shrinkage=Horseshoe(expected=1.0),
    )
    .with_correlation("beta", "cmax", "ratio_flow")
    .with_mixture("cmax", 900.0, 0.3, "poor")
)


def table(n=6, assays=("qpcr",), seed=1, samples=6):
    """Samples of every kind of every assay, and covariates; assays whose name begins with ``n_`` count."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        of_patient = (float(np.exp(rng.normal(3, 1))), float(rng.uniform(20, 80)), float(rng.uniform(2, 9)))
        for name in assays:
            for t in sorted(rng.choice(TIMES, samples, replace=False)):
                counts = name.startswith("n_")
                dv = float(rng.integers(1, 40)) if counts else float(np.exp(rng.normal(6, 2)))
                other = dv + rng.integers(1, 30) if counts else dv * 3
                cens, limit = [(0, np.nan), (1, np.nan), (-1, np.nan), (-1, other)][len(rows) % 4]
                if rng.uniform() < 0.2 and cens == -1 and np.isfinite(limit):
                    dv, cens, limit = limit, 1, dv  # an interval from its other end
                rows.append((f"P{i:02d}", float(t), dv, name, cens, limit, *of_patient, "FM"[i % 2], "ABC"[i % 3]))
    columns = ["ID", "TIME", "DV", "DVID", "CENS", "LIMIT", "BURDEN", "AGE", "WBC", "SEX", "PRODUCT"]
    return pd.DataFrame(rows, columns=columns)


def read(frame):
    """The table, through the reader, whatever it finds odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(frame, units={"DV": "copies/ug"})


def prepared(model, frame):
    """The model with what covariates leave to the data, and the arrays."""
    data = read(frame)
    model, _ = resolved(model, data)
    return model, make_observations(model, data)
