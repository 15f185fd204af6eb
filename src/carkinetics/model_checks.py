"""Does the typical patient of a model reproduce the facts that its paper states?"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics import solvers
from carkinetics.errors import ModelError
from carkinetics.model import Check, Model
from carkinetics.population import make_layout, natural

_GRID = np.concatenate([np.linspace(0, 60, 6001), np.linspace(60.1, 1000, 9400)])  # day; the peak is read off it


def typical_curve(
    model: Model, times: Float[np.ndarray, " time"], output: str | None = None
) -> Float[np.ndarray, " time"]:
    """Natural log of the typical patient's level at ``times`` (day), of the first output unless one is named."""
    with jax.enable_x64(True):
        theta = jnp.array([[p.theta] for p in model.parameters])
        p = natural(make_layout(model), theta)
        grid = solvers.make_grid(model.structure, np.asarray(times, float)[:, None])
        curve = solvers.curves(model.structure, grid, jnp.array([jnp.nan]), p)
    return np.asarray(curve[output or model.structure.outputs[0]])[:, 0]


def run_checks(model: Model) -> pd.DataFrame:
    """One row per ``[[checks]]`` entry: expected, found, relative error, and whether it is within tolerance."""
    rows = []
    for check in model.checks:
        found = _quantity(model, check)
        error = abs(found / check.expected - 1)
        rows.append(
            {
                "quantity": check.quantity,
                "time": check.time,
                "expected": check.expected,
                "found": found,
                "unit": check.unit,
                "relative error": error,
                "ok": bool(error <= check.rel_tol),
                "source": check.source,
            }
        )
    return pd.DataFrame(rows)


def _quantity(model: Model, check: Check) -> float:
    if check.quantity in ("peak_level", "peak_time"):
        level = typical_curve(model, _GRID)
        peak = int(np.argmax(level))
        return float(np.exp(level[peak])) if check.quantity == "peak_level" else float(_GRID[peak])
    if check.quantity not in ("level", "doubling_time", "half_life"):
        raise ModelError(
            f"{model.name} [[checks]]: unknown quantity {check.quantity!r}. "
            "Known: level, doubling_time, half_life, peak_level, peak_time."
        )
    if check.time is None:
        raise ModelError(f"{model.name} [[checks]]: {check.quantity} needs a time.")
    if check.quantity == "level":
        return float(np.exp(typical_curve(model, np.array([check.time]))[0]))
    before, after = typical_curve(model, np.array([check.time - 0.01, check.time + 0.01]))
    slope = (after - before) / 0.02
    return float(np.log(2) / (slope if check.quantity == "doubling_time" else -slope))
