"""How the uncertainty of exposure is carried into a response.

Let ``x_i`` be a patient's ln exposure, ``D`` the kinetic data of all, ``y_i`` the response and ``theta`` the parameters
that link them. What is wanted is ``p(theta | D, y)``, which is proportional to

    p(theta) E[ prod_i p(y_i | x_i, theta) ],   (x_1, ..., x_n) from the posterior given D.

``propagate`` takes patients as independent given ``D``: the likelihood of a patient is the average of ``p(y_i | x_i)``
over the draws of his own exposure. That is a structural measurement-error model: the draws of a population fit are
draws of ``p(x_i | D_i, population)``, so the distribution of exposure between patients stands in them already, and
the outcome helps to tell ``x_i``. ``joint`` does not take them as independent: what draws of different patients share,
as all depend on the same population parameters, is kept as common factors which the responses may move (feedback).
``point`` puts one number in the place of ``x_i``.

Cutting the feedback, that is, averaging posteriors of ``theta`` over draws of exposure (multiple imputation), is not
offered: imputed without the outcome, exposures are too noisy a stand-in and the slope is attenuated (Carroll et al.,
section 6). Averaging likelihoods, as here, is not. Three things are asked of the draws: they must contain the
distribution between patients (those of a population fit do; a measured value with a known error does after
:func:`carkinetics.with_error`); a covariate of the response that exposure depends on belongs into the kinetic model as
well, as else all patients are shrunk to the same mean; and the kinetics must not be censored by the response.

References
----------
Carroll RJ, Ruppert D, Stefanski LA, Crainiceanu CM. Measurement Error in Nonlinear Models, 2nd ed., 2006,
doi:10.1201/9781420010138: chapters 4 (regression calibration), 8 (likelihood) and 9 (Bayesian methods).
Gauss quadrature of a discrete measure: Golub GH, Welsch JH, Math Comp 1969;23:221-230, doi:10.2307/2004418.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from carkinetics.model_parts import nearest_or_raise

TWO_STAGE = ("propagate", "point", "joint")
NODES = 20  # of the quadrature over one patient's draws: exact for polynomials up to degree 39
_MOST_FACTORS = 5
_MOST_SHARED = 0.98  # of a patient's variance
_ROUNDS = 50
_FLAT = 1e-8  # of the SD of draws: below it they are all the same
_NOTHING = 1e-10  # length of a further vector of Lanczos' method, of which rounding is left


class Carried(NamedTuple):
    """Standardised ln exposure as points with weights; ``loadings`` times standard normal factors are added.

    The log weights of a patient sum to one when exponentiated.
    """

    base: Float[np.ndarray, "node subject"]
    log_weight: Float[np.ndarray, "node subject"]
    loadings: Float[np.ndarray, "factor subject"]


def carried(u: Float[np.ndarray, "draw subject"], two_stage: str, nodes: int = NODES) -> Carried:
    """What stands for each patient's exposure in the likelihood.

    Parameters
    ----------
    u : array of shape (draw, subject)
        Standardised ln exposure; draws of different patients at the same place belong together.
    two_stage : {"propagate", "point", "joint"}
    """
    nearest_or_raise(two_stage, TWO_STAGE, "way to carry exposure", "two_stage=")
    none = np.zeros((0, u.shape[1]))
    if two_stage == "point" or len(u) == 1 or u.std(axis=0).max() < _FLAT:
        return Carried(np.median(u, axis=0)[None], np.zeros((1, u.shape[1])), none)
    loadings = common(u) if two_stage == "joint" else none
    rest = u
    if len(loadings):
        variance, mean = np.maximum(u.var(axis=0), np.finfo(float).tiny), u.mean(axis=0)
        rest = mean + (u - mean) * np.sqrt(np.maximum(1 - np.square(loadings).sum(axis=0) / variance, 0.0))
    base, weight = gauss(rest, nodes)
    return Carried(base, np.log(weight), loadings)


def gauss(
    x: Float[np.ndarray, "draw subject"], n: int
) -> tuple[Float[np.ndarray, "node subject"], Float[np.ndarray, "node subject"]]:
    """Nodes and weights of each patient's Gauss quadrature of equally weighted draws: exact to degree ``2 n - 1``.

    With fewer than ``n`` different draws the nodes are these draws, and what is left of the ``n`` has no weight.
    """
    mean, sd = x.mean(axis=0), x.std(axis=0)
    s = ((x - mean) / np.where(sd < _FLAT, 1.0, sd)).T
    # Lanczos: the Jacobi matrices of the measures, with every vector made orthogonal to all before it, twice. Where no
    # further vector is left, zeros take its place: nodes at the mean, without weight.
    draws = len(x)
    basis = np.zeros((len(s), n, draws))
    basis[:, 0] = draws**-0.5
    matrix = np.zeros((len(s), n, n))
    for k in range(n):
        v = s * basis[:, k]
        matrix[:, k, k] = (v * basis[:, k]).sum(axis=1)
        if k == n - 1:
            break
        before = basis[:, : k + 1]
        for _ in range(2):
            v = v - ((before @ v[:, :, None]).swapaxes(1, 2) @ before)[:, 0]
        size = np.linalg.norm(v, axis=1)
        left = (size >= _NOTHING) & (basis[:, k].any(axis=1)) & (sd >= _FLAT)
        basis[:, k + 1] = np.where(left[:, None], v / np.where(left, size, 1.0)[:, None], 0.0)
        matrix[:, k, k + 1] = matrix[:, k + 1, k] = np.where(left, size, 0.0)
    values, vectors = np.linalg.eigh(matrix)
    weight = np.maximum(vectors[:, 0] ** 2, np.finfo(float).tiny)
    return (mean[:, None] + sd[:, None] * values).T, (weight / weight.sum(axis=1, keepdims=True)).T


def common(u: Float[np.ndarray, "draw subject"]) -> Float[np.ndarray, "factor subject"]:
    """Loadings of what patients' draws share: principal axes of their correlation that are above noise.

    Noise is the largest eigenvalue that independent columns would have (Marchenko and Pastur's edge). What is a
    patient's own is left out of the diagonal, in rounds.
    """
    draws, n = u.shape
    sd = u.std(axis=0)
    moving = sd > _FLAT
    s = np.where(moving, (u - u.mean(axis=0)) / np.where(moving, sd, 1.0), 0.0)
    correlation = s.T @ s / draws
    values, vectors = np.linalg.eigh(correlation)
    factors = min(int((values > 1.1 * (1 + np.sqrt(n / draws)) ** 2).sum()), _MOST_FACTORS)
    if not factors:
        return np.zeros((0, n))
    for _ in range(_ROUNDS):
        loadings = vectors[:, -factors:] * np.sqrt(np.maximum(values[-factors:], 0.0))
        shared = np.minimum(np.square(loadings).sum(axis=1), _MOST_SHARED)
        np.fill_diagonal(correlation, shared)
        values, vectors = np.linalg.eigh(correlation)
    loadings = vectors[:, -factors:] * np.sqrt(np.maximum(values[-factors:], 0.0))
    excess = np.sqrt(np.maximum(np.square(loadings).sum(axis=1) / _MOST_SHARED, 1.0))
    return (loadings / excess[:, None] * sd[:, None]).T
