"""A lag, growth that saturates with the number of cells until a peak, then contraction and memory."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level
from carkinetics.structures.expansion_contraction import ExpansionContraction, States


class Parameters(NamedTuple):
    """Individual parameters."""

    e0: Float[Array, "*n"]  # effector level at the infusion, in the assay's unit
    tlag: Float[Array, "*n"]  # day on which growth begins
    tmax: Float[Array, "*n"]  # day on which growth ends
    vmax: Float[Array, "*n"]  # largest growth, in the assay's unit per day
    km: Float[Array, "*n"]  # effector level at half of it, in the assay's unit
    r: Float[Array, "*n"]  # effector to memory, per day
    delta_e: Float[Array, "*n"]  # effector loss, per day
    delta_m: Float[Array, "*n"]  # memory loss, per day


class Steps(NamedTuple):
    """Effectors as a log; memory as it is, since it starts at zero."""

    ln_effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]


class SaturableGrowth(AbstractStructure[Parameters, States]):
    """Wu's model of idecabtagene::

        t < tlag:         E' = 0
        tlag <= t < tmax: E' = vmax E / (km + E)
        tmax <= t:        E' = -(delta_e + r) E
        at all times:     M' = r E - delta_m M
        E(0) = e0, M(0) = 0, level = E + M

    Far below ``km`` cells grow at ``vmax / km`` per day, far above it by ``vmax`` a day whatever their number: the
    level bends before the peak. Growth is net of what becomes memory. ``vmax`` and ``km`` are known apart only if
    samples lie on both sides of ``km``; else their ratio is. A peak before the end of the lag means no growth. The
    dose is not an input (the paper has it as a covariate on ``vmax``). A treatment multiplies ``vmax``.

    References
    ----------
    Wu F et al. 2025, population cellular kinetics of idecabtagene vicleucel (KarMMa-3); as continued in Li Y and
    Cheng Y 2026, doi:10.64898/2026.03.01.708830 (form from memory, parameters and units from Table 1).
    """

    name = "saturable_growth"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True
    refine = 3  # cells that are far fewer than km double within an hour, and then at once no longer

    def initial(self, p, x):
        return States(effector=p.e0, memory=jnp.zeros_like(p.e0))

    def rhs(self, t, y, p, x):
        growth = jnp.where(t >= p.tlag, x.growth(t) * p.vmax / (p.km + y.effector), 0.0)
        return States(
            effector=jnp.where(t < p.tmax, growth, -(p.delta_e + p.r)) * y.effector,
            memory=p.r * y.effector - p.delta_m * y.memory,
        )

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def breakpoints(self, p, x):
        return (p.tlag, p.tmax)

    def to_coordinates(self, y, p):
        return Steps(jnp.log(y.effector), y.memory)

    def from_coordinates(self, u, p):
        return States(level(u.ln_effector), u.memory)

    def guess(self, t, ln_level):
        seen = ExpansionContraction().guess(t, ln_level)
        return {ours: seen[its] for ours, its in (("tmax", "tmax"), ("delta_e", "alpha")) if its in seen}
