"""How fast a fit is: gradient, compilation, sampling, and effective draws per second.

    uv run python benchmarks/bench_fit.py [--seeds 3] [--patients 40]

Every seed is a virtual trial of its own. One JSON object per run is appended to
``results/<machine>.json``: absolute times hold for that machine and hour, ratios between numbers of one run
hold further.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.density import log_joint
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.inference.coordinates import Point, log_density
from carkinetics.inference.gates import convergence
from carkinetics.inference.tuning import Tuner
from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.observations import make_observations

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("carkinetics", "jax", "jaxlib", "numpyro", "numpy", "arviz")


def gradient_microseconds(model, data, *, repeats: int = 3000) -> dict[str, float]:
    """Median time of one value and gradient in a compiled loop: of the model's density, and in the coordinates."""
    with jax.enable_x64(True):
        obs = make_observations(model, data)
        coordinates, _ = Tuner(model, obs, "nuts").first(data)
        layout = make_layout(model)
        origin = (np.zeros(layout.n_phi), np.zeros((len(layout.random), obs.n_subjects)))

        def timed(density) -> float:
            value_and_gradient = jax.value_and_grad(density)

            @jax.jit
            def loop(x, obs, coordinates):
                def body(_, carry):
                    x, total = carry
                    value, gradient = value_and_gradient(x, obs, coordinates)
                    return jax.tree.map(lambda a, g: a + 1e-12 * g, x, gradient), total + value

                return jax.lax.fori_loop(0, repeats, body, (x, 0.0))

            jax.block_until_ready(loop(origin, obs, coordinates))
            times = []
            for _ in range(5):
                started = time.perf_counter()
                jax.block_until_ready(loop(origin, obs, coordinates))
                times.append(time.perf_counter() - started)
            return 1e6 * float(np.median(times)) / repeats

        return {
            "model": timed(lambda x, obs, c: log_joint(model, obs, c.centre + x[0], x[1])),
            "transported": timed(lambda x, obs, c: log_density(model, obs, c, Point(*x))),
        }


def one_fit(model, seed: int, patients: int) -> dict:
    """Time and efficiency of one fit, start to converged."""
    data = read_trial(virtual_trial(seed, patients=patients))
    started = time.perf_counter()
    result = fit(model, data, seed=seed, progress=False)
    wall = time.perf_counter() - started
    _, draws = population_draws(result)
    rhat, bulk, tail = convergence(draws)
    seconds = json.loads(result.tree.attrs["seconds"])
    return {
        "seed": seed,
        "status": result.check().status,
        "rhat": float(rhat.max()),
        "method": result.method,
        "draws": int(np.prod(draws.shape[:2])),
        "ess_bulk_min": float(bulk.min()),
        "ess_bulk_median": float(np.median(bulk)),
        "ess_tail_min": float(tail.min()),
        "seconds": seconds | {"wall": wall},
        "ess_per_second_min": float(bulk.min()) / seconds["sampling"],
        "ess_per_second_median": float(np.median(bulk)) / seconds["sampling"],
    }


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    model = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor() or "unknown",
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    } | {package: version(package) for package in PACKAGES}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def save(name: str, result: dict) -> Path:
    """Append a result to the machine's file, with the date and the commit."""
    here = machine()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    label = f"{here['cpu']}-{here['cores']}-cores-{here['backend']}".replace(" ", "-").replace("/", "-").lower()
    path = RESULTS / f"{label}.json"
    RESULTS.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else []
    entry = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "commit": commit.stdout.strip(), "on": here}
    path.write_text(json.dumps([*known, entry | result], indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=40)
    arguments = parser.parse_args()
    model = load_model(MODEL)
    data = read_trial(virtual_trial(1, patients=arguments.patients))
    result = {"patients": arguments.patients, "gradient_us": gradient_microseconds(model, data)}
    print(result, file=sys.stderr)
    result["fits"] = []
    for seed in range(1, arguments.seeds + 1):
        result["fits"].append(one_fit(model, seed, arguments.patients))
        print(json.dumps(result["fits"][-1]), file=sys.stderr)
    print(save("fit", result))


if __name__ == "__main__":
    main()
