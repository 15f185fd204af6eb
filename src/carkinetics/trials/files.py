"""Trial files: TOML in, :class:`~carkinetics.trials.parts.Trial` out. Unknown keys are refused, never ignored."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from carkinetics.errors import DesignError, ModelError
from carkinetics.exposures import CurveRules
from carkinetics.model import Model
from carkinetics.model_files import load_model
from carkinetics.model_parts import nearest_or_raise
from carkinetics.model_tables import read_covariate
from carkinetics.toml_fields import (
    MAX_BYTES,
    file_text,
    get_notes,
    get_number,
    get_numbers,
    get_positive,
    get_table,
    get_tables,
    get_text,
    get_texts,
    only_keys,
    optional_table,
    parsed,
)
from carkinetics.trials.design_tables import read_assignment, whole
from carkinetics.trials.metrics import Known, known_metric
from carkinetics.trials.parts import (
    CATEGORICAL,
    DISTRIBUTIONS,
    LOGNORMAL,
    NORMAL,
    UNIFORM,
    Analysis,
    Binary,
    Distribution,
    Enrolment,
    FollowUp,
    Hazard,
    Link,
    Sampling,
    Trial,
)

SCHEMA = 1
FOLDER = Path(__file__).resolve().parent
_TOP = (
    "schema", "name", "label", "reference", "notes", "kinetics", "doses", "assignment", "arms", "enrolment", "sampling",
    "population", "exposure", "toxicity", "response", "progression", "death", "follow_up", "analysis",
)  # fmt: skip
_LINK = ("exposure", "assay", "at", "slope")
_BINARY = ("name", "probability", *_LINK, "day", "target", "weight", "source")
_HAZARD = ("median", "shape", *_LINK, "source")
_DISTRIBUTION = {
    UNIFORM: ("low", "high"),
    NORMAL: ("mean", "sd", "low", "high"),
    LOGNORMAL: ("median", "sd_log", "low", "high"),
    CATEGORICAL: ("levels", "shares"),
}
_ANALYSIS = (
    "model",
    "values",
    "covariates",
    "toxicity",
    "response",
    "assay",
    "minimum",
    "draws",
    "population",
    "simulated",
    "source",
)
# Where a trial file says nothing of its analysis.
MINIMUM, DRAWS, POPULATION, SIMULATED = 20, 100, 100, 30
TOXICITY, RESPONSE = "cmax", "auc_0_28"


def list_trials() -> list[str]:
    """Names of the trials that come with the library."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def is_trial(name: str | Path) -> bool:
    """Whether a name is that of a trial, or a TOML file is one: it says who is enrolled."""
    path = Path(name)
    if path.suffix != ".toml":
        return str(name) in list_trials()
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        return "enrolment" in tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def load_trial(name: str | Path) -> Trial:
    """A trial by its name, or from a TOML file of your own.

    Parameters
    ----------
    name : str or Path
        A trial that comes with the library (``nct03754764``), or a path that ends in ``.toml``.

    Raises
    ------
    ModelError
        The file, a key or a number in it cannot be used; the message says which, and the remedy.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{nearest_or_raise(str(name), list_trials(), 'trial', 'trials')}.toml"
    return parse_trial(file_text(path, "trial"), where=path.name)


def parse_trial(text: str, *, where: str = "trial") -> Trial:
    """The trial that a TOML text describes; ``where`` names it in messages."""
    raw = parsed(text, _TOP, SCHEMA, where)
    try:
        return _trial(raw, text, where)
    except DesignError as error:
        raise ModelError(f"{where}: {error}") from None


def _trial(raw: Mapping, text: str, where: str) -> Trial:
    model, sampling = _kinetics(raw, where)
    levels, per_kg = _doses(raw, where)
    enrolment = _enrolment(get_table(raw, "enrolment", where), f"{where}: enrolment")
    response = _binary(raw, "response", model, where)
    assignment = read_assignment(raw, levels, enrolment.patients, where)
    trial = Trial(
        name=get_text(raw, "name", where),
        label=get_text(raw, "label", where, ""),
        reference=get_text(raw, "reference", where, ""),
        notes=get_notes(raw, where),
        toml=text,
        model=model,
        levels=levels,
        per_kg=per_kg,
        assignment=assignment,
        enrolment=enrolment,
        sampling=sampling,
        population=_population(raw, where),
        curves=_curves(raw, where),
        toxicity=_binary(raw, "toxicity", model, where),
        response=response,
        progression=_hazard(raw, "progression", model, where),
        death=_hazard(raw, "death", model, where),
        follow_up=_follow_up(get_table(raw, "follow_up", where), f"{where}: follow_up"),
        analysis=_analysis(raw, model, sampling, where),
    )
    _refuse(trial, where)
    return trial


def _kinetics(raw: Mapping, where: str) -> tuple[Model, tuple[Sampling, ...]]:
    """The model that is true, with the limits of the trial's assays, and their visits."""
    table, here = get_table(raw, "kinetics", where), f"{where}: kinetics"
    only_keys(table, ("model", "values", "covariates", "source"), here)
    model = _changed(load_model(get_text(table, "model", here)), table, here)
    assays = {a.name: a for a in model.assays}
    found = []
    for name, one in get_table(raw, "sampling", where).items():
        here = f"{where}: sampling.{nearest_or_raise(name, assays, 'assay', f'{where}: sampling')}"
        only_keys(one, ("days", "lloq", "lod", "missed", "source"), here)
        days = get_numbers(one, "days", here)
        if not days or days[0] < 0 or any(a >= b for a, b in pairwise(days)):
            raise ModelError(f"{here}: days = {list(days)} must be days from 0 on, increasing.")
        limits = {k: get_positive(one, k, here) for k in ("lloq", "lod") if k in one}
        if "lod" in limits and limits["lod"] > limits.get("lloq", assays[name].lloq or 0.0):
            raise ModelError(f"{here}: lod = {limits['lod']:g} is above the lloq.")
        assays[name] = replace(assays[name], **limits)
        missed = get_number({"missed": 0.0, **one}, "missed", here)
        if not 0 <= missed < 1:
            raise ModelError(f"{here}: missed = {missed:g} must be a share from 0 and below 1.")
        found.append(Sampling(name, days, missed, get_text(one, "source", here)))
    if not found:
        raise ModelError(f"{where}: sampling has no assay; write [sampling.{model.assays[0].name}] with days.")
    return replace(model, assays=tuple(assays.values())), tuple(found)


