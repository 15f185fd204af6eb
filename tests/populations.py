"""Populations on which every structure is tested: of the published models, and of examples where none is complete."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from carkinetics.model_files import load_model, models_folder
from carkinetics.structure import AbstractStructure, Course, Inputs, inputs
from carkinetics.structures import STRUCTURES
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.structures.occasions import Occasions, factors
from carkinetics.transforms import TRANSFORMS

LOG = "log"


@dataclass(frozen=True, eq=False)
class Population:
    """Typical values (transformed), omegas and the dose of a population that can be drawn from."""

    label: str
    structure: AbstractStructure
    names: tuple[str, ...]
    theta: np.ndarray
    omega: np.ndarray
    transforms: tuple[str, ...]
    dose: float
    course: dict[str, float]

    def values(self, n: int = 0, *, seed: int = 1, **changed: float) -> np.ndarray:
        """Natural-scale parameters, ``(parameter, patient)``: of ``n`` drawn patients, or of the typical one."""
        z = np.random.default_rng(seed).standard_normal((len(self.theta), n)) if n else np.zeros((len(self.theta), 1))
        x = self.theta[:, None] + self.omega[:, None] * z
        found = np.stack([np.asarray(TRANSFORMS[t].inverse(v)) for t, v in zip(self.transforms, x, strict=True)])
        for name, value in changed.items():
            found[self.names.index(name)] = value
        return found

    def inputs(self, n: int = 1, *, dose: float | None = None) -> Inputs:
        """The population's dose, no treatment, and constant regressors, for ``n`` patients."""
        course = {k: Course(jnp.zeros((1, n)), jnp.full((1, n), v), "locf") for k, v in self.course.items()}
        return inputs(jnp.full(n, self.dose if dose is None else dose), course=course)

    def twice(self, n: int = 1) -> Inputs:
        """With a second infusion, of the same dose, where the structure is of occasions."""
        x = self.inputs(n)
        if not isinstance(self.structure, Occasions):
            return x
        return replace(x, later_day=jnp.full((1, n), SECOND_INFUSION), later_dose=x.dose[None])


