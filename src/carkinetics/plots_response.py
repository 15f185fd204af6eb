"""Figures of response models: shares by quantile with the curve, survival with a risk table, calibration, ratios."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from carkinetics.response.judging import calibration as calibration_table
from carkinetics.response.judging import quantile_table, survival_by_exposure
from carkinetics.response.result import AbstractResponse
from carkinetics.response.tte_model import TteResponse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by readers with any colour vision.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"
_GROUPS = (BLUE, ORANGE, GREEN, BLACK)
_RISK_TIMES = 6
_LEGEND = "Kaplan-Meier (solid, descriptive) and model (dashed, 95 % band)"


def exposure_response(
    responses: AbstractResponse | Mapping[str, AbstractResponse], *, at: float | None = None, bins: int = 4
) -> "np.ndarray":
    """Observed shares by quantile of exposure with exact intervals, each patient, and the curve with its 95 % band.

    Parameters
    ----------
    responses : response or mapping
        Several stand side by side, such as ``{"unadjusted": a, "adjusted for burden": b}``. The curve of an adjusted
        one is the average over the patients' covariates.
    at : float, optional
        Grade or day that is asked for.

    Returns
    -------
    ndarray of Axes
    """
    import matplotlib.pyplot as plt

    named = {"": responses} if isinstance(responses, AbstractResponse) else dict(responses)
    figure, axes = plt.subplots(
        1, len(named), figsize=(4.2 * len(named) + 0.6, 3.5), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (title, response) in zip(axes.flat, named.items(), strict=True):
        _curve(ax, response, at, bins)
        ax.set_title(f"{title}\n" * bool(title) + _carried(response), fontsize=8)
    first = next(iter(named.values()))
    axes[0, 0].set_ylabel(_asked(first, at), fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    _caution(figure)
    return axes.flatten()


def _curve(ax: "Axes", response: AbstractResponse, at: float | None, bins: int) -> None:
    x = response.grid()
    table = response.marginal(x.tolist(), at=at) if response.terms.covariates else response.curve(x.tolist(), at=at)
    ax.fill_between(table["VALUE"], table["LOW"], table["HIGH"], color=BLUE, alpha=0.22, lw=0, label="95 % band")
    ax.plot(table["VALUE"], table["MEDIAN"], color=BLUE, lw=1.6, label="model")
    y, values = response.observed(at), response.patients.metric.value
    known = ~np.isnan(y)
    ax.plot(values[known], 1.06 * y[known] - 0.03, "|", color=GREY, ms=7, label="patient")
    share = quantile_table(response, bins=bins, at=at)
    bars = [share["SHARE"] - share["LOW"], share["HIGH"] - share["SHARE"]]
    ax.errorbar(
        share["VALUE"], share["SHARE"], yerr=bars, fmt="o", ms=4.5, color=BLACK, lw=1.2, label="quantile, exact 95 %"
    )
    for row in share.to_dict("records"):
        ax.annotate(f" {row['EVENTS']}/{row['N']}", (row["VALUE"], row["SHARE"]), fontsize=7, va="bottom")
    ax.set_xscale("log")
    ax.set_ylim(-0.07, 1.07)
    metric = response.patients.metric
    ax.set_xlabel(metric.name.replace("_", " ") + (f" ({metric.unit})" if metric.unit else ""), fontsize=9)
    _plain(ax)


def survival(response: TteResponse, *, groups: int = 2) -> "np.ndarray":
    """Kaplan-Meier by group of exposure, what the model expects of the same patients, and the numbers at risk.

    The groups are descriptive: the model uses exposure as it is.

    Returns
    -------
    ndarray of Axes
        The curves, and the table.
    """
    import matplotlib.pyplot as plt

    seen, expected = survival_by_exposure(response, groups=groups)
    names = list(dict.fromkeys(seen["GROUP"]))
    figure, axes = plt.subplots(
        2, 1, figsize=(5.6, 4.1 + 0.2 * len(names)), sharex=True, layout="constrained",
        gridspec_kw={"height_ratios": [10, 1.0 + len(names)]},
    )  # fmt: skip
    since = response.clock.since
    ticks = np.linspace(since, float(seen["TIME"].max()), _RISK_TIMES).round()
    for k, group in enumerate(names):
        color, part = _GROUPS[k % len(_GROUPS)], seen[seen["GROUP"] == group]
        label = f"{_nth(k, len(names))} exposure, n = {int(part['AT_RISK'].max())}"
        time, height = np.r_[since, part["TIME"]], np.r_[1.0, part["SURVIVAL"]]
        axes[0].step(time, height, where="post", color=color, lw=1.4, label=label)
        left = np.diff(np.r_[part["AT_RISK"], 0]) + part["EVENTS"].to_numpy()
        gone = part[left < 0]
        axes[0].plot(gone["TIME"], gone["SURVIVAL"], "+", color=color, ms=6)
        of = expected[expected["GROUP"] == group]
        axes[0].fill_between(of["TIME"], of["LOW"], of["HIGH"], color=color, alpha=0.16, lw=0)
        axes[0].plot(of["TIME"], of["MEDIAN"], color=color, lw=1.0, ls="--")
        for day in ticks:
            later = part["AT_RISK"][part["TIME"] >= day]
            axes[1].text(day, -k, str(int(later.max()) if len(later) else 0), ha="center", va="center", color=color,
                         fontsize=8)  # fmt: skip
    axes[0].set_ylim(0, 1.03)
    axes[0].set_ylabel(f"event-free ({_plainly(response.what)})", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8, title=_LEGEND, title_fontsize=7
    )
    _risk_table(axes[1], ticks, len(names))
    _plain(axes[0])
    _caution(figure)
    return axes


def _risk_table(ax: "Axes", ticks: np.ndarray, rows: int) -> None:
    ax.set_ylim(-rows + 0.4, 0.6)
    ax.set_yticks([])
    ax.set_xticks(ticks)
    ax.set_title("number at risk", fontsize=7, loc="left", pad=2)
    ax.set_xlabel("days since infusion", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)


def calibration(response: AbstractResponse, *, at: float | None = None, bins: int = 4) -> "np.ndarray":
    """Observed shares against predicted probabilities, each patient left out of his own prediction.

    Returns
    -------
    ndarray of Axes
    """
    import matplotlib.pyplot as plt

    table = calibration_table(response, bins=bins, at=at)
    figure, ax = plt.subplots(figsize=(3.7, 3.7), layout="constrained")
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, label="perfect")
    bars = [table["SHARE"] - table["LOW"], table["HIGH"] - table["SHARE"]]
    ax.errorbar(table["PREDICTED"], table["SHARE"], yerr=bars, fmt="o", ms=4.5, color=BLUE, lw=1.2,
                label="quantile, exact 95 %")  # fmt: skip
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel(f"predicted: {_asked(response, at)}", fontsize=8)
    ax.set_ylabel("observed share", fontsize=8)
    ax.legend(frameon=False, fontsize=8)
    _plain(ax)
    figure.suptitle(_carried(response), fontsize=8)
    return np.array([ax])


def ratios(responses: AbstractResponse | Mapping[str, AbstractResponse]) -> "np.ndarray":
    """Odds, hazard or time ratios with 95 % intervals: a forest plot of exposure and covariates.

    Parameters
    ----------
    responses : response or mapping
        Of one kind of ratio; a mapping's names stand before those of the effects.

    Returns
    -------
    ndarray of Axes
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    named = {"": responses} if isinstance(responses, AbstractResponse) else dict(responses)
    tables = [r.effects().assign(WHERE=name) for name, r in named.items()]
    table = pd.concat(tables, ignore_index=True)
    kinds = list(dict.fromkeys(table["RATIO"]))
    if len(kinds) > 1:
        raise ValueError(f"ratios of different kinds cannot share an axis: {', '.join(kinds)}; draw them apart")
    figure, ax = plt.subplots(figsize=(5.4, 0.38 * len(table) + 1.4), layout="constrained")
    bars = [table["MEDIAN"] - table["LOW"], table["HIGH"] - table["MEDIAN"]]
    ax.axvline(1.0, color=GREY, lw=1)
    ax.errorbar(table["MEDIAN"], table.index, xerr=bars, fmt="o", ms=4, color=BLUE, lw=1.5)
    labels = [f"{w}: {e}" if w else e for w, e in zip(table["WHERE"], table["EFFECT"], strict=True)]
    ax.set_yticks(table.index, [_plainly(t).replace(" x ", " × ") for t in labels], fontsize=8)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xscale("log")
    ends = (table["LOW"].min() * 0.8, table["HIGH"].max() * 1.25)
    ax.set_xlim(*ends)
    ticks = [t for t in (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 100, 1000) if ends[0] < t < ends[1]]
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(f"{kinds[0]} (median, 95 % interval)" if kinds else "no effect in the model", fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    _caution(figure)
    return np.array([ax])


def _nth(k: int, n: int) -> str:
    return ("lower", "higher")[k] if n == 2 else f"{k + 1} of {n}, from the lowest"


def _asked(response: AbstractResponse, at: float | None) -> str:
    what = _plainly(response.what)
    if isinstance(response, TteResponse):
        return f"event-free on day {at:g} ({what})"
    return f"P({what})" if at is None else f"P({what} grade ≥ {at:g})"


def _carried(response: AbstractResponse) -> str:
    if not response.patients.uncertain:
        return "exposure as measured"
    return {"point": "exposure as a point", "propagate": "exposure uncertainty propagated"}.get(
        response.two_stage, "exposure and response joint"
    )


def _plainly(text: str) -> str:
    """matplotlib's mathematics switched off."""
    text = text if len(text) <= 40 else text[:39] + "…"
    return text.replace("$", r"\$").replace("_", " ")


def _plain(ax: "Axes") -> None:
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _caution(figure) -> None:
    figure.supxlabel(
        "an association: exposure is measured after treatment", fontsize=6.5, color=GREY, x=0.99, ha="right"
    )
