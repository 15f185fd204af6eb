"""The equations, one file each. A new structure is a new file and one line here."""

from carkinetics.structure import AbstractStructure
from carkinetics.structures.antigen_expansion import AntigenExpansion
from carkinetics.structures.cartmath import Cartmath
from carkinetics.structures.effector_memory import EffectorMemory
from carkinetics.structures.effector_memory_antigen import EffectorMemoryAntigen
from carkinetics.structures.exhaustion import Exhaustion
from carkinetics.structures.expansion_contraction import ExpansionContraction
from carkinetics.structures.first_order_expansion import FirstOrderExpansion
from carkinetics.structures.predator_prey import PredatorPrey

STRUCTURES: dict[str, AbstractStructure] = {
    s.name: s
    for s in (
        AntigenExpansion(),
        Cartmath(),
        EffectorMemory(),
        EffectorMemoryAntigen(),
        Exhaustion(),
        ExpansionContraction(),
        FirstOrderExpansion(),
        PredatorPrey(),
    )
}