# Structures for which no published model has all its numbers: plausible ones, log-normal, {name: (value, omega)}.
EXAMPLES: dict[str, dict[str, tuple[float, float]]] = {
    "cytokine_release": {
        "e0": (5.0, 0.8),
        "rho": (1.2, 0.25),
        "b0": (20.0, 0.8),
        "kill": (5e-05, 0.8),
        "alpha": (0.16, 0.4),
        "conv": (0.002, 0.7),
        "beta": (0.005, 0.6),
        "p_il6": (0.3, 0.8),
        "d_il6": (4.0, 0.3),
        "base_il6": (2.0, 0.5),
        "p_ifng": (0.05, 0.8),
        "d_ifng": (1.5, 0.3),
        "base_ifng": (2.0, 0.5),
    },
    "effector_memory": {
        "foldx": (1000.0, 1.0),
        "tmax": (9.3, 0.4),
        "cmax": (24000.0, 0.8),
        "alpha": (0.16, 0.5),
        "conv": (0.004, 0.7),
        "delay": (6.0, 0.5),
        "beta": (0.0032, 0.6),
    },
    "effector_memory_antigen": {
        "e0": (5.0, 0.8),
        "rho": (1.2, 0.25),
        "b0": (20.0, 0.8),
        "kill": (5e-05, 0.8),
        "alpha": (0.16, 0.4),
        "conv": (0.002, 0.7),
        "beta": (0.005, 0.6),
    },
    "exhaustion": {
        "beta": (1.2, 0.3),
        "eta": (0.1, 0.5),
        "kmin": (0.05, 0.4),
        "kmax": (1.1, 0.2),
        "tk": (11.0, 0.3),
        "hk": (6.0, 0.2),
        "half": (100000000.0, 0.5),
        "xi": (0.2, 0.3),
        "eps": (0.004, 0.5),
        "lam": (0.03, 0.5),
        "theta": (1e-13, 0.5),
        "alpha": (1e-13, 0.5),
        "mu": (0.005, 0.5),
        "delta": (0.15, 0.4),
        "r": (0.03, 0.5),
        "b": (1e-12, 0.3),
        "gamma": (0.8, 0.3),
        "a": (0.1, 0.5),
        "t0": (50000000000.0, 0.8),
    },
    "four_phases": {
        "c0": (300.0, 1.0),
        "tdist": (2.0, 0.4),
        "rho": (0.9, 0.3),
        "tmax": (10.0, 0.35),
        "cmax": (24000.0, 1.0),
        "alpha": (0.16, 0.7),
        "fb": (0.008, 0.9),
        "beta": (0.003, 0.9),
    },
    "lag_expansion_contraction": {
        "tlag": (3.27, 0.6),
        "tdouble": (0.755, 0.4),
        "tmax": (9.29, 0.35),
        "cmax": (24000.0, 1.2),
        "alpha": (0.139, 0.7),
        "fb": (0.008, 0.9),
        "beta": (0.002, 0.9),
    },
    "phenotype_ladder_cd4_cd8": {
        "vmax1": (0.0126, 0.6),
        "ratio": (1.12, 0.1),
        "cd4_share": (0.7, 0.2),
        "km1": (1.13, 0.3),
        "kp_naive": (0.0005, 0.3),
        "kp_memory": (0.007, 0.3),
        "k12": (0.14, 0.3),
        "k23": (0.19, 0.3),
        "k34": (0.36, 0.3),
        "ke": (0.01, 0.3),
        "ke4": (0.52, 0.3),
        "vmax5_1": (2.6, 0.5),
        "vmax5_2": (4.0, 0.5),
        "vmax5_3": (3.8, 0.5),
        "vmax5_4": (4.2, 0.5),
        "km5": (276.0, 0.3),
        "k5": (0.0023, 0.3),
        "k0": (5000.0, 0.3),
        "t0": (0.1, 0.3),
        "b0": (100.0, 0.8),
    },
    "saturable_growth": {
        "e0": (20.0, 1.0),
        "tlag": (2.0, 0.5),
        "tmax": (11.0, 0.3),
        "vmax": (60000.0, 0.8),
        "km": (50000.0, 0.8),
        "r": (0.000281, 0.8),
        "delta_e": (0.15, 0.5),
        "delta_m": (0.00555, 0.5),
    },
    "sites_exchange": {
        "foldx": (3900.0, 1.2),
        "tmax": (9.3, 0.4),
        "cmax": (24000.0, 0.8),
        "alpha": (0.2, 0.6),
        "fb": (0.01, 0.8),
        "beta": (0.004, 0.8),
        "kin_bm": (0.5, 0.5),
        "ratio_bm": (0.7, 0.7),
        "size_bm": (0.7, 0.2),
        "kin_ln": (0.3, 0.5),
        "ratio_ln": (0.5, 0.7),
        "size_ln": (0.2, 0.2),
        "kin_csf": (0.005, 0.7),
        "ratio_csf": (0.1, 0.7),
        "size_csf": (0.03, 0.2),
    },
    "smooth_gates": {
        "foldx": (3900.0, 1.5),
        "tmax": (9.3, 0.4),
        "cmax": (24000.0, 0.8),
        "alpha": (0.16, 0.7),
        "fb": (0.0079, 0.9),
        "beta": (0.0032, 0.9),
        "width": (0.5, 0.5),
    },
}
DOSE = 2e8  # viable CAR+ cells, of the examples
# Days after which a curve means nothing: mice in which a tumour grows that nothing stops.
HORIZON = {"barros_2021_raji": 21.0}
UNKNOWN_OMEGA = 0.5  # where nobody has published the between-patient SD

