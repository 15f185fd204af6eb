"""How fast virtual patients are: model B (effector, memory, antigen) at 14 times, beside LSODA in a loop.

    uv run python benchmarks/bench_simulate.py [--patients 300000] [--scipy 200]

Like for like is solving: curves of given parameters. Simulating draws the patients and labels the arrays as well. One
JSON object is appended to ``results/<machine>.json``; all is timed in one run, after a first one that compiles.
"""

import argparse
import sys
import time

import numpy as np
from scipy.integrate import solve_ivp

from bench_antigen import antigen_model
from bench_fit import save
from carkinetics.cohort import Cohort
from carkinetics.demo import SCHEDULE
from carkinetics.simulation import simulate, solve
from carkinetics.structure import inputs

MODEL = antigen_model()


def by_scipy(parameters) -> np.ndarray:
    """The same equations again, one patient after the other, with LSODA at 1e-6."""
    found = []
    for e0, rho, b0, kill, alpha, conv, beta in parameters:

        def rhs(t, y, rho=rho, kill=kill, alpha=alpha, conv=conv, beta=beta):
            e, m, b = y
            return [(rho * b / (1 + b) - alpha - conv) * e, conv * e - beta * m, -kill * e * b]

        run = solve_ivp(rhs, (0, SCHEDULE[-1]), [e0, 0.0, b0], t_eval=SCHEDULE, method="LSODA", rtol=1e-6, atol=1e-9)
        found.append(run.y[0] + run.y[1])
    return np.stack(found)


def timed(call) -> float:
    """Median seconds of five calls; what they return is thrown away at once."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=300_000)
    parser.add_argument("--scipy", type=int, default=200, help="patients that scipy solves")
    arguments = parser.parse_args()
    cohort = Cohort(n=arguments.patients, times=SCHEDULE)
    found = simulate(MODEL, cohort, seed=1, residual=False)
    values, dose = found.parameters.to_numpy().T.copy(), inputs(np.ones(arguments.patients))
    whole = timed(lambda: simulate(MODEL, cohort, seed=1, residual=False))
    alone = timed(lambda: solve(MODEL.structure, np.array(SCHEDULE, float), values, dose))
    few = found.individual.to_numpy()[: arguments.scipy]
    started = time.perf_counter()
    levels = by_scipy(few)
    theirs = arguments.scipy / (time.perf_counter() - started)
    same = np.abs(np.log(found.curves["level"].values[0, : arguments.scipy] / levels))
    result = {
        "patients": arguments.patients,
        "simulated_per_second": arguments.patients / whole,
        "solved_per_second": arguments.patients / alone,
        "scipy_solved_per_second": theirs,
        "ratio_of_solving": arguments.patients / alone / theirs,
        "ratio_of_simulating": arguments.patients / whole / theirs,
        "largest_difference_ln": float(same.max()),
    }
    print(result, file=sys.stderr)
    print(save("simulate", result))


if __name__ == "__main__":
    main()
