"""Effector and memory cells in blood and tissue, leukaemic B cells, and the cytokines that they make together."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters; cells in 1e9, cytokines in pg/mL."""

    r_e: Float[Array, "*n"]  # effector growth, per day and 1e9 B cells
    d_e: Float[Array, "*n"]  # effector loss, per day
    a_e: Float[Array, "*n"]  # effector to memory without B cells, per day
    r_m: Float[Array, "*n"]  # memory growth, per day
    d_m: Float[Array, "*n"]  # memory loss, per day
    a_m: Float[Array, "*n"]  # memory to effector among many B cells, per day
    h: Float[Array, "*n"]  # B cells at which both conversions are at half their rate, 1e9
    k_in: Float[Array, "*n"]  # blood to tissue, per day
    k_out: Float[Array, "*n"]  # tissue to blood, per day
    b0: Float[Array, "*n"]  # B cells in blood at the infusion, 1e9
    r_b: Float[Array, "*n"]  # B-cell growth, per day
    d_b: Float[Array, "*n"]  # B-cell death, per day
    k_bc: Float[Array, "*n"]  # B-cell killing, per day and 1e9 effectors
    p_il6: Float[Array, "*n"]  # production, pg/mL per day, 1e9 B cells and 1e9 effectors
    d_il6: Float[Array, "*n"]  # loss, per day
    base_il6: Float[Array, "*n"]  # without CAR-T cells, pg/mL
    p_il10: Float[Array, "*n"]  # as of IL-6
    d_il10: Float[Array, "*n"]
    base_il10: Float[Array, "*n"]
    p_ifng: Float[Array, "*n"]  # as of IL-6, without IL-10
    d_ifng: Float[Array, "*n"]
    base_ifng: Float[Array, "*n"]
    a_g: Float[Array, "*n"]  # part of the IFN-gamma production that IL-10 cannot inhibit
    b_g: Float[Array, "*n"]  # IL-10 of half-maximal inhibition, pg/mL


class States(NamedTuple):
    """Cells in 1e9; cytokines in blood in pg/mL."""

    effector: Float[Array, "*n"]
    memory: Float[Array, "*n"]
    effector_tissue: Float[Array, "*n"]
    memory_tissue: Float[Array, "*n"]
    tumour: Float[Array, "*n"]
    il6: Float[Array, "*n"]
    il10: Float[Array, "*n"]
    ifng: Float[Array, "*n"]


_CELLS = 1e9
_LEAST = 1e-15  # 1e9 cells: a millionth of a cell; logs are taken of no fewer


class Cytokines(AbstractStructure[Parameters, States]):
    """B cells drive effectors and, together with them, cytokines (Hardiansyah and Ng's model of CTL019 in CLL)::

        EP' = r_e EP B - d_e EP - k_in EP + k_out ET - a_e EP (1 - f) + a_m MP f     effectors in blood
        MP' = r_m MP - d_m MP - k_in MP + k_out MT + a_e EP (1 - f) - a_m MP f       memory in blood
        ET' = k_in EP - k_out ET                                                     effectors in tissue
        MT' = k_in MP - k_out MT                                                     memory in tissue
        B'  = r_b B - d_b B - k_bc EP B                                              B cells in blood
        IL6'  = d_il6  (base_il6  - IL6)  + p_il6  B EP
        IL10' = d_il10 (base_il10 - IL10) + p_il10 B EP
        IFNG' = d_ifng (base_ifng - IFNG) + p_ifng B EP (a_g + (1 - a_g) b_g / (b_g + IL10))
        f = B / (B + h);  level = EP + MP (1e9 cells in blood)

    The dose enters EP. Eq. 7 (MP') is printed with ``a_e MP (1 - f)``: a misprint, since memory starts at zero and
    would stay there, and EP loses ``a_e EP (1 - f)``, which is what the paper's Figure 1a draws. A treatment
    multiplies ``r_e``. k_in is about 77 per day: stiff.

    References
    ----------
    Hardiansyah D, Ng CM, Clin Transl Sci 2019;12:343-349, doi:10.1111/cts.12636.
    """

    name = "cytokines"
    parameters = Parameters
    states = States
    outputs = ("level", "memory", "tumour", "il6", "il10", "ifng")
    stiff = True
    refine = 2
    uses_dose = True
    treatable = True
    falls_by = "distribution to the tissue"

    def initial(self, p, x):
        none = jnp.zeros_like(p.b0 * x.dose)
        return States(
            effector=x.dose / _CELLS + none,
            memory=none,
            effector_tissue=none,
            memory_tissue=none,
            tumour=p.b0,
            il6=p.base_il6,
            il10=p.base_il10,
            ifng=p.base_ifng,
        )

    def infuse(self, y, dose, p):
        return y._replace(effector=y.effector + dose / _CELLS)

    def rhs(self, t, y, p, x):
        growth = x.growth(t) * p.r_e * y.tumour
        # 1 - f is written as it is: h / (B + h).
        to_memory = (p.a_e * y.effector * p.h - p.a_m * y.memory * y.tumour) / (y.tumour + p.h)
        effector_out = p.k_in * y.effector - p.k_out * y.effector_tissue
        memory_out = p.k_in * y.memory - p.k_out * y.memory_tissue
        activation = y.tumour * y.effector
        inhibited = p.a_g + (1 - p.a_g) * p.b_g / (p.b_g + y.il10)
        return States(
            effector=(growth - p.d_e) * y.effector - effector_out - to_memory,
            memory=(p.r_m - p.d_m) * y.memory - memory_out + to_memory,
            effector_tissue=effector_out,
            memory_tissue=memory_out,
            tumour=(p.r_b - p.d_b - p.k_bc * y.effector) * y.tumour,
            il6=p.d_il6 * (p.base_il6 - y.il6) + p.p_il6 * activation,
            il10=p.d_il10 * (p.base_il10 - y.il10) + p.p_il10 * activation,
            ifng=p.d_ifng * (p.base_ifng - y.ifng) + p.p_ifng * activation * inhibited,
        )

    def output(self, y, p):
        return {
            "level": jnp.log(jnp.maximum(y.effector + y.memory, _LEAST)),
            "memory": jnp.log(jnp.maximum(y.memory, _LEAST)),
            "tumour": jnp.log(y.tumour),
            "il6": jnp.log(y.il6),
            "il10": jnp.log(y.il10),
            "ifng": jnp.log(y.ifng),
        }

    def to_coordinates(self, y, p):
        return y._replace(tumour=jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        return u._replace(tumour=level(u.tumour))