# Where formulas and solvers break: parameters at the edge, by structure.
CORNERS: dict[str, dict[str, dict[str, float]]] = {
    "antigen_expansion": {
        "no tumour": {"u0": 1e-30},
        "1e12 cells of tumour": {"u0": 1000000000000.0},
        "tumour is cleared at once": {"kill": 50.0},
        "growth ends at a sample": {"tmax": 14.0},
        "growth ends after the last sample": {"tmax": 5000.0},
        "alpha + conv equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02},
        "largest tumour of one unit": {"umax": 1.0},
        "tumour at the threshold of cure": {"u0": 0.1},
    },
    "car_binding": {
        "no tumour": {"b0": 1e-30},
        "1e12 tumour cells": {"b0": 1000000000000.0},
        "cells are trapped in the marrow": {"k21": 1e-09},
        "binding without end": {"koff": 1e-12},
        "tumour is killed within a day": {"kkill": 20.0},
    },
    "cartmath": {
        "no tumour": {"t0": 1e-30},
        "1e12 cells of tumour": {"t0": 1000000000000.0},
    },
    "competition": {
        "the niche is full": {"n0": 500.0},
        "T cells are exactly as many as the niche holds": {"n0": 499.64},
        "one niche": {"kn": 139.0},
        "no normal T cells": {"n0": 1e-30},
        "no tumour": {"b0": 1e-30},
        "1e12 mL of tumour": {"b0": 1000000000000.0},
        "killing at once": {"gamma": 50.0},
    },
    "cytokine_release": {
        "no antigen": {"b0": 1e-30},
        "1e12 cells of antigen": {"b0": 1000000000000.0},
        "antigen is cleared at once": {"kill": 10.0},
        "cytokines are lost within minutes": {"d_il6": 500.0},
    },
    "cytokines": {
        "no tumour": {"b0": 1e-30},
        "killing at once": {"k_bc": 1000.0},
        "no conversion without B cells": {"h": 1e-12},
        "no exchange": {"k_in": 1e-09},
    },
    "effector_memory": {
        "alpha + conv equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02},
        "alpha + conv nearly equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.020000001},
        "no delay": {"delay": 0.0},
        "peak at a sample": {"tmax": 14.0},
        "conversion begins at a sample": {"tmax": 9.0, "delay": 5.0},
        "conversion begins after the last sample": {"delay": 5000.0},
        "peak after the last sample": {"tmax": 5000.0},
        "memory is lost faster than effectors": {"beta": 6.0},
        "effectors are lost at once": {"alpha": 6.0},
        "no conversion": {"conv": 1e-30},
    },
    "effector_memory_antigen": {
        "no antigen": {"b0": 1e-30},
        "1e12 cells of antigen": {"b0": 1000000000000.0},
        "antigen is cleared at once": {"kill": 10.0},
    },
    "exhaustion": {
        "no tumour": {"t0": 1e-30},
        "1e12 cells of tumour": {"t0": 1000000000000.0},
        "tumour is cleared at once": {"gamma": 20.0},
        "nothing engrafts": {"eta": 0.0},
        "infused cells stay": {"beta": 0.0},
        "infused cells go at once": {"beta": 20.0},
        "growth ends at a sample": {"tk": 14.0, "hk": 200.0},
        "memory alone is left": {"xi": 5.0, "mu": 0.0},
    },
    "expansion_contraction": {
        "alpha equals beta": {"alpha": 0.01, "beta": 0.01},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "all persist": {"fb": 1.0},
    },
    "expansion_contraction_sites": {
        "alpha equals beta": {"alpha": 0.01, "beta": 0.01},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "all persist": {"fb": 1.0},
        "no cells in the marrow": {"ratio_bm": 1e-30},
    },
    "first_order_expansion": {
        "alpha + conv equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02},
        "alpha + conv nearly equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.020000001},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0, "rho": 0.01},
        "memory is lost faster than effectors": {"beta": 6.0},
        "effectors are lost at once": {"alpha": 6.0},
        "no conversion": {"conv": 1e-30},
    },
    "four_phases": {
        "alpha equals beta": {"alpha": 0.01, "beta": 0.01},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "all persist": {"fb": 1.0},
        "peak at the minimum": {"tdist": 3.0, "tmax": 3.0},
        "peak before the minimum": {"tdist": 9.0, "tmax": 3.0},
        "distribution takes no time": {"tdist": 1e-30},
        "distribution never ends": {"tdist": 5000.0},
        "nothing infused": {"c0": 1e-30},
        "no growth": {"rho": 1e-30},
    },
    "lag_expansion_contraction": {
        "alpha equals beta": {"alpha": 0.01, "beta": 0.01},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "all persist": {"fb": 1.0},
        "no lag": {"tlag": 1e-30},
        "peak at the end of the lag": {"tlag": 3.0, "tmax": 3.0},
        "peak before the end of the lag": {"tlag": 9.0, "tmax": 3.0},
        "lag after the last sample": {"tlag": 5000.0, "tmax": 5010.0},
        "doubles in minutes": {"tdouble": 0.005},
    },
    "phenotype_ladder": {
        "no tumour": {"b0": 1e-30},
        "1e12 mL of tumour": {"b0": 1000000000000.0},
        "room for no more tumour": {"b0": 5000.0},
        "no cells": {"t0": 1e-30},
        "killing at once": {"vmax5_1": 10000.0},
        "no loss": {"ke": 1e-30, "ke4": 1e-30},
        "naive cells stay naive": {"k12": 1e-30},
    },
    "phenotype_ladder_cd4_cd8": {
        "no CD8 cells": {"cd4_share": 1.0},
        "no CD4 cells": {"cd4_share": 1e-09},
        "neither tumour nor CD8 cells": {"b0": 1e-30, "cd4_share": 1.0},
    },
    "predator_prey": {
        "no tumour": {"u0": 1e-30},
        "1e12 cells of tumour": {"u0": 1000000000000.0, "rho": 1e-12},
        "equilibrium": {"e0": 1000.0, "u0": 88.8888888888889},
        "tumour is cleared at once": {"kill": 0.1},
    },
    "saturable_growth": {
        "equal losses": {"r": 0.004, "delta_e": 0.004, "delta_m": 0.008},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "peak before the end of the lag": {"tlag": 9.0, "tmax": 3.0},
        "lag after the last sample": {"tlag": 5000.0, "tmax": 5010.0},
        "saturated from the start": {"km": 1e-30},
        "never saturated": {"km": 1000000000000.0},
        "no effectors": {"e0": 1e-30},
        "1e12 effectors": {"e0": 1000000000000.0},
        "no conversion": {"r": 1e-30},
    },
    "sites_exchange": {
        "alpha equals beta": {"alpha": 0.004, "beta": 0.004},
        "peak at a sample": {"tmax": 14.0},
        "all persist": {"fb": 1.0},
        "peak after the last sample": {"tmax": 5000.0},
        "no exchange": {"kin_bm": 1e-30, "kin_ln": 1e-30, "kin_csf": 1e-30},
        "exchange within seconds": {"kin_bm": 10000.0, "kin_csf": 10000.0},
    },
    "smooth_gates": {
        "alpha equals beta": {"alpha": 0.01, "beta": 0.01},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "all persist": {"fb": 1.0},
        "a switch": {"width": 1e-12},
        "a switch at a sample": {"width": 1e-12, "tmax": 14.0},
        "gates of a year": {"width": 365.0},
    },
    "target_driven": {
        "no leukaemia": {"l0": 1e-30},
        "no B cells": {"b0": 1e-30},
        "no target at all": {"l0": 1e-30, "b0": 1e-30},
        "1e12 cells of leukaemia": {"l0": 1000000000000.0},
        "killing at once": {"alpha": 1e-07},
        "no killing": {"alpha": 1e-30},
        "no growth": {"rho_c": 1e-30},
        "cells die within hours": {"tau_c": 0.1},
        "equilibrium": {"alpha": 3.333333333333333e-09, "l0": 6349206349.206349, "b0": 1e-30},
    },
    "tumour_escape": {
        "no tumour": {"b0": 1e-30},
        "1e12 units of tumour": {"b0": 1000000000000.0},
        "no CAR-T cells": {"tn0": 1e-30},
        "no antigen-negative cells": {"bneg0": 0.0, "km": 0.0},
        "antigen-negative cells are born later": {"bneg0": 0.0, "km": 0.0001},
        "all are antigen-negative": {"b0": 1e-30, "bneg0": 2000.0},
        "killing at once": {"kill": 1000.0},
        "room for no more": {"bmax": 2200.24, "b0": 2200.24},
    },
}


