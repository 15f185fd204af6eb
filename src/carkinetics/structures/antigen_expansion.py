"""Tumour drives effectors up to a day, both saturably; a tumour that is driven below a few cells is cured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters."""

    e0: Float[Array, "*n"]  # effector level at the infusion, in the assay's unit
    rho: Float[Array, "*n"]  # largest growth rate, per day
    ec50: Float[Array, "*n"]  # cells and tumour together at half-maximal growth, in the assay's unit
    tmax: Float[Array, "*n"]  # day on which growth ends
    alpha: Float[Array, "*n"]  # effector loss after tmax (the paper's kE), per day
    conv: Float[Array, "*n"]  # effectors to persisting cells after tmax (the paper's kEP), per day
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day
    u0: Float[Array, "*n"]  # tumour at the infusion, in the assay's unit
    g: Float[Array, "*n"]  # tumour growth where it is one unit, per day
    umax: Float[Array, "*n"]  # largest tumour, in the assay's unit; above 1
    kill: Float[Array, "*n"]  # largest killing rate (the paper's d), per day
    ec50_kill: Float[Array, "*n"]  # cells and tumour together at half-maximal killing, in the assay's unit
    ucrit: Float[Array, "*n"]  # tumour below which it no longer grows, in the assay's unit


class States(NamedTuple):
    """Levels in the assay's unit."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    tumour: Float[Array, "*n"]


class Steps(NamedTuple):
    """Effectors and tumour as logs; memory, which starts at zero, as it is."""

    ln_effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    ln_tumour: Float[Array, "*n"]


_HILL = 3.0  # the published steepness of the cure; never varied
_LN_UMAX_MIN = 1e-2  # a largest tumour of one unit makes growth infinite in the form that was published


class AntigenExpansion(AbstractStructure[Parameters, States]):
    """Chaudhury's EC50 form: growth and killing saturate in cells and tumour together.

    ``t < tmax:   E' = rho E U / (ec50 + E + U),   P' = 0``
    ``t >= tmax:  E' = -(alpha + conv) E,          P' = conv E - beta P``
    ``U' = F g U ln(umax / U) / ln(umax) - kill E U / (ec50_kill + E + U)``
    ``F = 1 / (1 + (ucrit / U)^3)``

    The level is ``E + P``; only effectors kill. A tumour below ``ucrit`` does not come back. ``g`` belongs to the unit
    in which cells and tumour are given: it is the growth rate at one of them. The dose is not an input.

    References
    ----------
    Chaudhury A et al., J Clin Pharmacol 2020;60(S1):S147-S159, doi:10.1002/jcph.1691 (EC50 form), as in
    BIOMD0000001025, with the end of growth at ``tmax`` that the file has.
    """

    name = "antigen_expansion"
    parameters = Parameters
    states = States
    outputs = ("level", "tumour")
    treatable = True
    # Cells and tumour pass each other within hours: the published growth rate is nine a day.
    refine = 3

    def initial(self, p, x):
        return States(effector=p.e0, memory=jnp.zeros_like(p.e0), tumour=p.u0)

    def rhs(self, t, y, p, x):
        both = y.effector + y.tumour
        growth = x.growth(t) * p.rho * y.tumour / (p.ec50 + both)
        growing = t < p.tmax
        ln_tumour, ln_umax = jnp.log(y.tumour), jnp.log(p.umax)
        # The same as the power above, without its overflow once the tumour is gone.
        cured = jax.nn.sigmoid(_HILL * (ln_tumour - jnp.log(p.ucrit)))
        regrowth = cured * p.g * (ln_umax - ln_tumour) / jnp.maximum(ln_umax, _LN_UMAX_MIN)
        return States(
            effector=jnp.where(growing, growth, -(p.alpha + p.conv)) * y.effector,
            memory=jnp.where(growing, 0.0, p.conv * y.effector - p.beta * y.memory),
            tumour=(regrowth - p.kill * y.effector / (p.ec50_kill + both)) * y.tumour,
        )

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory), "tumour": jnp.log(y.tumour)}

    def breakpoints(self, p, x):
        return (p.tmax,)

    def to_coordinates(self, y, p):
        return Steps(jnp.log(y.effector), y.memory, jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        return States(level(u.ln_effector), u.memory, level(u.ln_tumour))

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        found = {"tmax": float(max(t[peak], 1.0))}
        early = (t > t[peak]) & (t <= t[peak] + 30)
        if early.any():
            fall = np.max((ln_level[peak] - ln_level[early]) / (t[early] - t[peak]))
            found["alpha"] = float(np.clip(fall, 0.01, 1.0))
        return found
