"""A quick Gaussian picture of the posterior: each patient's place and curvature, and the population around them.

First a guarded EM: every round takes two damped Gauss-Newton steps per patient, then moves the population to
what the patients' modes and uncertainties imply. Then each patient's Gaussian is refined to the one nearest
to its posterior, by averaging gradient and curvature over the Gaussian's own width: the curvature at a mode
misses the wall behind it (a loss rate that empties the tail), and the sampler would run into it.

These numbers define where the sampler starts and in which coordinates it moves. They never change the
posterior that is sampled: a patient whose place is not found costs speed, not correctness.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import (
    Layout,
    individual_parameters,
    ln_pred,
    log_likelihood,
    log_likelihood_by_subject,
    log_prior_phi,
    make_layout,
    split_phi,
)

EM_ROUNDS = 40
WIDENING_ROUNDS = 60
OMEGA_BOUNDS = (0.03, 5.0)  # an EM without a guard lets omega run away where a parameter is not identified
_STEP_LIMIT = 1.0  # of a Gauss-Newton step, transformed scale


class Start(NamedTuple):
    """Where the population and the patients are, and how sharply the samples say so.

    Attributes
    ----------
    phi : Float[" phi"]
    z : Float["random subject"]
        Standardised random effects: the centre of each patient's Gaussian.
    information : Float["assay parameter parameter subject"]
        Of the samples about the individual parameters (transformed scale), by assay, averaged over the Gaussian.
    score : Float["assay parameter subject"]
        Gradient of the samples' log likelihood, by assay, averaged likewise.
    slope_sigma : Float["assay subject"]
        Derivative of the samples' log likelihood in ln sigma, averaged likewise.
    decrement : Float[" subject"]
        How far each patient's Gaussian still was from its fixed point, in its own SDs; above 0.5 it was not found.
    """

    phi: Float[Array, " phi"]
    z: Float[Array, "random subject"]
    information: Float[Array, "assay parameter parameter subject"]
    score: Float[Array, "assay parameter subject"]
    slope_sigma: Float[Array, "assay subject"]
    decrement: Float[Array, " subject"]


class _Terms(NamedTuple):
    log_lik: Float[Array, " subject"]
    score: Float[Array, "assay parameter subject"]
    information: Float[Array, "assay parameter parameter subject"]
    slope_sigma: Float[Array, "assay subject"]
    prediction: Float[Array, " obs"]
    jacobian: Float[Array, "parameter obs"]


def find_modes(
    model: Model,
    obs: Observations,
    phi: Float[Array, " phi"],
    z: Float[Array, "random subject"],
    *,
    rounds: int = EM_ROUNDS,
) -> tuple[Float[Array, " phi"], Float[Array, "random subject"]]:
    """Population and individual modes (standardised random effects), from a first guess."""
    layout = make_layout(model)

    def one_round(carry, _):
        phi, z, damping = carry
        for _ in range(2):
            z, damping = _newton_step(layout, obs, phi, z, damping)
        theta, omega, sigma = split_phi(layout, phi)
        terms = patient_terms(layout, obs, individual_parameters(layout, theta, omega, z), sigma)
        gradient, precision = _standardised(layout, terms, omega, z)
        covariance = jnp.linalg.inv(jnp.moveaxis(precision, -1, 0))
        squares = _residual_squares(layout, obs, terms, omega, covariance)
        at_mode = _Average(
            gradient, precision, terms.score, terms.information, terms.slope_sigma, squares, jnp.isfinite(terms.log_lik)
        )
        phi, z = _update_population(model, layout, obs, phi, z, covariance, at_mode)
        return (phi, z, damping), None

    damping = jnp.full(obs.n_subjects, 0.1)
    (phi, z, _), _ = jax.lax.scan(one_round, (phi, z, damping), length=rounds)
    return phi, z


class _Average(NamedTuple):
    """A patient's terms averaged over its Gaussian."""

    gradient: Float[Array, "random subject"]
    precision: Float[Array, "random random subject"]
    score: Float[Array, "assay parameter subject"]
    information: Float[Array, "assay parameter parameter subject"]
    slope_sigma: Float[Array, "assay subject"]
    squares: Float[Array, " assay"]
    somewhere: Bool[Array, " subject"]  # finite at one node at least


