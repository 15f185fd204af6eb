"""Model files: TOML in, :class:`~carkinetics.model.Model` out. Unknown keys are refused, never ignored."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import (
    MATRICES,
    OMEGA_PRIOR_SD,
    RATIO_PRIOR_SD,
    SIGMA_PRIOR_SD,
    TYPICAL_PRIOR_SD,
    UNKNOWN,
    Assay,
    Conversion,
    Parameter,
    Prior,
    Treatment,
    nearest_or_raise,
)
from carkinetics.model_tables import (
    read_check,
    read_correlation,
    read_covariate,
    read_mixture,
    read_occasions,
    read_prior_correlation,
    read_regressor,
    read_shrinkage,
    refuse_occasions,
)
from carkinetics.residuals import ADDITIVE_OF_LLOQ, RESIDUALS, ResidualParameter
from carkinetics.structure import AbstractStructure
from carkinetics.structures import STRUCTURES
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.toml_fields import (
    file_text,
    get_flag,
    get_notes,
    get_number,
    get_number_or_unknown,
    get_numbers,
    get_positive,
    get_table,
    get_tables,
    get_text,
    only_keys,
    optional_table,
    parsed,
)
from carkinetics.transforms import TRANSFORMS

SCHEMA = 1
_TOP = (
    "schema", "name", "label", "structure", "infusion_phase", "occasions", "reference", "doi", "notes", "typical_dose",
    "parameters", "assays", "treatments", "regressors", "covariates", "shrinkage", "mixture", "correlation",
    "prior_correlation", "checks",
)  # fmt: skip
_IIV = ("omega_sd", "omega_var", "cv_pct")
_PARAMETER = (
    "label", "value", "unit", "transform", "bounds", *_IIV, "no_iiv", "omega_of", "fixed", "prior_mean", "prior_sd",
    "prior_omega", "source", "confidence",
)  # fmt: skip
_ASSAY = (
    "label", "output", "matrix", "unit", "error", "lloq", "lod", "ratio", "per", "conversion", "source", "confidence",
)  # fmt: skip
_CONVERSION = ("regressor", "vcn", "pg_per_cell")
_TREATMENT = ("column", "active")


def models_folder() -> Path:
    """Where the published models lie: the repository's ``models/`` in a checkout, else beside the code."""
    here = Path(__file__).resolve().parent
    in_repository = here.parents[1] / "models"
    # A wheel carries a copy; in a checkout the repository's own files come first, since a copy goes stale.
    return in_repository if (here.parents[1] / "pyproject.toml").is_file() else here / "models"


def list_models() -> pd.DataFrame:
    """The published models: name, structure, which numbers are known, label, doi."""
    models = [load_model(path) for path in sorted(models_folder().glob("*.toml"))]
    rows = [
        {"name": m.name, "structure": m.structure.name, "numbers": _known(m), "label": m.label, "doi": m.doi}
        for m in models
    ]
    return pd.DataFrame(rows).set_index("name")


def _known(model: Model) -> str:
    """Whether a population can be simulated, a typical patient, or neither."""
    if not model.unknown():
        return "all"
    return "some" if model.unknown(variability=False, residual=False) else "typical values"


def load_model(name: str | Path, *, structures: Sequence[AbstractStructure] = ()) -> Model:
    """A model by its published name, or from a TOML file of your own.

    Parameters
    ----------
    name : str or Path
        A name of :func:`list_models`, or a path that ends in ``.toml``.
    structures : sequence of AbstractStructure
        Your own structures, beside the library's.

    Raises
    ------
    ModelError
        The file, a key or a number in it cannot be used; the message says which, and the remedy.
    """
    path = Path(name)
    if path.suffix != ".toml":
        known = sorted(p.stem for p in models_folder().glob("*.toml"))
        path = models_folder() / f"{nearest_or_raise(str(name), known, 'model', 'models')}.toml"
    return parse_model(file_text(path, "model"), where=path.name, structures=structures)


