"""A model of every structure for simulation-based calibration: few parameters vary, priors draw real trials."""

import numpy as np

from carkinetics.cohort import Cohort
from carkinetics.model import Model
from carkinetics.model_files import parse_model
from carkinetics.structures import STRUCTURES
from populations import POPULATIONS

TIMES = (2.0, 4.0, 7.0, 10.0, 14.0, 28.0, 84.0, 168.0)
PATIENTS = 10
OMEGA, PRIOR_SD, OMEGA_SCALE, SIGMA, SIGMA_SCALE = 0.35, 0.3, 0.3, 0.4, 0.2

# What varies between patients and is estimated, with its between-patient SD; the rest is known.
VARYING: dict[str, dict[str, float]] = {
    "antigen_expansion": {"alpha": OMEGA, "conv": OMEGA, "u0": OMEGA},
    "car_binding": {"kexp": 0.15, "kel_m": OMEGA, "kkill": 0.2},
    "cartmath": {"rho": 0.05, "eps": 0.2, "phi": 0.05},  # with more, some patients' cells grow for ever
    "competition": {"volume": OMEGA, "b0": 0.2, "gamma": 0.2},
    "cytokine_release": {"rho": 0.15, "alpha": OMEGA, "b0": OMEGA},
    "cytokines": {"d_m": 0.2, "k_bc": OMEGA, "k_in": OMEGA},
    "effector_memory": {"tmax": 0.3, "cmax": OMEGA, "alpha": OMEGA, "conv": OMEGA},
    "effector_memory_antigen": {"rho": 0.15, "alpha": OMEGA, "kill": OMEGA},
    "exhaustion": {"kmax": 0.1, "xi": 0.2, "eps": 0.3},
    "expansion_contraction": {"tmax": 0.3, "cmax": OMEGA, "alpha": OMEGA, "fb": OMEGA},
    "expansion_contraction_sites": {"tmax": 0.3, "cmax": OMEGA, "ratio_bm": OMEGA},
    "first_order_expansion": {"rho": 0.15, "alpha": OMEGA, "conv": OMEGA},
    "four_phases": {"rho": 0.2, "tmax": 0.2, "cmax": OMEGA, "alpha": OMEGA},
    "lag_expansion_contraction": {"tdouble": 0.2, "tmax": 0.2, "cmax": OMEGA, "alpha": OMEGA},
    "phenotype_ladder": {"vmax1": OMEGA, "vmax5_2": OMEGA, "ke4": OMEGA},
    "phenotype_ladder_cd4_cd8": {"vmax1": OMEGA, "vmax5_2": OMEGA, "ke4": OMEGA},
    "predator_prey": {"rho": 0.2, "alpha": 0.2, "e0": OMEGA},
    "saturable_growth": {"tmax": 0.2, "vmax": OMEGA, "delta_e": OMEGA},
    "sites_exchange": {"tmax": 0.3, "cmax": OMEGA, "ratio_bm": OMEGA},
    "smooth_gates": {"tmax": 0.3, "cmax": OMEGA, "alpha": OMEGA, "width": OMEGA},
    "target_driven": {"alpha": 0.2, "tau_c": 0.2, "l0": 0.2},
    "tumour_escape": {"kill": OMEGA, "rta": 0.15, "lta": OMEGA},
}
SITES = ("expansion_contraction_sites", "sites_exchange")  # with samples of the marrow as well


def _assay(name: str, output: str, matrix: str) -> str:
    return (
        f'[assays.{name}]\noutput = "{output}"\nmatrix = "{matrix}"\nunit = "copies/ug"\nerror = "lognormal"\n'
        f'sigma = {SIGMA}\nprior_sigma = {{ family = "lognormal", median = {SIGMA}, scale = {SIGMA_SCALE} }}\n'
    )


def sbc_model(structure: str) -> Model:
    """The model of a structure, of the first population that has it."""
    of = next(p for p in POPULATIONS if p.structure.name == structure)
    text = f'schema = 1\nname = "{structure}"\nstructure = "{structure}"\n'
    text += f"typical_dose = {of.dose}\n" if of.structure.uses_dose else ""
    for name, value in zip(of.names, of.values()[:, 0], strict=True):
        text += f'[parameters.{name}]\nvalue = {float(value)!r}\nunit = "1"\n'
        if name not in VARYING[structure]:
            transform = "log" if value > 0 else "identity"
            text += f'transform = "{transform}"\nno_iiv = true\nfixed = true\n'
            continue
        omega = VARYING[structure][name]
        text += f'transform = "log"\nomega_sd = {omega}\nprior_sd = {PRIOR_SD * min(1.0, omega / 0.3):.3g}\n'
        text += f'prior_omega = {{ family = "lognormal", median = {omega}, scale = {OMEGA_SCALE} }}\n'
    text += _assay("qpcr", STRUCTURES[structure].outputs[0], "PB")
    return parse_model(text + (_assay("marrow", "level_bm", "BM") if structure in SITES else ""))


def sbc_design(structure: str) -> Cohort:
    """Ten patients and eight days."""
    of = next(p for p in POPULATIONS if p.structure.name == structure)
    return Cohort(n=PATIENTS, times=TIMES, dose=float(of.dose) if np.isfinite(of.dose) else 1.0)
