"""The joint density of a population: one NumPyro model function of the arrays of a dataset.

``phi`` and ``z`` -> individual parameters -> curves -> predictions of every row -> its log likelihood. The data are
arguments of the compiled density, not constants in it, so that another dataset of the same shape reuses the compiled
program.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.infer.util import log_density

from carkinetics import replicates, solvers
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations, of_subjects
from carkinetics.population import Population, natural, population
from carkinetics.priors import distribution, log_correlation
from carkinetics.residuals import RESIDUALS
from carkinetics.solvers import Grid
from carkinetics.structure import AbstractStructure, Inputs


def joint(model: Model, obs: Observations) -> None:
    """The population density, as a NumPyro model.

    Sites: one for each component of ``phi`` (``theta.<parameter>``, on the transformed scale; ``effect.<effect>``;
    ``omega.<parameter>``; ``sigma.<assay>`` and others, see :mod:`carkinetics.layout`), and ``z`` of shape
    ``(random, subject)``: standard normal random effects, so that an individual's transformed parameter is
    ``theta + omega z``.
    """
    layout = make_layout(model)
    values = [(c, jnp.asarray(numpyro.sample(c.site, distribution(c.prior)))) for c in layout.components]
    phi = jnp.stack([jnp.log(x) if c.log else x for c, x in values])
    if model.prior_correlation is not None:
        numpyro.factor("prior_correlation", log_correlation(model, phi))
    of = population(layout, phi, obs.design)
    shape = (len(layout.random), obs.n_subjects)
    z = jnp.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape).to_event(2)))
    if of.step is not None:
        numpyro.factor("classes", of.log_mixed(z).sum())
    subjects = log_likelihood_by_subject(ln_pred(layout, of.individual(z), obs), of.residual, obs)
    numpyro.factor("log_likelihood", subjects.sum())


def log_joint(
    model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]
) -> Float[Array, ""]:
    """Log of the joint density in ``(phi, z)``: NumPyro's density of :func:`joint`, with the logs' Jacobian."""
    components = make_layout(model).components
    sites = {c.site: jnp.exp(x) if c.log else x for c, x in zip(components, phi, strict=True)}
    density, _ = log_density(joint, (model, obs), {}, sites | {"z": z})
    return density + phi[np.array([c.log for c in components])].sum()


def as_arguments(structure: AbstractStructure, values: Float[Array, "parameter *n"], x: Inputs) -> tuple[Any, Inputs]:
    """What a structure is called with: its own of the natural-scale parameters, and inputs with the treatments'."""
    own = len(structure.parameters._fields)
    factor = values[own : own + len(x.factor)]  # what follows belongs to assays
    return structure.parameters(*values[:own]), eqx.tree_at(lambda x: x.factor, x, factor)


def ln_curves(
    structure: AbstractStructure, grid: Grid, values: Float[Array, "parameter subject"], x: Inputs
) -> dict[str, Float[Array, "time subject"]]:
    """Natural log of every output at the grid's times, from natural-scale parameters."""
    return solvers.curves(structure, grid, *as_arguments(structure, values, x))


@partial(jax.jit, static_argnums=0)
def compiled_ln_curves(structure: AbstractStructure, grid: Grid, values, x: Inputs):
    """:func:`ln_curves`, compiled once for each structure and shape."""
    return ln_curves(structure, grid, values, x)


def ln_pred(layout: Layout, individual: Float[Array, "parameter subject"], obs: Observations) -> Float[Array, " obs"]:
    """Natural log of the predicted level of every row, from transformed individual parameters."""
    x, outputs = obs.inputs, tuple(a.output for a in layout.assays)
    if obs.flat:
        individual, x = individual[:, obs.subject], of_subjects(x, obs.subject)
    curves = ln_curves(layout.structure, obs.grid, natural(layout, individual), x)
    if len(set(outputs)) == 1:
        found = curves[outputs[0]].reshape(-1)[obs.cell] + obs.offset
    else:
        found = jnp.stack([curves[name].reshape(-1) for name in outputs])[obs.assay, obs.cell] + obs.offset
    if max(layout.ratios) < 0:
        return found
    ratio = jnp.stack([individual[r] if r >= 0 else jnp.zeros_like(individual[0]) for r in layout.ratios])
    at = jnp.arange(obs.n_obs) if obs.flat else obs.subject
    return found + ratio[obs.assay, at]


