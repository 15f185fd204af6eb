"""What every worker shares: the problem as arrays, the check of the density, and the result's file.

Needs NumPy only, so that a peer can live in an environment without carkinetics.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

CHAINS = 4
DRAWS = 1000
CORES = os.cpu_count() or 1
TOLERANCE = 1e-8  # of differences of the log density between points, relative
FB_MAX = 1 - 1e-12  # a fraction of the peak: above it "all cells persist", as carkinetics has it

ABSENT, UNEQUAL = 3, 4  # exit codes


class Problem(NamedTuple):
    """The data, the priors, and the density at some points.

    Attributes
    ----------
    seed, n_subjects, n_quantified : int
        Rows ``n_quantified`` and later are left-censored at ``ln_dv``.
    subject, time, ln_dv : arrays of shape (row,)
        Patient (from 0), day, natural log of the level or of the limit.
    theta_loc, theta_scale, omega_scale : arrays of shape (6,)
        Normal priors on the log typical values; half-normal priors on omega.
    sigma_loc, sigma_scale : float
        Log-normal prior on sigma.
    points : array of shape (point, unconstrained parameter)
        Log typical values, log omega, log sigma, standardised random effects by parameter and patient.
    log_density : array of shape (point,)
        carkinetics' log joint density there, Jacobian of the logarithms included.
    """

    seed: int
    n_subjects: int
    n_quantified: int
    subject: np.ndarray
    time: np.ndarray
    ln_dv: np.ndarray
    theta_loc: np.ndarray
    theta_scale: np.ndarray
    omega_scale: np.ndarray
    sigma_loc: float
    sigma_scale: float
    points: np.ndarray
    log_density: np.ndarray

    def save(self, path: Path) -> None:
        """Write the problem to an ``.npz`` file."""
        np.savez(path, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> "Problem":
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            return cls(**{k: file[k].item() if file[k].ndim == 0 else file[k] for k in cls._fields})


class Sampled(NamedTuple):
    """What a sampler returned: draws of shape (chain, draw, 13), on the scale theta, log omega, log sigma."""

    draws: np.ndarray
    divergences: int
    gradients: int | None
    notes: dict  # seconds of its stages, as the sampler itself counts them


class Compiled(Protocol):
    """A compiled model."""

    def log_density(self, point: np.ndarray) -> float:
        """Log density of the unconstrained parameters, in the order of :class:`Problem`."""
        ...

    def sample(self, draws: int, thin: int, seed: int) -> Sampled:
        """Sample ``draws`` a chain after the default warm-up, and keep every ``thin``-th."""
        ...


def density_error(problem: Problem, log_density: Callable[[np.ndarray], float]) -> float:
    """Largest relative difference from carkinetics' density, both taken from their values at the first point."""
    found = np.array([log_density(point) for point in problem.points[1:]]) - log_density(problem.points[0])
    expected = problem.log_density[1:] - problem.log_density[0]
    return float(np.max(np.abs(found - expected) / np.abs(expected)))


def main(compile_model: Callable[[Problem], Compiled], packages: tuple[str, ...]) -> None:
    """A worker's command line: compile, check the density, sample, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("problem", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--thin", type=int, default=1)
    parser.add_argument("--sampler-seed", type=int, default=1)
    arguments = parser.parse_args()
    problem = Problem.load(arguments.problem)
    clock = [time.perf_counter()]
    try:
        model = compile_model(problem)
    except ImportError as error:
        print(f"cannot be imported: {error}", file=sys.stderr)
        sys.exit(ABSENT)
    clock.append(time.perf_counter())
    error = density_error(problem, model.log_density)
    if not error < TOLERANCE:
        print(f"another log density: relative error {error:.1e}, at most {TOLERANCE:.0e}", file=sys.stderr)
        sys.exit(UNEQUAL)
    clock.append(time.perf_counter())
    sampled = model.sample(arguments.draws, arguments.thin, arguments.sampler_seed)
    clock.append(time.perf_counter())
    facts = {
        "versions": {package: version(package) for package in packages},
        "density_error": error,
        "compile_seconds": sampled.notes.pop("compile", clock[1] - clock[0]),
        "sampling_seconds": sampled.notes.pop("sampling", clock[3] - clock[2]),
        "divergences": sampled.divergences,
        "gradients": sampled.gradients,
        "notes": sampled.notes,
    }
    np.savez(arguments.result, draws=sampled.draws, facts=json.dumps(facts))
