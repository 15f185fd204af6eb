"""The equations, one file each. A new structure is a new file and one line here."""

from carkinetics.structure import AbstractStructure
from carkinetics.structures.competition import Competition
from carkinetics.structures.effector_memory_antigen import EffectorMemoryAntigen
from carkinetics.structures.expansion_contraction import ExpansionContraction
from carkinetics.structures.phenotype_ladder import PhenotypeLadder
from carkinetics.structures.phenotype_ladder_cd4_cd8 import PhenotypeLadderCd4Cd8
from carkinetics.structures.tumour_escape import TumourEscape

STRUCTURES: dict[str, AbstractStructure] = {
    s.name: s
    for s in (
        Competition(),
        EffectorMemoryAntigen(),
        ExpansionContraction(),
        PhenotypeLadder(),
        PhenotypeLadderCd4Cd8(),
        TumourEscape(),
    )
}
