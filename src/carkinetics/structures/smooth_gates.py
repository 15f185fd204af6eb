"""Expansion and contraction with S-shaped gates in the place of the switch at the peak."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure
from carkinetics.structures.expansion_contraction import ExpansionContraction, States, after_peak, ln_left


class Parameters(NamedTuple):
    """Individual parameters."""

    foldx: Float[Array, "*n"]  # fold expansion from the first cells to cmax
    tmax: Float[Array, "*n"]  # day on which the gates are half open
    cmax: Float[Array, "*n"]  # where growth and contraction would meet if the gates opened at once
    alpha: Float[Array, "*n"]  # contraction rate, per day
    fb: Float[Array, "*n"]  # fraction of the peak that persists, below 1
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day
    width: Float[Array, "*n"]  # of the gates, day: from 12 % to 88 % open in four widths


_FAR = 1e6  # day; "never" where arithmetic must stay finite


class SmoothGates(AbstractStructure[Parameters, States]):
    """Growth fades out while contraction fades in::

        g(t) = 1 / (1 + exp(-(t - tmax) / width)),  rho = ln(foldx) / tmax
        E' = (1 - g) rho E - g alpha E
        M' = (1 - g) rho M + g (fb (alpha - beta) E - beta M)
        level = E + M

    Logistic gates have an integral, so that the curve is a closed form: ``s = width ln(1 + exp((t - tmax) / width))``
    days of contraction have passed at ``t``, and ``t - s`` days of growth. As ``width`` goes to 0 this is
    ``expansion_contraction``. Growth is constant, so that only the gates differ from it; the authors found growth that
    saturates to fit better (``saturable_growth`` has it, with a switch). The highest level comes
    ``width ln(rho / alpha)`` days after ``tmax`` (where few cells persist), and the level at ``tmax`` is
    ``2^(-width (rho + alpha)) cmax``: compare peaks of curves, not these two parameters, with those of other models.
    The dose is not an input. A treatment multiplies ``rho`` from its day on.

    References
    ----------
    Li Y, Cheng Y 2026, doi:10.64898/2026.03.01.708830 (gates; from the abstract, so that the equations are this
    library's), on Stein AM et al. 2019, doi:10.1002/psp4.12388.
    """

    name = "smooth_gates"
    parameters = Parameters
    states = States
    outputs = ("level",)
    treatable = True

    def curve(self, t, p, x):
        # In its own time, growth is never gated: a treatment's day is moved into that time with the samples.
        begin = _grown(jnp.zeros(()), p)
        inside = dataclasses.replace(x, since=_grown(jnp.minimum(x.since, _FAR), p) - begin)
        grown = inside.growth_time(_grown(t, p) - begin)
        growth = jnp.log(p.foldx) / p.tmax * (begin + grown - p.tmax)
        return {"level": jnp.log(p.cmax) + growth + ln_left(_contracted(t, p), p)}

    def initial(self, p, x):
        # The gates are never quite closed: at the infusion a trace of contraction has passed.
        s = _contracted(jnp.zeros(()), p)
        first = p.cmax * jnp.exp(-jnp.log(p.foldx) / p.tmax * (p.tmax + s))
        converted = -p.fb * jnp.exp(-p.beta * s) * jnp.expm1((p.beta - p.alpha) * s)
        return States(effector=first * jnp.exp(-p.alpha * s), memory=first * converted)

    def rhs(self, t, y, p, x):
        gate, after = jax.nn.sigmoid((t - p.tmax) / p.width), after_peak(y, p)
        growth = (1 - gate) * x.growth(t) * jnp.log(p.foldx) / p.tmax
        return States(growth * y.effector + gate * after.effector, growth * y.memory + gate * after.memory)

    def output(self, y, p):
        return {"level": jnp.log(y.effector + y.memory)}

    def guess(self, t, ln_level):
        return ExpansionContraction().guess(t, ln_level)


def _contracted(t, p):
    """Days of contraction that have passed at ``t``: the integral of the gate."""
    return p.width * jax.nn.softplus((t - p.tmax) / p.width)


def _grown(t, p):
    """Days of growth that have passed at ``t``, without the difference of two large numbers; ``tmax`` in the end."""
    return p.tmax - p.width * jax.nn.softplus((p.tmax - t) / p.width)
