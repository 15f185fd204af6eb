"""A quick Gaussian picture of the posterior: each patient's place and curvature, and the population around them.

First a guarded EM: every round takes two damped Gauss-Newton steps per patient, then moves the population to
what the patients' modes and uncertainties imply. Then each patient's Gaussian is refined to the one nearest
to its posterior, by averaging gradient and curvature over the Gaussian's own width: the curvature at a mode
misses the wall behind it (a loss rate that empties the tail), and the sampler would run into it.

These numbers define where the sampler starts and in which coordinates it moves. They never change the
posterior that is sampled: a patient whose place is not found costs speed, not correctness.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpyro.distributions.transforms import CorrCholeskyTransform

from carkinetics.density import ln_pred, log_likelihood, log_likelihood_by_subject, row_information
from carkinetics.layout import Layout, make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations
from carkinetics.population import Population, population
from carkinetics.priors import log_prior_phi, prior_precision

EM_ROUNDS = 40
WIDENING_ROUNDS = 60
OMEGA_BOUNDS = (0.03, 5.0)  # an EM without a guard lets omega run away where a parameter is not identified
_STEP_LIMIT = 1.0  # of a Gauss-Newton step, transformed scale
# What a quantified sample says about the log of the first and second residual parameter, roughly: two units about a
# normal's SD, less about what its tails tell. Steps are those of Fisher scoring with these.
RESIDUAL_INFORMATION = (2.0, 0.2)
_LOCATION_LIMIT, _RESIDUAL_LIMIT = 1.0, 0.5  # of a step of the population
_CORRELATION_LIMIT = 2.0  # of the inverse hyperbolic tangent of a correlation


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
    slope_residual : Float["2 assay subject"]
        Derivative of the samples' log likelihood in the logs of the residual parameters, averaged likewise.
    decrement : Float[" subject"]
        How far each patient's Gaussian still was from its fixed point, in its own SDs; above 0.5 it was not found.
    step : Float["random subject"]
        The whole step of ``z`` that the averages say, not taken.
    """

    phi: Float[Array, " phi"]
    z: Float[Array, "random subject"]
    information: Float[Array, "assay parameter parameter subject"]
    score: Float[Array, "assay parameter subject"]
    slope_residual: Float[Array, "2 assay subject"]
    decrement: Float[Array, " subject"]
    step: Float[Array, "random subject"]


class _Terms(NamedTuple):
    """Of the samples, by patient; averaged over a Gaussian, or at one place."""

    log_lik: Float[Array, " subject"]
    score: Float[Array, "assay parameter subject"]
    information: Float[Array, "assay parameter parameter subject"]
    slope_residual: Float[Array, "2 assay subject"]


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
        # A loop, so that the step is compiled once.
        z, damping = jax.lax.fori_loop(0, 2, lambda _, at: _newton_step(layout, obs, phi, *at), (z, damping))
        of = population(layout, phi, obs.design)
        terms = patient_terms(layout, obs, of.individual(z), of.residual)
        covariance = jnp.linalg.inv(jnp.moveaxis(_standardised(of, terms, z)[1], -1, 0))
        terms = terms._replace(slope_residual=_spread_out(of, terms, covariance))
        phi, z = _update_population(model, layout, obs, phi, z, covariance, terms)
        return (phi, z, damping), None

    damping = jnp.full(obs.n_subjects, 0.1)
    (phi, z, _), _ = jax.lax.scan(one_round, (phi, z, damping), length=rounds)
    return phi, z


class _Average(NamedTuple):
    """A patient's terms averaged over its Gaussian."""

    gradient: Float[Array, "random subject"]
    precision: Float[Array, "random random subject"]
    terms: _Terms
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

    def one_round(carry, last):
        (phi, z, precision), _ = carry
        average = _average(layout, obs, phi, z, precision)
        of, before = population(layout, phi, obs.design), (phi, z, precision)
        precision = 0.5 * (precision + average.precision)  # half steps: full ones oscillate at a wall
        z = z + 0.5 * _limited(-_solve(precision, average.gradient), of)
        covariance = jnp.linalg.inv(jnp.moveaxis(precision, -1, 0))
        moved = _update_population(model, layout, obs, phi, z, covariance, average.terms)
        phi, z = (jnp.where(move, new, old) for new, old in zip(moved, (phi, z), strict=True))
        after = jax.tree.map(partial(jnp.where, last), before, (phi, z, precision))
        return (after, average), None

    if precision is None:
        of = population(layout, phi, obs.design)
        precision = _standardised(of, patient_terms(layout, obs, of.individual(z), of.residual), z)[1]
    # The average where the search ended is one more round that moves nothing: so it is compiled once.
    shapes = jax.eval_shape(partial(_average, layout, obs), phi, z, precision)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ((phi, z, _), average), _ = jax.lax.scan(one_round, ((phi, z, precision), none), jnp.arange(rounds + 1) == rounds)
    decrement = jnp.sqrt(jnp.einsum("ks,ks->s", average.gradient, _solve(average.precision, average.gradient)))
    decrement = jnp.where(average.somewhere, decrement, jnp.inf)
    step = _limited(-_solve(average.precision, average.gradient), population(layout, phi, obs.design))
    terms = average.terms
    return Start(phi, z, terms.information, terms.score, terms.slope_residual, decrement, step)


