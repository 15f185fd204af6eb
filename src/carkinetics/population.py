"""The joint density of a population: one NumPyro model function, and the arrays it reads.

``Model`` -> ``Layout`` (what is estimated), and with the ``Observations`` of a dataset -> ``joint``. The
data are arguments of the compiled density, not constants in it, so that another dataset of the same shape
reuses the compiled program.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.infer.util import log_density

from carkinetics import observation, solvers
from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import Parameter, Prior, nearest_or_raise
from carkinetics.observations import Observations, of_subjects
from carkinetics.solvers import Grid
from carkinetics.structure import AbstractStructure, Inputs
from carkinetics.transforms import TRANSFORMS


@dataclass(frozen=True)
class Layout:
    """What is estimated, in which order: the names behind the columns of every array.

    Attributes
    ----------
    parameters : tuple of Parameter
        All parameters of the structure, in its order.
    estimated, random : tuple of int
        Positions of those with an estimated typical value, and of those with between-patient variability.
    """

    structure: AbstractStructure
    parameters: tuple[Parameter, ...]
    estimated: tuple[int, ...]
    random: tuple[int, ...]
    assays: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def n_phi(self) -> int:
        """Number of population parameters."""
        return len(self.estimated) + len(self.random) + len(self.assays)

    @property
    def omegas(self) -> slice:
        """Where ``phi`` has the log omegas: after the estimated typical values, before the residual SDs."""
        first = len(self.estimated)
        return slice(first, first + len(self.random))

    @property
    def phi_names(self) -> list[str]:
        """What the components of ``phi`` are called: ``cmax``, ``omega cmax``, ``sigma qpcr``."""
        names = [p.name for p in self.parameters]
        typical, omegas = [names[i] for i in self.estimated], [f"omega {names[i]}" for i in self.random]
        return typical + omegas + [f"sigma {a}" for a in self.assays]


def make_layout(model: Model) -> Layout:
    """The layout of a model's population parameters."""
    return Layout(
        structure=model.structure,
        parameters=model.parameters,
        estimated=tuple(i for i, p in enumerate(model.parameters) if not p.fixed),
        random=tuple(i for i, p in enumerate(model.parameters) if p.iiv > 0),
        assays=tuple(a.name for a in model.assays),
        outputs=tuple(a.output for a in model.assays),
    )


def joint(model: Model, obs: Observations) -> None:
    """The population density, as a NumPyro model.

    Sites: ``theta.<parameter>`` (typical value, transformed scale), ``omega.<parameter>``,
    ``sigma.<assay>``, and ``z`` of shape ``(random, subject)``: standard normal random effects, so that an
    individual's transformed parameter is ``theta + omega z``.
    """
    layout = make_layout(model)
    theta = jnp.stack(
        [
            jnp.asarray(p.theta) if p.fixed else numpyro.sample(f"theta.{p.name}", distribution(p.prior))
            for p in model.parameters
        ]
    )
    omega = jnp.stack(
        [
            numpyro.sample(f"omega.{p.name}", distribution(p.prior_omega))
            for p in (model.parameters[i] for i in layout.random)
        ]
    )
    sigma = jnp.stack([numpyro.sample(f"sigma.{a.name}", distribution(a.prior)) for a in model.assays])
    if model.prior_correlation is not None:
        phi = jnp.concatenate([theta[jnp.array(layout.estimated, int)], jnp.log(omega), jnp.log(sigma)])
        numpyro.factor("prior_correlation", _log_correlation(model, phi))
    shape = (len(layout.random), obs.n_subjects)
    z = jnp.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape).to_event(2)))
    individual = individual_parameters(layout, theta, omega, z)
    subjects = log_likelihood_by_subject(ln_pred(layout, individual, obs), sigma, obs)
    numpyro.factor("log_likelihood", subjects.sum())


def distribution(prior: Prior) -> dist.Distribution:
    """The NumPyro distribution of a prior."""
    if prior.family == "halfnormal":
        return dist.HalfNormal(prior.scale)
    family = dist.LogNormal if prior.family == "lognormal" else dist.Normal
    return family(prior.loc, prior.scale)


