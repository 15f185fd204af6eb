"""Effector and memory cells that turn into each other, and a tumour that recalls, inhibits and is killed."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters, named as in the paper."""

    phi: Float[Array, "*n"]  # effector proliferation, per day
    rho: Float[Array, "*n"]  # effector death, per day
    eps: Float[Array, "*n"]  # effectors that become memory, per day
    theta: Float[Array, "*n"]  # memory recalled by the tumour, per day and tumour cell
    alpha: Float[Array, "*n"]  # effectors inhibited by the tumour, per day and tumour cell
    mu: Float[Array, "*n"]  # memory death, per day
    r: Float[Array, "*n"]  # tumour growth, per day
    b: Float[Array, "*n"]  # inverse of the largest tumour, per cell; 0 for none
    gamma: Float[Array, "*n"]  # tumour killed, per day and effector
    t0: Float[Array, "*n"]  # tumour at the infusion, cells


class States(NamedTuple):
    """Cells in the body."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    tumour: Float[Array, "*n"]


class Steps(NamedTuple):
    """The tumour as its log; cells as they are.

    The log of effectors would have the recall of memory over effectors as its rate, which is noise where both are
    gone, and the log of memory, which starts at zero, is not finite. An implicit solver needs neither.
    """

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    ln_tumour: Float[Array, "*n"]


_FASTEST = 1e6  # per day: what a tumour does within a tenth of a second is done at once; it may grow without end
_SCALE = 1e6  # cells in which the solver counts: the reference's absolute tolerance is then far below one
_NO_CELLS = 1e-3  # of a cell: stands for none in a logarithm, where a solver has only its tolerance left


class Cartmath(AbstractStructure[Parameters, States]):
    """CARTmath: effectors, long-lived memory and a tumour, of mice with a human tumour.

    ``E' = phi E - rho E + theta U M - alpha U E``
    ``M' = eps E - theta U M - mu M``
    ``U' = r U (1 - b U) - gamma E U``
    ``E(0) = dose, M(0) = 0, U(0) = t0``

    The level is ``E + M``, in cells. Effectors become memory without being fewer for it, as in the paper. Only
    ``phi - rho`` can be found from data. ``theta U`` may be 20,000 a day: the steps are implicit.

    References
    ----------
    Barros LRC et al., Cancers 2021;13:2941, doi:10.3390/cancers13122941, as in BIOMD0000001019 and BIOMD0000001020.
    """

    name = "cartmath"
    parameters = Parameters
    states = States
    outputs = ("level", "tumour")
    treatable = True
    uses_dose = True
    stiff = True
    refine = 5  # what a tumour that nothing stops asks for: it recalls memory ever faster

    def initial(self, p, x):
        return States(effector=x.dose, memory=jnp.zeros_like(x.dose), tumour=p.t0)

    def rhs(self, t, y, p, x):
        recalled = jnp.minimum(p.theta * y.tumour, _FASTEST) * y.memory
        growth = x.growth(t) * p.phi - p.rho - jnp.minimum(p.alpha * y.tumour, _FASTEST)
        return States(
            effector=growth * y.effector + recalled,
            memory=p.eps * y.effector - recalled - p.mu * y.memory,
            tumour=(p.r * (1 - p.b * y.tumour) - p.gamma * y.effector) * y.tumour,
        )

    def infuse(self, y, dose, p):
        return y._replace(effector=y.effector + dose)

    def output(self, y, p):
        return {
            "level": jnp.log(jnp.maximum(y.effector + y.memory, 0.0) + _NO_CELLS),
            "tumour": jnp.log(jnp.maximum(y.tumour, 0.0) + _NO_CELLS),
        }

    def to_coordinates(self, y, p):
        return Steps(y.effector / _SCALE, y.memory / _SCALE, jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        return States(u.effector * _SCALE, u.memory * _SCALE, level(u.ln_tumour))
