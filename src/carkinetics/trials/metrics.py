"""Names of exposures that a trial's outcomes may depend on."""

import re
from typing import NamedTuple

from carkinetics.errors import ModelError
from carkinetics.model_parts import nearest_or_raise


class Known(NamedTuple):
    """A metric of a curve, and the last day that it uses beside those in which the peak is looked for."""

    name: str
    end: float


def known_metric(name: str, where: str = "exposure") -> Known:
    """``cmax``, ``auc_<from>_<to>`` or ``c_<day>``.

    Raises
    ------
    ModelError
        Another name.
    """
    number = r"(\d+(?:\.\d+)?)"
    if hit := re.fullmatch(f"auc_{number}_{number}", name):
        if float(hit[1]) < float(hit[2]):
            return Known(name, float(hit[2]))
        raise ModelError(f"{where}: {name}: the window must begin before it ends.")
    if hit := re.fullmatch(f"c_{number}", name):
        return Known(name, float(hit[1]))
    nearest_or_raise(name, ("cmax", "auc_<from>_<to>", "c_<day>"), "exposure", where)
    if name != "cmax":
        raise ModelError(f"{where}: {name} is a pattern: write numbers, such as auc_0_28.")
    return Known(name, 0.0)
