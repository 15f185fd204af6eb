"""The equations, one file each. A new structure is a new file and one line here."""

from carkinetics.structure import AbstractStructure
from carkinetics.structures.car_binding import CarBinding
from carkinetics.structures.cytokine_release import CytokineRelease
from carkinetics.structures.cytokines import Cytokines
from carkinetics.structures.effector_memory_antigen import EffectorMemoryAntigen
from carkinetics.structures.expansion_contraction import ExpansionContraction
from carkinetics.structures.sites_exchange import SitesExchange

_ALL = (
    CarBinding(),
    CytokineRelease(),
    Cytokines(),
    EffectorMemoryAntigen(),
    ExpansionContraction(),
    SitesExchange(),
)
STRUCTURES: dict[str, AbstractStructure] = {s.name: s for s in _ALL}
