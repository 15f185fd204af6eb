"""Figures that judge a fit: goodness of fit, predictive checks, prediction errors, individual fits with bands."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from carkinetics.dataset import Dataset
from carkinetics.errors import ModelError
from carkinetics.model_parts import nearest_or_raise
from carkinetics.plot_parts import BLACK, BLUE, GREEN, GREY, ORANGE, legend, samples, say, shorten
from carkinetics.prediction_errors import PredictionErrors
from carkinetics.visual_checks import VisualCheck

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DAYS = (0, 1, 3, 7, 14, 28, 60, 90, 180, 365, 730, 1460, 2920)
_BAND = {"color": GREY, "alpha": 0.25, "lw": 0}
_NORMAL = 1.959963984540054
_GAP = 0.1  # between two labels of days, of the axis
_ENTRY = 1.6  # inches that an entry of a legend needs


def _axes(axes, rows: int, columns: int, size: tuple[float, float], **shared) -> "np.ndarray":
    """Those given, or a new figure's; ``size`` of one in inches."""
    import matplotlib.pyplot as plt

    if axes is None:
        figsize = (size[0] * columns, size[1] * rows)
        return plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained", **shared)[1]
    given = np.asarray(axes, dtype=object)
    if given.size != rows * columns:
        raise ModelError(f"axes: {given.size} were given, and this figure needs {rows} rows of {columns}.")
    return given.reshape(rows, columns)


def _finish(axes: "np.ndarray", label: str, entry: float = _ENTRY) -> None:
    for ax in axes.flat:
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    figure = axes.flat[0].figure
    handles, labels = legend(axes)
    if handles:
        columns = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    say(figure, label)


def _one_assay(table: pd.DataFrame, assay: str | None) -> tuple[str, pd.DataFrame]:
    names = list(dict.fromkeys(table["DVID"]))
    name = nearest_or_raise(assay, names, "assay", "the table") if assay else names[0]
    return name, table[table["DVID"] == name]