def individual_parameters(
    layout: Layout, theta: Float[Array, " parameter"], omega: Float[Array, " random"], z: Float[Array, "random subject"]
) -> Float[Array, "parameter subject"]:
    """Individual parameters on the transformed scale."""
    return with_random(layout, theta, theta[jnp.array(layout.random)][:, None] + omega[:, None] * z)


def with_random(
    layout: Layout, theta: Float[Array, " parameter"], x: Float[Array, "random subject"]
) -> Float[Array, "parameter subject"]:
    """Individual parameters, transformed scale, of which ``x`` are those that vary between patients."""
    varying = dict(zip(layout.random, x, strict=True))
    return jnp.stack([varying.get(i, jnp.full(x.shape[1], theta[i])) for i in range(len(theta))])


def natural(layout: Layout, individual: Float[Array, "parameter *n"]) -> Float[Array, "parameter *n"]:
    """Individual parameters on their natural scale."""
    return jnp.stack([TRANSFORMS[p.transform].inverse(x) for p, x in zip(layout.parameters, individual, strict=True)])


def as_arguments(structure: AbstractStructure, values: Float[Array, "parameter *n"], x: Inputs) -> tuple[Any, Inputs]:
    """What a structure is called with: its own of the natural-scale parameters, and inputs with the treatments'."""
    own = len(structure.parameters._fields)
    return structure.parameters(*values[:own]), eqx.tree_at(lambda x: x.factor, x, values[own:])


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
    x = obs.inputs
    if obs.flat:
        individual, x = individual[:, obs.subject], of_subjects(x, obs.subject)
    outputs = ln_curves(layout.structure, obs.grid, natural(layout, individual), x)
    if len(set(layout.outputs)) == 1:
        return outputs[layout.outputs[0]].reshape(-1)[obs.cell] + obs.offset
    stacked = jnp.stack([outputs[name].reshape(-1) for name in layout.outputs])
    return stacked[obs.assay, obs.cell] + obs.offset


def log_likelihood(
    ln_prediction: Float[Array, " obs"], sigma: Float[Array, " assay"], obs: Observations
) -> Float[Array, " obs"]:
    """Log likelihood of every row: a density where it is quantified, a probability where it is censored."""
    s = jnp.full(obs.n_obs, sigma[0]) if sigma.shape[0] == 1 else sigma[obs.assay]
    return log_likelihood_of_rows(ln_prediction, s, obs)


def log_likelihood_of_rows(
    ln_prediction: Float[Array, " obs"], s: Float[Array, " obs"], obs: Observations
) -> Float[Array, " obs"]:
    """:func:`log_likelihood` with a residual SD ``s`` of every row's own."""
    ends = np.cumsum(obs.rows)
    quantified, below, above, between = (slice(e - n, e) for e, n in zip(ends, obs.rows, strict=True))
    f, y, lower = ln_prediction, obs.ln_dv, obs.ln_limit
    parts = [observation.log_density(y[quantified], f[quantified], s[quantified])]
    if obs.rows.below:
        parts.append(observation.log_prob_below(y[below], f[below], s[below]))
    if obs.rows.above:
        parts.append(observation.log_prob_above(y[above], f[above], s[above]))
    if obs.rows.between:
        parts.append(observation.log_prob_between(lower[between], y[between], f[between], s[between]))
    return jnp.concatenate(parts)


def log_likelihood_by_subject(
    ln_prediction: Float[Array, " obs"], sigma: Float[Array, " assay"], obs: Observations
) -> Float[Array, " subject"]:
    """Log likelihood of every patient's rows."""
    return jax.ops.segment_sum(log_likelihood(ln_prediction, sigma, obs), obs.subject, obs.n_subjects)


def subject_log_likelihood(
    layout: Layout,
    theta: Float[Array, " parameter"],
    x: Float[Array, "random subject"],
    sigma: Float[Array, " assay"],
    obs: Observations,
) -> Float[Array, " subject"]:
    """Log likelihood of every patient's rows at individual parameters ``x`` (transformed scale)."""
    return log_likelihood_by_subject(ln_pred(layout, with_random(layout, theta, x), obs), sigma, obs)