def parse_model(text: str, *, where: str = "model", structures: Sequence[AbstractStructure] = ()) -> Model:
    """The model that a TOML text describes; ``where`` names it in messages."""
    raw = parsed(text, _TOP, SCHEMA, where)
    known = STRUCTURES | {s.name: s for s in structures}
    structure = known[nearest_or_raise(get_text(raw, "structure", where), known, "structure", where)]
    typical_dose = get_positive(raw, "typical_dose", where) if "typical_dose" in raw else UNKNOWN
    if raw.get("infusion_phase", False) is not False:
        structure = _with_infusion_phase(structure, raw, typical_dose, where)
    if "occasions" in raw:
        structure = read_occasions(raw, structure, where)
    wanted, given = structure.parameters._fields, get_table(raw, "parameters", where)
    assays = get_table(raw, "assays", where)
    if not assays:
        raise ModelError(f"{where}: [assays] is empty; a model needs an assay.")
    for key in given:
        nearest_or_raise(key, wanted, "parameter", f"{where} [parameters]")
    absent = [p for p in wanted if p not in given]
    if absent:
        raise ModelError(f"{where}: {structure.name} needs the parameters {', '.join(absent)} as well.")
    regressors = tuple(
        read_regressor(r, spec, f"{where} [regressors.{r}]")
        for r, spec in optional_table(raw, "regressors", where).items()
    )
    names = [r.name for r in regressors]
    for name in structure.regressors:
        nearest_or_raise(name, names, "regressor", f"{where}: {structure.name} reads [regressors]")
    treatments = _treatments(optional_table(raw, "treatments", where), structure, where)
    covariates, checks = (get_tables(raw.get(key, []), where, key) for key in ("covariates", "checks"))
    own = {p: _parameter(p, given[p], f"{where} [parameters.{p}]") for p in wanted}
    measured = tuple(_assay(a, spec, structure, names, f"{where} [assays.{a}]") for a, spec in assays.items())
    factors = {t.factor.name: t.factor for t in treatments if t.active}
    every = own | factors | {a.ratio.name: a.ratio for a in measured if a.ratio is not None}
    _refuse_omegas(every, where)
    refuse_occasions(every.values(), structure, where)

    def part(key: str, read: Callable[..., Any], *known) -> Any:
        return read(raw[key], *known, f"{where} [{key}]") if key in raw else None

    return Model(
        name=get_text(raw, "name", where),
        structure=structure,
        parameters=tuple(every.values()),
        assays=measured,
        checks=tuple(read_check(c, structure, f"{where} [[checks]] {i + 1}") for i, c in enumerate(checks)),
        treatments=treatments,
        regressors=regressors,
        covariates=tuple(
            read_covariate(c, tuple(every), f"{where} [[covariates]] {i + 1}") for i, c in enumerate(covariates)
        ),
        shrinkage=part("shrinkage", read_shrinkage),
        mixture=part("mixture", read_mixture, every),
        correlation=part("correlation", read_correlation, every),
        prior_correlation=part("prior_correlation", read_prior_correlation),
        typical_dose=typical_dose,
        label=get_text(raw, "label", where, ""),
        reference=get_text(raw, "reference", where, ""),
        doi=get_text(raw, "doi", where, ""),
        notes=get_notes(raw, where),
        toml=text,
    )


def _refuse_omegas(parameters: Mapping[str, Parameter], where: str) -> None:
    """Refuse an omega that is shared with a parameter which has none of its own."""
    for p in parameters.values():
        if p.omega_of:
            other = parameters[nearest_or_raise(p.omega_of, parameters, "parameter", f"{where} [parameters.{p.name}]")]
            if other.omega_of or other.iiv == 0 or other.iiv != p.iiv:
                raise ModelError(
                    f"{where} [parameters.{p.name}]: omega_of = {other.name!r} must name a parameter with an omega of "
                    "its own, and state the same number."
                )