def _changed(model: Model, table: Mapping, here: str) -> Model:
    """With the values and covariates of a table of a trial file."""
    values = optional_table(table, "values", here)
    model = model.with_values({k: get_number(values, k, f"{here}: values") for k in values})
    names = [p.name for p in model.parameters]
    given = get_tables(table.get("covariates", []), here, "covariates")
    return model.with_covariates(*(read_covariate(c, names, f"{here}: covariates") for c in given))


def _doses(raw: Mapping, where: str) -> tuple[tuple[float, ...], bool]:
    table, here = get_table(raw, "doses", where), f"{where}: doses"
    only_keys(table, ("levels", "unit", "source"), here)
    levels, unit = get_numbers(table, "levels", here), get_text(table, "unit", here)
    get_text(table, "source", here)
    nearest_or_raise(unit, ("cells/kg", "cells"), "unit", here)
    if not levels or levels[0] <= 0 or any(a >= b for a, b in pairwise(levels)):
        raise ModelError(f"{here}: levels = {list(levels)} must be above 0 and rise.")
    return levels, unit == "cells/kg"


def _enrolment(table: Mapping, here: str) -> Enrolment:
    only_keys(table, ("patients", "per_month", "stagger", "source"), here)
    stagger = get_number({"stagger": 0.0, **table}, "stagger", here)
    if stagger < 0:
        raise ModelError(f"{here}: stagger = {stagger:g} must be days from 0.")
    patients, source = whole(table, "patients", here), get_text(table, "source", here)
    return Enrolment(patients, get_positive(table, "per_month", here), stagger, source)


