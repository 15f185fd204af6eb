"""What every design has: its dose levels, where it starts, and which toxicity is too much."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from carkinetics.errors import DesignError


class Setting(NamedTuple):
    """Dose levels and limits of a design.

    ``doses`` are amounts if ``amounts``, else the numbers of the levels; ``limit`` is the DLT probability that safety
    rules compare with.
    """

    doses: tuple[float, ...]
    amounts: bool
    start: int
    limit: float


def make_setting(doses: Sequence[float] | np.ndarray | int | None, start: int, limit: float) -> Setting:
    """Check the dose levels of a design.

    Parameters
    ----------
    doses : sequence of float, int or None
        Dose of every level, rising; or how many levels there are; None gives a design that has tables and cannot yet
        recommend.

    Raises
    ------
    DesignError
        Doses do not rise, or there is no such starting level.
    """
    amounts = not (doses is None or isinstance(doses, int | np.integer))
    levels = range(1, int(doses or 0) + 1) if doses is None or isinstance(doses, int | np.integer) else doses
    found = tuple(float(d) for d in levels)
    if not all(np.isfinite(found)) or any(a >= b for a, b in zip((0.0, *found), found, strict=False)):
        raise DesignError(f"doses = {list(found)} must be above 0 and rise from level to level.")
    if doses is not None and not found:
        raise DesignError("doses must have one level at least.")
    if isinstance(start, bool) or start < 1 or (found and start > len(found)):
        raise DesignError(f"start = {start!r} must be a level from 1 to {len(found) or 'the number of doses'}.")
    return Setting(found, amounts, int(start), limit)


def refuse_target(target: float, name: str = "target") -> float:
    """Refuse a rate outside (0, 1); ``30`` for 30 % is the usual mistake."""
    if not 0 < target < 1:
        raise DesignError(f"{name} = {target!r} must lie between 0 and 1: a share of patients, 0.3 for 30 %.")
    return float(target)