def _days(ax: "Axes", time) -> None:
    """An axis on which early days have room: ``ln(1 + day)``."""
    from matplotlib.ticker import FixedLocator, NullLocator

    def forward(t):
        return np.sign(t) * np.log1p(np.abs(t))

    def back(x):
        return np.sign(x) * np.expm1(np.abs(x))

    ax.set_xscale("function", functions=(forward, back))
    low, high = forward(float(np.min(time))), forward(float(np.max(time)))
    room = max(high - low, 0.5)
    ax.set_xlim(back(low - 0.04 * room), back(high + 0.04 * room))
    ticks: list[float] = []
    for day in reversed(_DAYS):  # those that fit, from the last one back
        if low <= forward(day) <= high and (not ticks or forward(ticks[-1]) - forward(day) > _GAP * room):
            ticks.append(day)
    ax.xaxis.set_major_locator(FixedLocator(ticks or [float(np.min(time))]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda t, _: f"{t:g}")


def gof(
    table: pd.DataFrame,
    *,
    assay: str | None = None,
    unit: str = "copies/ug",
    label: str = "",
    axes: "np.ndarray | None" = None,
) -> "np.ndarray":
    """Goodness of fit of one assay: observed against predicted, and residuals over predictions and time.

    Parameters
    ----------
    table : DataFrame
        Of :func:`carkinetics.gof`; with its column ``NPDE`` filled, six panels, else four.
    assay : str, optional
        The table's first by default.
    label : str
        The fit's, ``fit.label``.
    axes : ndarray of Axes, optional
        To draw in: two rows of two or three.

    Returns
    -------
    ndarray of Axes
        Samples below the limit stand as open triangles: at the limit, or at the NPDE that was drawn for them; they have
        no IWRES.
    """
    name, part = _one_assay(table, assay)
    errors = bool(part["NPDE"].notna().any())
    axes = _axes(axes, 2, 3 if errors else 2, (3.1, 2.7))
    seen = part["DV"].to_numpy()
    floor = seen.min() / 30
    limits = (floor, max(seen.max(), part["PRED"].max(), part["IPRED"].max()) * 2)
    for ax, column, words in zip(axes[0], ("PRED", "IPRED"), ("typical", "individual"), strict=False):
        ax.plot(limits, limits, color=GREY, lw=1)
        # Predictions far below any limit tell no more than one at the edge of the panel.
        samples(ax, part[column].clip(lower=floor * 1.15).to_numpy(), seen, part["CENS"].to_numpy())
        ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
        ax.set_xlabel(f"{column}, {words} prediction ({unit})", fontsize=8)
        ax.set_ylabel(f"{shorten(name)} observed ({unit})", fontsize=8)
    _residuals(axes[1, 0], part, "IPRED", "IWRES", unit)
    _residuals(axes[1, 1], part, "TIME", "IWRES", unit)
    if errors:
        _residuals(axes[0, 2], part, "PRED", "NPDE", unit)
        _residuals(axes[1, 2], part, "TIME", "NPDE", unit)
    _finish(axes, label)
    return axes


def _residuals(ax: "Axes", part: pd.DataFrame, over: str, column: str, unit: str) -> None:
    shown = part[part[column].notna()]
    x = shown[over].to_numpy(float)
    for y, style in ((0.0, "-"), (-_NORMAL, ":"), (_NORMAL, ":")):
        ax.axhline(y, color=GREY, lw=1, ls=style)
    if over == "TIME":
        _days(ax, x)
        ax.set_xlabel("days since infusion", fontsize=8)
    else:
        x = np.maximum(x, part["DV"].min() / 30)
        ax.set_xscale("log")
        ax.set_xlabel(f"{over} ({unit})", fontsize=8)
    samples(ax, x, shown[column].to_numpy(), shown["CENS"].to_numpy())
    most = max(3.5, float(shown[column].abs().max()) * 1.1) if len(shown) else 3.5
    ax.set_ylim(-most, most)
    ax.set_ylabel(f"{column} (SD)", fontsize=8)


def npde(errors: PredictionErrors, *, assay: str | None = None, axes: "np.ndarray | None" = None) -> "np.ndarray":
    """Prediction errors of one assay: their quantiles, their histogram, and over time and prediction.

    Parameters
    ----------
    errors : PredictionErrors
        Of :func:`carkinetics.npde`.
    assay : str, optional
        The first by default.
    axes : ndarray of Axes, optional
        Two rows of two to draw in.
    """
    name, part = _one_assay(errors.rows, assay)
    axes = _axes(axes, 2, 2, (3.4, 2.7))
    x = np.sort(part["NPDE"].to_numpy())
    ends = (-max(3.5, np.abs(x).max()), max(3.5, np.abs(x).max()))
    normal, low, high = errors.quantiles(len(x))
    ax = axes[0, 0]
    ax.fill_between(normal, low, high, label="95 % of each if the model is right", **_BAND)
    ax.plot(ends, ends, color=GREY, lw=1)
    ax.plot(normal, x, "o", ms=2.5, color=BLACK, mew=0)
    ax.set(xlim=(normal[0] - 0.3, normal[-1] + 0.3), ylim=ends)
    ax.set_xlabel("standard normal quantile", fontsize=8)
    ax.set_ylabel(f"NPDE of {shorten(name)} (SD)", fontsize=8)
    ax = axes[0, 1]
    grid = np.linspace(*ends, 200)
    ax.hist(x, bins=np.linspace(*ends, 25), density=True, color=BLUE, alpha=0.6)
    ax.plot(grid, np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi), color=BLACK, lw=1.2, label="standard normal")
    ax.set_xlabel("NPDE (SD)", fontsize=8)
    ax.set_ylabel("density (1/SD)", fontsize=8)
    unit = errors.units.get(name, "")
    _residuals(axes[1, 0], part, "TIME", "NPDE", unit)
    _residuals(axes[1, 1], part, "PRED", "NPDE", unit)
    _finish(axes, errors.label)
    return axes


def vpc(check: VisualCheck, *, axes: "np.ndarray | None" = None) -> "np.ndarray":
    """Visual predictive check: percentiles over time, and below them the share of samples below the limit.

    Parameters
    ----------
    check : VisualCheck
        Of :func:`carkinetics.vpc`.
    axes : ndarray of Axes, optional
        Two rows, a column for each panel (assay and stratum), to draw in.

    Returns
    -------
    ndarray of Axes
        Bands are 95 % intervals of simulated percentiles, lines those observed. A band or line that goes below the
        limit ends there.
    """
    panels = list(check.bins)
    one_unit = len({check.units[assay] for assay, _ in panels}) == 1
    axes = _axes(axes, 2, len(panels), (5.8 if len(panels) == 1 else 3.2, 2.3), height_ratios=[2.2, 1])
    floor = float(np.nanmin([check.samples["DV"].min(), check.percentiles["LOW"].min()])) / 2
    for (top, bottom), panel in zip(axes.T, panels, strict=True):
        rows, blq, seen = (
            t[(t["DVID"] == panel[0]) & (t["STRATUM"] == panel[1])]
            for t in (check.percentiles, check.blq, check.samples)
        )
        one_limit = (
            blq if check.correction == "none" else blq.assign(LLOQ=np.nan)
        )  # corrected, it is another in each row
        _levels(top, rows, one_limit, seen, floor if one_unit else float(seen["DV"].min()) / 4)
        corrected = "" if check.correction == "none" else f",\n{check.correction}-corrected"
        top.set_title(shorten(panel[1], 40), fontsize=9)
        top.set_ylabel(f"{shorten(panel[0])} ({check.units[panel[0]]}){corrected}", fontsize=8)
        _shares(bottom, blq)
        for ax in (top, bottom):
            _days(ax, seen["TIME"])
        bottom.set_xlabel("days since infusion", fontsize=8)
    if one_unit:
        most = max(ax.get_ylim()[1] for ax in axes[0])
        for ax in axes[0]:
            ax.set_ylim(floor, most)
    _finish(axes, check.label, entry=2.6)
    return axes


