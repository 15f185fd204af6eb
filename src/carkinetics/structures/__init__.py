"""The equations, one file each. A new structure is a new file and one line here."""

from carkinetics.structure import AbstractStructure
from carkinetics.structures.effector_memory_antigen import EffectorMemoryAntigen
from carkinetics.structures.expansion_contraction import ExpansionContraction

STRUCTURES: dict[str, AbstractStructure] = {s.name: s for s in (EffectorMemoryAntigen(), ExpansionContraction())}
