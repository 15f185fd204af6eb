"""The equations, one file each. A new structure is a new file and one line here."""

from carkinetics.structure import AbstractStructure
from carkinetics.structures.effector_memory_antigen import EffectorMemoryAntigen
from carkinetics.structures.expansion_contraction import ExpansionContraction
from carkinetics.structures.expansion_contraction_sites import ExpansionContractionSites
from carkinetics.structures.four_phases import FourPhases
from carkinetics.structures.lag_expansion_contraction import LagExpansionContraction
from carkinetics.structures.saturable_growth import SaturableGrowth
from carkinetics.structures.smooth_gates import SmoothGates

STRUCTURES: dict[str, AbstractStructure] = {
    s.name: s
    for s in (
        EffectorMemoryAntigen(),
        ExpansionContraction(),
        ExpansionContractionSites(),
        FourPhases(),
        LagExpansionContraction(),
        SaturableGrowth(),
        SmoothGates(),
    )
}