def _levels(ax: "Axes", rows: pd.DataFrame, blq: pd.DataFrame, seen: pd.DataFrame, floor: float) -> None:
    quantified = seen["CENS"] == 0
    ax.plot(seen["TIME"][quantified], seen["DV"][quantified], "o", ms=2, color=GREY, alpha=0.5, mew=0, label="samples")
    below = seen["CENS"] == 1
    if below.any():
        ax.plot(
            seen["TIME"][below], seen["DV"][below], "v", ms=3, mfc="none", mec=ORANGE, mew=0.5, label="below the limit"
        )
    ax.set_yscale("log")
    for percentile, part in rows.groupby("PERCENTILE"):
        middle = percentile == 50
        color = ORANGE if middle else BLUE
        known = part["HIGH"].notna()
        low = np.where(known, part["LOW"].fillna(floor), np.nan)
        name = "median" if middle else "5th, 95th percentile"
        ax.fill_between(part["TIME"], low, part["HIGH"], color=color, alpha=0.22, lw=0, label=f"{name}: 95 % simulated")
        style = "-" if middle else "--"
        ax.plot(part["TIME"], part["OBSERVED"], style, color=color, lw=1.4, label=f"{name}: observed", marker=".", ms=3)
    if blq["LLOQ"].notna().any() and (below.any() or blq["SIMULATED"].max() > 0):
        ax.axhline(blq["LLOQ"].median(), color=BLACK, ls=":", lw=0.8, label="limit of quantification")
    ax.set_ylim(bottom=floor)


def _shares(ax: "Axes", blq: pd.DataFrame) -> None:
    ax.fill_between(
        blq["TIME"], blq["LOW"], blq["HIGH"], color=GREEN, alpha=0.25, lw=0, label="share below: 95 % simulated"
    )
    ax.plot(blq["TIME"], blq["OBSERVED"], color=GREEN, lw=1.4, marker=".", ms=3, label="share below: observed")
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("share below\nthe limit (1)", fontsize=8)


def individual_fits(
    table: pd.DataFrame,
    data: Dataset,
    *,
    assay: str | None = None,
    subjects: Sequence[str] | None = None,
    columns: int = 4,
    label: str = "",
    axes: "np.ndarray | None" = None,
) -> "np.ndarray":
    """Patients' samples in 50 % and 90 % bands of new samples around their curves.

    Parameters
    ----------
    table : DataFrame
        Of :func:`carkinetics.individual_fits`.
    data : Dataset
        The fit's.
    assay : str, optional
        The table's first by default.
    subjects : sequence of str, optional
        All of the table by default.
    label : str
        The fit's, ``fit.label``.
    axes : ndarray of Axes, optional
        One a patient, to draw in.
    """
    from matplotlib.ticker import NullLocator

    name, part = _one_assay(table, assay)
    chosen = list(subjects) if subjects else list(dict.fromkeys(part["ID"]))
    rows = -(-len(chosen) // columns) if axes is None else 1
    wide = columns if axes is None else len(chosen)
    axes = _axes(axes, rows, wide, (2.4, 1.9), sharey=True)
    k = data.assays.index(name)
    unit = data.units["DV"].get(name, "")
    shown = data.dv[data.assay == k]
    for ax, subject in zip(axes.flat, chosen, strict=False):
        _bands(ax, part[part["ID"] == subject])
        mine = (data.subject == data.subjects.index(subject)) & (data.assay == k)
        samples(ax, data.time[mine], data.dv[mine], data.cens[mine])
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())  # in panels this small they merge, and take half of the drawing
        _days(ax, part["TIME"][part["ID"] == subject])
        if shown.size:
            ax.set_ylim(max(shown.min(), 1e-300) / 6, shown.max() * 6)
        ax.set_title(shorten(subject), fontsize=8, pad=2)
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{shorten(name)} ({unit})", fontsize=8)
    for i, ax in enumerate(axes.flat[: len(chosen)]):
        if i + wide >= len(chosen):
            ax.set_xlabel("days since infusion", fontsize=8)
    _finish(axes, label)
    return axes.flatten()[: len(chosen)]


def _bands(ax: "Axes", curve: pd.DataFrame) -> None:
    time = curve["TIME"]
    for low, high, alpha in (("NEW_5", "NEW_95", 0.18), ("NEW_25", "NEW_75", 0.3)):
        inside = "90 %" if low == "NEW_5" else "50 %"
        ax.fill_between(time, curve[low], curve[high], color=BLUE, alpha=alpha, lw=0, label=f"{inside} of new samples")
    ax.plot(time, curve["IPRED"], color=BLUE, lw=1.2, label="individual")
    ax.plot(time, curve["PRED"], color=GREY, lw=0.9, ls="--", label="typical patient")
