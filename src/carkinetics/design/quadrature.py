"""Quadrature for one and two parameters: fixed nodes, so that every posterior quantity is a weighted sum.

Gauss-Legendre panels along the parameter in which probabilities have thresholds: the integral up to any point inside a
panel is again a weighted sum of the panel's nodes, exact to the panel's order, so that P(rate > limit) loses no digits
at the threshold. The trapezoidal rule along the other, where integrands are smooth and fall to nothing at both ends:
its error is below exp(-2 pi^2 (sd / step)^2).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.polynomial import legendre

ORDER = 12  # nodes of a panel


class Panels(NamedTuple):
    """Composite Gauss-Legendre nodes on ``low`` to ``high``."""

    low: float
    high: float
    nodes: Float[np.ndarray, " node"]
    weights: Float[np.ndarray, " node"]


def panels(low: float, high: float, count: int) -> Panels:
    """Nodes and weights of ``count`` equal panels of ``ORDER`` nodes."""
    x, w = legendre.leggauss(ORDER)
    width = (high - low) / count
    middle = low + width * (np.arange(count) + 0.5)
    nodes = (middle[:, None] + width / 2 * x).ravel()
    return Panels(low, high, nodes, np.tile(width / 2 * w, count))


def below(grid: Panels, threshold: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... node"]:
    """Weights of the integral from ``grid.low`` to each threshold.

    In the threshold's own panel, the weight of a node is the integral of its Lagrange polynomial, written in Legendre
    polynomials.
    """
    x, w = legendre.leggauss(ORDER)
    count = len(grid.nodes) // ORDER
    width = (grid.high - grid.low) / count
    at = np.clip(threshold, grid.low, grid.high)
    panel = np.minimum(((at - grid.low) / width).astype(int), count - 1)
    inside = np.clip(2 * (at - grid.low - panel * width) / width - 1, -1.0, 1.0)
    degrees = np.arange(ORDER)
    p_tau = legendre.legvander(inside, ORDER)
    # the integral of P_n from -1 to tau is (P_{n+1} - P_{n-1}) / (2 n + 1), and tau + 1 for n = 0
    integral = np.empty((*inside.shape, ORDER))
    integral[..., 0] = inside + 1
    integral[..., 1:] = (p_tau[..., 2:] - p_tau[..., :-2]) / (2 * degrees[1:] + 1)
    lagrange = w[:, None] * (2 * degrees + 1) / 2 * legendre.legvander(x, ORDER - 1)
    part = width / 2 * np.einsum("...d,nd->...n", integral, lagrange)
    numbers = np.arange(count)
    found = np.where((numbers < panel[..., None])[..., None], width / 2 * w, 0.0)
    found = found + np.where((numbers == panel[..., None])[..., None], part[..., None, :], 0.0)
    return found.reshape(*found.shape[:-2], count * ORDER)


def posterior(
    ln_prior: Float[np.ndarray, " node"], ln_likelihood: Float[np.ndarray, "trial node"]
) -> Float[np.ndarray, "trial node"]:
    """Prior times likelihood at the nodes, scaled so that the largest is 1."""
    ln = ln_prior + ln_likelihood
    return np.exp(ln - ln.max(axis=1, keepdims=True))