def _population(raw: Mapping, where: str) -> dict[str, Distribution]:
    found = {}
    for name, one in optional_table(raw, "population", where).items():
        here = f"{where}: population.{name}"
        kind = nearest_or_raise(get_text(one, "distribution", here), DISTRIBUTIONS, "distribution", here)
        only_keys(one, ("distribution", *_DISTRIBUTION[kind], "source"), here)
        source = get_text(one, "source", here)
        if kind == CATEGORICAL:
            levels, shares = get_texts(one, "levels", here), get_numbers(one, "shares", here)
            if not levels or len(levels) != len(shares) or min(shares) <= 0:
                raise ModelError(f"{here}: give levels, and a share above 0 of each.")
            found[name] = Distribution(kind, levels=levels, shares=shares, source=source)
            continue
        low, high = (
            get_number(one, k, here) if k in one or kind == UNIFORM else edge
            for k, edge in (("low", -math.inf), ("high", math.inf))
        )
        names = {NORMAL: ("mean", "sd"), LOGNORMAL: ("median", "sd_log")}.get(kind)
        centre, spread = (get_number(one, names[0], here), get_positive(one, names[1], here)) if names else (0.0, 1.0)
        found[name] = Distribution(kind, centre, spread, low, high, source=source)
        if not found[name].low < found[name].high or (kind == LOGNORMAL and centre <= 0):
            raise ModelError(f"{here}: low must be below high, and a median above 0.")
    return found


def _curves(raw: Mapping, where: str) -> CurveRules:
    """The peak is looked for until a day, and curves are followed as far as the exposures reach."""
    table, here = optional_table(raw, "exposure", where), f"{where}: exposure"
    only_keys(table, ("peak", "source"), here)
    peak, metrics = get_positive({"peak": 28.0, **table}, "peak", here), []
    for part in ("toxicity", "response", "progression", "death"):
        metrics.append(get_text(optional_table(raw, part, where), "exposure", f"{where}: {part}", ""))
    named = optional_table(raw, "analysis", where)
    metrics += [
        get_text(named, k, f"{where}: analysis", m) for k, m in (("toxicity", TOXICITY), ("response", RESPONSE))
    ]
    ends = [known_metric(m).end for m in metrics if m]
    return CurveRules(horizon=max(peak, *ends, 0.0) if ends else peak, peak=(0.0, peak), refine=1)


def _link(table: Mapping, model: Model, here: str) -> Link:
    if "exposure" not in table:
        unused = [k for k in ("assay", "at", "slope") if k in table]
        if unused:
            raise ModelError(f'{here}: {unused[0]} says something of an exposure: name it, exposure = "cmax".')
        return Link()
    metric: Known = known_metric(get_text(table, "exposure", here), here)
    names = [a.name for a in model.assays]
    assay = nearest_or_raise(get_text(table, "assay", here, names[0]), names, "assay", here)
    return Link(metric.name, assay, get_positive(table, "at", here), get_number(table, "slope", here))


def _binary(raw: Mapping, part: str, model: Model, where: str) -> Binary:
    table, here = get_table(raw, part, where), f"{where}: {part}"
    only_keys(table, _BINARY, here)
    toxic = part == "toxicity"
    probability, target = get_positive(table, "probability", here), get_positive(table, "target", here)
    weight = get_number({"weight": -1.5 if toxic else 1.0, **table}, "weight", here)
    for name, share in (("probability", probability), ("target", target)):
        if share >= 1:
            raise ModelError(f"{here}: {name} = {share:g} must be between 0 and 1.")
    if weight > 0 if toxic else weight < 0:
        raise ModelError(f"{here}: weight = {weight:g} must be at {'most' if toxic else 'least'} 0.")
    name = get_text(table, "name", here, "DLT" if toxic else "ORR")
    day, source = get_positive(table, "day", here), get_text(table, "source", here)
    return Binary(name, probability, _link(table, model, here), day, target, weight, source)


