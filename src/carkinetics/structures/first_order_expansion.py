"""Effectors grow at a constant rate up to a day, then contract and leave persisting cells."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure


class Parameters(NamedTuple):
    """Individual parameters."""

    e0: Float[Array, "*n"]  # effector level at the infusion, in the assay's unit
    rho: Float[Array, "*n"]  # growth rate, per day
    tmax: Float[Array, "*n"]  # day of the peak
    alpha: Float[Array, "*n"]  # effector loss (the paper's kE), per day
    conv: Float[Array, "*n"]  # effectors to persisting cells (the paper's kEP), per day
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day


class States(NamedTuple):
    """Levels in the assay's unit."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]


def ln_decline(s, alpha, conv, beta):
    """Natural log of effectors plus memory, ``s`` days after one unit of effectors began to convert.

    Effectors leave at ``alpha + conv``, memory at ``beta``. Where the two rates are equal, the usual difference
    of exponentials over the difference of rates is 0 / 0: here it is a factor that goes to 1.
    """
    leave = alpha + conv
    slow, gap = jnp.minimum(leave, beta), jnp.abs(leave - beta) * s
    small = gap < 1e-4
    safe = jnp.where(small, 1.0, gap)
    factor = jnp.where(small, 1 - gap / 2 + gap**2 / 6, -jnp.expm1(-safe) / safe)
    # The slower exponential is taken out: neither of them may underflow within the logarithm.
    return jnp.log(jnp.exp((slow - leave) * s) + conv * s * factor) - slow * s


class FirstOrderExpansion(AbstractStructure[Parameters, States]):
    """Chaudhury's first-order form: what Stein's becomes where rates, not the peak, are the parameters.

    ``t < tmax:   E' = rho E,               P' = 0``
    ``t >= tmax:  E' = -(alpha + conv) E,   P' = conv E - beta P``

    The level is ``E + P``. The dose is not an input. A treatment multiplies ``rho`` from its day on.

    References
    ----------
    Chaudhury A et al., J Clin Pharmacol 2020;60(S1):S147-S159, doi:10.1002/jcph.1691 (first-order form).
    """

    name = "first_order_expansion"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True

    def curve(self, t, p, x):
        growth = p.rho * x.growth_time(jnp.minimum(t, p.tmax))
        return {"level": jnp.log(p.e0) + growth + ln_decline(jnp.maximum(t - p.tmax, 0.0), p.alpha, p.conv, p.beta)}

    def initial(self, p, x):
        return States(effector=p.e0, memory=jnp.zeros_like(p.e0))

    def rhs(self, t, y, p, x):
        growing = t < p.tmax
        return States(
            effector=jnp.where(growing, x.growth(t) * p.rho, -(p.alpha + p.conv)) * y.effector,
            memory=jnp.where(growing, 0.0, p.conv * y.effector - p.beta * y.memory),
        )

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def breakpoints(self, p, x):
        return (p.tmax,)

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        found = {"tmax": float(max(t[peak], 1.0))}
        if peak > 0:
            rise = (ln_level[peak] - ln_level[0]) / (t[peak] - t[0])
            found["rho"] = float(np.clip(rise, 0.1, 3.0))
            found["e0"] = float(np.exp(ln_level[peak] - found["rho"] * t[peak]))
        early = (t > t[peak]) & (t <= t[peak] + 30)
        if early.any():
            fall = np.max((ln_level[peak] - ln_level[early]) / (t[early] - t[peak]))
            found["alpha"] = float(np.clip(fall, 0.01, 1.0))
        return found
