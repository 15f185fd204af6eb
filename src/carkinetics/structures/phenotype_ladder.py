"""CAR-T cells differentiate from naive to effector while they meet the tumour, and every step of the way kills."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from carkinetics.structure import AbstractStructure, level


class Parameters(NamedTuple):
    """Individual parameters."""

    vmax1: Float[Array, "*n"]  # largest expansion of a phenotype, cells/uL per day and mL of tumour
    km1: Float[Array, "*n"]  # level of a phenotype at which its expansion is half of that, cells/uL
    kp_naive: Float[Array, "*n"]  # homeostatic proliferation of naive cells, per day
    kp_memory: Float[Array, "*n"]  # homeostatic proliferation of central and effector memory cells, per day
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
    t0: Float[Array, "*n"]  # level of every phenotype at the infusion, cells/uL
    b0: Float[Array, "*n"]  # tumour volume at the infusion, mL


class Cells(NamedTuple):
    """One lineage of CAR-T cells, cells/uL."""

    naive: Float[Array, "*n"]
    central_memory: Float[Array, "*n"]
    effector_memory: Float[Array, "*n"]
    effector: Float[Array, "*n"]


class States(NamedTuple):
    """Cells in cells/uL, tumour in mL."""

    cells: Cells
    tumour: Float[Array, "*n"]


def ladder(cells: Cells, phenotypes: Cells, vmax, p, growth) -> Cells:
    """Rates of a lineage of which every phenotype shares its expansion ``vmax`` with all cells of that phenotype."""

    def expand(own, phenotype, homeostasis):
        return growth * (vmax / (p.km1 + phenotype) + homeostasis) * own

    tn, tcm, tem, teff = cells
    return Cells(
        naive=expand(tn, phenotypes.naive, p.kp_naive) - (p.k12 + p.ke) * tn,
        central_memory=expand(tcm, phenotypes.central_memory, p.kp_memory) + p.k12 * tn - (p.k23 + p.ke) * tcm,
        effector_memory=expand(tem, phenotypes.effector_memory, p.kp_memory) + p.k23 * tcm - (p.k34 + p.ke) * tem,
        effector=p.k34 * tem - p.ke4 * teff,
    )


def tumour_rate(tumour, cells: Cells, p):
    """Logistic growth of the tumour, and its killing by every phenotype."""
    tn, tcm, tem, teff = cells
    killing = p.vmax5_1 * tn + p.vmax5_2 * tcm + p.vmax5_3 * tem + p.vmax5_4 * teff
    return p.k5 * (1 - tumour / p.k0) * tumour - killing * tumour / (p.km5 + tumour)


class PhenotypeLadder(AbstractStructure[Parameters, States]):
    """Mueller-Schoell's model of axicabtagene ciloleucel: four phenotypes and the tumour volume B.

    TN' = vmax1 B TN / (km1 + TN) + (kp_naive - k12 - ke) TN
    TCM' = vmax1 B TCM / (km1 + TCM) + (kp_memory - k23 - ke) TCM + k12 TN
    TEM' = vmax1 B TEM / (km1 + TEM) + (kp_memory - k34 - ke) TEM + k23 TCM
    TEff' = k34 TEM - ke4 TEff
    B' = k5 (1 - B / k0) B - (vmax5_1 TN + vmax5_2 TCM + vmax5_3 TEM + vmax5_4 TEff) B / (km5 + B)

    Every phenotype starts at t0, the tumour at b0; the level is the sum of the four. The dose is not an input. A
    treatment multiplies both proliferations, by antigen and homeostatic.

    References
    ----------
    Mueller-Schoell A et al., Cancers 2021;13(11):2782, doi:10.3390/cancers13112782.
    """

    name = "phenotype_ladder"
    parameters = Parameters
    states = States
    outputs = ("level", "naive", "central_memory", "effector_memory", "effector", "tumour")
    treatable = True
    # A large tumour expands the first cells by 25 a day, until a phenotype is as many as km1. Effectors follow effector
    # memory within days: steps of 6 / refine days must stay stable where they die at two a day.
    refine = 4

    def initial(self, p, x):
        return States(cells=Cells(p.t0, p.t0, p.t0, p.t0), tumour=p.b0)

    def rhs(self, t, y, p, x):
        return States(
            cells=ladder(y.cells, y.cells, p.vmax1 * y.tumour, p, x.growth(t)),
            tumour=tumour_rate(y.tumour, y.cells, p),
        )

    def output(self, y, p):
        ln = {name: jnp.log(cells) for name, cells in y.cells._asdict().items()}
        return {"level": jnp.log(sum(y.cells)), **ln, "tumour": jnp.log(y.tumour)}

    def to_coordinates(self, y, p):
        return States(Cells(*map(jnp.log, y.cells)), jnp.log(y.tumour))

    def from_coordinates(self, u, p):
        return States(Cells(*map(level, u.cells)), level(u.tumour))
