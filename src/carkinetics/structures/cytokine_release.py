"""Antigen-driven expansion, and two cytokines that effectors make while they see antigen."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level
from carkinetics.structures import effector_memory_antigen as cells


class Parameters(NamedTuple):
    """Individual parameters: those of ``effector_memory_antigen``, and of the cytokines."""

    e0: Float[Array, "*n"]  # effector level at the infusion, in the assay's unit
    rho: Float[Array, "*n"]  # largest growth rate, per day
    b0: Float[Array, "*n"]  # antigen at the infusion, relative to the level of half-maximal growth
    kill: Float[Array, "*n"]  # antigen cleared per day and unit of effectors
    alpha: Float[Array, "*n"]  # effector loss, per day
    conv: Float[Array, "*n"]  # effector to memory, per day
    beta: Float[Array, "*n"]  # memory loss, per day
    p_il6: Float[Array, "*n"]  # IL-6 made, pg/mL per day and unit of effectors under saturating antigen
    d_il6: Float[Array, "*n"]  # IL-6 lost, per day
    base_il6: Float[Array, "*n"]  # IL-6 without CAR-T cells, pg/mL
    p_ifng: Float[Array, "*n"]  # the same of IFN-gamma
    d_ifng: Float[Array, "*n"]
    base_ifng: Float[Array, "*n"]


class States(NamedTuple):
    """Cells in the assay's unit; antigen relative to the level of half-maximal growth; cytokines in pg/mL."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    antigen: Float[Array, "*n"]
    il6: Float[Array, "*n"]
    ifng: Float[Array, "*n"]


_CELLS = cells.EffectorMemoryAntigen()


def _parameters(p: Parameters) -> cells.Parameters:
    return cells.Parameters(*p[:7])


def _states(y: States) -> cells.States:
    return cells.States(*y[:3])


class CytokineRelease(AbstractStructure[Parameters, States]):
    """A driver of cytokine release: indirect response to antigen-stimulated effectors::

        E' = (rho s - alpha - conv) E,  s = B / (1 + B)
        M' = conv E - beta M
        B' = -kill E B
        IL6'  = d_il6  (base_il6  - IL6)  + p_il6  s E
        IFNG' = d_ifng (base_ifng - IFNG) + p_ifng s E
        level = E + M

    The cells are those of ``effector_memory_antigen``. The cytokines are Hardiansyah and Ng's (production by what
    antigen and effectors do together, first-order loss, a baseline), with two changes: stimulation saturates as
    growth does, and nothing inhibits IFN-gamma. No published model has these numbers. The dose is not an input; a
    treatment multiplies ``rho``, and so acts on cytokines through the cells only. Cytokines are lost at several per
    day, for which a step of days is long: stiff.

    References
    ----------
    Chaudhury A et al., J Clin Pharmacol 2020;60(S1):S147-S159, doi:10.1002/jcph.1691 (EC50 form of the expansion).
    Hardiansyah D, Ng CM, Clin Transl Sci 2019;12:343-349, doi:10.1111/cts.12636 (cytokines, Eqs. 2 to 4).
    """

    name = "cytokine_release"
    parameters = Parameters
    states = States
    outputs = ("level", "antigen", "il6", "ifng")
    stiff = True
    refine = 2
    treatable = True

    def initial(self, p, x):
        return States(*_CELLS.initial(_parameters(p), x), il6=p.base_il6, ifng=p.base_ifng)

    def rhs(self, t, y, p, x):
        stimulated = y.effector * y.antigen / (1 + y.antigen)
        return States(
            *_CELLS.rhs(t, _states(y), _parameters(p), x),
            il6=p.d_il6 * (p.base_il6 - y.il6) + p.p_il6 * stimulated,
            ifng=p.d_ifng * (p.base_ifng - y.ifng) + p.p_ifng * stimulated,
        )

    def output(self, y, p):
        return _CELLS.output(_states(y), _parameters(p)) | {"il6": jnp.log(y.il6), "ifng": jnp.log(y.ifng)}

    def to_coordinates(self, y, p):
        return (jnp.log(y.effector), y.memory, jnp.log(y.antigen), y.il6, y.ifng)

    def from_coordinates(self, u, p):
        return States(level(u[0]), u[1], level(u[2]), u[3], u[4])

    def guess(self, t, ln_level):
        return _CELLS.guess(t, ln_level)
