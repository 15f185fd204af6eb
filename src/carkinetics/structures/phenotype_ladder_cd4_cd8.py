"""The ladder of phenotypes in two lineages, of which CD8 cells expand faster than CD4 cells."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level
from carkinetics.structures.phenotype_ladder import Cells, ladder, tumour_rate


class Parameters(NamedTuple):
    """Individual parameters; those that are not named here are those of ``phenotype_ladder``, of either lineage."""

    vmax1: Float[Array, "*n"]  # largest expansion of a CD8 phenotype, cells/uL per day and mL of tumour
    ratio: Float[Array, "*n"]  # expansion of CD8 cells over that of CD4 cells
    cd4_share: Float[Array, "*n"]  # share of CD4 cells among the cells infused, below 1
    km1: Float[Array, "*n"]  # level of a phenotype (both lineages) at half of the largest expansion, cells/uL
    kp_naive: Float[Array, "*n"]  # homeostatic proliferation of naive cells, per day
    kp_memory: Float[Array, "*n"]  # homeostatic proliferation of memory cells, per day
    k12: Float[Array, "*n"]  # naive to central memory, per day
    k23: Float[Array, "*n"]  # central to effector memory, per day
    k34: Float[Array, "*n"]  # effector memory to effector, per day
    ke: Float[Array, "*n"]  # death of naive and memory cells, per day
    ke4: Float[Array, "*n"]  # death of effectors, per day
    vmax5_1: Float[Array, "*n"]  # largest killing by naive cells, mL per day and cells/uL
    vmax5_2: Float[Array, "*n"]  # largest killing by central memory cells, mL per day and cells/uL
    vmax5_3: Float[Array, "*n"]  # largest killing by effector memory cells, mL per day and cells/uL
    vmax5_4: Float[Array, "*n"]  # largest killing by effectors, mL per day and cells/uL
    km5: Float[Array, "*n"]  # tumour volume at which killing is half of its largest, mL
    k5: Float[Array, "*n"]  # tumour growth, per day
    k0: Float[Array, "*n"]  # largest tumour volume, mL
    t0: Float[Array, "*n"]  # level of every phenotype (both lineages) at the infusion, cells/uL
    b0: Float[Array, "*n"]  # tumour volume at the infusion, mL


class States(NamedTuple):
    """Cells in cells/uL, tumour in mL."""

    cd4: Cells
    cd8: Cells
    tumour: Float[Array, "*n"]


# A log-normal share can reach 1, where there is no CD8 cell and no log of one.
_SHARE_MAX = 1 - 1e-9


class PhenotypeLadderCd4Cd8(AbstractStructure[Parameters, States]):
    """Mueller-Schoell's ladder of phenotypes, with CD4 and CD8 cells apart as in Park's model.

    For each phenotype i of TN, TCM, TEM and lineage c of CD4, CD8:
    Tci' = v_c B Tci / (km1 + T4i + T8i) + (kp_i - k_out_i - ke) Tci + k_in_i Tc(i-1)
    v_8 = vmax1, v_4 = vmax1 / ratio
    TcEff' = k34 TcEM - ke4 TcEff
    B' = k5 (1 - B / k0) B - sum_i vmax5_i (T4i + T8i) B / (km5 + B)

    Both lineages differentiate, die and kill alike and differ in their expansion alone. That is Park's assumption, with
    a ratio of 1.12 (from Salem 2023); everything else of Park's model (CAR-antigen complexes, marrow, B cells of
    lupus) is not here, and nobody has published numbers for this combination: it is an example to start from. With a
    ratio of 1 the sums are those of ``phenotype_ladder``. The dose is not an input.

    References
    ----------
    Park H et al., Clin Transl Sci 2025;18(2):e70146, doi:10.1111/cts.70146 (lineages and their ratio).
    Mueller-Schoell A et al., Cancers 2021;13(11):2782, doi:10.3390/cancers13112782 (ladder and tumour).
    """

    name = "phenotype_ladder_cd4_cd8"
    parameters = Parameters
    states = States
    outputs = ("level", "cd4", "cd8", "naive", "central_memory", "effector_memory", "effector", "tumour")
    treatable = True
    refine = 4  # as phenotype_ladder

    def initial(self, p, x):
        share = jnp.minimum(p.cd4_share, _SHARE_MAX)
        return States(Cells(*4 * (share * p.t0,)), Cells(*4 * ((1 - share) * p.t0,)), tumour=p.b0)

    def rhs(self, t, y, p, x):
        both, growth, v = _both(y), x.growth(t), p.vmax1 * y.tumour
        return States(
            cd4=ladder(y.cd4, both, v / p.ratio, p, growth),
            cd8=ladder(y.cd8, both, v, p, growth),
            tumour=tumour_rate(y.tumour, both, p),
        )

    def output(self, y, p):
        both = _both(y)
        ln = {name: jnp.log(cells) for name, cells in both._asdict().items()}
        lineages = {"cd4": jnp.log(sum(y.cd4)), "cd8": jnp.log(sum(y.cd8))}
        return {"level": jnp.log(sum(both)), **lineages, **ln, "tumour": jnp.log(y.tumour)}

    def to_coordinates(self, y, p):
        return States(Cells(*map(jnp.log, y.cd4)), Cells(*map(jnp.log, y.cd8)), jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        return States(Cells(*map(level, u.cd4)), Cells(*map(level, u.cd8)), level(u.tumour))


def _both(y: States) -> Cells:
    """Cells of either lineage, by phenotype."""
    return Cells(*(four + eight for four, eight in zip(y.cd4, y.cd8, strict=True)))