def split_phi(
    layout: Layout, phi: Float[Array, " phi"]
) -> tuple[Float[Array, " parameter"], Float[Array, " random"], Float[Array, " assay"]]:
    """Typical values (transformed), omegas and sigmas, from one unconstrained vector.

    ``phi`` holds the estimated typical values, then ln omega, then ln sigma.
    """
    omegas = layout.omegas
    position = {i: j for j, i in enumerate(layout.estimated)}
    theta = jnp.stack([phi[position[i]] if i in position else p.theta for i, p in enumerate(layout.parameters)])
    return theta, jnp.exp(phi[omegas]), jnp.exp(phi[omegas.stop :])


def log_joint(
    model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]
) -> Float[Array, ""]:
    """Log of the joint density in ``(phi, z)``: NumPyro's density of :func:`joint`, with d(omega, sigma)/d phi."""
    layout = make_layout(model)
    theta, omega, sigma = split_phi(layout, phi)
    names = [p.name for p in layout.parameters]
    sites = {f"theta.{names[i]}": theta[i] for i in layout.estimated}
    sites |= {f"omega.{names[i]}": omega[j] for j, i in enumerate(layout.random)}
    sites |= {f"sigma.{a}": sigma[j] for j, a in enumerate(layout.assays)}
    density, _ = log_density(joint, (model, obs), {}, sites | {"z": z})
    return density + phi[len(layout.estimated) :].sum()


def log_prior(model: Model, phi: Float[Array, " phi"]) -> Float[Array, ""]:
    """Log prior density of ``phi``."""
    alone = log_prior_phi(model, phi).sum()
    return alone if model.prior_correlation is None else alone + _log_correlation(model, phi)


def log_prior_phi(model: Model, phi: Float[Array, " phi"]) -> Float[Array, " phi"]:
    """Log prior density of every component of ``phi`` by itself."""
    n = len(make_layout(model).estimated)
    priors = priors_of_phi(model)
    terms = [distribution(p).log_prob(x) for p, x in zip(priors[:n], phi, strict=False)]
    terms += [distribution(p).log_prob(jnp.exp(x)) + x for p, x in zip(priors[n:], phi[n:], strict=True)]
    return jnp.stack(terms)


def priors_of_phi(model: Model) -> list[Prior]:
    """The prior of every component of ``phi``: of a typical value, of omega, of sigma."""
    layout = make_layout(model)
    typical = [model.parameters[i].prior for i in layout.estimated]
    return typical + [model.parameters[i].prior_omega for i in layout.random] + [a.prior for a in model.assays]


def _log_correlation(model: Model, phi: Float[Array, " phi"]) -> Float[Array, ""]:
    """What correlations add to the log density of independent normal components."""
    places, loc, scale, matrix = _correlated(model)
    s = (phi[places] - loc) / scale
    return -0.5 * (np.linalg.slogdet(matrix)[1] + s @ (np.linalg.inv(matrix) - np.eye(len(matrix))) @ s)


def _correlated(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places in ``phi`` of the correlated components, their means and SDs, and the correlations."""
    known = model.prior_correlation
    assert known is not None
    names, priors = make_layout(model).phi_names, priors_of_phi(model)
    places = [names.index(nearest_or_raise(n, names, "name", f"{model.name} [prior_correlation]")) for n in known.names]
    halved = [names[k] for k in places if priors[k].family == "halfnormal"]
    if halved:
        raise ModelError(f"{model.name} [prior_correlation]: the prior of {halved[0]} is half-normal; use lognormal.")
    loc, scale = (np.array([getattr(priors[k], name) for k in places]) for name in ("loc", "scale"))
    return np.array(places), loc, scale, np.array(known.matrix)


def prior_phi(model: Model, key: PRNGKeyArray, draws: int) -> Float[Array, "draw phi"]:
    """``phi`` drawn from the prior."""
    n, priors = len(make_layout(model).estimated), priors_of_phi(model)
    keys = jax.random.split(key, len(priors))
    columns = [distribution(p).sample(k, (draws,)) for p, k in zip(priors[:n], keys, strict=False)]
    columns += [jnp.log(distribution(p).sample(k, (draws,))) for p, k in zip(priors[n:], keys[n:], strict=True)]
    phi = jnp.stack(columns, axis=-1)
    if model.prior_correlation is None:
        return phi
    places, loc, scale, matrix = _correlated(model)
    s = (phi[:, places] - loc) / scale  # independent and standard normal
    return phi.at[:, places].set(loc + scale * (s @ np.linalg.cholesky(matrix).T))
