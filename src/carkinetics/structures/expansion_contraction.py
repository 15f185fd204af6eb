"""Exponential expansion to a peak, then a fast contraction and a slow persistence."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure


class Parameters(NamedTuple):
    """Individual parameters."""

    foldx: Float[Array, "*n"]  # fold expansion from the first cells to the peak
    tmax: Float[Array, "*n"]  # day of the peak
    cmax: Float[Array, "*n"]  # level at the peak, in the assay's unit
    alpha: Float[Array, "*n"]  # contraction rate, per day
    fb: Float[Array, "*n"]  # fraction of the peak that persists, below 1
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day


class States(NamedTuple):
    """Levels in the assay's unit."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]


# A log-normal fb can exceed 1; there "all cells persist" is the limit, and the gradient stays finite.
_FB_MAX = 1 - 1e-12


def ln_left(s: Float[Array, "*time"], p: Any) -> Float[Array, "*time"]:
    """Natural log of the share of the peak that is left ``s`` days after it, of ``p.alpha``, ``p.fb``, ``p.beta``."""
    fb = jnp.minimum(p.fb, _FB_MAX)
    return jnp.logaddexp(jnp.log1p(-fb) - p.alpha * s, jnp.log(fb) - p.beta * s)


def after_peak(y: States, p: Any) -> States:
    """Rates of change after the peak: the conversion rate makes the sum of states the bi-exponential, exactly."""
    conversion = p.fb * (p.alpha - p.beta)
    return States(effector=-p.alpha * y.effector, memory=conversion * y.effector - p.beta * y.memory)


class ExpansionContraction(AbstractStructure[Parameters, States]):
    """Stein's model of tisagenlecleucel.

    Before ``tmax`` cells grow at ``rho = ln(foldx) / tmax`` from ``cmax / foldx``. Afterwards effectors
    contract at ``alpha`` while a part becomes memory, which is lost at ``beta``; the sum is
    ``cmax ((1 - fb) exp(-alpha s) + fb exp(-beta s))`` with ``s = t - tmax``. The dose is not an input. A treatment
    multiplies ``rho`` from its day on, so that a treated patient's peak is no longer ``cmax``.

    References
    ----------
    Stein AM et al., CPT Pharmacometrics Syst Pharmacol 2019;8:285-295, doi:10.1002/psp4.12388.
    """

    name = "expansion_contraction"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True

    def curve(self, t, p, x):
        # Both sides are evaluated at a clamped time: no branch, so the gradient is right on either side of
        # the kink. At t = tmax the value is cmax and the slope is the mean of the two sides'.
        growth = jnp.log(p.foldx) / p.tmax * (x.growth_time(jnp.minimum(t, p.tmax)) - p.tmax)
        return {"level": jnp.log(p.cmax) + growth + ln_left(jnp.maximum(t - p.tmax, 0.0), p)}

    def initial(self, p, x):
        return States(effector=p.cmax / p.foldx, memory=jnp.zeros_like(p.cmax))

    def rhs(self, t, y, p, x):
        growing, after = t < p.tmax, after_peak(y, p)
        growth = x.growth(t) * jnp.log(p.foldx) / p.tmax * y.effector
        return States(jnp.where(growing, growth, after.effector), jnp.where(growing, 0.0, after.memory))

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def breakpoints(self, p, x):
        return (p.tmax,)

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        found = {"cmax": float(np.exp(ln_level[peak])), "tmax": float(max(t[peak], 1.0))}
        early = (t > t[peak]) & (t <= t[peak] + 30)
        if early.any():
            fall = np.max((ln_level[peak] - ln_level[early]) / (t[early] - t[peak]))
            found["alpha"] = float(np.clip(fall, 0.01, 1.0))
        late = t > t[peak] + 40
        if late.any():
            found["fb"] = float(np.clip(np.exp(np.mean(ln_level[late]) - ln_level[peak]), 1e-4, 0.5))
        return found
