"""Inter-occasion variability: a model in which every infusion of a patient has kinetics of its own."""

import math
from dataclasses import replace

from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import (
    OCCASION_OMEGA,
    OCCASION_PRIOR_SD,
    TYPICAL_PRIOR_SD,
    Parameter,
    Prior,
    nearest_or_raise,
)
from carkinetics.model_tables import refuse_occasions
from carkinetics.model_writing import to_toml
from carkinetics.structures.occasions import Occasions, factors

SOURCE = "default of the library: a factor of each infusion; its typical value is 1"


def add_occasions(model: Model, parameters: tuple[str, ...], *, n: int = 2, omega: float = OCCASION_OMEGA) -> Model:
    """What :meth:`carkinetics.Model.with_occasions` returns."""
    own = model.structure.parameters._fields
    for name in parameters:
        nearest_or_raise(name, own, "parameter", f"{model.name}, occasions")
    structure = Occasions(model.structure, parameters, n)
    refuse_occasions(model.parameters, structure, model.name)
    if not (math.isfinite(omega) and omega > 0):
        raise ModelError(f"{model.name}: omega = {omega:g} between occasions must be finite and above 0.")
    added = tuple(_factor(p, k, n, omega) for p in parameters for k in range(n))
    known = {p.name for p in model.parameters}
    taken = [p.name for p in added if p.name in known]
    if taken:
        raise ModelError(f"{model.name} has a parameter {', '.join(taken)} already; occasions need that name.")
    all_ = (*model.parameters[: len(own)], *added, *model.parameters[len(own) :])
    wrapped = replace(model, structure=structure, parameters=all_)
    return replace(wrapped, toml=to_toml(wrapped))  # a saved fit reads its model from there


def _factor(parameter: str, k: int, n: int, omega: float) -> Parameter:
    names = factors(parameter, n)
    return Parameter(
        name=names[k],
        value=1.0,
        unit="1",
        transform="log",
        iiv=float(omega),
        fixed=True,
        prior=Prior("normal", 0.0, TYPICAL_PRIOR_SD),
        prior_omega=Prior("lognormal", math.log(omega), OCCASION_PRIOR_SD),
        label=f"{parameter} of infusion {k + 1}, relative",
        source=SOURCE,
        confidence="low",
        omega_of=names[0] if k else "",
    )
