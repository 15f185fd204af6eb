"""Who decides on the dose, out of a trial file: a phase 1 design, or arms."""

from collections.abc import Callable, Mapping
from typing import Any

from carkinetics.design import (
    Elimination,
    FirstDoseStop,
    MaximumJump,
    NoSkipping,
    blrm,
    boin,
    boin12,
    crm,
    keyboard,
    mtpi2,
    three_plus_three,
    tite_crm,
)
from carkinetics.design.base import AbstractDesign
from carkinetics.errors import ModelError
from carkinetics.model_parts import nearest_or_raise
from carkinetics.toml_fields import (
    get_number,
    get_numbers,
    get_positive,
    get_table,
    get_tables,
    get_text,
    get_texts,
    only_keys,
    optional_table,
)
from carkinetics.trials.parts import Arm, Assignment

# Every design with the options that a file may give: numbers, but for lists and names.
_DESIGNS: dict[str, tuple[Callable[..., AbstractDesign], tuple[str, ...]]] = {
    "boin": (boin, ("target", "safe", "toxic", "start")),
    "keyboard": (keyboard, ("target", "width", "start")),
    "mtpi2": (mtpi2, ("target", "width", "start")),
    "three_plus_three": (three_plus_three, ("start",)),
    "crm": (crm, ("guesses", "target", "model", "estimate", "start")),
    "tite_crm": (tite_crm, ("guesses", "target", "window", "model", "start")),
    "blrm": (blrm, ("reference", "start")),
    "boin12": (boin12, ("toxicity", "response", "start")),
}
_LISTS, _NAMES, _WHOLE = ("guesses",), ("model", "estimate"), ("start",)
_RULES = {
    "no_skipping": NoSkipping,
    "elimination": Elimination,
    "first_dose_stop": FirstDoseStop,
    "maximum_jump": MaximumJump,
}


def whole(raw: Mapping, key: str, where: str, least: int = 1) -> int:
    """A whole number from ``least`` on."""
    value = get_number(raw, key, where)
    if value != round(value) or value < least:
        raise ModelError(f"{where}: {key} = {value:g} must be a whole number from {least}.")
    return int(value)


def read_assignment(raw: Mapping, levels: tuple[float, ...], patients: int, where: str) -> Assignment:
    """The table ``[assignment]``, or the tables ``[[arms]]``."""
    if ("assignment" in raw) == ("arms" in raw):
        raise ModelError(f"{where}: give either [assignment], in which a design decides, or [[arms]].")
    if "arms" in raw:
        return _arms(raw, levels, patients, where)
    table, here = get_table(raw, "assignment", where), f"{where}: assignment"
    only_keys(table, ("design", "options", "rules", "patients", "cohort", "wait", "source"), here)
    name = nearest_or_raise(get_text(table, "design", here), _DESIGNS, "design", here)
    make, known = _DESIGNS[name]
    options = optional_table(table, "options", here)
    only_keys(options, known, f"{here}: options of {name}")
    chosen: dict[str, Any] = {k: _option(options, k, here) for k in options}
    if "rules" in table:
        names = [nearest_or_raise(r, _RULES, "rule", here) for r in get_texts(table, "rules", here)]
        chosen["rules"] = tuple(_RULES[r]() for r in names)
    if "guesses" in known and "guesses" not in chosen:
        raise ModelError(f"{here}: {name} needs options.guesses, a DLT probability of every level.")
    design = make(doses=levels, **chosen)
    escalated = whole({"patients": patients, **table}, "patients", here)
    if escalated > patients:
        raise ModelError(f"{here}: patients = {escalated} is more than the trial's {patients}.")
    wait = get_number(table, "wait", here)
    if wait < 0:
        raise ModelError(f"{here}: wait = {wait:g} must be days from 0.")
    return Assignment(design, escalated, whole(table, "cohort", here), wait, (), get_text(table, "source", here))


def _option(options: Mapping, key: str, here: str) -> Any:
    if key in _LISTS:
        return get_numbers(options, key, here)
    if key in _NAMES:
        return get_text(options, key, here)
    return whole(options, key, here) if key in _WHOLE else get_positive(options, key, here)


def _arms(raw: Mapping, levels: tuple[float, ...], patients: int, where: str) -> Assignment:
    found, sources = [], []
    for one in get_tables(raw["arms"], where, "arms"):
        here = f"{where}: arms"
        only_keys(one, ("name", "level", "patients", "source"), here)
        level = whole(one, "level", here)
        if level > len(levels):
            raise ModelError(f"{here}: level = {level}; there are {len(levels)} levels, of which 1 is the lowest.")
        found.append(Arm(get_text(one, "name", here), level, whole(one, "patients", here)))
        sources.append(get_text(one, "source", here))
    total = sum(a.patients for a in found)
    if total != patients:
        raise ModelError(f"{where}: the arms have {total} patients and enrolment.patients is {patients}.")
    return Assignment(None, 0, 1, 0.0, tuple(found), "; ".join(dict.fromkeys(sources)))
