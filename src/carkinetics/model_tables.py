"""Tables of a model file beside its parameters and assays: covariates, classes, correlations, regressors, checks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from carkinetics.covariates import FORMS, Covariate
from carkinetics.dependence import (
    LKJ_ETA,
    ODDS_PRIOR_SD,
    STEP_PRIOR_SD,
    Correlation,
    Horseshoe,
    Mixture,
    PriorCorrelation,
)
from carkinetics.errors import ModelError
from carkinetics.model_parts import Check, Parameter, Regressor, nearest_or_raise
from carkinetics.structure import INTERPOLATIONS, AbstractStructure
from carkinetics.structures.occasions import Occasions, factors
from carkinetics.toml_fields import (
    get_flag,
    get_number,
    get_numbers,
    get_positive,
    get_table,
    get_text,
    get_texts,
    get_value,
    only_keys,
    optional_table,
)

_REGRESSOR = ("column", "unit", "interpolation", "typical", "source", "confidence")
_COVARIATE = (
    "column", "on", "form", "center", "value", "reference", "levels", "values", "prior_sd", "prior_sds", "fixed",
    "missing", "unit", "source", "confidence",
)  # fmt: skip
_MIXTURE = ("on", "value", "probability", "label", "prior_step", "prior_odds", "unit", "source", "confidence")
_OCCASIONS = ("varying", "n")
_CHECK = ("quantity", "time", "expected", "unit", "rel_tol", "source", "output", "where")


def read_regressor(name: str, raw: Mapping, where: str) -> Regressor:
    """A table of ``[regressors]``."""
    only_keys(raw, _REGRESSOR, where)
    return Regressor(
        name=name,
        column=get_text(raw, "column", where),
        unit=get_text(raw, "unit", where),
        interpolation=nearest_or_raise(get_text(raw, "interpolation", where), INTERPOLATIONS, "interpolation", where),
        typical=get_number(raw, "typical", where),
    )


def read_occasions(raw: Mapping, structure: AbstractStructure, where: str) -> Occasions:
    """The structure with the file's ``occasions = { varying = ["cmax"], n = 2 }``."""
    here, table = f"{where} occasions", get_table(raw, "occasions", where)
    only_keys(table, _OCCASIONS, here)
    varying, n = get_texts(table, "varying", here), table.get("n", 2)
    if isinstance(n, bool) or not isinstance(n, int):
        raise ModelError(f"{here}: n = {n!r} must be a whole number.")
    for name in varying:
        nearest_or_raise(name, structure.parameters._fields, "parameter", here)
    try:
        return Occasions(structure, varying, n)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def refuse_occasions(parameters: Iterable[Parameter], structure: AbstractStructure, where: str) -> None:
    """Raise :class:`ModelError` if what varies between occasions, or its factors, are not on the log scale."""
    if isinstance(structure, Occasions):
        own = {f for v in structure.varying for f in (v, *factors(v, structure.n))}
        wrong = [p.name for p in parameters if p.name in own and p.transform != "log"]
        if wrong:
            raise ModelError(
                f"{where}: {', '.join(wrong)} cannot vary between occasions: a factor is for parameters with transform "
                "= 'log'; it would take others out of their bounds."
            )


def read_covariate(raw: Mapping, parameters: Sequence[str], where: str) -> Covariate:
    """A table of ``[[covariates]]``."""
    only_keys(raw, _COVARIATE, where)
    center = raw.get("center", "median")
    texts = {k: get_text(raw, k, where, "") for k in ("reference", "source", "confidence")}
    return Covariate(
        column=get_text(raw, "column", where),
        on=nearest_or_raise(get_text(raw, "on", where), parameters, "parameter", where),
        form=nearest_or_raise(get_text(raw, "form", where), FORMS, "form", where),
        center=center if isinstance(center, str) else get_number(raw, "center", where),
        value=get_number({"value": 0.0, **raw}, "value", where),
        levels=get_texts(raw, "levels", where),
        values=get_numbers(raw, "values", where),
        prior_sd=get_positive(raw, "prior_sd", where) if "prior_sd" in raw else None,
        prior_sds=get_numbers(raw, "prior_sds", where),
        fixed=get_flag(raw, "fixed", where),
        missing=get_text(raw, "missing", where, "refuse"),
        **texts,
    )


