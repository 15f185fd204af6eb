"""Effectors expand and contract, and begin to become memory only some days after the peak."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure
from carkinetics.structures.first_order_expansion import ln_decline


class Parameters(NamedTuple):
    """Individual parameters."""

    foldx: Float[Array, "*n"]  # fold expansion from the first cells to the peak
    tmax: Float[Array, "*n"]  # day of the peak
    cmax: Float[Array, "*n"]  # level at the peak, in the assay's unit
    alpha: Float[Array, "*n"]  # effector loss after the peak, per day
    conv: Float[Array, "*n"]  # effectors to memory from tmax + delay on, per day
    delay: Float[Array, "*n"]  # days from the peak to the first conversion
    beta: Float[Array, "*n"]  # memory loss, per day


class States(NamedTuple):
    """Levels in the assay's unit."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]


class EffectorMemory(AbstractStructure[Parameters, States]):
    """Expansion, contraction, and a delay before effectors become memory.

    ``t < tmax:           E' = (ln(foldx) / tmax) E,    M' = 0``
    ``t < tmax + delay:   E' = -alpha E,                M' = 0``
    ``afterwards:         E' = -(alpha + conv) E,       M' = conv E - beta M``

    ``E(0) = cmax / foldx``, and the level is ``E + M``. Without a delay it is ``expansion_contraction`` with the
    contraction rate ``alpha + conv`` and ``fb = conv / (alpha + conv - beta)``. The dose is not an input. A
    treatment multiplies the growth rate from its day on, so that a treated patient's peak is no longer ``cmax``.

    References
    ----------
    Stein AM et al., CPT Pharmacometrics Syst Pharmacol 2019;8:285-295, doi:10.1002/psp4.12388 (growth, two phases).
    Chaudhury A et al., J Clin Pharmacol 2020;60(S1):S147-S159, doi:10.1002/jcph.1691 (conversion as a rate).
    Li and Cheng, preprints of 2026, known from their abstracts: of all delays in pooled data of liso-, ide- and
    orva-cel only one on the conversion to memory was supported. Their gates are smooth; this one is a step.
    """

    name = "effector_memory"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True

    def curve(self, t, p, x):
        growth = jnp.log(p.foldx) / p.tmax * (x.growth_time(jnp.minimum(t, p.tmax)) - p.tmax)
        after = jnp.maximum(t - p.tmax, 0.0)
        waiting, converting = jnp.minimum(after, p.delay), jnp.maximum(after - p.delay, 0.0)
        decline = ln_decline(converting, p.alpha, p.conv, p.beta) - p.alpha * waiting
        return {"level": jnp.log(p.cmax) + growth + decline}

    def initial(self, p, x):
        return States(effector=p.cmax / p.foldx, memory=jnp.zeros_like(p.cmax))

    def rhs(self, t, y, p, x):
        growing = t < p.tmax
        conv = jnp.where(t < p.tmax + p.delay, 0.0, p.conv)
        rate = jnp.where(growing, x.growth(t) * jnp.log(p.foldx) / p.tmax, -(p.alpha + conv))
        return States(effector=rate * y.effector, memory=conv * y.effector - p.beta * y.memory)

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def breakpoints(self, p, x):
        return (p.tmax, p.tmax + p.delay)

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        found = {"cmax": float(np.exp(ln_level[peak])), "tmax": float(max(t[peak], 1.0))}
        early = (t > t[peak]) & (t <= t[peak] + 30)
        if early.any():
            fall = np.max((ln_level[peak] - ln_level[early]) / (t[early] - t[peak]))
            found["alpha"] = float(np.clip(fall, 0.01, 1.0))
        return found
