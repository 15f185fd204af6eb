"""Figures of what the layers above return; nothing is computed here. Every function returns its axes."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from carkinetics.dataset import Dataset
from carkinetics.diagnostics import individual_curves
from carkinetics.fit_result import Fit, population_draws
from carkinetics.forest import NULL_BAND
from carkinetics.layout import make_layout
from carkinetics.plot_parts import BLACK, BLUE, GREEN, GREY, ORANGE, legend, samples, say, shorten
from carkinetics.plots_calibration import sbc
from carkinetics.plots_diagnostics import gof, individual_fits, npde, vpc
from carkinetics.plots_dose import pareto, utility
from carkinetics.plots_response import calibration, exposure_response, ratios, survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "calibration", "exposure_response", "forest", "gof", "individual_fits", "individuals", "npde",
    "observed_predicted", "pareto", "posteriors", "prior_predictive", "ratios", "save", "sbc", "shorten", "spread",
    "survival", "typical", "utility", "vpc",
]  # fmt: skip


def individuals(fit: Fit, *, subjects: Sequence[str] | None = None, n: int = 12, columns: int = 4) -> "np.ndarray":
    """Small multiples of patients: samples, the individual's curve with its 90 % interval, the typical curve.

    Parameters
    ----------
    subjects : sequence of str, optional
        Patients to draw; by default ``n`` of them, spread evenly over the list.

    Returns
    -------
    ndarray of Axes
        One per patient. Samples below the limit stand as open triangles at the limit.
    """
    import matplotlib.pyplot as plt

    names = fit.data.subjects
    chosen = list(subjects) if subjects else [names[i] for i in spread(len(names), n)]
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.1 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    curves = individual_curves(fit, subjects=chosen)
    for ax, subject in zip(axes.flat, chosen, strict=False):
        _individual(ax, fit, subject, curves[curves["ID"] == subject])
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    unit = fit.model.assays[0].unit
    figure.supylabel(f"CAR transgene ({unit})", fontsize=9)
    figure.supxlabel("days since infusion", fontsize=9)
    shown = fit.data.dv[np.isin(fit.data.subject, [names.index(s) for s in chosen])]
    if shown.size:
        axes[0, 0].set_ylim(shown.min() / 4, shown.max() * 6)
    handles, labels = legend(axes)
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    say(figure, fit.label)
    return axes.flatten()[: len(chosen)]


def typical(curves: pd.DataFrame, *, title: str = "", unit: str = "", lloq: float | None = None) -> "np.ndarray":
    """Small multiples of a typical patient's outputs over time, as :func:`carkinetics.typical_curves` returns them.

    Parameters
    ----------
    unit, lloq
        Of the first output.

    Returns
    -------
    ndarray of Axes
        One per output. The axis of levels is logarithmic and shows twelve decades at most.
    """
    import matplotlib.pyplot as plt

    names = list(curves.columns)
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.0 * columns, 2.3 * rows), squeeze=False, layout="constrained")
    for k, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        level = curves[name].to_numpy()
        ax.plot(curves.index, level, color=BLUE)
        ax.set_yscale("log")
        top = level[np.isfinite(level)].max(initial=1e-300)
        ax.set_ylim(max(level.min() / 2, top * 1e-12), top * 3)
        ax.set_title(name.replace("_", " ") + (f" ({unit})" if unit and k == 0 else ""), fontsize=9)
        if lloq and k == 0 and lloq > level.min() / 2:
            ax.axhline(lloq, color=GREY, linestyle=":", linewidth=1)
            ax.annotate("LLOQ", (curves.index[-1], lloq), ha="right", va="bottom", fontsize=7, color=GREY)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    figure.supxlabel("days since infusion", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=9)
    return axes.flatten()[: len(names)]


def save(axes: "np.ndarray", path: Path | BytesIO, *, dpi: int = 130) -> None:
    """Write the figure of these axes as a PNG, to a path or an open file; no display is needed, nothing stays open."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes[0].figure
    FigureCanvasAgg(figure).print_figure(path, dpi=dpi)
    plt.close(figure)


