"""The parts of a model: parameters, priors, assays, treatments, covariates; frozen data, nothing computes."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from carkinetics.errors import ModelError
from carkinetics.transforms import TRANSFORMS

# Defaults that change a report, in one place.
TYPICAL_PRIOR_SD = 1.0  # of a typical value on its transformed scale: a factor of e either way
OMEGA_PRIOR_SD = 0.7  # of ln omega: a factor of 4 either way holds real data's Cmax (omega near 2.8)
SIGMA_PRIOR_SD = 0.5  # of ln sigma
# The SD between occasions (infusions of one patient), of a log. Its prior, LogNormal(ln 0.4, 0.7), has 95 % from 0.1 to
# 1.6: it keeps away from zero, where few second infusions leave a funnel, and its median lies below the 0.5 to 1 that
# published models have between patients, since infusions of one patient share product and disease.
OCCASION_OMEGA = 0.4
OCCASION_PRIOR_SD = 0.7

RATIO_PRIOR_SD = 1.0  # of the log ratio between two tissues
RATIO_OMEGA = 0.4  # between patients

# A number that nobody has published. One object, so that two models that lack the same number are equal.
UNKNOWN = float("nan")

MATRICES = ("PB", "BM", "LN", "CSF", "tumour", "body")  # blood, marrow, lymph node, spinal fluid; the whole body
Family = Literal["normal", "lognormal", "halfnormal", "halfcauchy", "lkj"]


@dataclass(frozen=True)
class Prior:
    """A prior distribution, by name.

    Attributes
    ----------
    family : {"normal", "lognormal", "halfnormal", "halfcauchy", "lkj"}
        ``normal(loc, scale)`` on a typical value's transformed scale; for omega and sigma
        ``lognormal(ln median, scale)``, which keeps away from zero, or ``halfnormal(scale)``, which does not.
        ``halfcauchy`` and ``lkj`` are of the scales of a horseshoe and of partial correlations, and not chosen by hand.
    loc, scale : float
        As above; ``loc`` is only used by ``normal`` and ``lognormal``.
    """

    family: Family
    loc: float
    scale: float

    def __post_init__(self):
        if self.family not in get_args(Family):
            raise ModelError(f"prior family {self.family!r}: choose normal, lognormal or halfnormal.")
        if not (np.isfinite(self.loc) and np.isfinite(self.scale) and self.scale > 0):
            raise ModelError(
                f"prior {self.family}({self.loc:g}, {self.scale:g}): the scale must be finite and above 0."
            )

    def __str__(self) -> str:
        if self.family == "halfnormal":
            return f"HalfNormal({self.scale:.3g})"
        if self.family == "halfcauchy":
            return f"HalfCauchy({self.scale:.3g})"
        if self.family == "lkj":
            return f"LKJ (partial correlation, {self.scale:.3g})"
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
        Typical value, natural scale; ``UNKNOWN`` (NaN) if nobody has published it.
    unit : str
    transform : {"log", "logit", "identity"}
        The scale on which individual values are normal around the typical value.
    iiv : float
        Between-patient SD (omega) on the transformed scale; 0 for none, NaN if it is not known.
    fixed : bool
        The typical value is known, not estimated.
    prior, prior_omega : Prior
        On the transformed typical value and on omega.
    label, source, confidence : str
    low, high : float
        Bounds of a ``logit`` parameter.
    omega_of : str
        A parameter whose omega this one shares, in the place of one of its own.
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
    low: float = 0.0
    high: float = 1.0
    omega_of: str = ""

    @property
    def theta(self) -> float:
        """Typical value on the transformed scale."""
        return float(self.forward(self.value))

    def forward(self, natural):
        """Natural to transformed scale (NumPy); NaN or infinite outside what is possible."""
        if self.transform == "logit":
            natural = (np.asarray(natural) - self.low) / (self.high - self.low)
        with np.errstate(invalid="ignore", divide="ignore"):
            return TRANSFORMS[self.transform].forward(natural)

    def inverse(self, transformed):
        """Transformed to natural scale (JAX)."""
        natural = TRANSFORMS[self.transform].inverse(transformed)
        bounded = self.transform == "logit" and (self.low, self.high) != (0.0, 1.0)
        return self.low + (self.high - self.low) * natural if bounded else natural

    @property
    def domain(self) -> str:
        """Which natural values are possible, in words."""
        return (
            f"between {self.low:g} and {self.high:g}"
            if self.transform == "logit"
            else TRANSFORMS[self.transform].domain
        )


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
        ``PB`` blood, ``BM`` marrow, ``LN`` lymph node, ``CSF`` spinal fluid, ``tumour``, or ``body`` for all cells.
    unit : str
    error : str
        Residual: a family of :data:`carkinetics.residuals.RESIDUALS`.
    sigma : float
        Its first parameter (``sigma`` of ``lognormal``: the SD on the natural-log scale); NaN if it is not known.
    prior : Prior
        On sigma.
    second : float
        Its second parameter, if it has one (``nu`` of ``student_t``, ``additive`` of ``combined``).
    prior_second : Prior or None
        On that; None if it is known.
    lloq, lod : float or None
        Lower limits of quantification and of detection, in ``unit``: a sample between them is detected and not
        quantified.
    ratio : Parameter or None
        What the output is multiplied by in this matrix, ``ratio_<assay>``: one more parameter of the model.
    per : str
        A column of the table with what a count was counted in (uL of blood, events of CD3 cells): the expected count is
        the output times that. Empty for other assays.
    conversion : Conversion or None
        If the output is in cells per uL and the assay in copies per ug.
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
    conversion: "Conversion | None" = None
    second: float = UNKNOWN
    prior_second: Prior | None = None
    lod: float | None = None
    ratio: Parameter | None = None
    per: str = ""


@dataclass(frozen=True)
class Conversion:
    """From CAR-T cells per uL of blood to copies per ug of DNA: ``cells vcn / (pg_per_cell 1e-6 WBC)``.

    Attributes
    ----------
    regressor : str
        The model's regressor that is the white blood count (cells/uL).
    vcn : float
        Vector copies per CAR+ cell.
    pg_per_cell : float
        DNA per cell, pg.
    """

    regressor: str
    vcn: float
    pg_per_cell: float

    def ln_factor(self, wbc):
        """What is added to ln cells/uL for ln copies/ug, at this white blood count (cells/uL)."""
        return np.log(self.vcn / (self.pg_per_cell * 1e-6)) - np.log(wbc)


@dataclass(frozen=True)
class Treatment:
    """A drug that acts on the growth of CAR-T cells from its first dose on.

    Attributes
    ----------
    name, column : str
        ``column`` of the table has the day of its first dose, the same in all rows of a patient; empty for never.
    factor : Parameter
        What it multiplies the growth rate by; one more parameter of the model.
    active : bool
        Whether it acts in this model; see :meth:`carkinetics.Model.with_treatments`.
    """

    name: str
    column: str
    factor: Parameter
    active: bool = False


@dataclass(frozen=True)
class Regressor:
    """Something measured over time that is not modelled and that the model reads: a column of the table.

    Attributes
    ----------
    interpolation : {"locf", "nocb", "linear"}
        Between measurements: last carried forward, next carried backward, or linear.
    typical : float
        Of the typical patient, at all times.
    """

    name: str
    column: str
    unit: str
    interpolation: str
    typical: float


@dataclass(frozen=True)
class Check:
    """A fact of the paper that the typical patient must reproduce within ``rel_tol``.

    ``output`` is the structure's first unless named; ``where``: typical values (and ``typical_dose``) changed for it.
    """

    quantity: str
    expected: float
    rel_tol: float
    time: float | None = None
    unit: str = ""
    source: str = ""
    output: str = ""
    where: tuple[tuple[str, float], ...] = ()


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
