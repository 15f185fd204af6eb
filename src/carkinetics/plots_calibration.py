"""Figures of simulation-based calibration: how far the ranks of what was true are from uniform."""

import numpy as np

from carkinetics.calibrating import Calibration
from carkinetics.plot_parts import BLUE, GREY, ORANGE, legend


def sbc(calibration: Calibration, *, columns: int = 4) -> "np.ndarray":
    """ECDF of the ranks less that of uniform ones, a panel each quantity, in the band that right ranks stay in.

    Above zero on the left and below it on the right: intervals are too narrow. Above zero everywhere: truths lie low
    among the draws.

    Returns
    -------
    ndarray of Axes
        One a quantity; those that leave the band in orange.
    """
    import matplotlib.pyplot as plt

    table, outside = calibration.ecdf(), set(calibration.outside)
    names = list(calibration.ranks)
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.4 * columns, 1.8 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, name in zip(axes.flat, names, strict=False):
        part = table[table["QUANTITY"] == name]
        ax.fill_between(part["SHARE"], part["LOW"], part["HIGH"], step="mid", color=GREY, alpha=0.3, lw=0, label="band")
        wrong = name in outside
        label = "leaves the band" if wrong else "ranks"
        ax.step(part["SHARE"], part["DIFFERENCE"], where="mid", color=ORANGE if wrong else BLUE, lw=1.2, label=label)
        ax.set_title(str(name), fontsize=8, pad=2)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    figure.supxlabel("rank of the truth, as a share of the draws", fontsize=8)
    figure.supylabel("ECDF less the uniform one", fontsize=8)
    handles, labels = legend(axes)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return axes.flatten()[: len(names)]
