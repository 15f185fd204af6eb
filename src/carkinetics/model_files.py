"""Model files: TOML in, :class:`~carkinetics.model.Model` out. Unknown keys are refused, never ignored."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import (
    MATRICES,
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
    PriorCorrelation,
    Regressor,
    Treatment,
    nearest_or_raise,
)
from carkinetics.structure import INTERPOLATIONS, AbstractStructure
from carkinetics.structures import STRUCTURES
from carkinetics.toml_fields import (
    get_flag,
    get_notes,
    get_number,
    get_number_or_unknown,
    get_positive,
    get_table,
    get_tables,
    get_text,
    get_value,
    only_keys,
    optional_table,
)
from carkinetics.transforms import TRANSFORMS

SCHEMA = 1
_MAX_BYTES = 1_000_000
_TOP = (
    "schema", "name", "label", "structure", "reference", "doi", "notes", "typical_dose", "parameters", "assays",
    "treatments", "regressors", "covariates", "mixture", "prior_correlation", "checks",
)  # fmt: skip
_IIV = ("omega_sd", "omega_var", "cv_pct")
_PARAMETER = (
    "label", "value", "unit", "transform", *_IIV, "no_iiv", "fixed", "prior_mean", "prior_sd", "prior_omega", "source",
    "confidence",
)  # fmt: skip
_ASSAY = (
    "label", "output", "matrix", "unit", "error", "sigma", "prior_sigma", "lloq", "conversion", "source", "confidence",
)  # fmt: skip
_CONVERSION = ("regressor", "vcn", "pg_per_cell")
_TREATMENT = ("column", "active")
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
    only_keys(raw, _TOP, where)
    if isinstance(raw.get("schema"), bool) or raw.get("schema") != SCHEMA:
        raise ModelError(f"{where}: schema = {raw.get('schema')!r}; this version reads schema = {SCHEMA}.")
    known = STRUCTURES | {s.name: s for s in structures}
    structure = known[nearest_or_raise(get_text(raw, "structure", where), known, "structure", where)]
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
        _regressor(r, spec, f"{where} [regressors.{r}]") for r, spec in optional_table(raw, "regressors", where).items()
    )
    names = [r.name for r in regressors]
    for name in structure.regressors:
        nearest_or_raise(name, names, "regressor", f"{where}: {structure.name} reads [regressors]")
    treatments = _treatments(optional_table(raw, "treatments", where), structure, where)
    covariates, checks = (get_tables(raw.get(key, []), where, key) for key in ("covariates", "checks"))
    return Model(
        name=get_text(raw, "name", where),
        structure=structure,
        parameters=(
            *(_parameter(p, given[p], f"{where} [parameters.{p}]") for p in wanted),
            *(t.factor for t in treatments if t.active),
        ),
        assays=tuple(_assay(a, spec, structure, names, f"{where} [assays.{a}]") for a, spec in assays.items()),
        checks=tuple(_check(c, structure, f"{where} [[checks]] {i + 1}") for i, c in enumerate(checks)),
        treatments=treatments,
        regressors=regressors,
        covariates=tuple(_covariate(c, wanted, f"{where} [[covariates]] {i + 1}") for i, c in enumerate(covariates)),
        mixture=_mixture(raw["mixture"], wanted, f"{where} [mixture]") if "mixture" in raw else None,
        prior_correlation=_correlation(raw["prior_correlation"], f"{where} [prior_correlation]")
        if "prior_correlation" in raw
        else None,
        typical_dose=get_positive(raw, "typical_dose", where) if "typical_dose" in raw else UNKNOWN,
        label=get_text(raw, "label", where, ""),
        reference=get_text(raw, "reference", where, ""),
        doi=get_text(raw, "doi", where, ""),
        notes=get_notes(raw, where),
        toml=text,
    )


def _parameter(name: str, raw: Mapping, where: str) -> Parameter:
    only_keys(raw, _PARAMETER, where)
    transform = nearest_or_raise(get_text(raw, "transform", where), TRANSFORMS, "transform", where)
    value, iiv = get_number_or_unknown(raw, "value", where), _iiv(raw, where)
    theta = TRANSFORMS[transform].forward(value) if _inside(value, transform) else math.nan
    if value is UNKNOWN:
        theta = 0.0  # of a prior that is never used
    if not math.isfinite(theta):
        raise ModelError(f"{where}: value = {value:g} must be {TRANSFORMS[transform].domain} ({transform}).")
    return Parameter(
        name=name,
        value=value,
        unit=get_text(raw, "unit", where),
        transform=transform,
        iiv=iiv,
        fixed=get_flag(raw, "fixed", where),
        prior=Prior(
            "normal",
            get_number({"prior_mean": float(theta), **raw}, "prior_mean", where),
            get_positive({"prior_sd": TYPICAL_PRIOR_SD, **raw}, "prior_sd", where),
        ),
        prior_omega=_omega_prior(raw.get("prior_omega"), iiv, where),
        label=get_text(raw, "label", where, ""),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
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
    only_keys(raw, _ASSAY, where)
    sigma = get_number_or_unknown(raw, "sigma", where)
    error = nearest_or_raise(get_text(raw, "error", where), ("lognormal",), "error", where)
    lloq = get_number(raw, "lloq", where) if "lloq" in raw else None
    if sigma <= 0 or (lloq is not None and lloq <= 0):
        raise ModelError(f"{where}: sigma and lloq must be above 0.")
    return Assay(
        name=name,
        output=nearest_or_raise(get_text(raw, "output", where), structure.outputs, "output", where),
        matrix=nearest_or_raise(get_text(raw, "matrix", where), MATRICES, "matrix", where),
        unit=get_text(raw, "unit", where),
        error=error,
        sigma=sigma,
        prior=_scale_prior(raw["prior_sigma"], f"{where} prior_sigma")
        if "prior_sigma" in raw
        else Prior("lognormal", 0.0 if sigma is UNKNOWN else math.log(sigma), SIGMA_PRIOR_SD),
        lloq=lloq,
        conversion=_conversion(raw["conversion"], regressors, f"{where} conversion") if "conversion" in raw else None,
        label=get_text(raw, "label", where, ""),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
    )


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


def _regressor(name: str, raw: Mapping, where: str) -> Regressor:
    only_keys(raw, _REGRESSOR, where)
    return Regressor(
        name=name,
        column=get_text(raw, "column", where),
        unit=get_text(raw, "unit", where),
        interpolation=nearest_or_raise(get_text(raw, "interpolation", where), INTERPOLATIONS, "interpolation", where),
        typical=get_number(raw, "typical", where),
    )


def _covariate(raw: Mapping, parameters: Sequence[str], where: str) -> Covariate:
    only_keys(raw, _COVARIATE, where)
    return Covariate(
        column=get_text(raw, "column", where),
        on=nearest_or_raise(get_text(raw, "on", where), parameters, "parameter", where),
        form=nearest_or_raise(get_text(raw, "form", where), FORMS, "form", where),
        center=get_number(raw, "center", where),
        value=get_number(raw, "value", where),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
    )


def _mixture(raw: Mapping, parameters: Sequence[str], where: str) -> Mixture:
    only_keys(raw, _MIXTURE, where)
    probability = get_positive(raw, "probability", where)
    if probability >= 1:
        raise ModelError(f"{where}: probability = {probability:g} must be between 0 and 1.")
    return Mixture(
        on=nearest_or_raise(get_text(raw, "on", where), parameters, "parameter", where),
        value=get_number(raw, "value", where),
        probability=probability,
        label=get_text(raw, "label", where),
        source=get_text(raw, "source", where, ""),
        confidence=get_text(raw, "confidence", where, ""),
    )


def _correlation(raw: Mapping, where: str) -> PriorCorrelation:
    only_keys(raw, ("names", "matrix"), where)
    names, matrix = get_value(raw, "names", where), get_value(raw, "matrix", where)
    numbers = isinstance(matrix, list) and all(
        isinstance(row, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in row)
        for row in matrix
    )
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or not numbers:
        raise ModelError(f"{where}: names must be a list of texts, and matrix a list of rows of numbers.")
    return PriorCorrelation(tuple(names), tuple(tuple(float(x) for x in row) for row in matrix))


def _check(raw: Mapping, structure: AbstractStructure, where: str) -> Check:
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


def _inside(value: float, transform: str) -> bool:
    return transform == "identity" or (value > 0 and (transform == "log" or value < 1))
