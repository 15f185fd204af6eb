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
    """Cells in the assay's unit; of the tumour their log: the authors' patient with escape has it killed down to 1e-80.

    Activated cells are ``exp(ln_growth) seeded``: what one that was activated on day 0 has become, times how many
    such cells would have become all of them. Neither falls to 0 nor jumps where they start from none, triple in
    a day, and lose their tumour within an hour; steps of their number itself would end below 0.
    """

    ln_tumour: Float[Array, "*n"]
    ln_growth: Float[Array, "*n"]
    seeded: Float[Array, "*n"]
    inactive: Float[Array, "*n"]
    negative: Float[Array, "*n"]


class Steps(NamedTuple):
    """Logs of inactive cells, too, and of antigen-negative ones plus what a day of antigen loss makes of them.

    Without that addition the first of them, born from none, would have an infinite rate.
    """

    ln_tumour: Float[Array, "*n"]
    ln_growth: Float[Array, "*n"]
    seeded: Float[Array, "*n"]
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
    refine = 2  # the tumour is gone within a step of the standard grid

    def initial(self, p, x):
        none = jnp.zeros_like(p.tn0)
        return States(jnp.log(p.b0), ln_growth=none, seeded=none, inactive=p.tn0, negative=p.bneg0)

    def rhs(self, t, y, p, x):
        b, activated = level(_bounded(y.ln_tumour, p.b0 + p.bmax)), _activated(y)
        activation = p.ka * b / (b + p.kact) * y.inactive
        killed_negative = p.kill / p.kneg * y.negative / (y.negative + p.kn) * activated
        return States(
            ln_tumour=p.rb * (1 - b / p.bmax) - p.kill / (b + p.k) * activated,
            ln_growth=x.growth(t) * p.rta * b / (b + p.kr) - p.lta,
            seeded=level(-y.ln_growth) * activation,
            inactive=-activation - p.ltn * y.inactive,
            negative=p.rneg * y.negative * (1 - y.negative / p.bmax) + p.km * b - killed_negative,
        )

    def output(self, y, p):
        return {
            "level": jnp.log(_activated(y) + _LAST),
            "tumour": y.ln_tumour,
            "tumour_negative": jnp.log(jnp.maximum(y.negative, 0.0) + _NONE),
        }

    def to_coordinates(self, y, p):
        return Steps(y.ln_tumour, y.ln_growth, y.seeded, jnp.log(y.inactive), jnp.log(y.negative + _born(p)))

    def from_coordinates(self, u, p):
        most = p.bneg0 + p.bmax + _born(p)
        inactive, negative = level(u.ln_inactive), level(_bounded(u.ln_negative, most)) - _born(p)
        return States(u.ln_tumour, u.ln_growth, u.seeded, inactive, negative)

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        late = (t > t[peak]) & (t <= t[peak] + 30)
        if not late.any():
            return {}
        fall = np.max((ln_level[peak] - ln_level[late]) / (t[late] - t[peak]))
        return {"lta": float(np.clip(fall, 0.01, 1.0))}


def _activated(y: States):
    return level(y.ln_growth) * jnp.maximum(y.seeded, 0.0)


def _bounded(ln_cells, most):
    """At most a thousand times as many as there is room for: a step in which all are killed can end anywhere."""
    return jnp.minimum(ln_cells, jnp.log(1e3 * most))


def _born(p: Parameters):
    """What a day of antigen loss makes of antigen-negative cells; next to nothing without it."""
    return p.km * p.b0 + _NONE
