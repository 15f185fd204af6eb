"""Model files: TOML in, :class:`~carkinetics.model.Model` out. Unknown keys are refused, never ignored."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import (
    OMEGA_PRIOR_SD,
    SIGMA_PRIOR_SD,
    TYPICAL_PRIOR_SD,
    UNKNOWN,
    Assay,
    Check,
    Conversion,
    Covariate,
    Mixture,
    Parameter,
    Prior,
    Regressor,
    Treatment,
    nearest_or_raise,
)
from carkinetics.structure import INTERPOLATIONS, AbstractStructure
from carkinetics.structures import STRUCTURES
from carkinetics.transforms import TRANSFORMS

SCHEMA = 1
_MAX_BYTES = 1_000_000
_TOP = (
    "schema", "name", "label", "structure", "reference", "doi", "notes", "typical_dose", "parameters", "assays",
    "treatments", "regressors", "covariates", "mixture", "checks",
)  # fmt: skip
_IIV = ("omega_sd", "omega_var", "cv_pct")
_NOT_KNOWN = "unknown"  # what a file says in the place of a number that nobody has published
_PARAMETER = (
    "label", "value", "unit", "transform", *_IIV, "no_iiv", "fixed", "prior_sd", "prior_omega", "source", "confidence",
)  # fmt: skip
_ASSAY = (
    "label", "output", "matrix", "unit", "error", "sigma", "prior_sigma", "lloq", "conversion", "source", "confidence",
)  # fmt: skip
_CONVERSION = ("regressor", "vcn", "pg_per_cell")
_REGRESSOR = ("column", "unit", "interpolation", "typical", "source", "confidence")
_COVARIATE = ("column", "on", "form", "center", "value", "unit", "source", "confidence")
_MIXTURE = ("on", "value", "probability", "label", "unit", "source", "confidence")
_CHECK = ("quantity", "time", "expected", "unit", "rel_tol", "source", "output", "where")
FORMS = ("power", "exponential", "linear")


def models_folder() -> Path:
    """Where the published models lie: the repository's ``models/`` in a checkout, else beside the code."""
    here = Path(__file__).resolve().parent
    in_repository = here.parents[1] / "models"
    # A wheel carries a copy; in a checkout the repository's own files come first, since a copy goes stale.
    return in_repository if (here.parents[1] / "pyproject.toml").is_file() else here / "models"


def list_models() -> pd.DataFrame:
    """The published models: name, structure, label, reference."""
    models = [load_model(path) for path in sorted(models_folder().glob("*.toml"))]
    rows = [{"name": m.name, "structure": m.structure.name, "label": m.label, "doi": m.doi} for m in models]
    return pd.DataFrame(rows).set_index("name")


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
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file.")
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path.name}: {path.stat().st_size} bytes; a model file has at most {_MAX_BYTES}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name}: not UTF-8 text ({error}).") from None
    return parse_model(text, where=path.name, structures=structures)