def widen(
    model: Model,
    obs: Observations,
    phi: Float[Array, " phi"],
    z: Float[Array, "random subject"],
    move: Bool[Array, ""] | bool,
    *,
    precision: Float[Array, "random random subject"] | None = None,
    rounds: int = WIDENING_ROUNDS,
) -> Start:
    """Refine every patient's Gaussian, centre and precision averaged over its own width.

    ``move`` says whether the population follows, or stays at ``phi``. The first ``precision`` (of ``z``) is that
    at ``z`` unless one is given. Every round halves the distance to the result.
    """
    layout = make_layout(model)

    def one_round(carry, _):
        phi, z, precision = carry
        average = _average(layout, obs, phi, z, precision)
        omega = split_phi(layout, phi)[1]
        precision = 0.5 * (precision + average.precision)  # half steps: full ones oscillate at a wall
        z = z + 0.5 * _limited(-_solve(precision, average.gradient), omega)
        covariance = jnp.linalg.inv(jnp.moveaxis(precision, -1, 0))
        moved = _update_population(model, layout, obs, phi, z, covariance, average)
        phi, z = (jnp.where(move, new, old) for new, old in zip(moved, (phi, z), strict=True))
        return (phi, z, precision), None

    if precision is None:
        theta, omega, sigma = split_phi(layout, phi)
        terms = patient_terms(layout, obs, individual_parameters(layout, theta, omega, z), sigma)
        precision = _standardised(layout, terms, omega, z)[1]
    (phi, z, precision), _ = jax.lax.scan(one_round, (phi, z, precision), length=rounds)
    average = _average(layout, obs, phi, z, precision)
    decrement = jnp.sqrt(jnp.einsum("ks,ks->s", average.gradient, _solve(average.precision, average.gradient)))
    decrement = jnp.where(average.somewhere, decrement, jnp.inf)
    return Start(phi, z, average.information, average.score, average.slope_sigma, decrement)


def _average(layout: Layout, obs: Observations, phi, z, precision) -> _Average:
    theta, omega, sigma = split_phi(layout, phi)
    k, n = len(layout.random), obs.rows.quantified
    # The 2k points of the spherical cubature rule: exact for polynomials of degree three.
    nodes = jnp.sqrt(k) * jnp.concatenate([jnp.eye(k), -jnp.eye(k)])
    spread = jnp.linalg.cholesky(jnp.linalg.inv(jnp.moveaxis(precision, -1, 0)))

    def at_node(_, node):
        place = z + jnp.einsum("skl,l->ks", spread, node)
        terms = patient_terms(layout, obs, individual_parameters(layout, theta, omega, place), sigma)
        residual = obs.ln_dv[:n] - terms.prediction[:n]
        group = obs.assay[:n] * obs.n_subjects + obs.subject[:n]
        squares = jax.ops.segment_sum(residual**2, group, len(layout.assays) * obs.n_subjects)
        return None, (
            *_standardised(layout, terms, omega, place),
            terms.score,
            terms.information,
            terms.slope_sigma,
            squares.reshape(-1, obs.n_subjects),
        )

    _, at_nodes = jax.lax.scan(at_node, None, nodes)
    finite = jnp.stack([jnp.isfinite(x).all(tuple(range(1, x.ndim - 1))) for x in at_nodes]).all(0)
    share = finite / jnp.maximum(finite.sum(0), 1)

    def mean(x):  # (node, ..., subject) over the nodes at which everything is finite
        where = finite.reshape(len(nodes), *(1,) * (x.ndim - 2), -1)
        return jnp.einsum("n...s,ns->...s", jnp.where(where, x, 0.0), share)

    gradient, precision, score, information, slope_sigma, squares = (mean(x) for x in at_nodes)
    # With no finite node at all the prior is what is left.
    precision = jnp.where(finite.any(0), precision, jnp.eye(k)[:, :, None])
    return _Average(gradient, precision, score, information, slope_sigma, squares.sum(-1), finite.any(0))


