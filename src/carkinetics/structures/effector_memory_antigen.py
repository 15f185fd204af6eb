"""Antigen drives effector cells, effectors clear the antigen, a few of them stay as memory."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters."""

    e0: Float[Array, "*n"]  # effector level at the infusion, in the assay's unit
    rho: Float[Array, "*n"]  # largest growth rate, per day
    b0: Float[Array, "*n"]  # antigen at the infusion, relative to the level of half-maximal growth
    kill: Float[Array, "*n"]  # antigen cleared per day and unit of effectors
    alpha: Float[Array, "*n"]  # effector loss, per day
    conv: Float[Array, "*n"]  # effector to memory, per day
    beta: Float[Array, "*n"]  # memory loss, per day


class States(NamedTuple):
    """Cells in the assay's unit; antigen relative to the level of half-maximal growth."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    antigen: Float[Array, "*n"]


class Steps(NamedTuple):
    """Effectors and antigen as logs, memory as it is.

    Logs of exponentials are straight lines, which a solver follows at any step; the log of a memory that starts
    at zero is not finite. As a share of the total, memory would bind the step to the effectors' loss rate long
    after they are gone.
    """

    ln_effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    ln_antigen: Float[Array, "*n"]


class EffectorMemoryAntigen(AbstractStructure[Parameters, States]):
    """Saturable antigen-driven expansion with clearance of the antigen.

    ``E' = (rho B / (1 + B) - alpha - conv) E``, ``M' = conv E - beta M``, ``B' = -kill E B``: the peak comes
    when the antigen falls below the level that feeds growth, so its time and height are consequences and not
    parameters. The EC50 form of antigen-driven expansion, with antigen in units of its EC50 and without its
    own growth. The dose is not an input.

    References
    ----------
    Chaudhury A et al., J Clin Pharmacol 2020;60(S1):S147-S159, doi:10.1002/jcph.1691 (EC50 form).
    """

    name = "effector_memory_antigen"
    parameters = Parameters
    states = States
    outputs = ("level", "antigen")
    treatable = True

    def initial(self, p, x):
        return States(effector=p.e0, memory=jnp.zeros_like(p.e0), antigen=p.b0)

    def rhs(self, t, y, p, x):
        growth = x.growth(t) * p.rho * y.antigen / (1 + y.antigen)
        return States(
            effector=(growth - p.alpha - p.conv) * y.effector,
            memory=p.conv * y.effector - p.beta * y.memory,
            antigen=-p.kill * y.effector * y.antigen,
        )

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory), "antigen": jnp.log(y.antigen)}

    def to_coordinates(self, y, p):
        return Steps(jnp.log(y.effector), y.memory, jnp.log(y.antigen))

    def from_coordinates(self, u, p):
        return States(level(u.ln_effector), u.memory, level(u.ln_antigen))

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        found = {}
        early = (t > t[peak]) & (t <= t[peak] + 30)
        if early.any():
            fall = np.max((ln_level[peak] - ln_level[early]) / (t[early] - t[peak]))
            found["alpha"] = float(np.clip(fall, 0.01, 1.0))
        return found
