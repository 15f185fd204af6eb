"""CAR-T cells that grow on leukaemia and on healthy B cells, and kill both."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level

_NONE = 1e-30  # cells where nothing was infused: their log must be a number, and they must not grow


class Parameters(NamedTuple):  # named as in the paper
    rho_c: Float[Array, "*n"]  # CAR-T growth, per day and target cell
    tau_c: Float[Array, "*n"]  # mean life of CAR-T cells, day
    rho_l: Float[Array, "*n"]  # leukaemia growth, per day
    alpha: Float[Array, "*n"]  # killing, per day and CAR-T cell
    tau_b: Float[Array, "*n"]  # mean life of B cells, day
    l0: Float[Array, "*n"]  # leukaemia at the infusion, cells
    b0: Float[Array, "*n"]  # B cells at the infusion, cells


class States(NamedTuple):  # cells in the body; the solver steps in their logs
    car: Float[Array, "*n"]
    tumour: Float[Array, "*n"]
    b_cells: Float[Array, "*n"]


class TargetDriven(AbstractStructure[Parameters, States]):
    """León-Triana's reduced model (equations 4a to 4c): CAR-T cells C, leukaemia L and mature B cells B.

    ``C' = rho_c (L + B) C - C / tau_c``, ``L' = rho_l L - alpha L C``, ``B' = -alpha B C - B / tau_b``,
    ``C(0) = dose, L(0) = l0, B(0) = b0``. No B cells come from the marrow; nothing but C limits L.

    References
    ----------
    León-Triana O et al., Commun Nonlinear Sci Numer Simul 2021;94:105570, doi:10.1016/j.cnsns.2020.105570.
    """

    name, parameters, states, outputs = "target_driven", Parameters, States, ("level", "tumour", "b_cells")
    treatable = uses_dose = True
    refine = 2  # a tumour that comes back meets cells that have nearly died out

    def initial(self, p, x):
        return States(jnp.maximum(x.dose, _NONE), p.l0, p.b0)

    def rhs(self, t, y, p, x):
        growth, kill = (y.car > 2 * _NONE) * x.growth(t) * p.rho_c * (y.tumour + y.b_cells), p.alpha * y.car
        return States((growth - 1 / p.tau_c) * y.car, (p.rho_l - kill) * y.tumour, -(kill + 1 / p.tau_b) * y.b_cells)

    def infuse(self, y, dose, p):
        return y._replace(car=y.car + dose)

    def output(self, y, p):
        return {"level": jnp.log(y.car), "tumour": jnp.log(y.tumour), "b_cells": jnp.log(y.b_cells)}

    def to_coordinates(self, y, p):
        return States(*map(jnp.log, y))

    def from_coordinates(self, u, p):
        return States(*map(level, u))