def _of_model(model) -> Population:
    return Population(
        model.name,
        model.structure,
        tuple(p.name for p in model.parameters),
        np.array([p.theta for p in model.parameters]),
        np.array([np.nan_to_num(p.iiv, nan=UNKNOWN_OMEGA) for p in model.parameters]),
        tuple(p.transform for p in model.parameters),
        model.typical_dose,
        {r.name: r.typical for r in model.regressors},
    )


def _of_example(name: str) -> Population:
    values = EXAMPLES[name]
    numbers = np.array(list(values.values()))
    structure = STRUCTURES[name]
    assert tuple(values) == structure.parameters._fields
    course = dict.fromkeys(structure.regressors, 5000.0)
    transforms = (LOG,) * len(values)
    return Population(name, structure, tuple(values), np.log(numbers[:, 0]), numbers[:, 1], transforms, DOSE, course)


# Structures with an infusion phase: of closed forms, of ODEs, with a dose and later infusions, and stiff.
PHASE = {"c0": (300.0, 1.5), "kd": (4.0, 0.3)}
WITH_PHASE = (
    "stein_2019_tisagenlecleucel",
    "lag_expansion_contraction",
    "kimmel_2021_axicabtagene",
    "cytokine_release",
)
PHASE_CORNERS = {
    "nothing is seen of the infusion": {"c0": 1e-30},
    "1e12 units": {"c0": 1e12},
    "gone at once": {"kd": 1e4},
    "never gone": {"kd": 1e-30},
}


