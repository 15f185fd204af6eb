"""The prior of ``phi``: each component by itself, and what a posterior that became a prior says of them together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from carkinetics.errors import ModelError
from carkinetics.layout import Component, make_layout
from carkinetics.model import Model
from carkinetics.model_parts import Prior, nearest_or_raise


def distribution(prior: Prior) -> dist.Distribution:
    """The NumPyro distribution of a prior."""
    if prior.family == "halfnormal":
        return dist.HalfNormal(prior.scale)
    if prior.family == "halfcauchy":
        return dist.HalfCauchy(prior.scale)
    if prior.family == "lkj":  # of the inverse hyperbolic tangent of a number whose beta distribution is on (-1, 1)
        half_logit = [dist.transforms.SigmoidTransform().inv, dist.transforms.AffineTransform(0.0, 0.5)]
        return dist.TransformedDistribution(dist.Beta(prior.scale, prior.scale), half_logit)
    family = dist.LogNormal if prior.family == "lognormal" else dist.Normal
    return family(prior.loc, prior.scale)


def log_prior(model: Model, phi: Float[Array, " phi"]) -> Float[Array, ""]:
    """Log prior density of ``phi``."""
    alone = log_prior_phi(model, phi).sum()
    return alone if model.prior_correlation is None else alone + log_correlation(model, phi)


def log_prior_phi(model: Model, phi: Float[Array, " phi"]) -> Float[Array, " phi"]:
    """Log prior density of every component of ``phi`` by itself."""
    return jnp.stack([_log_density(c, x) for c, x in zip(make_layout(model).components, phi, strict=True)])


def _log_density(component: Component, x: Float[Array, ""]):
    prior = component.prior
    if prior.family == "lkj":  # the beta's own logarithms are not finite far out
        b = prior.scale
        ln_cosh = jnp.logaddexp(x, -x) - math.log(2)
        return -2 * b * ln_cosh - (2 * b - 1) * math.log(2) - 2 * math.lgamma(b) + math.lgamma(2 * b)
    if component.log:
        return distribution(prior).log_prob(jnp.exp(x)) + x
    return distribution(prior).log_prob(x)


def log_correlation(model: Model, phi: Float[Array, " phi"]) -> Float[Array, ""]:
    """What correlations add to the log density of independent normal components."""
    places, loc, scale, matrix = _correlated(model)
    s = (phi[places] - loc) / scale
    return -0.5 * (np.linalg.slogdet(matrix)[1] + s @ (np.linalg.inv(matrix) - np.eye(len(matrix))) @ s)


def _correlated(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places in ``phi`` of the correlated components, their means and SDs, and the correlations."""
    known = model.prior_correlation
    assert known is not None
    layout = make_layout(model)
    names, priors = layout.phi_names, layout.priors
    places = [names.index(nearest_or_raise(n, names, "name", f"{model.name} [prior_correlation]")) for n in known.names]
    odd = [names[k] for k in places if priors[k].family not in ("normal", "lognormal")]
    if odd:
        raise ModelError(
            f"{model.name} [prior_correlation]: the prior of {odd[0]} is {priors[names.index(odd[0])].family}; use "
            "normal or lognormal."
        )
    loc, scale = (np.array([getattr(priors[k], name) for k in places]) for name in ("loc", "scale"))
    return np.array(places), loc, scale, np.array(known.matrix)


def prior_phi(model: Model, key: PRNGKeyArray, draws: int) -> Float[Array, "draw phi"]:
    """``phi`` drawn from the prior."""
    components = make_layout(model).components
    keys = jax.random.split(key, len(components))
    columns = [distribution(c.prior).sample(k, (draws,)) for c, k in zip(components, keys, strict=True)]
    phi = jnp.stack([jnp.log(x) if c.log else x for c, x in zip(components, columns, strict=True)], axis=-1)
    if model.prior_correlation is None:
        return phi
    places, loc, scale, matrix = _correlated(model)
    s = (phi[:, places] - loc) / scale  # independent and standard normal
    return phi.at[:, places].set(loc + scale * (s @ np.linalg.cholesky(matrix).T))


def prior_precision(model: Model, phi: Float[Array, " phi"]) -> Float[Array, " phi"]:
    """Curvature of the log prior in every component of ``phi``."""
    slope = jax.grad(lambda x: log_prior_phi(model, x).sum())
    return jnp.maximum(-jax.jvp(slope, (phi,), (jnp.ones_like(phi),))[1], 1e-2)