def _with_infusion_phase(
    structure: AbstractStructure, raw: Mapping, typical_dose: float, where: str
) -> AbstractStructure:
    """``true``, or ``{ dose = 2e8 }`` where ``c0`` belongs to another dose than the typical one."""
    dose = typical_dose if structure.uses_dose and typical_dose is not UNKNOWN else None
    if raw["infusion_phase"] is not True:
        table = get_table(raw, "infusion_phase", f"{where} (or true)")
        only_keys(table, ("dose",), f"{where} infusion_phase")
        dose = get_positive(table, "dose", f"{where} infusion_phase")
    try:
        return InfusionPhase(structure, dose)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def _parameter(name: str, raw: Mapping, where: str) -> Parameter:
    only_keys(raw, _PARAMETER, where)
    transform = nearest_or_raise(get_text(raw, "transform", where), TRANSFORMS, "transform", where)
    value, iiv = get_number_or_unknown(raw, "value", where), _iiv(raw, where)
    low, high = _bounds(raw, transform, where)
    unused = Prior("normal", 0.0, 1.0)
    p = Parameter(name, value, "", transform, iiv, False, unused, unused, low=low, high=high)
    theta = 0.0 if value is UNKNOWN else p.theta  # of a prior that is never used
    if not math.isfinite(theta):
        raise ModelError(f"{where}: value = {value:g} must be {p.domain} ({transform}).")
    return replace(
        p,
        unit=get_text(raw, "unit", where),
        fixed=get_flag(raw, "fixed", where),
        prior=Prior(
            "normal",
            get_number({"prior_mean": float(theta), **raw}, "prior_mean", where),
            get_positive({"prior_sd": TYPICAL_PRIOR_SD, **raw}, "prior_sd", where),
        ),
        prior_omega=_omega_prior(raw.get("prior_omega"), iiv, where),
        omega_of=get_text(raw, "omega_of", where, ""),
        label=get_text(raw, "label", where, ""),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
    )


def _bounds(raw: Mapping, transform: str, where: str) -> tuple[float, float]:
    if "bounds" not in raw:
        return 0.0, 1.0
    low, high = get_numbers(raw, "bounds", where, 2)
    if transform != "logit" or low >= high:
        raise ModelError(f"{where}: bounds = [low, high], low below high, are for transform = 'logit'.")
    return low, high


def _iiv(raw: Mapping, where: str) -> float:
    """Omega as an SD on the transformed scale, whichever way the file states it."""
    given = [k for k in (*_IIV, "no_iiv") if k in raw]
    if len(given) != 1:
        raise ModelError(
            f"{where}: give exactly one of omega_sd, omega_var, cv_pct or no_iiv = true; got {given or 'none'}."
        )
    kind = given[0]
    if kind == "no_iiv":
        if not get_flag(raw, "no_iiv", where):
            raise ModelError(f"{where}: no_iiv = false says nothing; give omega_sd, omega_var or cv_pct instead.")
        return 0.0
    number = get_number_or_unknown(raw, kind, where)
    if number is UNKNOWN:
        return number
    if number <= 0:
        raise ModelError(f"{where}: {kind} = {number:g} must be above 0; for no variability write no_iiv = true.")
    if kind == "cv_pct":
        if raw.get("transform") != "log":
            raise ModelError(f"{where}: cv_pct is for transform = 'log'; use omega_sd for {raw.get('transform')!r}.")
        return math.sqrt(math.log1p((number / 100) ** 2))
    return math.sqrt(number) if kind == "omega_var" else number


def _omega_prior(raw: Mapping | None, iiv: float, where: str) -> Prior:
    if raw is None:  # boundary-avoiding by default: an omega near zero is a funnel for the sampler
        return Prior("lognormal", math.log(iiv) if iiv > 0 else 0.0, OMEGA_PRIOR_SD)
    return _scale_prior(raw, f"{where} prior_omega")


def _scale_prior(raw: Mapping, where: str) -> Prior:
    only_keys(raw, ("family", "median", "ln_median", "scale"), where)
    family = nearest_or_raise(get_text(raw, "family", where), ("lognormal", "halfnormal"), "prior family", where)
    given = [k for k in ("median", "ln_median") if k in raw]
    scale = get_positive(raw, "scale", where)
    if family == "halfnormal":
        if given:
            raise ModelError(f"{where}: halfnormal has no median; its scale is all.")
        return Prior("halfnormal", 0.0, scale)
    if given == ["ln_median"]:
        return Prior("lognormal", get_number(raw, "ln_median", where), scale)
    return Prior("lognormal", math.log(get_positive(raw, "median", where)), scale)