def _hazard(raw: Mapping, part: str, model: Model, where: str) -> Hazard | None:
    if part not in raw:
        return None
    table, here = get_table(raw, part, where), f"{where}: {part}"
    only_keys(table, _HAZARD, here)
    median, shape = get_positive(table, "median", here), get_positive({"shape": 1.0, **table}, "shape", here)
    return Hazard(part, median, shape, _link(table, model, here), get_text(table, "source", here))


def _follow_up(table: Mapping, here: str) -> FollowUp:
    only_keys(table, ("days", "after", "dropout_per_year", "source"), here)
    days, dropout = get_positive(table, "days", here), get_number(table, "dropout_per_year", here)
    after = get_positive({"after": days, **table}, "after", here)
    if dropout < 0:
        raise ModelError(f"{here}: dropout_per_year = {dropout:g} must be a rate from 0.")
    return FollowUp(days, after, dropout, get_text(table, "source", here))


def _analysis(raw: Mapping, truth: Model, sampling: tuple[Sampling, ...], where: str) -> Analysis:
    table, here = optional_table(raw, "analysis", where), f"{where}: analysis"
    only_keys(table, _ANALYSIS, here)
    model = truth if "model" not in table else load_model(get_text(table, "model", here))
    if "model" not in table and ("values" in table or "covariates" in table):
        raise ModelError(f"{here}: name the model that values and covariates belong to.")
    model = _changed(model, table, here)
    for c in model.covariates:
        if isinstance(c.center, str) or c.prior_sd is None or (c.form == "categorical" and not c.reference):
            raise ModelError(
                f"{here}: covariate {c.column} on {c.on} leaves its center, prior_sd or reference to the data. Give "
                "numbers: all simulated trials are fitted by one model."
            )
    read = [s.assay for s in sampling if s.assay in [a.name for a in model.assays]]
    if not read:
        raise ModelError(f"{here}: {model.name} has none of the assays that are sampled: {sampling[0].assay} ...")
    defaults = {"minimum": MINIMUM, "draws": DRAWS, "population": POPULATION, "simulated": SIMULATED}
    counts = {k: whole({k: v, **table}, k, here, least=2) for k, v in defaults.items()}
    metrics: dict[str, str] = {}
    for part, default in (("toxicity", TOXICITY), ("response", RESPONSE)):
        true = get_text(optional_table(raw, part, where), "exposure", f"{where}: {part}", default)
        metrics[part] = known_metric(get_text(table, part, here, true), here).name
    assay = nearest_or_raise(get_text(table, "assay", here, read[0]), read, "sampled assay", here)
    source = get_text(table, "source", here, "")
    return Analysis(model, metrics["toxicity"], metrics["response"], assay, **counts, source=source)


def _refuse(trial: Trial, where: str) -> None:
    """What only the whole trial shows."""
    trial.model.refuse_unknown(f"trial {trial.name}")
    given = {*trial.population, trial.dose_column, "WT"}
    for model in (trial.model, trial.analysis.model):
        for column in [c.column for c in model.covariates]:
            if column not in given:
                nearest_or_raise(column, given, "covariate of the population", f"{where}: {model.name}")
    if trial.per_kg and "WT" not in trial.population:
        raise ModelError(f"{where}: doses are per kg: give the weight, [population.WT].")
    last = max(trial.toxicity.day, trial.response.day)
    model = trial.analysis.model
    if not model.structure.uses_dose and trial.dose_column not in [c.column for c in model.covariates]:
        raise ModelError(
            f"{where}: analysis: exposure does not depend on the dose in {model.name}. Give [[analysis.covariates]] "
            f'column = "{trial.dose_column}".'
        )
    if trial.follow_up.days < last or trial.follow_up.after < last:
        raise ModelError(f"{where}: follow_up ends before day {last:g}, on which an outcome is told.")
