"""The files of a fit, in one folder: the fit itself, its tables, its figures."""

from pathlib import Path

import numpy as np

from carkinetics import plots
from carkinetics.diagnostics import gof
from carkinetics.fit_result import Fit
from carkinetics.model import Model
from carkinetics.model_checks import typical_curves
from carkinetics.solvers import ACCURATE


def write_outputs(result: Fit, folder: Path, *, truth: dict[str, float] | None = None) -> list[Path]:
    """The fit file, the parameter and goodness-of-fit tables, and the figures of a fit, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    table = gof(result)
    written = [result.save(folder / "fit.nc")]
    for name, frame in (("parameters", result.parameters()), ("gof", table.set_index("ID"))):
        written.append(folder / f"{name}.csv")
        frame.to_csv(written[-1])
    unit = result.model.assays[0].unit
    figures = {
        "individual_fits": plots.individuals(result, n=min(result.data.n_subjects, 40)),
        "observed_predicted": plots.observed_predicted(table, unit=unit, label=result.label),
        "posteriors": plots.posteriors(result, truth=truth),
    }
    for name, axes in figures.items():
        written.append(folder / f"{name}.png")
        plots.save(axes, written[-1])
    return written


def write_typical(model: Model, folder: Path, *, days: float = 168.0) -> Path:
    """The figure of a model's typical patient, as ``folder/<model>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = typical_curves(model, np.linspace(0.0, days, 400), refine=ACCURATE)
    first = next((a for a in model.assays if a.output == model.structure.outputs[0]), None)
    unit, lloq = (first.unit, first.lloq) if first else ("", None)
    path = folder / f"{model.name}.png"
    plots.save(plots.typical(curves, title=model.name, unit=unit, lloq=lloq), path, dpi=110)
    return path