def _average(layout: Layout, obs: Observations, phi, z, precision) -> _Average:
    of, k = population(layout, phi, obs.design), len(layout.random)
    # The 2k points of the spherical cubature rule: exact for polynomials of degree three.
    nodes = jnp.sqrt(k) * jnp.concatenate([jnp.eye(k), -jnp.eye(k)])
    spread = jnp.linalg.cholesky(jnp.linalg.inv(jnp.moveaxis(precision, -1, 0)))

    def at_node(node):
        place = z + jnp.einsum("skl,l->ks", spread, node)
        terms = patient_terms(layout, obs, of.individual(place), of.residual)
        return *_standardised(of, terms, place), terms

    at_nodes = jax.lax.map(at_node, nodes)
    every = jax.tree.leaves(at_nodes)
    finite = jnp.stack([jnp.isfinite(x).all(tuple(range(1, x.ndim - 1))) for x in every]).all(0)
    share = finite / jnp.maximum(finite.sum(0), 1)

    def mean(x):  # (node, ..., subject) over the nodes at which everything is finite
        where = finite.reshape(len(nodes), *(1,) * (x.ndim - 2), -1)
        return jnp.einsum("n...s,ns->...s", jnp.where(where, x, 0.0), share)

    gradient, precision, terms = jax.tree.map(mean, at_nodes)
    # With no finite node at all the prior is what is left.
    precision = jnp.where(finite.any(0), precision, jnp.eye(k)[:, :, None])
    return _Average(gradient, precision, terms, finite.any(0))


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
    of = population(layout, phi, obs.design)
    terms = patient_terms(layout, obs, of.individual(z), of.residual)
    return np.asarray(~jnp.isfinite(terms.score.sum(0)))


def patient_terms(
    layout: Layout,
    obs: Observations,
    individual: Float[Array, "parameter subject"],
    residual: Float[Array, "2 assay"],
) -> _Terms:
    """Each patient's log likelihood with its gradient and information in individual and residual parameters.

    In parameters that are known numbers both are given as zero: nothing ever moves along them.
    """

    def predict(x):
        return ln_pred(layout, x, obs)

    prediction, moving = predict(individual), jnp.array(layout.moving, int)
    # A patient's parameters move only that patient's rows, so one tangent serves all patients at once.
    basis = jnp.eye(individual.shape[0])[moving, :, None] * jnp.ones(obs.n_subjects)
    jacobian = jax.vmap(lambda tangent: jax.jvp(predict, (individual,), (tangent,))[1])(basis)
    score, weight = row_information(prediction, residual, obs)
    n_assays = len(layout.assays)

    def total(per_row):  # (obs, ...) -> (assay, ..., subject)
        return jnp.moveaxis(obs.by_assay_and_subject(per_row, n_assays), 1, -1)

    def by_residual(k):
        if not any(place == k for place, _ in layout.residuals):
            return jnp.zeros((n_assays, obs.n_subjects))
        tangent = jnp.zeros_like(residual).at[k].set(residual[k])
        return total(jax.jvp(lambda r: log_likelihood(prediction, r, obs), (residual,), (tangent,))[1])

    shape = (n_assays, len(individual), len(individual), obs.n_subjects)
    of_moving = total((score * jacobian).T), total(jnp.einsum("o,ko,lo->okl", weight, jacobian, jacobian))
    return _Terms(
        log_lik=log_likelihood_by_subject(prediction, residual, obs),
        score=jnp.zeros((shape[0], *shape[2:])).at[:, moving].set(of_moving[0]),
        information=jnp.zeros(shape).at[:, moving[:, None], moving[None, :]].set(of_moving[1]),
        slope_residual=jnp.stack([by_residual(0), by_residual(1)]),
    )