def not_finite(
    model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]
) -> Bool[np.ndarray, "parameter subject"]:
    """In whom, and in which parameter, the likelihood's slope is not finite where the EM from ``phi, z`` breaks down.

    It is asked after a failure only: the EM goes the same way again, as far as it is finite.
    """
    layout = make_layout(model)
    one_round = jax.jit(lambda obs, phi, z: find_modes(model, obs, phi, z, rounds=1))
    for _ in range(EM_ROUNDS):
        after = one_round(obs, phi, z)
        if not all(bool(jnp.isfinite(x).all()) for x in after):
            break
        phi, z = after
    theta, omega, sigma = split_phi(layout, phi)
    terms = patient_terms(layout, obs, individual_parameters(layout, theta, omega, z), sigma)
    return np.asarray(~jnp.isfinite(terms.score.sum(0)))


def patient_terms(
    layout: Layout, obs: Observations, individual: Float[Array, "parameter subject"], sigma: Float[Array, " assay"]
) -> _Terms:
    """Each patient's log likelihood with its gradient and information in the individual parameters, and in ln sigma."""

    def predict(x):
        return ln_pred(layout, x, obs)

    def rows(f):
        return log_likelihood(f, sigma, obs)

    prediction = predict(individual)
    # A patient's parameters move only that patient's rows, so one tangent serves all patients at once.
    basis = jnp.eye(individual.shape[0])[:, :, None] * jnp.ones(obs.n_subjects)
    jacobian = jax.vmap(lambda tangent: jax.jvp(predict, (individual,), (tangent,))[1])(basis)
    slope = jax.grad(lambda f: rows(f).sum())
    score, curvature = jax.jvp(slope, (prediction,), (jnp.ones_like(prediction),))
    weight = jnp.maximum(-curvature, 0.0)
    by_sigma = jax.jvp(lambda s: log_likelihood(prediction, s, obs), (sigma,), (sigma,))[1]
    n_assays = sigma.shape[0]
    group = obs.assay * obs.n_subjects + obs.subject

    def total(per_row):  # (obs, ...) -> (assay, ..., subject)
        sums = jax.ops.segment_sum(per_row, group, n_assays * obs.n_subjects)
        return jnp.moveaxis(sums.reshape(n_assays, obs.n_subjects, *per_row.shape[1:]), 1, -1)

    return _Terms(
        log_lik=log_likelihood_by_subject(prediction, sigma, obs),
        score=total((score * jacobian).T),
        information=total(jnp.einsum("o,ko,lo->okl", weight, jacobian, jacobian)),
        slope_sigma=total(by_sigma),
        prediction=prediction,
        jacobian=jacobian,
    )


def _standardised(layout: Layout, terms: _Terms, omega, z):
    """Gradient and Hessian of a patient's negative log posterior in its standardised random effects."""
    random = jnp.array(layout.random)
    gradient = z - omega[:, None] * terms.score.sum(0)[random]
    information = terms.information.sum(0)[random[:, None], random[None, :]]
    scaled = omega[:, None, None] * information * omega[None, :, None]
    return gradient, scaled + jnp.eye(len(random))[:, :, None]


def _solve(matrix: Float[Array, "k k subject"], rhs: Float[Array, "k subject"]) -> Float[Array, "k subject"]:
    return jnp.linalg.solve(jnp.moveaxis(matrix, -1, 0), rhs.T[:, :, None])[:, :, 0].T


def _newton_step(layout: Layout, obs: Observations, phi, z, damping):
    """One damped Gauss-Newton step per patient, kept only where it raises that patient's posterior."""
    theta, omega, sigma = split_phi(layout, phi)
    terms = patient_terms(layout, obs, individual_parameters(layout, theta, omega, z), sigma)
    gradient, hessian = _standardised(layout, terms, omega, z)
    diagonal = jnp.einsum("kks->ks", hessian)
    damped = hessian + jnp.eye(len(layout.random))[:, :, None] * (damping * diagonal)[:, None, :]
    step = _limited(-_solve(damped, gradient), omega)

    def posterior(z):
        individual = individual_parameters(layout, theta, omega, z)
        fit = log_likelihood_by_subject(ln_pred(layout, individual, obs), sigma, obs)
        return fit - 0.5 * jnp.sum(z * z, axis=0)

    better: Bool[Array, " subject"] = posterior(z + step) >= posterior(z)
    return jnp.where(better, z + step, z), jnp.where(better, damping / 4, damping * 6 + 1e-3)