def spread(total: int, n: int) -> list[int]:
    """``n`` positions spread evenly over ``total``."""
    return sorted({round(i) for i in np.linspace(0, total - 1, min(n, total))})


def _individual(ax: "Axes", fit: Fit, subject: str, curves: pd.DataFrame) -> None:
    data = fit.data
    for k, (_, curve) in enumerate(curves.groupby("DVID")):
        color = (BLUE, GREEN)[k % 2]
        time = curve["TIME"]
        ax.fill_between(time, curve["LOW"], curve["HIGH"], color=color, alpha=0.25, lw=0, label="90 % interval")
        ax.plot(time, curve["IPRED"], color=color, lw=1.3, label="individual")
        ax.plot(time, curve["PRED"], color=GREY, lw=0.9, ls="--", label="typical patient")
    mine = data.subject == data.subjects.index(subject)
    samples(ax, data.time[mine], data.dv[mine], data.cens[mine])
    ax.set_yscale("log")
    ax.set_title(shorten(subject), fontsize=8, pad=2)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def observed_predicted(gof: pd.DataFrame, *, unit: str = "copies/ug", label: str = "") -> "np.ndarray":
    """Observed against predicted, typical (PRED) and individual (IPRED), on log axes, from a ``gof`` table.

    Samples below the limit stand as open triangles at the limit: their prediction should lie below it, or
    close to it. ``label``: the fit's, ``fit.label``.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.7), sharex=True, sharey=True, layout="constrained")
    values = gof[["DV", "PRED", "IPRED"]].to_numpy()
    floor = gof["DV"].min() / 30
    limits = (floor, values.max() * 2)
    for ax, name, kind in zip(axes, ("PRED", "IPRED"), ("typical prediction", "individual prediction"), strict=True):
        ax.plot(limits, limits, color=GREY, lw=1)
        # Predictions far below any limit tell no more than one at the edge of the panel.
        x = gof[name].clip(lower=floor * 1.15).to_numpy()
        samples(ax, x, gof["DV"].to_numpy(), gof["CENS"].to_numpy())
        ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
        ax.set_xlabel(f"{name}, {kind} ({unit})", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"observed ({unit})", fontsize=8)
    handles, labels = legend(axes)
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    say(figure, label)
    return axes


def posteriors(fit: Fit, *, truth: Mapping[str, float] | None = None, columns: int = 5) -> "np.ndarray":
    """Posterior of every population parameter against its prior, natural scale; ``truth`` as a line if given.

    Where the two coincide, the data said nothing.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    names, draws = population_draws(fit)
    prior_names, prior = population_draws(fit, group="prior")
    if prior_names != names:
        raise ValueError("the fit's prior and posterior groups name different parameters")
    rows = -(-len(names) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(2.3 * columns, 1.75 * rows), squeeze=False, layout="constrained")
    units = {p.name: p.unit for p in fit.model.parameters}
    logs = {p.name for p in fit.model.parameters if p.transform == "log" and not p.fixed}
    positive = logs | {c.name for c in make_layout(fit.model).components if c.log}
    for k, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        to_natural = np.exp if name in logs else np.tanh if name.startswith("corr ") else np.asarray
        x, reference = to_natural(draws[..., k]).ravel(), to_natural(prior[..., k]).ravel()
        bins = _bins(x, reference, log=name in positive)
        # Bins of equal width on the log axis: equal weights make areas comparable there.
        share = np.full(reference.size, 1 / reference.size)
        ax.hist(reference, bins=bins, weights=share, color=GREY, alpha=0.4, histtype="stepfilled", label="prior")
        own = np.full(x.size, 1 / x.size)
        ax.hist(x, bins=bins, weights=own, color=BLUE, alpha=0.75, histtype="stepfilled", label="posterior")
        if truth and name in truth:
            ax.axvline(truth[name], color=ORANGE, lw=1.5, label="simulated truth")
        unit = units.get(name, "")
        ax.set_title(name + (f" ({unit})" if unit not in ("", "1") else ""), fontsize=8, pad=2)
        ax.set_yticks([])
        if name in positive:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if bins[-1] < 100 * bins[0] else (1,)))
            ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right", "left"]].set_visible(False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    handles, labels = legend(axes)
    axes.flat[-1].figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    say(axes.flat[-1].figure, fit.label)
    return axes.flatten()[: len(names)]


