"""The infusion phase: whether early samples show one, and a model that has it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from carkinetics.dataset import Dataset
from carkinetics.errors import ModelError
from carkinetics.model import Model
from carkinetics.model_parts import OMEGA_PRIOR_SD, UNKNOWN, Parameter, Prior, nearest_or_raise
from carkinetics.model_writing import to_toml
from carkinetics.structures.infusion_phase import ADDED, FALLEN, KD, InfusionPhase
from carkinetics.structures.occasions import Occasions

# Defaults of the two parameters. Evidence: blood of 29 patients of ctl019 (docs/real_patients.md). Levels before day 1,
# taken back to the infusion at 4 per day, had a median of 700 to 1,000 copies/ug, 3 to 4 % of the published typical
# peak; a fit of Stein's model with the phase and heavy tails found c0 340 (70 to 1,000), omega 2.9, and kd 6.6 (4.3 to
# 9.2) per day. One rate for all: where kd varied (omega 1.25) patients left out were predicted better by 7 units of log
# density, of which 5 may mean nothing, and sampling took up to 17 times as long.
C0_OF_CMAX = 0.03
C0_PRIOR_SD = 1.5  # of ln c0: doses, products and assays differ
C0_OMEGA = 2.0
KD_PRIOR_SD = 0.5  # of ln kd: mostly known from when levels are below the limit
SOURCE = "default of the library: blood of 29 patients, Nobles 2020, doi:10.1172/JCI130144"
GIVEN = f"given with the model; spread: {SOURCE}"

# What counts as an early fall. First sample against two: an average over the first day, or days of growth, hide it.
UNTIL = 4.0  # day; samples from FALLEN up to it show what is left
AFTER = 2  # of them, the first
CLEAR = 3.0  # a fall by this factor is more than residual noise mostly is
BY_CHANCE = 0.25  # share of patients with a clear fall if levels do not change and the residual SD is 1
LEVEL = 0.05  # how improbable so many falls must then be


@dataclass(frozen=True)
class EarlyFall:
    """Whether early samples show an infusion phase; true in a condition if they do.

    Attributes
    ----------
    shown : bool
    patients, falls : int
        Patients whose samples can tell, and those with a clear fall.
    c0 : float
        Median level right after the infusion, of patients whose first sample is quantified, taken back to day 0 at 4
        per day; NaN if there is none. Of several assays, in the unit of that with most such patients.
    reason : str
    """

    shown: bool
    patients: int
    falls: int
    c0: float
    reason: str

    def __bool__(self) -> bool:
        return self.shown

    def __str__(self) -> str:
        return self.reason


def early_fall(data: Dataset, *, assays: Sequence[str] | None = None) -> EarlyFall:
    """Whether levels fall between the day of the infusion and days 1 to 4, before they rise.

    In each patient the first sample before day 1 and the geometric mean of the first two from day 1 to day 4 are
    compared, a sample below the limit standing at its limit: a fall by a factor of 3 is clear. Clear falls must be
    more than levels that do not change would show (in a quarter of the patients) with a probability of 5 %: at least
    three of three, 4 of 5, 6 of 10 or 9 of 20. A sample below the limit at exactly day 0 does not count: it was drawn
    before the infusion, or cannot be told from one that was. Neither do patients below the limit on both sides, nor
    samples after the day of a further infusion.

    Where the first samples are of half a day or later, much of the phase has passed, and no is no proof: compare fits.

    Parameters
    ----------
    assays : sequence of str, optional
        Those that measure the cells; all of the table if not given.
    """
    known = [data.assays.index(nearest_or_raise(a, data.assays, "assay", data.source)) for a in assays or data.assays]
    doses = data.doses()
    again = doses[doses["TIME"] > 0].groupby("ID")["TIME"].min()
    fallen: dict[int, list[float]] = {}
    first: dict[int, list[float]] = {}
    for i, name in enumerate(data.subjects):
        for a in known:
            rows = (data.subject == i) & (data.assay == a) & (data.cens >= 0)
            t, below, ln = data.time[rows], data.cens[rows] == 1, np.log(data.dv[rows])
            early = np.flatnonzero((t >= 0) & (t < FALLEN) & ~((t == 0) & below))
            after = np.flatnonzero((t >= FALLEN) & (t < UNTIL) & (t <= again.get(name, np.inf)))[:AFTER]
            early = early[t[early] == t[early].min(initial=np.inf)]
            if early.size and not below[early].any():
                first.setdefault(a, []).append(float(np.mean(ln[early] + KD * t[early])))
            if early.size and after.size and not (below[early].all() and below[after].all()):
                fallen.setdefault(i, []).append(float(ln[early].mean() - ln[after].mean()))
    drops = np.array([np.mean(d) for d in fallen.values()])
    most = max(first.values(), key=len, default=[math.nan])
    return _judged(len(drops), int(np.sum(drops >= math.log(CLEAR))), math.exp(np.median(most)))


def with_evidence(model: Model, data: Dataset, infusion_phase: bool | None = None) -> tuple[Model, list[str]]:
    """The model with an infusion phase if it is asked for or the data show one, and what to say about that."""
    first = [a.name for a in model.assays if a.output == model.structure.outputs[0] and a.name in data.assays]
    structure = model.structure
    has_one = isinstance(structure.base if isinstance(structure, Occasions) else structure, InfusionPhase)
    if infusion_phase is False or has_one or (infusion_phase is None and not first):
        return model, []
    if infusion_phase:
        return model.with_infusion_phase(), []
    fall = early_fall(data, assays=first)
    if not fall:
        return model, []
    try:
        model = model.with_infusion_phase()
    except ModelError as error:
        return model, [f"Early samples show an infusion phase ({fall}), which the model has not: {error}"]
    return model, [f"An infusion phase was added: {fall}. infusion_phase=False leaves it out."]


def _judged(patients: int, falls: int, c0: float) -> EarlyFall:
    chance = sum(
        math.comb(patients, k) * BY_CHANCE**k * (1 - BY_CHANCE) ** (patients - k) for k in range(falls, patients + 1)
    )
    if not patients:
        reason = f"no patient has samples that tell, before day {FALLEN:g} and from then to day {UNTIL:g}"
    else:
        reason = (
            f"{falls} of {patients} patients fall by a factor of {CLEAR:g} or more between day 0 and days "
            f"{FALLEN:g} to {UNTIL:g}; levels that do not change would do so with a probability of {chance:.2g}"
        )
    return EarlyFall(bool(patients) and chance <= LEVEL, patients, falls, c0, reason)


def add_infusion_phase(model: Model, *, c0: float | None = None, kd: float | None = None) -> Model:
    """What :meth:`carkinetics.Model.with_infusion_phase` returns."""
    first = model.structure.outputs[0]
    measured = [a for a in model.assays if a.output == first]
    if measured and all(a.matrix == "body" for a in measured):
        raise ModelError(
            f"{model.name}: {first} counts the cells of the whole body; those that leave the blood after the infusion "
            "are still among them. An infusion phase is for levels in blood."
        )
    dose = model.typical_dose if model.structure.uses_dose and model.typical_dose is not UNKNOWN else None
    occasions = model.structure if isinstance(model.structure, Occasions) else None
    base = model.structure if occasions is None else occasions.base
    structure = InfusionPhase(base, dose)
    known = {p.name: p for p in model.parameters}
    taken = sorted(set(ADDED) & set(known))
    if taken:  # a treatment's factor, since the structure's own are refused by InfusionPhase
        raise ModelError(f"{model.name} has a parameter {', '.join(taken)} already; an infusion phase needs that name.")
    sources = [SOURCE if given is None else GIVEN for given in (c0, kd)]
    kd = KD if kd is None else kd
    if c0 is None:
        if "cmax" not in known or known["cmax"].value is UNKNOWN:
            raise ModelError(
                f"{model.name}: no level is known from which to tell c0, the level right after the infusion. Give it: "
                f"model.with_infusion_phase(c0=...), in the unit of {first}; ck.early_fall(data).c0 is one."
            )
        c0 = C0_OF_CMAX * known["cmax"].value
    for name, value in (("c0", c0), ("kd", kd)):
        if not (math.isfinite(value) and value > 0):
            raise ModelError(f"{model.name}: {name} = {value:g} of the infusion phase must be finite and above 0.")
    unit = known["cmax"].unit if "cmax" in known else next((a.unit for a in measured if not a.conversion), "")
    own = len(base.parameters._fields)
    added = (
        _parameter("c0", c0, unit, (C0_OMEGA, C0_PRIOR_SD), "level right after the infusion"),
        _parameter("kd", kd, "1/day", (0.0, KD_PRIOR_SD), "rate at which infused cells leave the blood"),
    )
    added = tuple(replace(p, source=source) for p, source in zip(added, sources, strict=True))
    parameters = (*model.parameters[:own], *added, *model.parameters[own:])
    structure = structure if occasions is None else replace(occasions, base=structure)  # each has its own phase
    wrapped = replace(model, structure=structure, parameters=parameters)
    return replace(wrapped, toml=to_toml(wrapped))  # a saved fit reads its model from there


def _parameter(name: str, value: float, unit: str, spread: tuple[float, float], label: str) -> Parameter:
    omega, prior_sd = spread
    return Parameter(
        name=name,
        value=float(value),
        unit=unit or "that of the level",
        transform="log",
        iiv=omega,
        fixed=False,
        prior=Prior("normal", math.log(value), prior_sd),
        prior_omega=Prior("lognormal", math.log(omega or 1.0), OMEGA_PRIOR_SD),
        label=label,
        confidence="low",
    )