def _limited(step, omega):
    """A step in ``z`` that moves no transformed parameter further than the limit; none where it is not finite."""
    step = jnp.where(jnp.isfinite(step), step, 0.0)
    longest = jnp.max(jnp.abs(step * omega[:, None]), axis=0)
    return step * jnp.minimum(1.0, _STEP_LIMIT / jnp.maximum(longest, 1e-12))


def _update_population(model: Model, layout: Layout, obs: Observations, phi, z, covariance, average: _Average):
    """Move typical values, omegas and sigmas to what the patients imply; keep the patients in place.

    ``covariance`` is of ``z`` given the population: never above 1, so no omega can run away on its account.
    """
    theta, omega, sigma = split_phi(layout, phi)
    random, estimated = jnp.array(layout.random), jnp.array(layout.estimated)
    individual = individual_parameters(layout, theta, omega, z)
    prior_mean = jnp.array([p.prior.loc for p in layout.parameters])
    prior_precision = jnp.array([p.prior.scale**-2.0 for p in layout.parameters])

    # Typical values: of random parameters from the patients, of the others by a Newton step on their sum.
    mean = jnp.zeros_like(theta).at[random].set(individual[random].sum(1) / omega**2)
    precision = jnp.zeros_like(theta).at[random].set(obs.n_subjects / omega**2)
    new_theta = (mean + prior_mean * prior_precision) / (precision + prior_precision)
    slope = average.score.sum((0, 2)) - (theta - prior_mean) * prior_precision
    curvature = jnp.einsum("akks->k", average.information) + prior_precision
    common = theta + jnp.clip(slope / curvature, -0.5, 0.5)
    new_theta = jnp.where(jnp.zeros(len(theta), bool).at[random].set(True), new_theta, common)
    new_theta = jnp.where(jnp.zeros(len(theta), bool).at[estimated].set(True), new_theta, theta)

    # Scales: expected squares against the prior on the log scale.
    spread = (individual[random] - new_theta[random][:, None]) ** 2
    spread = spread.sum(1) + omega**2 * jnp.einsum("skk->k", covariance)
    quantified = jax.ops.segment_sum(jnp.ones(obs.rows.quantified), obs.assay[: obs.rows.quantified], sigma.shape[0])
    n_theta, n_omega = len(layout.estimated), len(layout.random)
    counts = jnp.concatenate([jnp.full(n_omega, float(obs.n_subjects)), quantified])
    scales = _map_scale(model, phi, counts, jnp.concatenate([spread, average.squares]), n_theta)
    low, high = jnp.log(jnp.array(OMEGA_BOUNDS))
    new_omega = jnp.exp(jnp.clip(scales[:n_omega], low, high))
    phi = jnp.concatenate([new_theta[estimated], jnp.log(new_omega), scales[n_omega:]])
    return phi, (individual[random] - new_theta[random][:, None]) / new_omega[:, None]


def _residual_squares(layout: Layout, obs: Observations, terms: _Terms, omega, covariance) -> Float[Array, " assay"]:
    """Sum of expected squared residuals of the quantified rows, per assay, from modes and curvature."""
    n = obs.rows.quantified
    scaled = terms.jacobian[jnp.array(layout.random), :n] * omega[:, None]
    spread = jnp.einsum("ko,okl,lo->o", scaled, covariance[obs.subject[:n]], scaled)
    residual = obs.ln_dv[:n] - terms.prediction[:n]
    return jax.ops.segment_sum(residual**2 + spread, obs.assay[:n], len(layout.assays))


def _map_scale(model: Model, phi, counts, squares, n_theta: int):
    """Log SDs that maximise ``-n x - squares exp(-2 x) / 2 + log prior(x)``, by Newton's method."""

    def log_prior(x):
        return log_prior_phi(model, jnp.concatenate([phi[:n_theta], x]))[n_theta:].sum()

    def newton(_, x):
        slope, curvature = jax.jvp(jax.grad(log_prior), (x,), (jnp.ones_like(x),))
        fit = squares * jnp.exp(-2 * x)
        step = (fit - counts + slope) / (2 * fit - jnp.minimum(curvature, 0.0))
        return x + jnp.clip(step, -0.5, 0.5)

    return jax.lax.fori_loop(0, 6, newton, phi[n_theta:])
