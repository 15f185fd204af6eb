"""What figures have in common: colours, samples with those beyond a limit drawn as such, legends, labels."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by readers with any colour vision.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"


def say(figure, label: str) -> None:
    """How the fit was made, on the figure itself, where that has to be said: below it, as legends are above."""
    if label:
        figure.supxlabel(label, fontsize=9, color=ORANGE)


def legend(axes) -> tuple[list, list[str]]:
    found = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def samples(ax: "Axes", x, dv, cens) -> None:
    quantified, below = cens == 0, cens == 1
    ax.plot(x[quantified], dv[quantified], "o", ms=3.2, color=BLACK, alpha=0.75, mew=0, label="quantified", zorder=3)
    if below.any():
        ax.plot(x[below], dv[below], "v", ms=4, mfc="white", mec=ORANGE, label="below the limit", zorder=3)
    if (cens == -1).any():
        ax.plot(x[cens == -1], dv[cens == -1], "^", ms=4, mfc="white", mec=ORANGE, label="above the limit", zorder=3)


def shorten(text: str, limit: int = 18) -> str:
    """An identifier short enough for a title; matplotlib's mathematics switched off."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.replace("$", r"\$")