def _assay(name: str, raw: Mapping, structure: AbstractStructure, regressors: list[str], where: str) -> Assay:
    family = RESIDUALS[nearest_or_raise(get_text(raw, "error", where), RESIDUALS, "error", where)]
    names = [p.name for p in family.params]
    only_keys(raw, (*_ASSAY, *names, *(f"prior_{n}" for n in names)), where)
    limits = {k: get_positive(raw, k, where) for k in ("lloq", "lod") if k in raw}
    if limits.get("lod", 0.0) > limits.get("lloq", math.inf):
        raise ModelError(f"{where}: lod = {limits['lod']:g} lies above lloq = {limits['lloq']:g}.")
    (sigma, prior), *others = (_residual(raw, p, limits.get("lloq"), where) for p in family.params)
    second, prior_second = others[0] if others else (UNKNOWN, None)
    return Assay(
        name=name,
        output=nearest_or_raise(get_text(raw, "output", where), structure.outputs, "output", where),
        matrix=nearest_or_raise(get_text(raw, "matrix", where), MATRICES, "matrix", where),
        unit=get_text(raw, "unit", where),
        error=family.name,
        sigma=sigma,
        prior=prior or Prior("lognormal", 0.0 if sigma is UNKNOWN else math.log(sigma), SIGMA_PRIOR_SD),
        second=second,
        prior_second=prior_second,
        lloq=limits.get("lloq"),
        lod=limits.get("lod"),
        per=get_text(raw, "per", where, ""),
        ratio=_ratio(name, raw["ratio"], f"{where} ratio") if "ratio" in raw else None,
        conversion=_conversion(raw["conversion"], regressors, f"{where} conversion") if "conversion" in raw else None,
        label=get_text(raw, "label", where, ""),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
    )


def _residual(raw: Mapping, p: ResidualParameter, lloq: float | None, where: str) -> tuple[float, Prior | None]:
    """A residual parameter's value, and its prior; None if it is held at its value."""
    default = {} if p.default is None else {p.name: p.default}
    if p.default is None and lloq is not None:
        default = {p.name: ADDITIVE_OF_LLOQ * lloq}
    given = raw if not p.fixed and p.default is not None and p.scale else {**default, **raw}
    value, key = get_number_or_unknown(given, p.name, where), f"prior_{p.name}"
    if not (value is UNKNOWN or p.low < value <= p.high):
        raise ModelError(f"{where}: {p.name} = {value:g} must be above {p.low:g}" + _up_to(p) + ".")
    if key in raw and raw[key] != "fixed":
        return value, _scale_prior(raw[key], f"{where} {key}")
    if p.fixed or key in raw:
        return value, None
    return value, Prior("lognormal", 0.0 if value is UNKNOWN else math.log(value), p.prior_sd)


def _up_to(p: ResidualParameter) -> str:
    return f" and up to {p.high:g}" if math.isfinite(p.high) else ""


def _ratio(assay: str, raw: Mapping, where: str) -> Parameter:
    """What an assay's output is multiplied by in its matrix."""
    return _parameter(f"ratio_{assay}", {"unit": "1", "transform": "log", "prior_sd": RATIO_PRIOR_SD, **raw}, where)


def _conversion(raw: Mapping, regressors: list[str], where: str) -> Conversion:
    only_keys(raw, _CONVERSION, where)
    return Conversion(
        regressor=nearest_or_raise(get_text(raw, "regressor", where), regressors, "regressor", where),
        vcn=get_positive(raw, "vcn", where),
        pg_per_cell=get_positive(raw, "pg_per_cell", where),
    )


def _treatments(raw: Mapping, structure: AbstractStructure, where: str) -> tuple[Treatment, ...]:
    if raw and not structure.treatable:
        raise ModelError(f"{where} [treatments]: treatments do not act on {structure.name}.")
    found = []
    for name, spec in raw.items():
        here = f"{where} [treatments.{name}]"
        only_keys(spec, (*_TREATMENT, *_PARAMETER), here)
        factor = _parameter(f"f_{name}", {k: v for k, v in spec.items() if k not in _TREATMENT}, here)
        found.append(Treatment(name, get_text(spec, "column", here), factor, get_flag(spec, "active", here)))
    return tuple(found)