def parse_model(text: str, *, where: str = "model", structures: Sequence[AbstractStructure] = ()) -> Model:
    """The model that a TOML text describes; ``where`` names it in messages."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{where}: not valid TOML: {error}.") from None
    _only(raw, _TOP, where)
    if isinstance(raw.get("schema"), bool) or raw.get("schema") != SCHEMA:
        raise ModelError(f"{where}: schema = {raw.get('schema')!r}; this version reads schema = {SCHEMA}.")
    known = STRUCTURES | {s.name: s for s in structures}
    structure = known[nearest_or_raise(_text(raw, "structure", where), known, "structure", where)]
    wanted, given = structure.parameters._fields, _table(raw, "parameters", where)
    assays = _table(raw, "assays", where)
    if not assays:
        raise ModelError(f"{where}: [assays] is empty; a model needs an assay.")
    for key in given:
        nearest_or_raise(key, wanted, "parameter", f"{where} [parameters]")
    absent = [p for p in wanted if p not in given]
    if absent:
        raise ModelError(f"{where}: {structure.name} needs the parameters {', '.join(absent)} as well.")
    regressors = tuple(
        _regressor(r, spec, f"{where} [regressors.{r}]") for r, spec in _optional(raw, "regressors", where).items()
    )
    names = [r.name for r in regressors]
    for name in structure.regressors:
        nearest_or_raise(name, names, "regressor", f"{where}: {structure.name} reads [regressors]")
    covariates, checks = (_tables(raw.get(key, []), where, key) for key in ("covariates", "checks"))
    return Model(
        name=_text(raw, "name", where),
        structure=structure,
        parameters=tuple(_parameter(p, given[p], f"{where} [parameters.{p}]") for p in wanted),
        assays=tuple(_assay(a, spec, structure, names, f"{where} [assays.{a}]") for a, spec in assays.items()),
        checks=tuple(_check(c, structure, f"{where} [[checks]] {i + 1}") for i, c in enumerate(checks)),
        known_treatments=_treatments(_optional(raw, "treatments", where), structure, where),
        regressors=regressors,
        covariates=tuple(_covariate(c, wanted, f"{where} [[covariates]] {i + 1}") for i, c in enumerate(covariates)),
        mixture=_mixture(raw["mixture"], wanted, f"{where} [mixture]") if "mixture" in raw else None,
        typical_dose=_positive_number(raw, "typical_dose", where) if "typical_dose" in raw else UNKNOWN,
        label=_text(raw, "label", where, ""),
        reference=_text(raw, "reference", where, ""),
        doi=_text(raw, "doi", where, ""),
        notes=_notes(raw, where),
        toml=text,
    )


def _parameter(name: str, raw: Mapping, where: str) -> Parameter:
    _only(raw, _PARAMETER, where)
    transform = nearest_or_raise(_text(raw, "transform", where), TRANSFORMS, "transform", where)
    value, iiv = _number_or_unknown(raw, "value", where), _iiv(raw, where)
    theta = TRANSFORMS[transform].forward(value) if _inside(value, transform) else math.nan
    if value is UNKNOWN:
        theta = 0.0  # of a prior that is never used
    if not math.isfinite(theta):
        raise ModelError(f"{where}: value = {value:g} must be {TRANSFORMS[transform].domain} ({transform}).")
    return Parameter(
        name=name,
        value=value,
        unit=_text(raw, "unit", where),
        transform=transform,
        iiv=iiv,
        fixed=_flag(raw, "fixed", where),
        prior=Prior("normal", float(theta), _positive_number({"prior_sd": TYPICAL_PRIOR_SD, **raw}, "prior_sd", where)),
        prior_omega=_omega_prior(raw.get("prior_omega"), iiv, where),
        label=_text(raw, "label", where, ""),
        source=_text(raw, "source", where, ""),
        confidence=_text(raw, "confidence", where, ""),
    )


def _iiv(raw: Mapping, where: str) -> float:
    """Omega as an SD on the transformed scale, whichever way the file states it."""
    given = [k for k in (*_IIV, "no_iiv") if k in raw]
    if len(given) != 1:
        raise ModelError(
            f"{where}: give exactly one of omega_sd, omega_var, cv_pct or no_iiv = true; got {given or 'none'}."
        )
    kind = given[0]
    if kind == "no_iiv":
        if not _flag(raw, "no_iiv", where):
            raise ModelError(f"{where}: no_iiv = false says nothing; give omega_sd, omega_var or cv_pct instead.")
        return 0.0
    number = _number_or_unknown(raw, kind, where)
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
    _only(raw, ("family", "median", "scale"), where)
    family = nearest_or_raise(_text(raw, "family", where), ("lognormal", "halfnormal"), "prior family", where)
    if family == "halfnormal" and "median" in raw:
        raise ModelError(f"{where}: halfnormal has no median; its scale is all.")
    median = _positive_number(raw, "median", where) if family == "lognormal" else 1.0
    return Prior(family, math.log(median), _positive_number(raw, "scale", where))  # type: ignore[arg-type]


def _assay(name: str, raw: Mapping, structure: AbstractStructure, regressors: list[str], where: str) -> Assay:
    _only(raw, _ASSAY, where)
    sigma = _number_or_unknown(raw, "sigma", where)
    error = nearest_or_raise(_text(raw, "error", where), ("lognormal",), "error", where)
    lloq = _number(raw, "lloq", where) if "lloq" in raw else None
    if sigma <= 0 or (lloq is not None and lloq <= 0):
        raise ModelError(f"{where}: sigma and lloq must be above 0.")
    return Assay(
        name=name,
        output=nearest_or_raise(_text(raw, "output", where), structure.outputs, "output", where),
        matrix=_text(raw, "matrix", where),
        unit=_text(raw, "unit", where),
        error=error,
        sigma=sigma,
        prior=_scale_prior(raw["prior_sigma"], f"{where} prior_sigma")
        if "prior_sigma" in raw
        else Prior("lognormal", 0.0 if sigma is UNKNOWN else math.log(sigma), SIGMA_PRIOR_SD),
        lloq=lloq,
        conversion=_conversion(raw["conversion"], regressors, f"{where} conversion") if "conversion" in raw else None,
        label=_text(raw, "label", where, ""),
        source=_text(raw, "source", where, ""),
        confidence=_text(raw, "confidence", where, ""),
    )


def _conversion(raw: Mapping, regressors: list[str], where: str) -> Conversion:
    _only(raw, _CONVERSION, where)
    return Conversion(
        regressor=nearest_or_raise(_text(raw, "regressor", where), regressors, "regressor", where),
        vcn=_positive_number(raw, "vcn", where),
        pg_per_cell=_positive_number(raw, "pg_per_cell", where),
    )


def _treatments(raw: Mapping, structure: AbstractStructure, where: str) -> tuple[Treatment, ...]:
    if raw and not structure.treatable:
        raise ModelError(f"{where} [treatments]: treatments do not act on {structure.name}.")
    found = []
    for name, spec in raw.items():
        here = f"{where} [treatments.{name}]"
        _only(spec, ("column", *_PARAMETER), here)
        factor = _parameter(f"f_{name}", {k: v for k, v in spec.items() if k != "column"}, here)
        found.append(Treatment(name, _text(spec, "column", here), factor))
    return tuple(found)


def _regressor(name: str, raw: Mapping, where: str) -> Regressor:
    _only(raw, _REGRESSOR, where)
    return Regressor(
        name=name,
        column=_text(raw, "column", where),
        unit=_text(raw, "unit", where),
        interpolation=nearest_or_raise(_text(raw, "interpolation", where), INTERPOLATIONS, "interpolation", where),
        typical=_number(raw, "typical", where),
    )


def _covariate(raw: Mapping, parameters: Sequence[str], where: str) -> Covariate:
    _only(raw, _COVARIATE, where)
    return Covariate(
        column=_text(raw, "column", where),
        on=nearest_or_raise(_text(raw, "on", where), parameters, "parameter", where),
        form=nearest_or_raise(_text(raw, "form", where), FORMS, "form", where),
        center=_number(raw, "center", where),
        value=_number(raw, "value", where),
        source=_text(raw, "source", where, ""),
        confidence=_text(raw, "confidence", where, ""),
    )


def _mixture(raw: Mapping, parameters: Sequence[str], where: str) -> Mixture:
    _only(raw, _MIXTURE, where)
    probability = _positive_number(raw, "probability", where)
    if probability >= 1:
        raise ModelError(f"{where}: probability = {probability:g} must be between 0 and 1.")
    return Mixture(
        on=nearest_or_raise(_text(raw, "on", where), parameters, "parameter", where),
        value=_number(raw, "value", where),
        probability=probability,
        label=_text(raw, "label", where),
        source=_text(raw, "source", where, ""),
        confidence=_text(raw, "confidence", where, ""),
    )


def _check(raw: Mapping, structure: AbstractStructure, where: str) -> Check:
    _only(raw, _CHECK, where)
    changed = _optional(raw, "where", where)
    for name in changed:
        nearest_or_raise(name, structure.parameters._fields, "parameter", where)
    output = _text(raw, "output", where, "")
    return Check(
        quantity=_text(raw, "quantity", where),
        expected=_positive_number(raw, "expected", where),
        rel_tol=_positive_number(raw, "rel_tol", where),
        time=_number(raw, "time", where) if "time" in raw else None,
        unit=_text(raw, "unit", where, ""),
        source=_text(raw, "source", where),
        output=nearest_or_raise(output, structure.outputs, "output", where) if output else "",
        where=tuple((name, _number(changed, name, where)) for name in changed),
    )


def _only(raw: Mapping, known: Sequence[str], where: str) -> None:
    if not isinstance(raw, Mapping):
        raise ModelError(f"{where}: {raw!r} must be a table.")
    for key in raw:
        nearest_or_raise(key, known, "key", where)


def _get(raw: Mapping, key: str, where: str):
    if key not in raw:
        raise ModelError(f"{where}: {key} is missing.")
    return raw[key]


def _table(raw: Mapping, key: str, where: str) -> Mapping:
    if not isinstance(_get(raw, key, where), Mapping):
        raise ModelError(f"{where}: {key} = {raw[key]!r} must be a table.")
    return raw[key]


def _optional(raw: Mapping, key: str, where: str) -> Mapping:
    return _table(raw, key, where) if key in raw else {}


def _tables(raw: Any, where: str, key: str) -> list[Mapping]:
    if not isinstance(raw, list) or not all(isinstance(c, Mapping) for c in raw):
        raise ModelError(f"{where}: {key} = {raw!r} must be tables: write [[{key}]].")
    return raw


def _text(raw: Mapping, key: str, where: str, default: str | None = None) -> str:
    value = _get(raw, key, where) if default is None else raw.get(key, default)
    if not isinstance(value, str):
        raise ModelError(f"{where}: {key} = {value!r} must be text in quotes.")
    return value


def _flag(raw: Mapping, key: str, where: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ModelError(f"{where}: {key} = {value!r} must be true or false.")
    return value


def _notes(raw: Mapping, where: str) -> tuple[str, ...]:
    notes = raw.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
        raise ModelError(f"{where}: notes must be a list of texts.")
    return tuple(notes)


def _number_or_unknown(raw: Mapping, key: str, where: str) -> float:
    return UNKNOWN if raw.get(key) == _NOT_KNOWN else _number(raw, key, where)


def _positive_number(raw: Mapping, key: str, where: str) -> float:
    value = _number(raw, key, where)
    if value <= 0:
        raise ModelError(f"{where}: {key} = {value:g} must be above 0.")
    return value


def _number(raw: Mapping, key: str, where: str) -> float:
    value = _get(raw, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{where}: {key} = {value!r} must be a finite number.")
    return float(value)


def _inside(value: float, transform: str) -> bool:
    return transform == "identity" or (value > 0 and (transform == "log" or value < 1))
