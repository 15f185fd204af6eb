"""Residual families: how a measured value scatters around what is predicted, with the same functions for each.

Every family has the likelihood of one sample, whether it is quantified or known only to lie on one side of a limit.
Values, limits and predictions come in as natural logs, in arrays of equal shape with the family's parameters behind
them; what comes out is a log density per unit of the assay, or a log probability, so that the likelihoods of two
families can be compared. ``RESIDUALS`` has them by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from carkinetics import counts, observation, replicates, student
from carkinetics.model_parts import SIGMA_PRIOR_SD, nearest_or_raise
from carkinetics.numerics import HALF_LOG_2PI, log_prob_within

# Defaults that change a report, in one place. All parameters are above 0 and have log-normal priors: a median, and an
# SD of the log.
SIGMA = 0.7  # of the natural log: the models in models/ have 0.55 to 0.94
STUDENT_SIGMA = 0.5  # smaller, because the tails hold the outliers (in real data 0.65 where a normal needs 1.2)
NU = 4.0  # real CAR-T data support 3 to 4; below 2 the variance is infinite, and chains with 1 did not converge
NU_PRIOR_SD = 0.5  # 95 % from 1.5 to 11: ten and more cannot be told from a normal by a few hundred samples
PROPORTIONAL = 0.5  # what a sigma of 0.5 is for small errors
ADDITIVE_OF_LLOQ = 0.25  # bioanalytical guidance accepts a CV of 25 % at the LLOQ; the assay's unit has no default
ADDITIVE_PRIOR_SD = 1.0  # few samples lie so low that they tell of it
DISPERSION = 0.3  # a CV of 55 % between repeated counts of many cells
DISPERSION_PRIOR_SD = 1.0  # nobody reports one for CAR-T cells: a factor of 7 either way

# What is returned for an information that would round to 0: it stays positive.
_TINY = 1e-300
_MOST = 1e18  # NumPy draws no larger Poisson counts


@dataclass(frozen=True)
class ResidualParameter:
    """One parameter of a residual family, above 0: it is sampled as its natural log.

    Attributes
    ----------
    name, label : str
    default : float or None
        Where neither the model nor the user says; None: it has the assay's unit, ``ADDITIVE_OF_LLOQ`` of its LLOQ.
    prior_sd : float
        Of its log, in the log-normal prior around the model's value.
    fixed : bool
        Held at its value unless the user asks for an estimate.
    scale : bool
        It is a size of residuals; False for a shape (nu).
    low, high : float
        Where the functions are exact to 1e-10.
    """

    name: str
    label: str
    default: float | None
    prior_sd: float
    fixed: bool = False
    scale: bool = True
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class Residual:
    """A residual family; arguments of the functions are arrays of equal shape, ``*params`` in the order of ``params``.

    Attributes
    ----------
    name, label : str
    params : tuple of ResidualParameter
    counts : bool
        The assay gives whole numbers, 0 among them (``ln_dv`` of ``-inf``), and the density is a probability.
    quantified : callable
        ``(ln_dv, ln_pred, *params)``: log density of a value, per unit of the assay.
    below, above : callable
        ``(ln_limit, ln_pred, *params)``: log probability of a value below the limit, and of one at or above it.
    between : callable
        ``(ln_lower, ln_upper, ln_pred, *params)``: log probability of a value from ``lower`` on and below ``upper``.
        So the probabilities of below, between, and at or above add up to one, for counts too.
    information : callable
        ``(ln_pred, *params)``: expected (Fisher) information of a quantified value about ``ln_pred``; above 0.
    draw : callable
        ``(rng, ln_pred, *params)``: natural logs of drawn values (NumPy); ``-inf`` for a value of 0 or less.
    cdf : callable
        ``(ln_dv, ln_pred, *params)``: probability of a value up to and with this one (NumPy).
    """

    name: str
    label: str
    params: tuple[ResidualParameter, ...]
    quantified: Callable[..., Float[Array, "*n"]]
    below: Callable[..., Float[Array, "*n"]]
    above: Callable[..., Float[Array, "*n"]]
    between: Callable[..., Float[Array, "*n"]]
    information: Callable[..., Float[Array, "*n"]]
    draw: Callable[..., Float[np.ndarray, "*n"]]
    cdf: Callable[..., Float[np.ndarray, "*n"]]
    counts: bool = False


def residual(name: str) -> Residual:
    """The residual family of this name.

    Raises
    ------
    ModelError
        No family has this name.
    """
    return RESIDUALS[nearest_or_raise(name, RESIDUALS, "residual", "error")]


# Log-normal: observation.py has its likelihood.


def _lognormal_information(ln_pred: Float[Array, "*n"], sigma: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.broadcast_to(sigma**-2, jnp.shape(ln_pred))


def _lognormal_draw(rng: np.random.Generator, ln_pred, sigma) -> Float[np.ndarray, "*n"]:
    return np.asarray(ln_pred + sigma * rng.standard_normal(np.shape(ln_pred)))


def _lognormal_cdf(ln_dv, ln_pred, sigma) -> Float[np.ndarray, "*n"]:
    return np.asarray(special.ndtr((ln_dv - np.asarray(ln_pred)) / sigma))


# Student-t on the natural-log scale.


def _student_density(
    ln_dv: Float[Array, "*n"], ln_pred: Float[Array, "*n"], sigma: Float[Array, "*n"], nu: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Log density of a value whose log is Student-t around the prediction (per unit of the assay)."""
    return student.log_pdf((ln_dv - ln_pred) / sigma, nu) - jnp.log(sigma) - ln_dv


