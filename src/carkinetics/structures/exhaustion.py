"""Infused cells distribute, engage the tumour, and end as memory or exhausted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters, named as in the paper where its names are known."""

    beta: Float[Array, "*n"]  # infused cells that leave the blood or die, per day
    eta: Float[Array, "*n"]  # infused cells that engraft as effectors, per day
    kmin: Float[Array, "*n"]  # effector growth that lasts, per day
    kmax: Float[Array, "*n"]  # effector growth at the infusion beyond kmin, per day
    tk: Float[Array, "*n"]  # day on which that growth is halved
    hk: Float[Array, "*n"]  # steepness of its decay
    half: Float[Array, "*n"]  # tumour at half-maximal growth of effectors (A), cells
    xi: Float[Array, "*n"]  # effector death, per day
    eps: Float[Array, "*n"]  # effectors to memory, per day
    lam: Float[Array, "*n"]  # effectors to exhausted cells, per day
    theta: Float[Array, "*n"]  # memory recalled by the tumour, per day and tumour cell
    alpha: Float[Array, "*n"]  # effectors inhibited by the tumour, per day and tumour cell
    mu: Float[Array, "*n"]  # memory death, per day
    delta: Float[Array, "*n"]  # death of exhausted cells, per day
    r: Float[Array, "*n"]  # tumour growth, per day
    b: Float[Array, "*n"]  # inverse of the largest tumour, per cell
    gamma: Float[Array, "*n"]  # largest killing rate, per day
    a: Float[Array, "*n"]  # functional cells per tumour cell at half-maximal killing
    t0: Float[Array, "*n"]  # tumour at the infusion, cells


class States(NamedTuple):
    """Cells in the body."""

    distributed: Float[Array, "*n"]
    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    exhausted: Float[Array, "*n"]
    tumour: Float[Array, "*n"]


class Steps(NamedTuple):
    """Infused cells and tumour as logs, effectors as the log of how much they add to the infused ones.

    Effectors start at zero, and grow and fall as exponentials: added to the infused cells they have a log from the
    beginning. Memory and exhausted cells are sums over what effectors were, and stay as they are.
    """

    ln_distributed: Float[Array, "*n"]
    ln_effector: Float[Array, "*n"]  # ln(1 + effector / distributed)
    memory: Float[Array, "*n"]
    exhausted: Float[Array, "*n"]
    ln_tumour: Float[Array, "*n"]


# Infused cells: the logarithm of none, and where they stop falling. Between the two lies more than a step's overshoot,
# so that nothing is ever clamped on the way: a kink in the rate would throw the coarse steps of late days off.
_NONE_INFUSED, _LAST_INFUSED = 1e-60, 1e-40
_NO_CELLS = 1e-3  # of a cell: stands for none in an output's logarithm


class Exhaustion(AbstractStructure[Parameters, States]):
    """Distributed, effector, memory and exhausted cells, and a tumour that feeds, inhibits and is killed.

    ``D' = -beta D``
    ``E' = eta D + k(t) U / (half + U) E - (xi + eps + lam) E + theta U M - alpha U E``
    ``M' = eps E - theta U M - mu M``
    ``X' = lam E - delta X``
    ``U' = r U (1 - b U) - gamma U (D + E) / (a U + D + E)``
    ``k(t) = kmin + kmax / (1 + (t / tk)^hk)``
    ``D(0) = dose, U(0) = t0``, the others 0

    The level is ``D + E + M + X``, in cells. A treatment multiplies ``k(t)``. The five equations are the paper's as
    far as its text was at hand; not certain are the shapes of ``k(t)`` and of killing, and whether ``beta`` holds
    ``eta`` as it does here. Rates per tumour cell times the tumour above some two a day need another solver.

    References
    ----------
    Paixao EA et al., Cancers 2022;14:5576, doi:10.3390/cancers14225576.
    """

    name = "exhaustion"
    parameters = Parameters
    states = States
    outputs = ("level", "effector", "memory", "exhausted", "tumour")
    treatable = True
    uses_dose = True
    falls_by = "the distributed cells that were infused"
    refine = 2

    def initial(self, p, x):
        none = jnp.zeros_like(x.dose)
        return States(distributed=x.dose, effector=none, memory=none, exhausted=none, tumour=p.t0)

    def rhs(self, t, y, p, x):
        # 1 / (1 + (t / tk)^hk), whose gradient is finite at t = 0 as well.
        waning = jax.nn.sigmoid(p.hk * (jnp.log(p.tk) - jnp.log(jnp.maximum(t, 1e-6))))
        growth = x.growth(t) * (p.kmin + p.kmax * waning) * y.tumour / (p.half + y.tumour)
        loss = p.xi + p.eps + p.lam + p.alpha * y.tumour
        recalled = p.theta * y.tumour * y.memory
        functional = y.distributed + y.effector
        killing = p.gamma * functional / (p.a * y.tumour + functional)
        return States(
            distributed=-p.beta * y.distributed * (y.distributed / (y.distributed + _LAST_INFUSED)),
            effector=p.eta * y.distributed + (growth - loss) * y.effector + recalled,
            memory=p.eps * y.effector - recalled - p.mu * y.memory,
            exhausted=p.lam * y.effector - p.delta * y.exhausted,
            tumour=(p.r * (1 - p.b * y.tumour) - killing) * y.tumour,
        )

    def output(self, y, p):
        cells = {
            "level": y.distributed + y.effector + y.memory + y.exhausted,
            "effector": y.effector,
            "memory": y.memory,
            "exhausted": y.exhausted,
        }
        ln = {name: jnp.log(jnp.maximum(value, 0.0) + _NO_CELLS) for name, value in cells.items()}
        return ln | {"tumour": jnp.log(y.tumour)}

    def infuse(self, y, dose, p):
        return y._replace(distributed=y.distributed + dose)

    def to_coordinates(self, y, p):
        infused = jnp.maximum(y.distributed, _NONE_INFUSED)
        added = jnp.log1p(y.effector / infused)
        return Steps(jnp.log(infused), added, y.memory, y.exhausted, jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        # As a sum of logs: one goes down where the other goes up, and only the sum is of ordinary size.
        more = jnp.clip(u.ln_effector, -1.0, None)
        effector = level(u.ln_distributed + more) * -jnp.expm1(-more)
        return States(level(u.ln_distributed), effector, u.memory, u.exhausted, level(u.ln_tumour))
