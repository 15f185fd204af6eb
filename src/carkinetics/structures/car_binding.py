"""CARs bind antigen in the marrow: bound CARs drive expansion, bound antigen drives killing."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters."""

    kexp: Float[Array, "*n"]  # largest expansion rate of effectors in the marrow, per day
    ec50: Float[Array, "*n"]  # complexes per CAR-T cell of half-maximal expansion
    rm: Float[Array, "*n"]  # effector to memory in the marrow, per day
    kel_e: Float[Array, "*n"]  # loss of effectors from blood, per day
    kel_m: Float[Array, "*n"]  # loss of memory from blood, per day
    k12: Float[Array, "*n"]  # blood to marrow, per day
    k21: Float[Array, "*n"]  # marrow to blood, per day
    kkill: Float[Array, "*n"]  # largest killing rate of tumour cells, per day
    kc50: Float[Array, "*n"]  # complexes per tumour cell of half-maximal killing
    kg: Float[Array, "*n"]  # growth rate of the tumour, per day
    b0: Float[Array, "*n"]  # tumour at the infusion, cells per L of marrow
    kon: Float[Array, "*n"]  # association of CAR and antigen, per M and s
    koff: Float[Array, "*n"]  # dissociation, per s
    n_car: Float[Array, "*n"]  # CARs per CAR-T cell
    n_ag: Float[Array, "*n"]  # antigens per tumour cell
    transc: Float[Array, "*n"]  # copies/ug per (CAR-T cell per L)
    v_blood: Float[Array, "*n"]  # blood, L
    v_bm: Float[Array, "*n"]  # marrow, L


class States(NamedTuple):
    """CAR-T cells (numbers), complexes per tumour cell, tumour cells per L of marrow."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    effector_bm: Float[Array, "*n"]
    memory_bm: Float[Array, "*n"]
    bound: Float[Array, "*n"]
    tumour: Float[Array, "*n"]


_PER_M_S = 86_400 / 6.02214076e23  # 1/(M s) in L per molecule and day
_PER_S = 86_400  # 1/s in 1/day
_SCALE = 1e9  # cells; keeps all coordinates of a like size, as the linear algebra of a step wants
# CAR-T cells per L of marrow that make complexes per cell finite before any has arrived: the published code starts
# with as many effectors there instead.
_GUARD = 1e-6
_LEAST = 1e-6  # cells; logs are taken of no fewer


class CarBinding(AbstractStructure[Parameters, States]):
    """Complexes of CAR and antigen between expansion and killing (Singh's clinical model of ide-cel)::

        EP' = -k12 EP + k21 ET - kel_e EP                  effectors in blood (cells)
        MP' = -k12 MP + k21 MT - kel_m MP                  memory in blood
        ET' = k12 EP - k21 ET + Kexp ET - rm ET            effectors in marrow
        MT' = k12 MP - k21 MT + rm ET                      memory in marrow
        C'  = kon (n_car T - C) (n_ag B - C) - koff C      complexes per L of marrow, T = (ET + MT) / v_bm
        B'  = kg B - Kkill B                               tumour cells per L of marrow
        Kexp  = kexp c / (ec50 + c),  c = C / T            complexes per CAR-T cell
        Kkill = kkill d / (kc50 + d), d = C / B            complexes per tumour cell
        level = transc (EP + MP) / v_blood;  level_bm = transc T

    The dose enters EP. The state is d in the place of C, which is the same equation without 0 / 0 when there are
    no cells yet or no tumour any more. The tumour's equation is that of the published code; the supplement's Eq. 18
    prints ET in the place of B. ``level_bm`` uses blood's ``transc``; the paper has no marrow samples. A treatment
    multiplies ``kexp``. koff is about 200 per day: stiff.

    References
    ----------
    Singh AP et al., CPT Pharmacometrics Syst Pharmacol 2021;10:362-376, doi:10.1002/psp4.12598.
    """

    name = "car_binding"
    parameters = Parameters
    states = States
    outputs = ("level", "tumour", "level_bm")
    stiff = True
    refine = 2
    uses_dose = True
    treatable = True
    falls_by = "distribution to the marrow"

    def initial(self, p, x):
        none = jnp.zeros_like(p.b0 * x.dose)
        return States(effector=x.dose + none, memory=none, effector_bm=none, memory_bm=none, bound=none, tumour=p.b0)

    def infuse(self, y, dose, p):
        return y._replace(effector=y.effector + dose)

    def rhs(self, t, y, p, x):
        cells = (y.effector_bm + y.memory_bm) / p.v_bm
        complexes = y.bound * y.tumour
        expansion = x.growth(t) * p.kexp * complexes / (p.ec50 * (cells + _GUARD) + complexes) * y.effector_bm
        tumour_growth = p.kg - p.kkill * y.bound / (p.kc50 + y.bound)
        binding = p.kon * _PER_M_S * (p.n_car * cells - complexes) * (p.n_ag - y.bound)
        to_memory = p.rm * y.effector_bm
        effector_out = p.k12 * y.effector - p.k21 * y.effector_bm
        memory_out = p.k12 * y.memory - p.k21 * y.memory_bm
        return States(
            effector=-effector_out - p.kel_e * y.effector,
            memory=-memory_out - p.kel_m * y.memory,
            effector_bm=effector_out + expansion - to_memory,
            memory_bm=memory_out + to_memory,
            bound=binding - p.koff * _PER_S * y.bound - tumour_growth * y.bound,
            tumour=tumour_growth * y.tumour,
        )

    def output(self, y, p):
        blood, marrow = (jnp.log(jnp.maximum(e + m, _LEAST)) for e, m in (y[:2], y[2:4]))
        return {
            "level": blood + jnp.log(p.transc / p.v_blood),
            "tumour": jnp.log(y.tumour),
            "level_bm": marrow + jnp.log(p.transc / p.v_bm),
        }

    def to_coordinates(self, y, p):
        return (*(cells / _SCALE for cells in y[:4]), y.bound, jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        effector, memory, effector_bm, memory_bm = (cells * _SCALE for cells in u[:4])
        return States(effector, memory, effector_bm, memory_bm, u[4], level(u[5]))
