"""Covariates: what a patient's baseline says about a parameter, and how much of it is known."""

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from carkinetics.errors import ModelError
from carkinetics.model_parts import Prior, nearest_or_raise

FORMS = ("power", "exponential", "linear", "categorical")
CENTERS = ("median", "mean")
MISSING = ("refuse", "center")
# One SD of a covariate (or one category against another) changes a parameter by a factor of two, either way: wide
# beside published effects on CAR-T kinetics, and narrow enough to hold where the data say nothing.
EFFECT_PRIOR_SD = 0.7


@dataclass(frozen=True)
class Covariate:
    """A baseline covariate's effect on a typical value.

    Attributes
    ----------
    column, on : str
        The table's column; the parameter.
    form : {"power", "exponential", "linear", "categorical"}
        A typical value is multiplied by ``(x / center) ** e``, ``exp(e (x - center))``, ``1 + e (x - center)`` or, in
        every category but the reference, ``exp(e)``. Of a parameter that is not log-normal, the log of that factor
        (``e (x - center)`` for ``linear``) is added on its transformed scale.
    center : float or {"median", "mean"}
        Covariate of the typical patient; of the fitted patients unless it is a number.
    value : float
        The effect ``e``: of a model that is simulated, and the middle of its prior.
    reference : str
        ``categorical``: the category of the typical patient; the most frequent one if none is named.
    levels : tuple of str
        ``categorical``: the other categories; those of the fitted patients if none are named.
    values : tuple of float
        ``categorical``: their effects, 0 unless given.
    prior_sd : float or None
        Of each effect, normal about its value. None: 0.7 for one SD of the covariate among the fitted patients, or
        for a category.
    prior_sds : tuple of float
        ``categorical``: of each effect in the place of ``prior_sd``; of a posterior that becomes a prior.
    fixed : bool
        The effect is known and not estimated.
    missing : {"refuse", "center"}
        Patients without a value are refused, or taken to be at the centre (the reference category); the fit says so.
    """

    column: str
    _: KW_ONLY
    on: str
    form: str = "power"
    center: float | str = "median"
    value: float = 0.0
    reference: str = ""
    levels: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    prior_sd: float | None = None
    prior_sds: tuple[float, ...] = ()
    fixed: bool = False
    missing: str = "refuse"
    source: str = ""
    confidence: str = ""

    def __post_init__(self):
        here = f"covariate {self.column} on {self.on}"
        nearest_or_raise(self.form, FORMS, "form", here)
        nearest_or_raise(self.missing, MISSING, "policy for missing values", here)
        if isinstance(self.center, str):
            nearest_or_raise(self.center, CENTERS, "center", here)
        elif not np.isfinite(self.center) or (self.form == "power" and self.center <= 0):
            raise ModelError(f"{here}: center = {self.center:g} must be finite, and above 0 for a power.")
        if not np.isfinite([self.value, *self.values]).all():
            raise ModelError(f"{here}: effects must be finite.")
        if self.values and len(self.values) != len(self.levels):
            raise ModelError(f"{here}: {len(self.values)} values for {len(self.levels)} levels; give one for each.")
        if self.prior_sd is not None and not 0 < self.prior_sd < np.inf:
            raise ModelError(f"{here}: prior_sd = {self.prior_sd:g} must be finite and above 0.")

    @property
    def resolved(self) -> bool:
        """Whether nothing is left for the data to say."""
        return bool(self.levels) if self.form == "categorical" else not isinstance(self.center, str)

    @property
    def effects(self) -> "tuple[Effect, ...]":
        """One effect, or one for each category but the reference."""
        if not self.resolved:
            raise ModelError(
                f"covariate {self.column} on {self.on}: its {'levels' if self.form == 'categorical' else 'center'} "
                "come from the data of a fit; name them to simulate from the model."
            )
        prior_sd = EFFECT_PRIOR_SD if self.prior_sd is None else self.prior_sd
        if self.form != "categorical":
            return (self._effect(self.column, self.value, prior_sd),)
        values = self.values or (self.value,) * len(self.levels)
        sds = self.prior_sds or (prior_sd,) * len(self.levels)
        return tuple(
            self._effect(f"{self.column}_{level}", value, sd)
            for level, value, sd in zip(self.levels, values, sds, strict=True)
        )

    def _effect(self, name: str, value: float, prior_sd: float) -> "Effect":
        name = f"e_{re.sub(r'[^0-9a-z]+', '_', name.lower()).strip('_')}_{self.on}"
        return Effect(name, self.on, self.form, value, Prior("normal", value, prior_sd), self.fixed)

    def design(self, x: np.ndarray) -> Float[np.ndarray, "effect n"]:
        """What the effects act on, of patients with these values; 0 at the centre and where a value is missing.

        Raises
        ------
        ModelError
            A value that the form does not allow, or a category that the model does not know.
        """
        if self.form == "categorical":
            return self._indicators(x)
        x = np.asarray(x, float)
        wrong = ~np.isfinite(x) & ~np.isnan(x)
        if self.form == "power":
            wrong |= x <= 0
        if wrong.any():
            raise ModelError(
                f"covariate {self.column} = {x[wrong][0]:g} is outside what its {self.form} effect on {self.on} allows "
                f"({wrong.sum()} patients). Correct the table, or choose another form."
            )
        off = np.log(x / self.center) if self.form == "power" else x - float(self.center)
        return np.nan_to_num(off)[None]

    def _indicators(self, x: np.ndarray) -> Float[np.ndarray, "level n"]:
        texts = [category(v) for v in x]
        unknown = sorted({t for t in texts if t and t not in (self.reference, *self.levels)})
        if unknown:
            raise ModelError(
                f"covariate {self.column}: the model has no effect of {', '.join(map(repr, unknown))} on {self.on}; it "
                f"knows {self.reference!r} (reference) and {', '.join(map(repr, self.levels))}."
            )
        return np.array([[float(t == level) for t in texts] for level in self.levels])


