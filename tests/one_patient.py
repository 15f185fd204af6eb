"""One patient of a structure: values, the curve that a fit computes, and any equations by SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from carkinetics import solvers
from carkinetics.density import as_arguments
from carkinetics.structure import inputs
from carkinetics.structures import STRUCTURES
from populations import EXAMPLES


def typical(name, **changed):
    """Typical values of an example of :mod:`populations`."""
    found = {k: v for k, (v, _) in EXAMPLES[name].items()} | changed
    assert set(found) == set(STRUCTURES[name].parameters._fields)
    return found


def drawn(name, n, seed):
    """Values of ``n`` patients of an example."""
    rng = np.random.default_rng(seed)
    return [{k: v * np.exp(s * rng.standard_normal()) for k, (v, s) in EXAMPLES[name].items()} for _ in range(n)]


def solved(name, times, values, *, refine=solvers.ACCURATE, given=(), output="level"):
    """ln level of one patient, as a fit computes it; ``given`` are (day, factor) of treatments on growth."""
    structure = STRUCTURES[name]
    with jax.enable_x64(True):
        since = jnp.array([[day] for day, _ in given]) if given else jnp.zeros((0, 1))
        x = inputs(jnp.array([jnp.nan]), since=since, factor=jnp.zeros_like(since))
        grid = solvers.make_grid(structure, np.asarray(times, float)[:, None], x, refine=refine)
        column = [values[k] for k in structure.parameters._fields] + [f for _, f in given]
        p, x = as_arguments(structure, jnp.asarray(column, float)[:, None], x)
        return np.asarray(solvers.curves(structure, grid, p, x)[output])[:, 0]


def by_scipy(rate, start, stops, times):
    """States of an ODE at ``times``, restarted at every one of ``stops``."""
    edges = sorted({0.0, *(s for s in stops if 0 < s < times[-1]), times[-1]})
    y, found = np.asarray(start, float), {0.0: np.asarray(start, float)}
    for begin, end in itertools.pairwise(edges):
        middle = (begin + end) / 2  # which phase it is, is decided once for the whole stretch
        wanted = np.append(times[(times > begin) & (times < end)], end)
        run = solve_ivp(lambda t, y, m=middle: rate(t, y, m), (begin, end), y, "DOP853", wanted, rtol=1e-12, atol=1e-14)
        assert run.success
        found |= dict(zip(wanted, run.y.T, strict=True))
        y = run.y[:, -1]
    return np.array([found[t] for t in times])
