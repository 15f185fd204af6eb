"""A lag, then exponential expansion to a peak, a fast contraction and a slow persistence."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure
from carkinetics.structures.expansion_contraction import ExpansionContraction, States, after_peak, ln_left


class Parameters(NamedTuple):
    """Individual parameters."""

    tlag: Float[Array, "*n"]  # day on which growth begins
    tdouble: Float[Array, "*n"]  # doubling time of growing cells, day
    tmax: Float[Array, "*n"]  # day of the peak
    cmax: Float[Array, "*n"]  # level at the peak, in the assay's unit
    alpha: Float[Array, "*n"]  # contraction rate, per day
    fb: Float[Array, "*n"]  # fraction of the peak that persists, below 1
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day


class LagExpansionContraction(AbstractStructure[Parameters, States]):
    """Ogasawara's model of lisocabtagene::

        t < tlag:         C = C0
        tlag <= t < tmax: C = C0 2^((t - tlag) / tdouble)
        tmax <= t:        C = cmax ((1 - fb) exp(-alpha (t - tmax)) + fb exp(-beta (t - tmax)))
        C0 = cmax 2^(-(tmax - tlag) / tdouble)

    The lag, the doubling time and the day of the peak are what the paper reports. ``cmax`` stands for ``C0``, which
    follows from it: the peak is measured, the level during the lag is mostly below the limit of quantification. The
    half-lives ``ln 2 / alpha`` and ``ln 2 / beta`` stand as rates, as in ``expansion_contraction``; on the log scale
    the two differ by a sign only. A peak before the end of the lag means no growth: ``cmax`` until ``tmax``.
    The dose is not an input. A treatment divides ``tdouble`` from its day on, so that a treated patient's peak is no
    longer ``cmax``.

    References
    ----------
    Ogasawara K et al., Clin Pharmacokinet 2021;60:1621-1633, doi:10.1007/s40262-021-01039-5.
    """

    name = "lag_expansion_contraction"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True

    def curve(self, t, p, x):
        # A clamped time in the place of branches, as in expansion_contraction.
        begin = _begin(p)
        grown = x.growth_time(jnp.clip(t, begin, p.tmax)) - x.growth_time(begin) - (p.tmax - begin)
        decline = ln_left(jnp.maximum(t - p.tmax, 0.0), p)
        return {"level": jnp.log(p.cmax) + _rate(p) * grown + decline}

    def initial(self, p, x):
        return States(effector=p.cmax * jnp.exp(-_rate(p) * (p.tmax - _begin(p))), memory=jnp.zeros_like(p.cmax))

    def rhs(self, t, y, p, x):
        declining, after = t >= p.tmax, after_peak(y, p)
        growth = jnp.where(t >= p.tlag, x.growth(t) * _rate(p), 0.0) * y.effector
        return States(jnp.where(declining, after.effector, growth), jnp.where(declining, after.memory, 0.0))

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def breakpoints(self, p, x):
        return (p.tlag, p.tmax)

    def guess(self, t, ln_level):
        return ExpansionContraction().guess(t, ln_level)


def _begin(p):
    """Day on which growth begins; the day of the peak if that comes first, which leaves no time to grow."""
    return jnp.minimum(p.tlag, p.tmax)


def _rate(p):
    return math.log(2.0) / p.tdouble
