"""``Fit.to_model``: a posterior as the prior of the next trial."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from carkinetics.errors import ModelError
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.model import Model
from carkinetics.model_parts import Parameter, Prior, PriorCorrelation
from carkinetics.model_writing import to_toml
from carkinetics.population import make_layout
from carkinetics.transforms import TRANSFORMS


def posterior_model(fit: Fit, name: str) -> Model:
    """The fit's model with the posterior's means, SDs and correlations for its numbers and priors."""
    names, phi = make_layout(fit.model).phi_names, phi_draws(fit)
    mean, sd = dict(zip(names, phi.mean(axis=0), strict=True)), dict(zip(names, phi.std(axis=0), strict=True))
    source = f"posterior of {fit.model.name}: {fit.data.n_subjects} patients of {fit.data.source}"
    confidence = f"estimated; the fit was {fit.check().status}"
    parameters = tuple(_parameter(p, mean, sd, source, confidence) for p in fit.model.parameters)
    assays = tuple(
        replace(
            a,
            sigma=float(np.exp(mean[f"sigma {a.name}"])),
            prior=Prior("lognormal", float(mean[f"sigma {a.name}"]), float(sd[f"sigma {a.name}"])),
            source=source,
            confidence=confidence,
        )
        for a in fit.model.assays
    )
    matrix = np.corrcoef(phi.T)
    factors = {p.name: p for p in parameters}
    model = replace(
        fit.model,
        name=name,
        parameters=parameters,
        assays=assays,
        treatments=tuple(replace(t, factor=factors.get(t.factor.name, t.factor)) for t in fit.model.treatments),
        checks=(),  # they are facts of the paper, not of these patients
        notes=(*fit.model.notes, f"Numbers and priors are the {source}, seed {fit.tree.attrs['seed']}."),
        prior_correlation=PriorCorrelation(tuple(names), tuple(tuple(float(x) for x in row) for row in matrix)),
    )
    return replace(model, toml=to_toml(model))


def _parameter(p: Parameter, mean, sd, source: str, confidence: str) -> Parameter:
    if not p.fixed:
        loc = float(mean[p.name])
        value = float(TRANSFORMS[p.transform].inverse(np.float64(loc)))
        p = replace(p, value=value, prior=Prior("normal", loc, float(sd[p.name])), source=source, confidence=confidence)
    if p.iiv:
        omega = f"omega {p.name}"
        prior = Prior("lognormal", float(mean[omega]), float(sd[omega]))
        p = replace(p, iiv=float(np.exp(mean[omega])), prior_omega=prior)
    return p


def write_model(model: Model, path: Path) -> Model:
    """Write a model file; an existing file is replaced only once the new one is complete."""
    if path.suffix != ".toml":
        raise ModelError(f"{path.name}: a model file ends in .toml.")
    part = path.with_name(path.name + ".part")
    part.write_text(model.toml, encoding="utf-8")
    part.replace(path)
    return model