def read_shrinkage(raw: Mapping, where: str) -> Horseshoe:
    """The table ``[shrinkage]``."""
    only_keys(raw, ("expected", "slab", "scale"), where)
    return Horseshoe(**{k: get_positive(raw, k, where) for k in raw})


def read_mixture(raw: Mapping, parameters: Mapping[str, Parameter], where: str) -> Mixture:
    """The table ``[mixture]``."""
    only_keys(raw, _MIXTURE, where)
    probability = get_positive(raw, "probability", where)
    if probability >= 1:
        raise ModelError(f"{where}: probability = {probability:g} must be between 0 and 1.")
    on = parameters[nearest_or_raise(get_text(raw, "on", where), parameters, "parameter", where)]
    value = get_number(raw, "value", where)
    if not abs(on.forward(value)) < float("inf") or on.forward(value) == on.theta:
        raise ModelError(f"{where}: value = {value:g} must be {on.domain}, and not the first class's.")
    if on.iiv == 0:
        raise ModelError(f"{where}: {on.name} does not vary between patients; give it an omega.")
    return Mixture(
        on=on.name,
        value=value,
        probability=probability,
        label=get_text(raw, "label", where),
        prior_step=get_positive({"prior_step": STEP_PRIOR_SD, **raw}, "prior_step", where),
        prior_odds=get_positive({"prior_odds": ODDS_PRIOR_SD, **raw}, "prior_odds", where),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
    )


def read_correlation(raw: Mapping, parameters: Mapping[str, Parameter], where: str) -> Correlation:
    """The table ``[correlation]``."""
    only_keys(raw, ("parameters", "eta", "values", "prior_sd"), where)
    names = get_texts(raw, "parameters", where)
    for name in names:
        if parameters[nearest_or_raise(name, parameters, "parameter", where)].iiv == 0:
            raise ModelError(f"{where}: {name} does not vary between patients.")
    return Correlation(
        names,
        get_positive({"eta": LKJ_ETA, **raw}, "eta", where),
        get_numbers(raw, "values", where),
        get_numbers(raw, "prior_sd", where),
    )


def read_prior_correlation(raw: Mapping, where: str) -> PriorCorrelation:
    """The table ``[prior_correlation]``."""
    only_keys(raw, ("names", "matrix"), where)
    names, matrix = get_texts(raw, "names", where), get_value(raw, "matrix", where)
    if not isinstance(matrix, list):
        raise ModelError(f"{where}: matrix must be a list of rows of numbers.")
    rows: list[dict[str, Any]] = [{"matrix": row} for row in matrix]
    return PriorCorrelation(names, tuple(get_numbers(row, "matrix", where) for row in rows))


def read_check(raw: Mapping, structure: AbstractStructure, where: str) -> Check:
    """A table of ``[[checks]]``."""
    only_keys(raw, _CHECK, where)
    changed = optional_table(raw, "where", where)
    for name in changed:
        nearest_or_raise(name, (*structure.parameters._fields, "typical_dose"), "parameter", where)
    output = get_text(raw, "output", where, "")
    return Check(
        quantity=get_text(raw, "quantity", where),
        expected=get_positive(raw, "expected", where),
        rel_tol=get_positive(raw, "rel_tol", where),
        time=get_number(raw, "time", where) if "time" in raw else None,
        unit=get_text(raw, "unit", where, ""),
        source=get_text(raw, "source", where),
        output=nearest_or_raise(output, structure.outputs, "output", where) if output else "",
        where=tuple((name, get_number(changed, name, where)) for name in changed),
    )
