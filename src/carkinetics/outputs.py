"""The files of a fit, in one folder: the fit itself, its tables, its figures."""

from pathlib import Path

from carkinetics import plots
from carkinetics.diagnostics import gof
from carkinetics.fit_result import Fit


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
