"""Distribution to a minimum, expansion to a peak, a fast contraction and a slow persistence."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure
from carkinetics.structures.expansion_contraction import ExpansionContraction, States, after_peak, ln_left


class Parameters(NamedTuple):
    """Individual parameters."""

    c0: Float[Array, "*n"]  # level right after the infusion, in the assay's unit
    tdist: Float[Array, "*n"]  # day of the minimum: distribution ends, growth begins
    rho: Float[Array, "*n"]  # growth rate, per day
    tmax: Float[Array, "*n"]  # day of the peak
    cmax: Float[Array, "*n"]  # level at the peak, in the assay's unit
    alpha: Float[Array, "*n"]  # contraction rate, per day
    fb: Float[Array, "*n"]  # fraction of the peak that persists, below 1
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day


class FourPhases(AbstractStructure[Parameters, States]):
    """Liu's four phases: distribution, expansion, contraction, persistence::

        t < tdist:         C = c0 (cmin / c0)^(t / tdist)
        tdist <= t < tmax: C = cmin exp(rho (t - tdist))
        tmax <= t:         C = cmax ((1 - fb) exp(-alpha (t - tmax)) + fb exp(-beta (t - tmax)))
        cmin = cmax exp(-rho (tmax - tdist))

    ``rho`` stands for the minimum, which follows from it: the growth rate is what the paper compares between
    patients, the minimum is mostly below the limit of quantification. A peak before ``tdist`` means no growth: from
    ``c0`` to ``cmax`` at ``tmax``. The dose is not an input, although cells in blood right after the infusion are
    surely in proportion to it: the paper found the dose to matter little, and ``c0`` alone in proportion to it would
    make the rate of distribution depend on the dose. A covariate on ``c0`` can say it. A treatment multiplies
    ``rho`` from its day on, so that a treated patient's peak is no longer ``cmax``.

    References
    ----------
    Liu C et al., Clin Pharmacol Ther 2021;109:716-727, doi:10.1002/cpt.2040 (phases; the form from memory).
    """

    name = "four_phases"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True
    falls_by = "its distribution from c0 to tdist"

    def curve(self, t, p, x):
        # A clamped time in the place of branches, as in expansion_contraction; one term for each phase.
        end = _end(p)
        fallen = _fall(p) * (jnp.minimum(t, end) / end)
        grown = x.growth_time(jnp.clip(t, end, p.tmax)) - x.growth_time(end)
        decline = ln_left(jnp.maximum(t - p.tmax, 0.0), p)
        return {"level": jnp.log(p.c0) + fallen + p.rho * grown + decline}

    def initial(self, p, x):
        return States(effector=p.c0, memory=jnp.zeros_like(p.c0))

    def rhs(self, t, y, p, x):
        end, after = _end(p), after_peak(y, p)
        rate = jnp.where(t < end, _fall(p) / end, x.growth(t) * p.rho)
        declining = t >= p.tmax
        return States(
            effector=jnp.where(declining, after.effector, rate * y.effector),
            memory=jnp.where(declining, after.memory, 0.0),
        )

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def breakpoints(self, p, x):
        return (_end(p), p.tmax)

    def guess(self, t, ln_level):
        grown, found = t > 3, {}
        if grown.any():  # before, the largest level is the infusion's
            found = ExpansionContraction().guess(t[grown], ln_level[grown])
        first = t < 0.5
        if first.any():
            found["c0"] = float(np.exp(np.max(ln_level[first])))
        return found


def _end(p):
    """Day of the minimum; the day of the peak if that comes first, which leaves no time to grow."""
    return jnp.minimum(p.tdist, p.tmax)


def _fall(p):
    """ln(cmin / c0)."""
    return jnp.log(p.cmax) - jnp.log(p.c0) - p.rho * (p.tmax - _end(p))
