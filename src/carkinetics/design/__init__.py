"""Phase 1 designs: exact, deterministic, with every rule that was applied.

A design is a frozen object; ``design.recommend(patients)`` says the dose for the next patients and why,
``design.select(patients)`` the level at the end.
"""

from carkinetics.design.boundary_tables import boundaries, to_html, write_table
from carkinetics.design.cohort_rules import three_plus_three
from carkinetics.design.decision import Decision, Step
from carkinetics.design.efficacy import Utility, boin12, desirability_table
from carkinetics.design.exposure_model import exposure_informed
from carkinetics.design.intervals import boin, keyboard, mtpi2
from carkinetics.design.late import simulate_late
from carkinetics.design.logistic import blrm
from carkinetics.design.logistic_model import NormalPrior, OverdoseControl
from carkinetics.design.operating import Operating, Truth, exact, simulate
from carkinetics.design.pathways import paths
from carkinetics.design.patients import outcomes
from carkinetics.design.reassessment import crm, skeleton, tite_crm
from carkinetics.design.rules import (
    Elimination,
    FirstDoseStop,
    MaximumJump,
    MinimumFollowUp,
    NoSkipping,
    Rule,
    Stagger,
)

__all__ = [
    "Decision",
    "Elimination",
    "FirstDoseStop",
    "MaximumJump",
    "MinimumFollowUp",
    "NoSkipping",
    "NormalPrior",
    "Operating",
    "OverdoseControl",
    "Rule",
    "Stagger",
    "Step",
    "Truth",
    "Utility",
    "blrm",
    "boin",
    "boin12",
    "boundaries",
    "crm",
    "desirability_table",
    "exact",
    "exposure_informed",
    "keyboard",
    "mtpi2",
    "outcomes",
    "paths",
    "simulate",
    "simulate_late",
    "skeleton",
    "three_plus_three",
    "tite_crm",
    "to_html",
    "write_table",
]