class Effect(NamedTuple):
    """One number of a covariate's."""

    name: str
    on: str
    form: str
    value: float
    prior: Prior
    fixed: bool


def category(x: object) -> str:
    """The text of a category; empty where it is missing. ``1.0`` and ``1`` are the same."""
    if x is None or x == "" or (isinstance(x, float | np.floating) and np.isnan(x)):
        return ""
    return f"{x:g}" if isinstance(x, float | np.floating) else str(x).strip()


def resolve(covariate: Covariate, x: np.ndarray) -> Covariate:
    """The covariate with what these patients' values leave open: centre or categories, and the prior's width.

    Raises
    ------
    ModelError
        All values are the same, or missing: no effect could be told.
    """
    here = f"covariate {covariate.column} on {covariate.on}"
    if covariate.fixed and covariate.resolved and (covariate.form != "categorical" or covariate.reference):
        return covariate  # known, also where these patients are all alike
    if covariate.form == "categorical":
        texts = [t for t in map(category, x) if t]
        counts = {t: texts.count(t) for t in sorted(set(texts))}
        if len(counts) < 2:
            raise ModelError(f"{here}: all patients are in one category ({', '.join(counts) or 'none'}); leave it out.")
        reference = covariate.reference or max(counts, key=lambda t: counts[t])
        nearest_or_raise(reference, counts, "reference category", here)
        levels = covariate.levels or tuple(t for t in counts if t != reference)
        return replace(covariate, reference=reference, levels=levels, values=covariate.values or (0.0,) * len(levels))
    known = np.asarray(x, float)
    known = known[~np.isnan(known)]
    if len(set(known)) < 2:
        raise ModelError(f"{here}: all patients have the same value, or none; leave it out.")
    if isinstance(covariate.center, str):
        center = float(np.median(known) if covariate.center == "median" else known.mean())
        covariate = replace(covariate, center=center)
    if covariate.prior_sd is None:
        sd = float(covariate.design(known).std())
        covariate = replace(covariate, prior_sd=float(EFFECT_PRIOR_SD / sd))
    return covariate


def effect_names(covariates: Iterable[Covariate]) -> list[str]:
    """Names of their effects, as far as they are known."""
    return [e.name for c in covariates if c.resolved for e in c.effects]
