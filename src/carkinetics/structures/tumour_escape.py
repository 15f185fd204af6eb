"""Leukaemia activates and feeds CAR-T cells, and escapes them with cells that lack the antigen."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters; cells in the assay's unit."""

    rb: Float[Array, "*n"]  # growth of antigen-positive tumour cells, per day
    bmax: Float[Array, "*n"]  # tumour cells of one kind that there is room for
    kill: Float[Array, "*n"]  # tumour cells killed per day by an activated cell that meets no other
    k: Float[Array, "*n"]  # antigen-positive cells at which killing is half of that
    rta: Float[Array, "*n"]  # largest growth rate of activated cells, per day
    kr: Float[Array, "*n"]  # antigen-positive cells at which that growth is half of its largest
    ka: Float[Array, "*n"]  # largest activation rate, per day
    kact: Float[Array, "*n"]  # antigen-positive cells at which activation is half of its largest
    lta: Float[Array, "*n"]  # loss of activated cells, per day
    ltn: Float[Array, "*n"]  # loss of cells that are not activated, per day
    tn0: Float[Array, "*n"]  # CAR-T cells at the infusion, none of them activated
    b0: Float[Array, "*n"]  # antigen-positive tumour cells at the infusion
    rneg: Float[Array, "*n"]  # growth of antigen-negative tumour cells, per day
    km: Float[Array, "*n"]  # antigen lost by antigen-positive cells, per day
    kneg: Float[Array, "*n"]  # killing of antigen-positive over that of antigen-negative cells, which are bystanders
    kn: Float[Array, "*n"]  # antigen-negative cells at which their killing is half of its largest
    bneg0: Float[Array, "*n"]  # antigen-negative tumour cells at the infusion


class States(NamedTuple):
    """Cells in the assay's unit."""

    tumour: Float[Array, "*n"]
    activated: Float[Array, "*n"]
    inactive: Float[Array, "*n"]
    negative: Float[Array, "*n"]


class Steps(NamedTuple):
    """Logs; activated cells, none of which are there at the infusion, as they are.

    Antigen-negative cells are counted from what a day of antigen loss makes, so that the first of them can be born.
    """

    ln_tumour: Float[Array, "*n"]
    activated: Float[Array, "*n"]
    ln_inactive: Float[Array, "*n"]
    ln_negative: Float[Array, "*n"]


# Where a log needs a number and there is no cell. Unlike 1e-30, a level of 1e-9 is seen: where a unit is 1e9 cells
# it is the last one.
_NONE = 1e-30
_LAST = 1e-9


class TumourEscape(AbstractStructure[Parameters, States]):
    """Liu's model of B-cell leukaemia: tumour B, activated TA and inactive TN CAR-T cells, antigen-negative Bneg.

    B' = rb B (1 - B / bmax) - kill B / (B + k) TA
    TA' = rta B / (B + kr) TA + ka B / (B + kact) TN - lta TA
    TN' = -ka B / (B + kact) TN - ltn TN
    Bneg' = rneg Bneg (1 - Bneg / bmax) + km B - (kill / kneg) Bneg / (Bneg + kn) TA

    B(0) = b0, TA(0) = 0, TN(0) = tn0, Bneg(0) = bneg0. The level is TA, as in the paper, which fits cell counts by
    activated cells alone: it is 1e-9 at the infusion and where nothing is left. With bneg0 = km = 0 there is no
    escape, only a relapse of antigen-positive cells. The dose is not an input (tn0 is estimated).

    References
    ----------
    Liu L et al., J Immunother Cancer 2022;10:e005360, doi:10.1136/jitc-2022-005360.
    """

    name = "tumour_escape"
    parameters = Parameters
    states = States
    outputs = ("level", "tumour", "tumour_negative")
    treatable = True
    refine = 3  # activated cells are stepped as they are, and triple in a step of the standard grid

    def initial(self, p, x):
        return States(p.b0, jnp.zeros_like(p.tn0), p.tn0, jnp.broadcast_to(p.bneg0, jnp.shape(p.b0)))

    def rhs(self, t, y, p, x):
        b = y.tumour
        activation = p.ka * b / (b + p.kact) * y.inactive
        growth = x.growth(t) * p.rta * b / (b + p.kr)
        killed_negative = p.kill / p.kneg * y.negative / (y.negative + p.kn) * y.activated
        return States(
            tumour=p.rb * b * (1 - b / p.bmax) - p.kill * b / (b + p.k) * y.activated,
            activated=(growth - p.lta) * y.activated + activation,
            inactive=-activation - p.ltn * y.inactive,
            negative=p.rneg * y.negative * (1 - y.negative / p.bmax) + p.km * b - killed_negative,
        )

    def output(self, y, p):
        return {
            "level": jnp.log(jnp.maximum(y.activated, 0.0) + _LAST),
            "tumour": jnp.log(y.tumour),
            "tumour_negative": jnp.log(jnp.maximum(y.negative, 0.0) + _NONE),
        }

    def to_coordinates(self, y, p):
        return Steps(jnp.log(y.tumour), y.activated, jnp.log(y.inactive), jnp.log(y.negative + _born(p)))

    def from_coordinates(self, u, p):
        return States(level(u.ln_tumour), u.activated, level(u.ln_inactive), level(u.ln_negative) - _born(p))

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        late = (t > t[peak]) & (t <= t[peak] + 30)
        if not late.any():
            return {}
        fall = np.max((ln_level[peak] - ln_level[late]) / (t[late] - t[peak]))
        return {"lta": float(np.clip(fall, 0.01, 1.0))}


def _born(p: Parameters):
    """What a day of antigen loss makes of antigen-negative cells; next to nothing without it."""
    return p.km * p.b0 + _NONE