def _student_below(
    ln_limit: Float[Array, "*n"], ln_pred: Float[Array, "*n"], sigma: Float[Array, "*n"], nu: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    return student.log_cdf((ln_limit - ln_pred) / sigma, nu)


def _student_above(
    ln_limit: Float[Array, "*n"], ln_pred: Float[Array, "*n"], sigma: Float[Array, "*n"], nu: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    return student.log_cdf((ln_pred - ln_limit) / sigma, nu)


def _student_between(
    ln_lower: Float[Array, "*n"],
    ln_upper: Float[Array, "*n"],
    ln_pred: Float[Array, "*n"],
    sigma: Float[Array, "*n"],
    nu: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    low, high = (ln_lower - ln_pred) / sigma, (ln_upper - ln_pred) / sigma
    log_half = jnp.log(0.5 * (ln_upper - ln_lower) / sigma)
    log_cdf, log_kernel = (partial(_behind, f, nu) for f in (student.log_cdf, student.log_kernel))
    return log_prob_within(low, high, log_half, log_cdf, log_kernel, student.log_top(nu))


def _behind(f, nu, t):
    """``f(t, nu)`` with ``nu`` repeated along the axis that ``t`` has in front."""
    return f(t, jnp.broadcast_to(nu, jnp.shape(t)))


def _student_information(
    ln_pred: Float[Array, "*n"], sigma: Float[Array, "*n"], nu: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Lange KL, Little RJA, Taylor JMG, J Am Stat Assoc 1989;84:881-896, doi:10.1080/01621459.1989.10478852, app. B."""
    return jnp.broadcast_to((nu + 1) / (nu + 3) / sigma**2, jnp.shape(ln_pred))


def _student_draw(rng: np.random.Generator, ln_pred, sigma, nu) -> Float[np.ndarray, "*n"]:
    return np.asarray(ln_pred + sigma * rng.standard_t(nu, np.shape(ln_pred)))


def _student_cdf(ln_dv, ln_pred, sigma, nu) -> Float[np.ndarray, "*n"]:
    return np.asarray(special.stdtr(nu, (ln_dv - np.asarray(ln_pred)) / sigma))


# Combined: normal on the natural scale, SD^2 = additive^2 + (proportional prediction)^2. A predicted level puts some
# probability below 0; a value there cannot be quantified, and a left-censored one may have been one.


def _combined_scale(ln_pred, proportional, additive) -> tuple[Array, Array, Array]:
    """A log scale on which nothing overflows, and prediction and SD divided by its exp."""
    # The formulas hold on any scale: its own derivative is nothing.
    unit = jax.lax.stop_gradient(jnp.maximum(ln_pred, jnp.log(additive)))
    pred = jnp.exp(ln_pred - unit)
    return unit, pred, jnp.sqrt((additive * jnp.exp(-unit)) ** 2 + (proportional * pred) ** 2)


def _combined_z(ln_value, ln_pred, proportional, additive) -> Array:
    unit, pred, sd = _combined_scale(ln_pred, proportional, additive)
    return (jnp.exp(ln_value - unit) - pred) / sd


def _combined_density(
    ln_dv: Float[Array, "*n"],
    ln_pred: Float[Array, "*n"],
    proportional: Float[Array, "*n"],
    additive: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    unit, pred, sd = _combined_scale(ln_pred, proportional, additive)
    z = (jnp.exp(ln_dv - unit) - pred) / sd
    return observation.log_kernel(z) - HALF_LOG_2PI - jnp.log(sd) - unit


def _combined_below(
    ln_limit: Float[Array, "*n"],
    ln_pred: Float[Array, "*n"],
    proportional: Float[Array, "*n"],
    additive: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """Log probability of a value below the limit, values below 0 among them."""
    return observation.log_cdf(_combined_z(ln_limit, ln_pred, proportional, additive))


def _combined_above(
    ln_limit: Float[Array, "*n"],
    ln_pred: Float[Array, "*n"],
    proportional: Float[Array, "*n"],
    additive: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    return observation.log_cdf(-_combined_z(ln_limit, ln_pred, proportional, additive))


def _combined_between(
    ln_lower: Float[Array, "*n"],
    ln_upper: Float[Array, "*n"],
    ln_pred: Float[Array, "*n"],
    proportional: Float[Array, "*n"],
    additive: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    unit, pred, sd = _combined_scale(ln_pred, proportional, additive)
    lower, upper = jnp.exp(ln_lower - unit), jnp.exp(ln_upper - unit)
    log_half = ln_upper - unit + jnp.log(-0.5 * jnp.expm1(ln_lower - ln_upper) / sd)
    low, high = (lower - pred) / sd, (upper - pred) / sd
    return log_prob_within(low, high, log_half, observation.log_cdf, observation.log_kernel, -HALF_LOG_2PI)


def _combined_information(
    ln_pred: Float[Array, "*n"], proportional: Float[Array, "*n"], additive: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """That of the mean, and that of a variance that moves with it."""
    _, pred, sd = _combined_scale(ln_pred, proportional, additive)
    share = (pred / sd) ** 2
    return jnp.maximum(share + 2 * (proportional**2 * share) ** 2, _TINY)


def _combined_sd(ln_pred, proportional, additive):
    return np.hypot(additive, proportional * np.exp(np.asarray(ln_pred)))


def _combined_draw(rng: np.random.Generator, ln_pred, proportional, additive) -> Float[np.ndarray, "*n"]:
    noise = _combined_sd(ln_pred, proportional, additive) * rng.standard_normal(np.shape(ln_pred))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(np.exp(np.asarray(ln_pred)) + noise, 0.0)))


def _combined_cdf(ln_dv, ln_pred, proportional, additive) -> Float[np.ndarray, "*n"]:
    apart = np.exp(np.asarray(ln_dv)) - np.exp(np.asarray(ln_pred))
    return np.asarray(special.ndtr(apart / _combined_sd(ln_pred, proportional, additive)))


# Negative binomial, for counts. A count below a limit of 3 is 0, 1 or 2, and so is one below 2.5; one at or above it is
# 3 or more. A row of a count that was read is a probability of exactly that count.


def _count_probability(
    ln_dv: Float[Array, "*n"], ln_pred: Float[Array, "*n"], dispersion: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    return counts.log_pmf(jnp.exp(ln_dv), ln_pred, dispersion)


def _count_below(
    ln_limit: Float[Array, "*n"], ln_pred: Float[Array, "*n"], dispersion: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    return counts.log_sides(counts.to_limit(ln_limit), ln_pred, dispersion)[0]


def _count_above(
    ln_limit: Float[Array, "*n"], ln_pred: Float[Array, "*n"], dispersion: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    return counts.log_sides(counts.to_limit(ln_limit), ln_pred, dispersion)[1]


def _count_between(
    ln_lower: Float[Array, "*n"],
    ln_upper: Float[Array, "*n"],
    ln_pred: Float[Array, "*n"],
    dispersion: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    return counts.log_within(counts.to_limit(ln_lower), counts.to_limit(ln_upper), ln_pred, dispersion)


def _count_information(ln_pred: Float[Array, "*n"], dispersion: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.maximum(1 / (jnp.exp(-ln_pred) + dispersion), _TINY)


def _count_draw(rng: np.random.Generator, ln_pred, dispersion) -> Float[np.ndarray, "*n"]:
    # A Poisson count around a mean that is gamma; NumPy's own wants 1 / dispersion and takes no small one.
    means = np.exp(np.asarray(ln_pred)) * rng.gamma(1 / np.asarray(dispersion), dispersion, np.shape(ln_pred))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(rng.poisson(np.minimum(means, _MOST))))


def _count_cdf(ln_dv, ln_pred, dispersion) -> Float[np.ndarray, "*n"]:
    # exp(log(3)) is not 3.
    most = np.floor(np.exp(np.asarray(ln_dv)) * (1 + 1e-9))
    return np.asarray(special.betainc(1 / np.asarray(dispersion), most + 1, 1 / (1 + dispersion * np.exp(ln_pred))))


_SIGMA = ResidualParameter("sigma", "residual SD of the natural log", SIGMA, SIGMA_PRIOR_SD)

RESIDUALS: dict[str, Residual] = {
    r.name: r
    for r in (
        Residual(
            name="lognormal",
            label="log-normal",
            params=(_SIGMA,),
            quantified=observation.log_density,
            below=observation.log_prob_below,
            above=observation.log_prob_above,
            between=observation.log_prob_between,
            information=_lognormal_information,
            draw=_lognormal_draw,
            cdf=_lognormal_cdf,
        ),
        Residual(
            name=replicates.NAME,
            label="log-normal, replicates share a sample effect",
            params=(
                ResidualParameter("sigma", "SD between replicates of the natural log", SIGMA / 2, SIGMA_PRIOR_SD),
                ResidualParameter("sample", "SD between samples of the natural log", SIGMA, SIGMA_PRIOR_SD),
            ),
            **replicates.FUNCTIONS,
        ),
        Residual(
            name="student_t",
            label="Student-t of the natural log",
            params=(
                ResidualParameter("sigma", "residual scale of the natural log", STUDENT_SIGMA, SIGMA_PRIOR_SD),
                ResidualParameter(
                    "nu", "degrees of freedom", NU, NU_PRIOR_SD, fixed=True, scale=False, low=1.0, high=100.0
                ),
            ),
            quantified=_student_density,
            below=_student_below,
            above=_student_above,
            between=_student_between,
            information=_student_information,
            draw=_student_draw,
            cdf=_student_cdf,
        ),
        Residual(
            name="combined",
            label="normal, proportional and additive",
            params=(
                ResidualParameter("proportional", "residual SD, share of the prediction", PROPORTIONAL, SIGMA_PRIOR_SD),
                ResidualParameter("additive", "residual SD at nothing, assay's unit", None, ADDITIVE_PRIOR_SD),
            ),
            quantified=_combined_density,
            below=_combined_below,
            above=_combined_above,
            between=_combined_between,
            information=_combined_information,
            draw=_combined_draw,
            cdf=_combined_cdf,
        ),
        Residual(
            name="negative_binomial",
            label="negative binomial count",
            params=(
                ResidualParameter(
                    "dispersion", "variance is mean + dispersion mean^2", DISPERSION, DISPERSION_PRIOR_SD, low=1e-4
                ),
            ),
            quantified=_count_probability,
            below=_count_below,
            above=_count_above,
            between=_count_between,
            information=_count_information,
            draw=_count_draw,
            cdf=_count_cdf,
            counts=True,
        ),
    )
}