def _standardised(of: Population, terms: _Terms, z):
    """Gradient and Hessian of a patient's negative log posterior in its standardised random effects."""
    random = jnp.array(of.random)
    gradient = z - of.linear(terms.score.sum(0)[random])
    if of.step is not None:
        gradient = gradient - of.second_class(z) * of.away[:, None]
    information = terms.information.sum(0)[random[:, None], random[None, :]]
    return gradient, of.quadratic(information) + jnp.eye(len(random))[:, :, None]


def _solve(matrix: Float[Array, "k k subject"], rhs: Float[Array, "k subject"]) -> Float[Array, "k subject"]:
    return jnp.linalg.solve(jnp.moveaxis(matrix, -1, 0), rhs.T[:, :, None])[:, :, 0].T


def log_posterior(
    layout: Layout, obs: Observations, of: Population, z: Float[Array, "random subject"]
) -> Float[Array, " subject"]:
    """Of every patient's random effects, given the population."""
    fit = log_likelihood_by_subject(ln_pred(layout, of.individual(z), obs), of.residual, obs)
    return fit + of.log_density_z(z)


def _newton_step(layout: Layout, obs: Observations, phi, z, damping):
    """One damped Gauss-Newton step per patient, kept only where it raises that patient's posterior."""
    of = population(layout, phi, obs.design)
    terms = patient_terms(layout, obs, of.individual(z), of.residual)
    gradient, hessian = _standardised(of, terms, z)
    diagonal = jnp.einsum("kks->ks", hessian)
    damped = hessian + jnp.eye(len(layout.random))[:, :, None] * (damping * diagonal)[:, None, :]
    step = _limited(-_solve(damped, gradient), of)
    better: Bool[Array, " subject"] = log_posterior(layout, obs, of, z + step) >= log_posterior(layout, obs, of, z)
    return jnp.where(better, z + step, z), jnp.where(better, damping / 4, damping * 6 + 1e-3)


def _limited(step, of: Population):
    """A step in ``z`` that moves no transformed parameter further than the limit; none where it is not finite."""
    step = jnp.where(jnp.isfinite(step), step, 0.0)
    longest = jnp.max(jnp.abs(of.spread(step)), axis=0)
    return step * jnp.minimum(1.0, _STEP_LIMIT / jnp.maximum(longest, 1e-12))


def _update_population(model: Model, layout: Layout, obs: Observations, phi, z, covariance, terms: _Terms):
    """Move the population to what the patients imply; keep the patients in place.

    ``covariance`` is of ``z`` given the population: never above 1, so no omega can run away on its account.
    """
    of = population(layout, phi, obs.design)
    x = of.varying(z)
    second = jnp.zeros(obs.n_subjects) if of.step is None else of.second_class(z)
    slope = jax.grad(lambda phi: log_prior_phi(model, phi).sum())(phi)
    precision = prior_precision(model, phi)
    phi = _moved_locations(layout, obs, phi, x, second, terms, slope, precision)
    now = population(layout, phi, obs.design)
    squares = _squares(of, now, x, second, covariance)

    # Scales: expected squares against the prior on the log scale.
    own = jnp.array(layout.omega_of)
    n_omega = layout.omegas.stop - layout.omegas.start
    pooled = jax.ops.segment_sum(jnp.diag(squares), own, n_omega)
    counts = obs.n_subjects * jax.ops.segment_sum(jnp.ones(len(own)), own, n_omega)
    omegas = jnp.clip(_map_scale(model, layout, phi, counts, pooled), *jnp.log(jnp.array(OMEGA_BOUNDS)))
    phi = phi.at[layout.omegas].set(omegas)
    if layout.correlation is not None:
        phi = phi.at[layout.correlations].set(_correlations(layout, squares, obs.n_subjects))

    # Residuals: a step of Fisher scoring.
    at = jnp.array(layout.residuals).T
    quantified = obs.by_assay_and_subject(1.0 * (jnp.arange(obs.n_obs) < obs.n_quantified), len(layout.assays)).sum(1)
    information = quantified[at[1]] * jnp.array(RESIDUAL_INFORMATION)[at[0]]
    uphill = terms.slope_residual.sum(-1)[at[0], at[1]] + slope[layout.scales]
    step = uphill / (information + precision[layout.scales])
    phi = phi.at[layout.scales].add(jnp.clip(step, -_RESIDUAL_LIMIT, _RESIDUAL_LIMIT))
    return phi, population(layout, phi, obs.design).whitened(x)