def _bins(x: np.ndarray, reference: np.ndarray, *, log: bool) -> np.ndarray:
    """Bins, even on the axis, over the posterior and the middle of the prior."""
    low, high = np.quantile(x, (0.001, 0.999))
    low, high = min(low, np.quantile(reference, 0.01)), max(high, np.quantile(reference, 0.99))
    return np.geomspace(low, high, 60) if log else np.linspace(low, high, 60)


def forest(effects: pd.DataFrame, *, null_band: tuple[float, float] = NULL_BAND) -> "np.ndarray":
    """Effects of covariates on exposure, one panel a quantity, with a band of ratios that count as none.

    Parameters
    ----------
    effects : DataFrame
        Of :func:`carkinetics.covariate_effects`.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    quantities = list(dict.fromkeys(effects["QUANTITY"]))
    rows = len(effects) // len(quantities)
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(3.6 * len(quantities) + 1.6, 0.38 * rows + 1.3), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, quantity in zip(axes.flat, quantities, strict=True):
        part = effects[effects["QUANTITY"] == quantity].reset_index(drop=True)
        ax.axvspan(*null_band, color=GREY, alpha=0.2, lw=0, label=f"{null_band[0]:g} to {null_band[1]:g}")
        ax.axvline(1.0, color=GREY, lw=1)
        bars = [part["RATIO"] - part["LOW"], part["HIGH"] - part["RATIO"]]
        ax.errorbar(part["RATIO"], part.index, xerr=bars, fmt="o", ms=4, color=BLUE, lw=1.5, label="95 % interval")
        labels = [_forest_label(row) for row in part.to_dict("records")]
        ax.set_yticks(part.index, labels, fontsize=8)
        ax.set_ylim(len(part) - 0.5, -0.5)
        ax.set_xscale("log")
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if part["LOW"].min() * 0.7 < t < part["HIGH"].max() * 1.4]
        ax.set_xticks(sorted({*ticks, 1.0}))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(f"ratio of {quantity.replace('auc_0_28', 'AUC0-28').replace('cmax', 'Cmax')}", fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return axes.flatten()


def _forest_label(row: Mapping) -> str:
    value, against = (f"{x:.3g}" if isinstance(x, float) else str(x) for x in (row["VALUE"], row["AGAINST"]))
    return f"{shorten(str(row['COVARIATE']))} {shorten(value)} : {shorten(against)}"


def prior_predictive(expected: pd.DataFrame, data: Dataset) -> "np.ndarray":
    """What the priors expect, one panel an assay, and the samples; those below a limit stand at it.

    Parameters
    ----------
    expected : DataFrame
        Of :func:`carkinetics.prior_predictive`.
    """
    import matplotlib.pyplot as plt

    assays = list(dict.fromkeys(expected["DVID"]))
    figure, axes = plt.subplots(
        1, len(assays), figsize=(4.4 * len(assays) + 1.2, 3.1), squeeze=False, layout="constrained"
    )
    for ax, assay in zip(axes.flat, assays, strict=True):
        part, here = expected[expected["DVID"] == assay], data.assay == data.assays.index(assay)
        ax.fill_between(part["TIME"], part["LOW"], part["HIGH"], color=GREY, alpha=0.3, lw=0, label="90 % of samples")
        ax.plot(part["TIME"], part["MEDIAN"], color=BLACK, lw=1.2, label="median")
        samples(ax, data.time[here], data.dv[here], data.cens[here])
        ax.set_yscale("log")
        seen = data.dv[here]
        ax.set_ylim(max(part["LOW"].max() * 1e-6, seen.min() * 0.01), max(seen.max(), part["HIGH"].max()) * 3)
        unit = data.units["DV"].get(assay, "")
        ax.set_title(f"{shorten(assay)} ({unit})", fontsize=9)
        ax.set_xlabel("day", fontsize=8)
        ax.tick_params(labelsize=8)
    handles, labels = legend(axes)
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return axes.flatten()
