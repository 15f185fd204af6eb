"""Expansion and contraction in blood; marrow, lymph node and spinal fluid follow at a constant ratio."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure
from carkinetics.structures.expansion_contraction import ExpansionContraction, States


class Parameters(NamedTuple):
    """Individual parameters."""

    foldx: Float[Array, "*n"]  # fold expansion from the first cells to the peak
    tmax: Float[Array, "*n"]  # day of the peak
    cmax: Float[Array, "*n"]  # level at the peak in blood, in the assay's unit
    alpha: Float[Array, "*n"]  # contraction rate, per day
    fb: Float[Array, "*n"]  # fraction of the peak that persists, below 1
    beta: Float[Array, "*n"]  # loss rate of the persisting cells, per day
    ratio_bm: Float[Array, "*n"]  # marrow over blood
    ratio_ln: Float[Array, "*n"]  # lymph node over blood
    ratio_csf: Float[Array, "*n"]  # spinal fluid over blood


# Any: it reads the parameters that it shares with this structure by their names.
_BLOOD: Any = ExpansionContraction()


class ExpansionContractionSites(AbstractStructure[Parameters, States]):
    """Stein's model in blood, with the other sites in proportion to it::

        level     = as expansion_contraction, of foldx, tmax, cmax, alpha, fb, beta
        level_bm  = ratio_bm  * level
        level_ln  = ratio_ln  * level
        level_csf = ratio_csf * level

    A constant ratio is what few paired samples can tell: it says nothing of when cells arrive at a site, and a site
    that fills later or empties more slowly than blood shows as a residual that depends on time. The dose is not an
    input.

    References
    ----------
    Stein AM et al., CPT Pharmacometrics Syst Pharmacol 2019;8:285-295, doi:10.1002/psp4.12388 (blood); the ratios
    are an assumption of this library.
    """

    name = "expansion_contraction_sites"
    parameters = Parameters
    states = States
    outputs = ("level", "level_bm", "level_ln", "level_csf")
    treatable = True

    def curve(self, t, p, x):
        return _sites(_BLOOD.curve(t, p, x)["level"], p)

    def initial(self, p, x):
        return _BLOOD.initial(p, x)

    def rhs(self, t, y, p, x):
        return _BLOOD.rhs(t, y, p, x)

    def output(self, y, p):
        return _sites(_BLOOD.output(y, p)["level"], p)

    def breakpoints(self, p, x):
        return _BLOOD.breakpoints(p, x)

    def guess(self, t, ln_level):
        return _BLOOD.guess(t, ln_level)


def _sites(blood, p):
    return {
        "level": blood,
        "level_bm": blood + jnp.log(p.ratio_bm),
        "level_ln": blood + jnp.log(p.ratio_ln),
        "level_csf": blood + jnp.log(p.ratio_csf),
    }