def _with_phase(population: Population) -> Population:
    structure = InfusionPhase(population.structure, population.dose if population.structure.uses_dose else None)
    value, omega = np.array(list(PHASE.values())).T
    return replace(
        population,
        label=f"{population.label} with infusion phase",
        structure=structure,
        names=(*population.names, *PHASE),
        theta=np.append(population.theta, np.log(value)),
        omega=np.append(population.omega, omega),
        transforms=(*population.transforms, LOG, LOG),
    )


# Structures with occasions: of closed forms with and without a phase, and of an ODE with a dose.
OCCASION_OMEGA = 0.4
WITH_OCCASIONS = {
    "stein_2019_tisagenlecleucel": ("cmax", "tmax"),
    "stein_2019_tisagenlecleucel with infusion phase": ("cmax", "c0"),
    "kimmel_2021_axicabtagene": ("rho", "volume"),
}
SECOND_INFUSION = 40.0  # day


def _with_occasions(population: Population) -> Population:
    varying = WITH_OCCASIONS[population.label]
    added = tuple(f for v in varying for f in factors(v, 2))
    return replace(
        population,
        label=f"{population.label} with occasions",
        structure=Occasions(population.structure, varying),
        names=(*population.names, *added),
        theta=np.append(population.theta, np.zeros(len(added))),
        omega=np.append(population.omega, np.full(len(added), OCCASION_OMEGA)),
        transforms=(*population.transforms, *(LOG,) * len(added)),
    )


def _occasion_corners(structure: AbstractStructure, varying: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """The base's, and infusions that differ by orders of magnitude."""
    first, second = factors(varying[0], 2)
    own = {"the first alone": {second: 1e-30}, "the second alone": {first: 1e-30}, "the second is 1e4": {second: 1e4}}
    return CORNERS[structure.name] | (own if structure.closed_form else {"the second is 3": {second: 3.0}})


MODELS = [load_model(path) for path in sorted(models_folder().glob("*.toml"))]
POPULATIONS = [_of_model(m) for m in MODELS if not m.unknown(variability=False, residual=False)]
POPULATIONS += [_of_example(name) for name in EXAMPLES]
POPULATIONS += [_with_phase(p) for p in POPULATIONS if p.label in WITH_PHASE]
CORNERS |= {f"{name} with infusion phase": corners | PHASE_CORNERS for name, corners in CORNERS.items()}
CORNERS |= {
    f"{p.structure.name} with occasions": _occasion_corners(p.structure, WITH_OCCASIONS[p.label])
    for p in POPULATIONS
    if p.label in WITH_OCCASIONS
}
POPULATIONS += [_with_occasions(p) for p in POPULATIONS if p.label in WITH_OCCASIONS]
