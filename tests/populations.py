"""Populations on which every structure is tested: of the published models, and of examples where none is complete."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from carkinetics.model_files import load_model, models_folder
from carkinetics.structure import AbstractStructure, Course, Inputs, inputs
from carkinetics.structures import STRUCTURES
from carkinetics.transforms import TRANSFORMS

LOG = "log"


class Population(NamedTuple):
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


# Structures for which no published model has all its numbers: plausible ones, log-normal, {name: (value, omega)}.
EXAMPLES: dict[str, dict[str, tuple[float, float]]] = {
    "cytokine_release": {
        "e0": (5.0, 0.8),
        "rho": (1.2, 0.25),
        "b0": (20.0, 0.8),
        "kill": (5e-5, 0.8),
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
    "effector_memory_antigen": {
        "e0": (5.0, 0.8),
        "rho": (1.2, 0.25),
        "b0": (20.0, 0.8),
        "kill": (5e-5, 0.8),
        "alpha": (0.16, 0.4),
        "conv": (0.002, 0.7),
        "beta": (0.005, 0.6),
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
}
DOSE = 2e8  # viable CAR+ cells, of the examples
UNKNOWN_OMEGA = 0.5  # where nobody has published the between-patient SD

# Where formulas and solvers break: parameters at the edge, by structure.
CORNERS: dict[str, dict[str, dict[str, float]]] = {
    "car_binding": {
        "no tumour": {"b0": 1e-30},
        "1e12 tumour cells": {"b0": 1e12},
        "cells are trapped in the marrow": {"k21": 1e-9},
        "binding without end": {"koff": 1e-12},
        "tumour is killed within a day": {"kkill": 20.0},
    },
    "cytokine_release": {
        "no antigen": {"b0": 1e-30},
        "1e12 cells of antigen": {"b0": 1e12},
        "antigen is cleared at once": {"kill": 10.0},
        "cytokines are lost within minutes": {"d_il6": 500.0},
    },
    "cytokines": {
        "no tumour": {"b0": 1e-30},
        "killing at once": {"k_bc": 1e3},
        "no conversion without B cells": {"h": 1e-12},
        "no exchange": {"k_in": 1e-9},
    },
    "expansion_contraction": {
        "alpha equals beta": {"alpha": 0.01, "beta": 0.01},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0},
        "all persist": {"fb": 1.0},
    },
    "effector_memory_antigen": {
        "no antigen": {"b0": 1e-30},
        "1e12 cells of antigen": {"b0": 1e12},
        "antigen is cleared at once": {"kill": 10.0},
    },
    "sites_exchange": {
        "alpha equals beta": {"alpha": 0.004, "beta": 0.004},
        "peak at a sample": {"tmax": 14.0},
        "all persist": {"fb": 1.0},
        "peak after the last sample": {"tmax": 5000.0},
        "no exchange": {"kin_bm": 1e-30, "kin_ln": 1e-30, "kin_csf": 1e-30},
        "exchange within seconds": {"kin_bm": 1e4, "kin_csf": 1e4},
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


MODELS = [load_model(path) for path in sorted(models_folder().glob("*.toml"))]
POPULATIONS = [_of_model(m) for m in MODELS if not m.unknown(variability=False, residual=False)]
POPULATIONS += [_of_example(name) for name in EXAMPLES]
