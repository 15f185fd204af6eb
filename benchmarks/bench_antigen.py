"""A model without a closed form: effector, memory and antigen, 80 patients; gradient and whole fits.

    uv run python benchmarks/bench_antigen.py [--seeds 5] [--patients 80]

Six log-normal individual parameters (the effectors at the infusion are fixed), 14 samples a patient, about a tenth
below the limit. The gradient is timed beside diffrax's Tsit5 under vmap at the tolerance at which it is as accurate
as the fixed grid; both through the same density. One JSON object per run is appended to ``results/<machine>.json``.
"""

import argparse
import json
import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from bench_fit import save
from carkinetics import solvers
from carkinetics.cohort import Cohort
from carkinetics.dataset import Dataset, read_dataset
from carkinetics.density import log_joint
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.inference.gates import convergence
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_files import parse_model
from carkinetics.observations import make_observations
from carkinetics.simulation import simulate

DAYS = (1, 4, 7, 11, 14, 17, 21, 28, 42, 56, 84, 112, 140, 168)
# Value, between-patient SD, and prior SD of the typical value (logs). The antigen is not measured: what drives
# growth is informed by the peak alone, so its prior is that of a study before.
PARAMETERS = {
    "rho": (1.2, 0.25, 0.5),
    "b0": (20.0, 0.8, 0.5),
    "kill": (5e-5, 0.8, 1.0),
    "alpha": (0.16, 0.4, 1.0),
    "conv": (0.002, 0.7, 1.0),
    "beta": (0.005, 0.6, 1.0),
}
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def antigen_model() -> Model:
    """The model file, as a user would write it."""
    head = 'schema = 1\nname = "antigen"\nstructure = "effector_memory_antigen"\n'
    tail = 'unit = "-"\ntransform = "log"\nsource = "benchmark"\n'
    text = head + f"[parameters.e0]\nvalue = 5\nfixed = true\nno_iiv = true\n{tail}"
    for name, (value, omega, prior) in PARAMETERS.items():
        text += f"[parameters.{name}]\nvalue = {value}\nomega_sd = {omega}\nprior_sd = {prior}\n{tail}"
    text += '[assays.qpcr]\noutput = "level"\nmatrix = "PB"\nunit = "copies/ug"\nerror = "lognormal"\n'
    return parse_model(text + 'sigma = 0.5\nlloq = 50\nsource = "benchmark"\n')


def antigen_trial(model: Model, seed: int, patients: int) -> Dataset:
    """A virtual trial."""
    return read_dataset(simulate(model, Cohort(patients, DAYS), seed=seed).table)


def gradient(model: Model, data: Dataset) -> dict:
    """Milliseconds per value and gradient by the fixed grid, and by Tsit5 at the same accuracy."""
    with jax.enable_x64(True):
        obs, layout = make_observations(model, data), make_layout(model)
        phi = [p.theta for p in model.parameters if not p.fixed] + [np.log(p.iiv) for p in model.parameters if p.iiv]
        phi = jnp.asarray([*phi, np.log(model.assays[0].sigma)])
        z = jnp.asarray(np.random.default_rng(1).normal(size=(len(layout.random), obs.n_subjects)))

        def value(phi, z, obs):
            return log_joint(model, obs, phi, z)

        def once() -> float:
            return float(jax.jit(lambda *at: value(*at))(phi, z, obs))  # a new function: no solver's cached program

        exact = _with(_tsit5(1e-10), once)
        ours = once()
        found = {"fixed_grid_ms": _milliseconds(value, phi, z, obs), "fixed_grid_error": abs(ours - exact)}
        for tolerance in TOLERANCES:
            error = abs(_with(_tsit5(tolerance), once) - exact)
            if error <= found["fixed_grid_error"] or tolerance == TOLERANCES[-1]:
                ms = _with(_tsit5(tolerance), lambda: _milliseconds(value, phi, z, obs))
                found |= {"tsit5_tolerance": tolerance, "tsit5_error": error, "tsit5_ms": ms}
                break
        return found | {"ratio": found["tsit5_ms"] / found["fixed_grid_ms"]}


def _tsit5(tolerance: float):
    """``solvers.curves`` by diffrax's Tsit5, patient by patient under vmap."""

    def curves(structure, grid, p, x):
        def one(time, p, x):
            found, _ = solvers._adaptive(structure, time, p, x, solver=diffrax.Tsit5(), tol=tolerance)
            return found

        return jax.vmap(one, in_axes=-1, out_axes=1)(grid.time, p, x)

    return curves


def _with(curves, call):
    """Call with another solver in the place of ours."""
    ours, solvers.curves = solvers.curves, curves
    try:
        return call()
    finally:
        solvers.curves = ours


def _milliseconds(value, *at, repeats: int = 50) -> float:
    """Median time of one value and gradient in a compiled loop."""
    slope = jax.value_and_grad(value, argnums=(0, 1))

    @jax.jit
    def loop(phi, z, obs):
        def body(_, carry):
            phi, z, total = carry
            found, (a, b) = slope(phi, z, obs)
            return phi + 1e-12 * a, z + 1e-12 * b, total + found

        return jax.lax.fori_loop(0, repeats, body, (phi, z, 0.0))

    jax.block_until_ready(loop(*at))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(loop(*at))
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times)) / repeats


def one_fit(model: Model, seed: int, patients: int) -> dict:
    """Time and convergence of one fit with its default settings."""
    data = antigen_trial(model, seed, patients)
    started = time.perf_counter()
    result = fit(model, data, seed=seed, progress=False)
    names, draws = population_draws(result)
    rhat, bulk, tail = convergence(draws)
    return {
        "seed": seed,
        "censored": float((data.cens == 1).mean()),
        "status": result.check().status,
        "rhat": float(rhat.max()),
        "ess_bulk_min": float(bulk.min()),
        "ess_tail_min": float(tail.min()),
        "worst": names[int(bulk.argmin())],
        "draws": int(np.prod(draws.shape[:2])),
        "solver_error": float(result.tree.attrs["solver_error"]),
        "seconds": json.loads(result.tree.attrs["seconds"]) | {"wall": time.perf_counter() - started},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--patients", type=int, default=80)
    parser.add_argument("--note", default="", help="kept with the result, for instance what else the machine did")
    arguments = parser.parse_args()
    model = antigen_model()
    result = {"note": arguments.note, "patients": arguments.patients}
    result["gradient"] = gradient(model, antigen_trial(model, 1, arguments.patients))
    print(result, file=sys.stderr)
    result["fits"] = []
    for seed in range(1, arguments.seeds + 1):
        result["fits"].append(one_fit(model, seed, arguments.patients))
        print(result["fits"][-1], file=sys.stderr)
    print(save("antigen", result))


if __name__ == "__main__":
    main()
