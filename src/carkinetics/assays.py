"""Assays that a user changes: another residual family, the same measurement in another tissue."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from carkinetics.errors import ModelError
from carkinetics.model_parts import (
    MATRICES,
    OMEGA_PRIOR_SD,
    RATIO_OMEGA,
    RATIO_PRIOR_SD,
    Assay,
    Parameter,
    Prior,
    nearest_or_raise,
)
from carkinetics.residuals import ADDITIVE_OF_LLOQ, RESIDUALS, ResidualParameter


def with_family(assay: Assay, error: str, values: Mapping[str, float], estimated: Iterable[str] = ()) -> Assay:
    """An assay with a residual of this family.

    Parameters
    ----------
    values : mapping
        Of the family's parameters; those that are not given are the library's defaults.
    estimated : iterable of str
        Those that would be held at their value, and are estimated.
    """
    family = RESIDUALS[nearest_or_raise(error, RESIDUALS, "error", f"assay {assay.name}")]
    names = [p.name for p in family.params]
    for name in (*values, *estimated):
        nearest_or_raise(name, names, f"parameter of {error}", f"assay {assay.name}")
    (first, prior), *others = (_parameter(assay, p, values, p.name in set(estimated)) for p in family.params)
    second, prior_second = others[0] if others else (Assay.second, None)
    assert prior is not None  # the first is never held
    return replace(assay, error=error, sigma=first, prior=prior, second=second, prior_second=prior_second)


def in_matrix(assay: Assay, name: str, matrix: str, ratio: float = 1.0, omega: float = RATIO_OMEGA) -> Assay:
    """The same measurement in another tissue, whose level is a multiple of the output; it varies unless omega is 0."""
    nearest_or_raise(matrix, MATRICES, "matrix", f"assay {name}")
    if not 0 < ratio < math.inf:
        raise ModelError(f"assay {name}: ratio = {ratio:g} must be finite and above 0.")
    if not 0 <= omega < math.inf:
        raise ModelError(f"assay {name}: omega of the ratio = {omega:g} must be finite and above 0, or 0 for none.")
    factor = Parameter(
        name=f"ratio_{name}",
        value=ratio,
        unit="1",
        transform="log",
        iiv=omega,
        fixed=False,
        prior=Prior("normal", math.log(ratio), RATIO_PRIOR_SD),
        prior_omega=Prior("lognormal", math.log(omega or 1.0), OMEGA_PRIOR_SD),
        label=f"level in {matrix}, as a multiple of that in {assay.matrix}",
    )
    return replace(assay, name=name, matrix=matrix, ratio=factor, label="", source="", confidence="")


def with_number(assay: Assay, k: int, value: float) -> Assay:
    """An assay with another first or second residual parameter; its prior moves with it."""
    p = RESIDUALS[assay.error].params[k]
    _refuse(assay, p, value)
    prior = (assay.prior, assay.prior_second)[k]
    moved = None if prior is None else replace(prior, loc=math.log(value))
    if k == 0:
        assert moved is not None
        return replace(assay, sigma=value, prior=moved)
    return replace(assay, second=value, prior_second=moved)


def _parameter(assay: Assay, p: ResidualParameter, values: Mapping[str, float], estimated: bool):
    """Its value, and its prior; None if it is held."""
    default = p.default
    if default is None and assay.lloq is not None:
        default = ADDITIVE_OF_LLOQ * assay.lloq
    value = values.get(p.name, default)
    if value is None:
        raise ModelError(f"assay {assay.name}: {p.name} has the assay's unit and no default without an lloq; give it.")
    _refuse(assay, p, value)
    return value, None if p.fixed and not estimated else Prior("lognormal", math.log(value), p.prior_sd)


def _refuse(assay: Assay, p: ResidualParameter, value: float) -> None:
    if not p.low < value <= p.high:
        raise ModelError(f"assay {assay.name}: {p.name} = {value:g} must be above {p.low:g} and up to {p.high:g}.")
