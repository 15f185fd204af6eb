"""What a trial is made of, as frozen data: doses, who decides on them, visits, outcomes, and how it is analysed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit, ndtr, ndtri

from carkinetics.design.base import AbstractDesign
from carkinetics.exposures import CurveRules
from carkinetics.model import Model

UNIFORM, NORMAL, LOGNORMAL, CATEGORICAL = "uniform", "normal", "lognormal", "categorical"
DISTRIBUTIONS = (UNIFORM, NORMAL, LOGNORMAL, CATEGORICAL)
YEAR = 365.25  # days
MONTH = YEAR / 12


@dataclass(frozen=True)
class Distribution:
    """What a covariate is drawn from.

    Attributes
    ----------
    kind : {"uniform", "normal", "lognormal", "categorical"}
    centre, spread : float
        Mean and SD; of a log-normal one the median and the SD of the natural log.
    low, high : float
        Nobody lies outside: draws are from the distribution cut there.
    levels, shares : tuple
        Of a categorical one.
    source : str
    """

    kind: str
    centre: float = 0.0
    spread: float = 1.0
    low: float = -np.inf
    high: float = np.inf
    levels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    source: str = ""

    def draw(self, u: Float[np.ndarray, " n"]) -> np.ndarray:
        """From uniform numbers, by the inverse of the distribution function; three decimals."""
        if self.kind == CATEGORICAL:
            edges = np.cumsum(self.shares)[:-1] / sum(self.shares)
            return np.array(self.levels, dtype=object)[np.searchsorted(edges, u, side="right")]
        if self.kind == UNIFORM:
            return np.round(self.low + u * (self.high - self.low), 3)
        log = self.kind == LOGNORMAL
        middle = np.log(self.centre) if log else self.centre
        with np.errstate(divide="ignore"):
            low, high = (np.log(x) if log else x for x in (max(self.low, 0.0) if log else self.low, self.high))
        below, above = ndtr((low - middle) / self.spread), ndtr((high - middle) / self.spread)
        x = middle + self.spread * ndtri(below + u * (above - below))
        return np.clip(np.round(np.exp(x) if log else x, 3), self.low, self.high)


@dataclass(frozen=True)
class Link:
    """How an outcome follows from exposure: linear in ln exposure, on the scale of a logit or of a log hazard.

    Attributes
    ----------
    exposure, assay : str
        The metric and the assay that it is of; no metric: the outcome does not depend on exposure.
    at : float
        Exposure at which the outcome has its stated probability or median.
    slope : float
        Per unit of ln exposure.
    """

    exposure: str = ""
    assay: str = ""
    at: float = 1.0
    slope: float = 0.0

    def away(self, exposure: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """What exposure adds."""
        return self.slope * np.log(exposure / self.at) if self.exposure else np.zeros(np.shape(exposure))


@dataclass(frozen=True)
class Binary:
    """An outcome that is there or not.

    Attributes
    ----------
    name : str
        Column of the patients' table.
    probability : float
        At the exposure ``link.at``.
    link : Link
    day : float
        Until which it happens, or on which it is told.
    target : float
        Rate that is borne (toxicity), or that is to be exceeded (response).
    weight : float
        Utility of one patient with it, in the plan.
    source : str
    """

    name: str
    probability: float
    link: Link
    day: float
    target: float
    weight: float
    source: str

    def chance(self, exposure: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Probability of patients with this exposure."""
        return expit(np.log(self.probability / (1 - self.probability)) + self.link.away(exposure))


