"""Effector cells and tumour as predator and prey: the tumour feeds the cells' growth, the cells kill the tumour."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters."""

    e0: Float[Array, "*n"]  # effector level at the infusion, in the assay's unit
    rho: Float[Array, "*n"]  # growth rate per unit of tumour, per day
    alpha: Float[Array, "*n"]  # effector loss (the paper's kE), per day
    u0: Float[Array, "*n"]  # tumour at the infusion, in its unit
    g: Float[Array, "*n"]  # tumour growth, per day
    kill: Float[Array, "*n"]  # tumour killed per day and unit of effectors (the paper's d)


class States(NamedTuple):
    """Cells and tumour, each in its unit."""

    effector: Float[Array, "*n"]
    tumour: Float[Array, "*n"]


class Steps(NamedTuple):
    """Both as logs: between two waves the tumour falls by six decades."""

    ln_effector: Float[Array, "*n"]
    ln_tumour: Float[Array, "*n"]


class PredatorPrey(AbstractStructure[Parameters, States]):
    """Lotka and Volterra's equations: waves of cells and tumour that never die out.

    ``E' = rho E U - alpha E``
    ``U' = g U - kill E U``

    The tumour turns at ``E = g / kill`` and the cells at ``U = alpha / rho``, where both would stay. The dose is
    not an input.

    References
    ----------
    Chaudhury A et al., J Clin Pharmacol 2020;60(S1):S147-S159, doi:10.1002/jcph.1691 (Lotka-Volterra form).
    """

    name = "predator_prey"
    parameters = Parameters
    states = States
    outputs = ("level", "tumour")
    treatable = True
    # A second wave comes months later, as steep as the first, and the standard steps are coarse by then.
    refine = 18

    def initial(self, p, x):
        return States(effector=p.e0, tumour=p.u0)

    def rhs(self, t, y, p, x):
        return States(
            effector=(x.growth(t) * p.rho * y.tumour - p.alpha) * y.effector,
            tumour=(p.g - p.kill * y.effector) * y.tumour,
        )

    def output(self, y, p):
        return {"level": jnp.log(y.effector), "tumour": jnp.log(y.tumour)}

    def to_coordinates(self, y, p):
        return Steps(jnp.log(y.effector), jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        return States(level(u.ln_effector), level(u.ln_tumour))

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        early = (t > t[peak]) & (t <= t[peak] + 30)
        if not early.any():
            return {}
        fall = np.max((ln_level[peak] - ln_level[early]) / (t[early] - t[peak]))
        return {"alpha": float(np.clip(fall, 0.01, 1.0))}
