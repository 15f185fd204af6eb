"""What a user says about a population: typical values, between-patient variability, assays and priors.

Everything here is frozen data; nothing computes. Model files become these objects in
:mod:`carkinetics.model_files`, and :mod:`carkinetics.population` turns them into a density.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from carkinetics.errors import ModelError
from carkinetics.structure import AbstractStructure
from carkinetics.transforms import TRANSFORMS

# Defaults that change a report, in one place.
TYPICAL_PRIOR_SD = 1.0  # of a typical value on its transformed scale: a factor of e either way
OMEGA_PRIOR_SD = 0.7  # of ln omega: a factor of 4 either way holds real data's Cmax (omega near 2.8)
SIGMA_PRIOR_SD = 0.5  # of ln sigma

Family = Literal["normal", "lognormal", "halfnormal"]


@dataclass(frozen=True)
class Prior:
    """A prior distribution, by name.

    Attributes
    ----------
    family : {"normal", "lognormal", "halfnormal"}
        ``normal(loc, scale)`` on a typical value's transformed scale; for omega and sigma
        ``lognormal(ln median, scale)``, which keeps away from zero, or ``halfnormal(scale)``, which does not.
    loc, scale : float
        As above; ``loc`` is unused by ``halfnormal``.
    """

    family: Family
    loc: float
    scale: float

    def __post_init__(self):
        if self.family not in ("normal", "lognormal", "halfnormal"):
            raise ModelError(f"prior family {self.family!r}: choose normal, lognormal or halfnormal.")
        if not (np.isfinite(self.loc) and np.isfinite(self.scale) and self.scale > 0):
            raise ModelError(
                f"prior {self.family}({self.loc:g}, {self.scale:g}): the scale must be finite and above 0."
            )

    def __str__(self) -> str:
        if self.family == "halfnormal":
            return f"HalfNormal({self.scale:.3g})"
        if self.family == "lognormal":
            return f"LogNormal(ln {np.exp(self.loc):.3g}, {self.scale:.3g})"
        return f"Normal({self.loc:.3g}, {self.scale:.3g})"


@dataclass(frozen=True)
class Parameter:
    """One parameter of the structure, in the population.

    Attributes
    ----------
    name : str
    value : float
        Typical value, natural scale.
    unit : str
    transform : {"log", "logit", "identity"}
        The scale on which individual values are normal around the typical value.
    iiv : float
        Between-patient SD (omega) on the transformed scale; 0 for none.
    fixed : bool
        The typical value is known, not estimated.
    prior, prior_omega : Prior
        On the transformed typical value and on omega.
    label, source, confidence : str
    """

    name: str
    value: float
    unit: str
    transform: str
    iiv: float
    fixed: bool
    prior: Prior
    prior_omega: Prior
    label: str = ""
    source: str = ""
    confidence: str = ""

    @property
    def theta(self) -> float:
        """Typical value on the transformed scale."""
        return float(TRANSFORMS[self.transform].forward(self.value))


@dataclass(frozen=True)
class Assay:
    """One assay in one matrix.

    Attributes
    ----------
    name : str
        The table's ``DVID``.
    output : str
        The structure's output that it measures.
    matrix : str
        ``PB`` blood, ``BM`` marrow, ``LN`` lymph node.
    unit : str
    error : {"lognormal"}
        Residual: normal with SD ``sigma`` on the natural-log scale.
    sigma : float
    prior : Prior
        On sigma.
    lloq : float or None
        Lower limit of quantification, in ``unit``.
    """

    name: str
    output: str
    matrix: str
    unit: str
    error: str
    sigma: float
    prior: Prior
    lloq: float | None = None
    label: str = ""
    source: str = ""
    confidence: str = ""


@dataclass(frozen=True)
class Check:
    """A fact of the paper that the typical patient must reproduce within ``rel_tol``."""

    quantity: str
    expected: float
    rel_tol: float
    time: float | None = None
    unit: str = ""
    source: str = ""


@dataclass(frozen=True)
class Model:
    """A structure with its population: what ``fit`` estimates and ``simulate`` draws from."""

    name: str
    structure: AbstractStructure
    parameters: tuple[Parameter, ...]
    assays: tuple[Assay, ...]
    checks: tuple[Check, ...] = ()
    label: str = ""
    reference: str = ""
    doi: str = ""
    notes: tuple[str, ...] = ()
    toml: str = field(default="", repr=False)

    def __getitem__(self, name: str) -> Parameter:
        """The parameter of that name; an unknown one is refused with the nearest match."""
        return self.parameters[[p.name for p in self.parameters].index(self._known(name))]

    def with_priors(self, priors: Mapping[str, Prior]) -> "Model":
        """A model with other priors.

        Parameters
        ----------
        priors : mapping
            ``{"cmax": Prior("normal", ...)}`` for a typical value (transformed scale),
            ``{"omega.cmax": Prior("lognormal", ...)}`` for omega, ``{"sigma.qpcr": ...}`` for a residual.
        """
        parameters = {p.name: p for p in self.parameters}
        assays = {a.name: a for a in self.assays}
        for key, prior in priors.items():
            kind, _, name = key.rpartition(".")
            if kind == "sigma":
                name = nearest_or_raise(name, assays, "assay", self.name)
                assays[name] = replace(assays[name], prior=_positive(prior, key))
            elif kind == "omega":
                name = self._known(name)
                if not parameters[name].iiv:
                    raise ModelError(f"prior of {key}: {name} has no between-patient variability in this model.")
                parameters[name] = replace(parameters[name], prior_omega=_positive(prior, key))
            else:
                if prior.family != "normal":
                    raise ModelError(f"prior of {key}: a typical value takes a normal prior on its transformed scale.")
                parameters[self._known(key)] = replace(parameters[self._known(key)], prior=prior)
        return replace(self, parameters=tuple(parameters.values()), assays=tuple(assays.values()))

    def with_assay(self, assay: Assay) -> "Model":
        """A model with one more assay, or with the assay of that name replaced."""
        nearest_or_raise(assay.output, self.structure.outputs, "output", self.structure.name)
        return replace(self, assays=(*(a for a in self.assays if a.name != assay.name), assay))

    def fix(self, *names: str) -> "Model":
        """A model in which these typical values are known; their omegas are still estimated."""
        known = {self._known(n) for n in names}
        return replace(
            self, parameters=tuple(replace(p, fixed=True) if p.name in known else p for p in self.parameters)
        )

    def table(self) -> pd.DataFrame:
        """Value, unit, transform, IIV (CV % for log, else SD), priors and source, one row per parameter."""
        rows = [
            {
                "parameter": p.name,
                "label": p.label,
                "value": p.value,
                "unit": p.unit,
                "transform": p.transform,
                "omega": p.iiv,
                "IIV CV %": iiv_cv_pct(p.iiv) if p.transform == "log" else np.nan,
                "prior": "fixed" if p.fixed else str(p.prior),
                "prior omega": str(p.prior_omega) if p.iiv else "none",
                "source": p.source,
            }
            for p in self.parameters
        ]
        return pd.DataFrame(rows).set_index("parameter")

    def _known(self, name: str) -> str:
        return nearest_or_raise(name, [p.name for p in self.parameters], "parameter", self.name)


def iiv_cv_pct(omega):
    """Coefficient of variation (%) of a log-normal with log-scale SD ``omega``."""
    return 100 * np.sqrt(np.expm1(np.square(omega)))


def nearest_or_raise(name: str, known: Iterable[str], what: str, where: str) -> str:
    """``name`` if it is known, else a :class:`ModelError` with the nearest match."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"{where}: unknown {what} {name!r}.{hint} Known: {', '.join(known)}.")


def _positive(prior: Prior, key: str) -> Prior:
    if prior.family == "normal":
        raise ModelError(f"prior of {key}: it must be positive; choose lognormal or halfnormal.")
    return prior
