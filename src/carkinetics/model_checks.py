"""Does the typical patient of a model reproduce the facts that its paper states?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics import solvers
from carkinetics.density import compiled_ln_curves
from carkinetics.errors import ModelError
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_parts import UNKNOWN, Check, nearest_or_raise
from carkinetics.population import natural
from carkinetics.structure import Course, Inputs, inputs

QUANTITIES = (
    "level", "auc", "doubling_time", "half_life", "peak_level", "peak_time", "lowest_level", "lowest_time",
)  # fmt: skip
_COLUMNS = (
    "quantity", "output", "time", "where", "expected", "found", "unit", "relative error", "ok", "source",
)  # fmt: skip
_GRID = np.concatenate([np.linspace(0, 60, 6001), np.linspace(60.1, 1000, 9400)])  # day; the peak is read off it


def typical_curves(model: Model, times: Float[np.ndarray, " time"], *, refine: int = 1) -> pd.DataFrame:
    """Every output of the typical patient, natural scale, at ``times`` (day, the index).

    The typical patient has every random effect at zero, the model's typical dose, no treatment, and the typical
    value of every regressor.
    """
    model.refuse_unknown("the typical patient", variability=False, residual=False)
    if model.structure.uses_dose and model.typical_dose is UNKNOWN:
        raise ModelError(f"{model.name}: {model.structure.name} uses the dose; give typical_dose (viable CAR+ cells).")
    with jax.enable_x64(True):
        values = natural(make_layout(model), jnp.array([[p.theta] for p in model.parameters]))
        x = typical_inputs(model)
        grid = solvers.make_grid(model.structure, np.asarray(times, float)[:, None], x, refine=refine)
        curves = compiled_ln_curves(model.structure, solvers.filled_up(grid), values, x)
    found = {name: np.exp(np.asarray(curves[name])[: len(times), 0]) for name in model.structure.outputs}
    return pd.DataFrame(found, index=pd.Index(times, name="TIME"))


def typical_curve(
    model: Model, times: Float[np.ndarray, " time"], output: str | None = None
) -> Float[np.ndarray, " time"]:
    """Natural log of the typical patient's level at ``times`` (day), of the first output unless one is named."""
    with np.errstate(divide="ignore"):
        return np.log(typical_curves(model, times)[output or model.structure.outputs[0]].to_numpy())


def typical_inputs(model: Model) -> Inputs:
    """What the typical patient gets; one patient, subject axis last."""
    course = {r.name: Course(jnp.zeros((1, 1)), jnp.full((1, 1), r.typical), "locf") for r in model.regressors}
    never = jnp.full((len(model.acting), 1), jnp.inf)
    return inputs(jnp.array([model.typical_dose]), since=never, factor=jnp.ones_like(never), course=course)


def run_checks(model: Model) -> pd.DataFrame:
    """One row per ``[[checks]]`` entry: expected, found, relative error, and whether it is within tolerance."""
    rows = []
    for check in model.checks:
        found = _quantity(model, check)
        error = abs(found / check.expected - 1)
        rows.append(
            {
                "quantity": check.quantity,
                "output": check.output or model.structure.outputs[0],
                "time": check.time,
                "where": ", ".join(f"{name} = {value:g}" for name, value in check.where),
                "expected": check.expected,
                "found": found,
                "unit": check.unit,
                "relative error": error,
                "ok": bool(error <= check.rel_tol),
                "source": check.source,
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _quantity(model: Model, check: Check) -> float:
    nearest_or_raise(check.quantity, QUANTITIES, "quantity", f"{model.name} [[checks]]")
    changed = dict(check.where)
    model = replace(model, typical_dose=changed.pop("typical_dose", model.typical_dose)).with_values(changed)
    output = check.output or None
    if check.quantity in ("peak_level", "peak_time", "lowest_level", "lowest_time"):
        until = _GRID if check.time is None else _GRID[check.time >= _GRID]
        level = typical_curve(model, until, output)
        at = int(np.argmax(level) if check.quantity.startswith("peak") else np.argmin(level))
        return float(np.exp(level[at])) if check.quantity.endswith("level") else float(until[at])
    if check.time is None:
        raise ModelError(f"{model.name} [[checks]]: {check.quantity} needs a time.")
    if check.quantity == "auc":
        until = np.linspace(0.0, check.time, 4001)
        return float(np.trapezoid(np.exp(typical_curve(model, until, output)), until))
    if check.quantity == "level":
        return float(np.exp(typical_curve(model, np.array([check.time]), output)[0]))
    before, after = typical_curve(model, np.array([check.time - 0.01, check.time + 0.01]), output)
    slope = (after - before) / 0.02
    return float(np.log(2) / (slope if check.quantity == "doubling_time" else -slope))
