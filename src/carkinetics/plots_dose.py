"""Figures of a plan of doses: benefit against harm with their uncertainty, and the utility of every level."""

from typing import TYPE_CHECKING

import numpy as np

from carkinetics.endpoints import Judged
from carkinetics.errors import ModelError
from carkinetics.plan import Plan
from carkinetics.plot_parts import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL = 0.03  # half of a label's height, as a share of the axis


def pareto(plan: Plan) -> "Axes":
    """The first efficacy against the first toxicity: each level's median and interval, and their targets.

    A level that lies below and right of another one is worse in both. Hollow: extrapolated.

    Returns
    -------
    Axes
    """
    import matplotlib.pyplot as plt

    good, bad = _first(plan)
    table = plan.table
    figure, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    x, y = table[bad.name], table[good.name]
    sides = {e.name: np.array([table[e.name] - table[f"{e.name}_LOW"], table[f"{e.name}_HIGH"] - table[e.name]])
             for e in (good, bad)}  # fmt: skip
    ax.errorbar(x, y, xerr=sides[bad.name], yerr=sides[good.name], fmt="none", ecolor=BLUE, alpha=0.5, lw=1.2)
    ax.plot(x, y, "-", color=BLUE, lw=1, alpha=0.6)
    hollow = table["EXTRAPOLATED"].to_numpy(bool)
    ax.plot(x[~hollow], y[~hollow], "o", color=BLUE, ms=7, label="level")
    ax.plot(x[hollow], y[hollow], "o", mfc="white", mec=BLUE, ms=7, label="level, extrapolated")
    for dose, a, b, height in zip(table["DOSE"], x, y, _apart(y.to_numpy(float)), strict=True):
        line = {"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkB": 4} if height - b > 2 * _LABEL else None
        ax.annotate(f"{dose:g}", (a, b), xytext=(a + _LABEL, height), va="center", fontsize=8, arrowprops=line)
    ax.axvline(bad.target, color=ORANGE, lw=1, ls="--", label="targets")
    ax.axhline(good.target, color=ORANGE, lw=1, ls="--")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_xlabel(f"rate of {bad.name}", fontsize=9)
    ax.set_ylabel(f"rate of {good.name}", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    _about(plan, figure)
    return ax


def utility(plan: Plan) -> np.ndarray:
    """Expected utility of every level with its interval, and the probability that it is the best.

    Returns
    -------
    ndarray of Axes
        Utility, and probability.
    """
    import matplotlib.pyplot as plt

    table, at = plan.table, np.arange(len(plan.levels))
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 3.3), layout="constrained")
    middle = table["UTILITY"]
    sides = np.array([middle - table["UTILITY_LOW"], table["UTILITY_HIGH"] - middle])
    colour = [BLUE if ok else GREY for ok in table["ADMISSIBLE"]]
    for k in at:
        face = "white" if table["EXTRAPOLATED"].iloc[k] else colour[k]
        axes[0].errorbar(at[k], middle.iloc[k], yerr=sides[:, [k]], fmt="o", ms=7, mfc=face, color=colour[k], lw=1.3)
    axes[0].set_ylabel("expected utility", fontsize=9)
    axes[1].bar(at, table["P_BEST"], color=colour, width=0.6)
    axes[1].set_ylim(0, 1)
    axes[1].set_ylabel("probability of being the best", fontsize=9)
    for ax in axes:
        ax.set_xticks(at, [f"{d:g}" for d in plan.levels])
        ax.set_xlabel(plan.unit.replace("_", " ").lower(), fontsize=9)
    weights = ", ".join(f"{e.name} {e.weight:+g}" for e in plan.endpoints if e.weight)
    figure.suptitle(f"{weights}; grey: not admissible; hollow: extrapolated", fontsize=8)
    _about(plan, figure)
    return axes


def _first(plan: Plan) -> tuple[Judged, Judged]:
    good = [e for e in plan.endpoints if not e.toxic]
    bad = [e for e in plan.endpoints if e.toxic]
    if not (good and bad):
        raise ModelError("pareto: the plan needs an efficacy and a toxicity.")
    return good[0], bad[0]


def _apart(y: np.ndarray) -> np.ndarray:
    """Heights of labels, each a little above its point and clear of the label below."""
    heights = np.empty(len(y))
    last = -np.inf
    for k in np.argsort(y, kind="stable"):
        last = heights[k] = max(y[k] + _LABEL, last + 2 * _LABEL)
    return heights


def _about(plan: Plan, figure) -> None:
    """The verdict on more, and what the interval is."""
    more = plan.verdict.splitlines()[-1]
    text = f"{100 * plan.rules.level:g} % intervals of the average over new patients. {more}"
    figure.supxlabel(text, fontsize=7, color=GREY, wrap=True)
