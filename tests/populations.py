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
    "exhaustion": {
        "beta": (1.2, 0.3),
        "eta": (0.1, 0.5),
        "kmin": (0.05, 0.4),
        "kmax": (1.1, 0.2),
        "tk": (11.0, 0.3),
        "hk": (6.0, 0.2),
        "half": (1e8, 0.5),
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
        "t0": (5e10, 0.8),
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
        "kill": (5e-5, 0.8),
        "alpha": (0.16, 0.4),
        "conv": (0.002, 0.7),
        "beta": (0.005, 0.6),
    },
}
DOSE = 2e8  # viable CAR+ cells, of the examples
UNKNOWN_OMEGA = 0.5  # where nobody has published the between-patient SD

# Where formulas and solvers break: parameters at the edge, by structure.
CORNERS: dict[str, dict[str, dict[str, float]]] = {
    "antigen_expansion": {
        "no tumour": {"u0": 1e-30},
        "1e12 cells of tumour": {"u0": 1e12},
        "tumour is cleared at once": {"kill": 50.0},
        "growth ends at a sample": {"tmax": 14.0},
        "growth ends after the last sample": {"tmax": 5000.0},
        "alpha + conv equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02},
        "largest tumour of one unit": {"umax": 1.0},
        "tumour at the threshold of cure": {"u0": 0.1},
    },
    "cartmath": {
        "no tumour": {"t0": 1e-30},
        "1e12 cells of tumour": {"t0": 1e12},
    },
    "effector_memory": {
        "alpha + conv equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02},
        "alpha + conv nearly equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02 + 1e-9},
        "no delay": {"delay": 0.0},
        "peak at a sample": {"tmax": 14.0},
        "conversion begins at a sample": {"tmax": 9.0, "delay": 5.0},
        "conversion begins after the last sample": {"delay": 5000.0},
        "peak after the last sample": {"tmax": 5000.0},
        "memory is lost faster than effectors": {"beta": 6.0},
        "effectors are lost at once": {"alpha": 6.0},
        "no conversion": {"conv": 1e-30},
    },
    "first_order_expansion": {
        "alpha + conv equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02},
        "alpha + conv nearly equals beta": {"alpha": 0.01, "conv": 0.01, "beta": 0.02 + 1e-9},
        "peak at a sample": {"tmax": 14.0},
        "peak after the last sample": {"tmax": 5000.0, "rho": 0.01},
        "memory is lost faster than effectors": {"beta": 6.0},
        "effectors are lost at once": {"alpha": 6.0},
        "no conversion": {"conv": 1e-30},
    },
    "predator_prey": {
        "no tumour": {"u0": 1e-30},
        "1e12 cells of tumour": {"u0": 1e12, "rho": 1e-12},
        "equilibrium": {"e0": 1000.0, "u0": 0.16 / 0.0018},
        "tumour is cleared at once": {"kill": 0.1},
    },
    "exhaustion": {
        "no tumour": {"t0": 1e-30},
        "1e12 cells of tumour": {"t0": 1e12},
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
    "effector_memory_antigen": {
        "no antigen": {"b0": 1e-30},
        "1e12 cells of antigen": {"b0": 1e12},
        "antigen is cleared at once": {"kill": 10.0},
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