def _moved_locations(layout: Layout, obs: Observations, phi, x, second, terms: _Terms, slope, precision):
    """Typical values, effects and classes, by a Gauss-Newton step on what the patients' parameters imply of them.

    Of parameters without variability, which are in the likelihood itself, by the samples' own slope.
    """
    here, of = layout.locations, population(layout, phi, obs.design)
    constant = jnp.array([i for i in range(len(layout.parameters)) if i not in layout.random], int)

    def at(locations):
        there = population(layout, phi.at[here].set(locations), obs.design)
        typical = jnp.broadcast_to(there.typical, (len(layout.parameters), obs.n_subjects))
        off = (x - there.centre()) / of.omega[:, None]
        away = jnp.zeros_like(off) if there.step is None else (there.step / of.omega)[:, None]
        return jnp.sqrt(1 - second) * off, jnp.sqrt(second) * (off - away), typical[constant]

    (first, other, _), jacobians = at(phi[here]), jax.jacfwd(at)(phi[here])
    known = jnp.einsum("akks->ks", terms.information)[constant]
    gradient = slope[here] + jnp.einsum("ks,ksl->l", terms.score.sum(0)[constant], jacobians[2])
    hessian = jnp.diag(precision[here]) + jnp.einsum("ks,ksl,ksm->lm", known, jacobians[2], jacobians[2])
    for off, jacobian in zip((first, other), jacobians[:2], strict=True):
        gradient = gradient - jnp.einsum("ks,ksl->l", off, jacobian)
        hessian = hessian + jnp.einsum("ksl,ksm->lm", jacobian, jacobian)
    if of.log_odds is not None:
        share, odds = jax.nn.sigmoid(of.log_odds), layout.classes.start + 1
        gradient = gradient.at[odds].add(second.sum() - obs.n_subjects * share)
        hessian = hessian.at[odds, odds].add(obs.n_subjects * share * (1 - share))
    step = jnp.clip(jnp.linalg.solve(hessian, gradient), -_LOCATION_LIMIT, _LOCATION_LIMIT)
    # Scales of shrinkage stay where they are: their mode is no shrinkage at all, or an effect of zero.
    still = jnp.zeros(here.stop, bool).at[layout.shrinking].set(True)
    return phi.at[here].add(jnp.where(still, 0.0, step))


def _squares(before: Population, now: Population, x, second, covariance) -> Float[Array, "random random"]:
    """Expected products of the patients' deviations from their class's typical values, summed over patients."""
    off = x - now.centre()
    away = jnp.zeros_like(off) if now.step is None else now.step[:, None] * jnp.ones_like(second)
    within = jnp.einsum("ks,ls->kl", off * (1 - second), off)
    within = within + jnp.einsum("ks,ls->kl", (off - away) * second, off - away)
    spread = before.spread(covariance.sum(0))
    return within + before.spread(spread.T)


def _spread_out(of: Population, terms: _Terms, covariance) -> Float[Array, "2 assay subject"]:
    """The slopes in residual parameters at modes, as if residuals were spread as the patients' parameters are."""
    random = jnp.array(of.random)
    among = terms.information[:, random[:, None], random[None, :]]
    of_parameters = jax.vmap(lambda c: of.spread(of.spread(c).T))(covariance)
    return terms.slope_residual.at[0].add(jnp.einsum("akls,slk->as", among, of_parameters))


def _correlations(layout: Layout, squares: Float[Array, "random random"], n: int) -> Float[Array, " pair"]:
    """Partial correlations that the patients imply, held towards zero as the prior does."""
    assert layout.correlation is not None
    at = jnp.array(layout.correlated)
    block = squares[at[:, None], at[None, :]]
    sd = jnp.sqrt(jnp.diag(block))
    held = 2 * layout.correlation.eta
    matrix = (n * block / sd[:, None] / sd + held * jnp.eye(len(at))) / (n + held)
    found = CorrCholeskyTransform().inv(jnp.linalg.cholesky(matrix))
    return jnp.clip(found, -_CORRELATION_LIMIT, _CORRELATION_LIMIT)


def _map_scale(model: Model, layout: Layout, phi, counts, squares):
    """Log omegas that maximise ``-n x - squares exp(-2 x) / 2 + log prior(x)``, by Newton's method."""

    def log_prior(x):
        return log_prior_phi(model, phi.at[layout.omegas].set(x))[layout.omegas].sum()

    def newton(_, x):
        slope, curvature = jax.jvp(jax.grad(log_prior), (x,), (jnp.ones_like(x),))
        fit = squares * jnp.exp(-2 * x)
        step = (fit - counts + slope) / (2 * fit - jnp.minimum(curvature, 0.0))
        return x + jnp.clip(step, -0.5, 0.5)

    return jax.lax.fori_loop(0, 6, newton, phi[layout.omegas])