def log_likelihood(
    ln_prediction: Float[Array, " obs"], residual: Float[Array, "2 assay"], obs: Observations
) -> Float[Array, " obs"]:
    """Log likelihood of every row: a density where it is quantified, a probability where it is censored."""
    n = residual.shape[1]
    rows = jnp.broadcast_to(residual, (2, obs.n_obs)) if n == 1 else residual[:, obs.assay]
    return log_likelihood_of_rows(ln_prediction, rows, obs)


def log_likelihood_of_rows(
    ln_prediction: Float[Array, " obs"], residual: Float[Array, "2 obs"], obs: Observations
) -> Float[Array, " obs"]:
    """:func:`log_likelihood` with residual parameters of every row's own."""
    parts = []
    for group in obs.rows:
        here, family = slice(group.begin, group.end), RESIDUALS[group.family]
        parameters = residual[: len(family.params), here]
        limits = (obs.ln_limit[here], obs.ln_dv[here]) if group.kind == "between" else (obs.ln_dv[here],)
        f = ln_prediction[here]
        if group.family == replicates.NAME:
            f, sample, _ = replicates.given_earlier(f, parameters[0], parameters[1], obs.earlier[:, here])
            parameters = jnp.stack([parameters[0], sample])
        parts.append(getattr(family, group.kind)(*limits, f, *parameters))
    return jnp.concatenate(parts)


def row_information(
    ln_prediction: Float[Array, " obs"], residual: Float[Array, "2 assay"], obs: Observations
) -> tuple[Float[Array, " obs"], Float[Array, " obs"]]:
    """Slope of every row's log likelihood in its prediction, and how much the row says about it.

    Of a quantified row that is the expected information: a Student-t's curvature is negative in its tails.
    """
    slope = jax.grad(lambda f: log_likelihood(f, residual, obs).sum())
    score, curvature = jax.jvp(slope, (ln_prediction,), (jnp.ones_like(ln_prediction),))
    rows = jnp.broadcast_to(residual, (2, obs.n_obs)) if residual.shape[1] == 1 else residual[:, obs.assay]
    weight = [jnp.maximum(-curvature, 0.0)[slice(g.begin, g.end)] for g in obs.rows]
    for k, group in enumerate(obs.rows):
        family = RESIDUALS[group.family]
        if group.kind == "quantified":
            here = slice(group.begin, group.end)
            f, parameters, left = ln_prediction[here], rows[: len(family.params), here], 1.0
            if group.family == replicates.NAME:
                f, sample, left = replicates.given_earlier(f, parameters[0], parameters[1], obs.earlier[:, here])
                parameters = jnp.stack([parameters[0], sample])
            weight[k] = left**2 * family.information(f, *parameters)
    return score, jnp.concatenate(weight)


def log_likelihood_by_subject(
    ln_prediction: Float[Array, " obs"], residual: Float[Array, "2 assay"], obs: Observations
) -> Float[Array, " subject"]:
    """Log likelihood of every patient's rows."""
    return jax.ops.segment_sum(log_likelihood(ln_prediction, residual, obs), obs.subject, obs.n_subjects)


def subject_log_likelihood(
    layout: Layout, of: Population, x: Float[Array, "random subject"], obs: Observations
) -> Float[Array, " subject"]:
    """Log likelihood of every patient's rows at random parameters ``x`` (transformed scale)."""
    return log_likelihood_by_subject(ln_pred(layout, of.parameters(x), obs), of.residual, obs)