@dataclass(frozen=True)
class Hazard:
    """A Weibull time to an event: hazard ``(shape / scale) (t / scale)^(shape - 1) exp(link)``.

    Attributes
    ----------
    name : str
    median : float
        Day, at the exposure ``link.at``.
    shape : float
        1 is a constant hazard.
    """

    name: str
    median: float
    shape: float
    link: Link
    source: str

    def day(self, u: Float[np.ndarray, " n"], exposure: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Of the event, where survival is ``u``."""
        total = -np.log(u) / np.log(2) / np.exp(self.link.away(exposure))
        return self.median * total ** (1 / self.shape)

    def survival(self, day: float, exposure: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Probability of no event until a day."""
        return np.exp(-np.log(2) * (day / self.median) ** self.shape * np.exp(self.link.away(exposure)))


@dataclass(frozen=True)
class Sampling:
    """When an assay is read.

    Attributes
    ----------
    assay : str
    days : tuple of float
    missed : float
        Probability that a sample is not there.
    """

    assay: str
    days: tuple[float, ...]
    missed: float
    source: str


@dataclass(frozen=True)
class Arm:
    """Patients at one dose level, in the order in which they come."""

    name: str
    level: int
    patients: int


@dataclass(frozen=True)
class Assignment:
    """Who decides on the level.

    Attributes
    ----------
    design : AbstractDesign or None
        None: the arms do.
    patients : int
        Treated at most while the design decides; the others of the trial get the level that it selects.
    cohort : int
        Patients of a cohort.
    wait : float
        Days after a cohort's last infusion before the next cohort's level is decided.
    arms : tuple of Arm
        Patients are given to them in turn, as long as an arm has places.
    """

    design: AbstractDesign | None
    patients: int
    cohort: int
    wait: float
    arms: tuple[Arm, ...]
    source: str


@dataclass(frozen=True)
class Enrolment:
    """How many patients, and when.

    Attributes
    ----------
    patients : int
    per_month : float
        Patients come at random times (a Poisson process); who comes while nobody may be infused is not in the trial.
    stagger : float
        Days between two infusions while a design decides.
    """

    patients: int
    per_month: float
    stagger: float
    source: str


@dataclass(frozen=True)
class FollowUp:
    """How long patients are followed.

    Attributes
    ----------
    days : float
        Of a patient at most.
    after : float
        The data are cut this many days after the last infusion of the trial (administrative censoring).
    dropout : float
        Rate per year at which patients are lost.
    """

    days: float
    after: float
    dropout: float
    source: str


@dataclass(frozen=True)
class Analysis:
    """How the trial's data are analysed.

    Attributes
    ----------
    model : Model
        That is fitted.
    minimum : int
        Patients below which nothing is fitted and the design alone decides.
    draws : int
        Of the posterior, for exposures.
    population, simulated : int
        Draws of the population and new patients of each, for the plan.
    toxicity, response : str
        Exposures that they are related to.
    assay : str
        That the exposures are of.
    """

    model: Model
    toxicity: str
    response: str
    assay: str
    minimum: int
    draws: int
    population: int
    simulated: int
    source: str


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """A trial: its design, and what is true in it.

    Attributes
    ----------
    name, label, reference : str
    notes : tuple of str
    toml : str
        The file.
    model : Model
        The kinetics that are true.
    levels : tuple of float
        Doses, rising; viable CAR+ cells per kg, or in all.
    per_kg : bool
    assignment : Assignment
    enrolment : Enrolment
    sampling : tuple of Sampling
    population : mapping
        Of covariates.
    curves : CurveRules
        Days in which the peak is looked for, and the end of the curves that exposures are of.
    toxicity, response : Binary
    progression, death : Hazard or None
        None: it does not happen.
    follow_up : FollowUp
    analysis : Analysis
    """

    name: str
    label: str
    reference: str
    notes: tuple[str, ...]
    toml: str
    model: Model
    levels: tuple[float, ...]
    per_kg: bool
    assignment: Assignment
    enrolment: Enrolment
    sampling: tuple[Sampling, ...]
    population: Mapping[str, Distribution]
    curves: CurveRules
    toxicity: Binary
    response: Binary
    progression: Hazard | None
    death: Hazard | None
    follow_up: FollowUp
    analysis: Analysis

    def __repr__(self) -> str:
        who = self.assignment.design.name if self.assignment.design else f"{len(self.assignment.arms)} arms"
        return f"Trial({self.name}, {self.enrolment.patients} patients, {len(self.levels)} levels, {who})"

    @property
    def dose_column(self) -> str:
        """What the tables call the dose."""
        return "DOSE_PER_KG" if self.per_kg else "DOSE"

    @property
    def links(self) -> tuple[Link, ...]:
        """Of all outcomes that depend on exposure."""
        hazards = [h.link for h in (self.progression, self.death) if h is not None]
        return tuple(k for k in (self.toxicity.link, self.response.link, *hazards) if k.exposure)
