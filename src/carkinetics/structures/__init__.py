"""The equations, one file each. A new structure is a new file and one line here."""

from carkinetics.structure import AbstractStructure
from carkinetics.structures.antigen_expansion import AntigenExpansion
from carkinetics.structures.car_binding import CarBinding
from carkinetics.structures.cartmath import Cartmath
from carkinetics.structures.competition import Competition
from carkinetics.structures.cytokine_release import CytokineRelease
from carkinetics.structures.cytokines import Cytokines
from carkinetics.structures.effector_memory import EffectorMemory
from carkinetics.structures.effector_memory_antigen import EffectorMemoryAntigen
from carkinetics.structures.exhaustion import Exhaustion
from carkinetics.structures.expansion_contraction import ExpansionContraction
from carkinetics.structures.expansion_contraction_sites import ExpansionContractionSites
from carkinetics.structures.first_order_expansion import FirstOrderExpansion
from carkinetics.structures.four_phases import FourPhases
from carkinetics.structures.lag_expansion_contraction import LagExpansionContraction
from carkinetics.structures.phenotype_ladder import PhenotypeLadder
from carkinetics.structures.phenotype_ladder_cd4_cd8 import PhenotypeLadderCd4Cd8
from carkinetics.structures.predator_prey import PredatorPrey
from carkinetics.structures.saturable_growth import SaturableGrowth
from carkinetics.structures.sites_exchange import SitesExchange
from carkinetics.structures.smooth_gates import SmoothGates
from carkinetics.structures.target_driven import TargetDriven
from carkinetics.structures.tumour_escape import TumourEscape

STRUCTURES: dict[str, AbstractStructure] = {
    s.name: s
    for s in (
        AntigenExpansion(),
        CarBinding(),
        Cartmath(),
        Competition(),
        CytokineRelease(),
        Cytokines(),
        EffectorMemory(),
        EffectorMemoryAntigen(),
        Exhaustion(),
        ExpansionContraction(),
        ExpansionContractionSites(),
        FirstOrderExpansion(),
        FourPhases(),
        LagExpansionContraction(),
        PhenotypeLadder(),
        PhenotypeLadderCd4Cd8(),
        PredatorPrey(),
        SaturableGrowth(),
        SitesExchange(),
        SmoothGates(),
        TargetDriven(),
        TumourEscape(),
    )
}
