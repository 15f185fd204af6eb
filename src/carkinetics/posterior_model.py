"""``Fit.to_model``: a posterior as the prior of the next trial."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from carkinetics.covariates import Covariate
from carkinetics.dependence import Correlation, Mixture, PriorCorrelation
from carkinetics.errors import ModelError
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.model_parts import Assay, Parameter, Prior
from carkinetics.model_writing import to_toml
from carkinetics.population import class_sign, correlations, effects
from carkinetics.residuals import RESIDUALS


class _Posterior(NamedTuple):
    """Mean and SD of every component of ``phi``, and where they come from."""

    mean: dict[str, float]
    sd: dict[str, float]
    source: str
    confidence: str


def posterior_model(fit: Fit, name: str) -> Model:
    """The fit's model with the posterior's means, SDs and correlations for its numbers and priors."""
    layout, phi = make_layout(fit.model), phi_draws(fit)
    names = layout.phi_names
    found = _Posterior(
        dict(zip(names, phi.mean(axis=0).tolist(), strict=True)),
        dict(zip(names, phi.std(axis=0).tolist(), strict=True)),
        f"posterior of {fit.model.name}: {fit.data.n_subjects} patients of {fit.data.source}",
        f"estimated; the fit was {fit.check().status}",
    )
    parameters = tuple(_parameter(p, found) for p in fit.model.parameters)
    by_name = {p.name: p for p in parameters}
    assays = tuple(_assay(a, found, by_name) for a in fit.model.assays)
    # What shrank the effects is in their posterior; it is not a prior for the next trial.
    related = [k for k, n in enumerate(names) if fit.model.shrinkage is None or k not in _shrunk(layout)]
    matrix = np.corrcoef(phi[:, related].T)
    model = replace(
        fit.model,
        name=name,
        parameters=parameters,
        assays=assays,
        treatments=tuple(replace(t, factor=by_name.get(t.factor.name, t.factor)) for t in fit.model.treatments),
        covariates=_covariates(layout, fit.model, phi),
        shrinkage=None,
        mixture=None if fit.model.mixture is None else _mixture(layout, fit.model.mixture, found),
        correlation=None if fit.model.correlation is None else _correlation(layout, fit.model.correlation, found),
        checks=(),  # they are facts of the paper, not of these patients
        notes=(*fit.model.notes, f"Numbers and priors are the {found.source}, seed {fit.tree.attrs['seed']}."),
        prior_correlation=PriorCorrelation(
            tuple(names[k] for k in related), tuple(tuple(float(x) for x in row) for row in matrix)
        ),
    )
    return replace(model, toml=to_toml(model))


def _shrunk(layout: Layout) -> list[int]:
    return [*range(layout.n_phi)[layout.betas], *range(layout.n_phi)[layout.shrinking]]


def _parameter(p: Parameter, found: _Posterior) -> Parameter:
    if not p.fixed:
        loc = found.mean[p.name]
        with jax.enable_x64(True):
            value = float(p.inverse(jnp.asarray(loc)))
        prior = Prior("normal", loc, found.sd[p.name])
        p = replace(p, value=value, prior=prior, source=found.source, confidence=found.confidence)
    if p.iiv and not p.omega_of:
        prior = _positive(f"omega {p.name}", found)
        p = replace(p, iiv=float(np.exp(prior.loc)), prior_omega=prior)
    elif p.omega_of:
        p = replace(p, iiv=float(np.exp(found.mean[f"omega {p.omega_of}"])))
    return p


def _positive(name: str, found: _Posterior) -> Prior:
    return Prior("lognormal", found.mean[name], found.sd[name])


def _assay(a: Assay, found: _Posterior, parameters: dict[str, Parameter]) -> Assay:
    first, *others = [p.name for p in RESIDUALS[a.error].params]
    prior = _positive(f"{first} {a.name}", found)
    a = replace(a, sigma=float(np.exp(prior.loc)), prior=prior, source=found.source, confidence=found.confidence)
    if a.prior_second is not None:
        second = _positive(f"{others[0]} {a.name}", found)
        a = replace(a, second=float(np.exp(second.loc)), prior_second=second)
    return a if a.ratio is None else replace(a, ratio=parameters[a.ratio.name])


def _covariates(layout: Layout, model: Model, phi: Float[np.ndarray, "draw phi"]) -> tuple[Covariate, ...]:
    if not layout.effects:
        return ()
    with jax.enable_x64(True):
        beta = np.asarray(jax.vmap(lambda x: effects(layout, x))(jnp.asarray(phi)))
    changed, k = [], 0
    for c in model.covariates:
        n = len(c.effects)
        mean, sd = (x[k : k + n].tolist() for x in (beta.mean(axis=0), beta.std(axis=0)))
        k += n
        if not c.fixed:
            values = {"values": tuple(mean)} if c.form == "categorical" else {"value": mean[0]}
            c = replace(c, **values, prior_sd=sd[0] if n == 1 else None, prior_sds=tuple(sd) if n > 1 else ())
        changed.append(c)
    return tuple(changed)


def _mixture(layout: Layout, mixture: Mixture, found: _Posterior) -> Mixture:
    p = layout.parameters[[p.name for p in layout.parameters].index(mixture.on)]
    step, odds = f"step {mixture.on}", f"odds {mixture.label}"
    away = found.mean[mixture.on] + float(class_sign(layout).sum()) * np.exp(found.mean[step])
    with jax.enable_x64(True):
        value = float(p.inverse(jnp.asarray(away)))
        share = float(jax.nn.sigmoid(jnp.asarray(found.mean[odds])))
    return replace(
        mixture, value=value, probability=share, prior_step=found.sd[step], prior_odds=found.sd[odds],
        source=found.source, confidence=found.confidence,
    )  # fmt: skip


def _correlation(layout: Layout, correlation: Correlation, found: _Posterior) -> Correlation:
    names = layout.phi_names[layout.correlations]
    phi = layout.start.copy()
    phi[layout.correlations] = [found.mean[n] for n in names]
    with jax.enable_x64(True):
        matrix = np.asarray(correlations(layout, jnp.asarray(phi)))
    at = np.array(layout.correlated)
    block = matrix[np.ix_(at, at)]
    values = block[np.tril_indices(len(at), -1)]
    return replace(correlation, values=tuple(values.tolist()), prior_sd=tuple(found.sd[n] for n in names))


def write_model(model: Model, path: Path) -> Model:
    """Write a model file; an existing file is replaced only once the new one is complete."""
    if path.suffix != ".toml":
        raise ModelError(f"{path.name}: a model file ends in .toml.")
    part = path.with_name(path.name + ".part")
    part.write_text(model.toml, encoding="utf-8")
    part.replace(path)
    return model
