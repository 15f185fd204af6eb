"""Expansion and contraction in blood, exchange with marrow, lymph node and spinal fluid."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure


class Parameters(NamedTuple):
    """Individual parameters; levels in the assay's unit, per size of the site."""

    foldx: Float[Array, "*n"]  # fold expansion up to tmax, of cells that stay in blood
    tmax: Float[Array, "*n"]  # day on which growth ends
    cmax: Float[Array, "*n"]  # level in blood at tmax if no cell left it
    alpha: Float[Array, "*n"]  # contraction rate in blood, per day
    fb: Float[Array, "*n"]  # fraction of the cells that persist, below 1
    beta: Float[Array, "*n"]  # loss rate of the persisting cells in blood, per day
    kin_bm: Float[Array, "*n"]  # blood to marrow, per day
    ratio_bm: Float[Array, "*n"]  # level in marrow over level in blood, at equilibrium
    size_bm: Float[Array, "*n"]  # size of the marrow over that of blood
    kin_ln: Float[Array, "*n"]  # the same of lymph nodes
    ratio_ln: Float[Array, "*n"]
    size_ln: Float[Array, "*n"]
    kin_csf: Float[Array, "*n"]  # the same of spinal fluid
    ratio_csf: Float[Array, "*n"]
    size_csf: Float[Array, "*n"]


class States(NamedTuple):
    """Levels of effectors and of memory in every site; (effector, memory) pairs are in the order of the sites."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    effector_bm: Float[Array, "*n"]
    memory_bm: Float[Array, "*n"]
    effector_ln: Float[Array, "*n"]
    memory_ln: Float[Array, "*n"]
    effector_csf: Float[Array, "*n"]
    memory_csf: Float[Array, "*n"]


_FB_MAX = 1 - 1e-12  # a log-normal fb can exceed 1: there all cells persist
_LEAST = 1e-12  # of the level at the infusion; logs of a level in a site that no cell has reached are taken of this


class SitesExchange(AbstractStructure[Parameters, States]):
    """First-order exchange of blood with three sites; no antigen, and no growth or loss outside of blood::

        E' = rho E - sum_s kin_s (E - E_s / ratio_s)       cells in blood that will not persist, up to tmax
        M' = rho M - sum_s kin_s (M - M_s / ratio_s)       those that will;  rho = ln(foldx) / tmax
        after tmax: -alpha E in the place of rho E, -beta M in the place of rho M
        E_s' = kin_s (E - E_s / ratio_s) / size_s          and the same for M_s;  s: bm, ln, csf
        E(0) = (1 - fb) cmax / foldx, M(0) = fb cmax / foldx
        level = E + M;  level_s = E_s + M_s

    Cells are level times size: without growth and loss their total is constant. With fast exchange every level is
    its ratio times that of blood; with none, blood follows ``expansion_contraction`` of the same parameters. Sizes
    are anatomy and are to be fixed: samples show ratios and rates. No published model has this structure with its
    numbers. The dose is not an input; a treatment multiplies rho. A small site with a small ratio exchanges within
    minutes: stiff.

    References
    ----------
    Blood kinetics: Stein AM et al., CPT Pharmacometrics Syst Pharmacol 2019;8:285-295, doi:10.1002/psp4.12388.
    Two-way exchange of CAR-T cells with a tissue: Singh AP et al., CPT Pharmacometrics Syst Pharmacol
    2021;10:362-376, doi:10.1002/psp4.12598.
    """

    name = "sites_exchange"
    parameters = Parameters
    states = States
    outputs = ("level", "level_bm", "level_ln", "level_csf")
    stiff = True
    treatable = True
    falls_by = "exchange with the sites"

    def initial(self, p, x):
        fb, first = jnp.minimum(p.fb, _FB_MAX), p.cmax / p.foldx
        return States((1 - fb) * first, fb * first, *(jnp.zeros_like(first),) * 6)

    def rhs(self, t, y, p, x):
        growing, rho = t < p.tmax, x.growth(t) * jnp.log(p.foldx) / p.tmax
        effector = jnp.where(growing, rho, -p.alpha) * y.effector
        memory = jnp.where(growing, rho, -p.beta) * y.memory
        sites = []
        for kin, ratio, size, e, m in zip(p[6::3], p[7::3], p[8::3], y[2::2], y[3::2], strict=True):
            e_out, m_out = kin * (y.effector - e / ratio), kin * (y.memory - m / ratio)
            effector, memory = effector - e_out, memory - m_out
            sites += [e_out / size, m_out / size]
        return States(effector, memory, *sites)

    def output(self, y, p):
        totals = [jnp.maximum(e + m, _LEAST * p.cmax / p.foldx) for e, m in zip(y[::2], y[1::2], strict=True)]
        return dict(zip(self.outputs, map(jnp.log, totals), strict=True))

    def breakpoints(self, p, x):
        return (p.tmax,)

    def guess(self, t, ln_level):
        peak = int(np.argmax(ln_level))
        return {"tmax": float(max(t[peak], 1.0))}
