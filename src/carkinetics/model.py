"""A model: what a user says about a population. Frozen data; nothing here computes a curve.

Model files become a :class:`Model` in :mod:`carkinetics.model_files`, and :mod:`carkinetics.population` turns it
into a density.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from carkinetics.assays import in_matrix, with_family, with_number
from carkinetics.covariates import Covariate, effect_names
from carkinetics.dependence import LKJ_ETA, Correlation, Horseshoe, Mixture, PriorCorrelation
from carkinetics.errors import ModelError
from carkinetics.model_parts import (
    OCCASION_OMEGA,
    OMEGA_PRIOR_SD,
    RATIO_OMEGA,
    UNKNOWN,
    Assay,
    Check,
    Parameter,
    Prior,
    Regressor,
    Treatment,
    nearest_or_raise,
)
from carkinetics.residuals import RESIDUALS
from carkinetics.structure import AbstractStructure
from carkinetics.structures.occasions import Occasions, factors


@dataclass(frozen=True)
class Model:
    """A structure with its population: what ``fit`` estimates and ``simulate`` draws from.

    Attributes
    ----------
    parameters : tuple of Parameter
        The structure's, in its order, then the factors of the treatments that act and the ratios of assays.
    treatments : tuple of Treatment
        Those of the model file, acting or not; see :meth:`with_treatments`.
    prior_correlation : PriorCorrelation or None
        Where a posterior became the prior, see :meth:`carkinetics.Fit.to_model`; a prior that is replaced loses its
        correlations.
    typical_dose : float
        Dose of the typical patient, viable CAR+ cells; NaN where the structure does not need it.
    """

    name: str
    structure: AbstractStructure
    parameters: tuple[Parameter, ...]
    assays: tuple[Assay, ...]
    checks: tuple[Check, ...] = ()
    treatments: tuple[Treatment, ...] = ()
    regressors: tuple[Regressor, ...] = ()
    covariates: tuple[Covariate, ...] = ()
    shrinkage: Horseshoe | None = None
    mixture: Mixture | None = None
    correlation: Correlation | None = None
    prior_correlation: PriorCorrelation | None = None
    typical_dose: float = UNKNOWN
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
            ``{"omega.cmax": Prior("lognormal", ...)}`` for omega, ``{"sigma.qpcr": ...}`` for a residual parameter
            (``{"nu.qpcr": ...}``: it is estimated then).
        """
        parameters = {p.name: p for p in self.parameters}
        assays = {a.name: a for a in self.assays}
        for key, prior in priors.items():
            kind, _, name = key.rpartition(".")
            if kind and kind != "omega":
                self._refuse_kind(kind, f"prior of {key}")
                name = nearest_or_raise(name, assays, "assay", f"{self.name}: {key}")
                field = ("prior", "prior_second")[self._residual(assays[name], kind)]
                assays[name] = replace(assays[name], **{field: _positive(prior, key)})
            elif kind == "omega":
                name = self._known(name)
                if not parameters[name].iiv:
                    raise ModelError(f"prior of {key}: {name} has no between-patient variability in this model.")
                _refuse_omega(self, parameters[name])
                parameters[name] = replace(parameters[name], prior_omega=_positive(prior, key))
            else:
                if prior.family != "normal":
                    raise ModelError(f"prior of {key}: a typical value takes a normal prior on its transformed scale.")
                parameters[self._known(key)] = replace(parameters[self._known(key)], prior=prior)
        return replace(
            self,
            parameters=tuple(parameters.values()),
            assays=tuple(assays.values()),
            prior_correlation=self._correlations_without(priors),
        )

    def with_assay(self, assay: Assay) -> "Model":
        """A model with one more assay, or with the assay of that name replaced."""
        nearest_or_raise(assay.output, self.structure.outputs, "output", self.structure.name)
        both = [assay, *(a for a in self.assays if a.name == assay.name)]
        assays = {a.name: a for a in self.assays} | {assay.name: assay}  # the new one in the old one's place
        ratios = {a.ratio.name for a in both if a.ratio is not None}
        residuals = [f"{p.name}.{a.name}" for a in both for p in RESIDUALS[a.error].params]
        return replace(
            self,
            assays=tuple(assays.values()),
            parameters=(
                *(p for p in self.parameters if p.name not in ratios),
                *((assay.ratio,) if assay.ratio else ()),
            ),
            prior_correlation=self._correlations_without([*residuals, *ratios, *(f"omega.{r}" for r in ratios)]),
        )

    def with_residual(
        self, error: str, *, assay: str = "", values: Mapping[str, float] | None = None, estimated: Iterable[str] = ()
    ) -> "Model":
        """A model in which an assay (the first, if none is named) has residuals of this family.

        ``model.with_residual("student_t", values={"nu": 3})``; the families and their parameters are in
        ``models/README.md``. What is not given has the library's default; ``estimated`` names parameters that would be
        held at their value (``nu``) and are not to be.
        """
        return self.with_assay(with_family(self._assay(assay), error, values or {}, estimated))

    def with_tissue(
        self, name: str, matrix: str, *, of: str = "", ratio: float = 1.0, omega: float = RATIO_OMEGA
    ) -> "Model":
        """A model with an assay ``name`` in one more tissue: ``of`` (the first assay) times a ratio of each patient.

        The new parameter ``ratio_<name>`` is log-normal between patients, with this typical value and SD of the log
        (0 where a handful of samples cannot tell that patients differ).
        Tissues that exchange cells have structures of their own: ``sites_exchange``.
        """
        return self.with_assay(in_matrix(self._assay(of), name, matrix, ratio, omega))

    def _assay(self, name: str) -> Assay:
        found = {a.name: a for a in self.assays}
        return found[nearest_or_raise(name or self.assays[0].name, found, "assay", self.name)]

    def _refuse_kind(self, kind: str, what: str) -> None:
        known = dict.fromkeys(p.name for a in self.assays for p in RESIDUALS[a.error].params)
        nearest_or_raise(kind, ["omega", *known], "kind", f"{self.name}, {what}")

    @staticmethod
    def _residual(assay: Assay, kind: str) -> int:
        """Which residual parameter of an assay that is."""
        names = [p.name for p in RESIDUALS[assay.error].params]
        return names.index(nearest_or_raise(kind, names, "residual parameter", f"assay {assay.name}"))

    def with_values(self, values: Mapping[str, float]) -> "Model":
        """A model with other numbers; priors move with them.

        Parameters
        ----------
        values : mapping
            ``{"cmax": 24000}`` for a typical value (natural scale), ``{"omega.cmax": 0.8}``, ``{"sigma.qpcr": 0.5}``;
            ``{"omega.cmax": 0}`` leaves no variability between patients.
        """
        parameters = {p.name: p for p in self.parameters}
        assays = {a.name: a for a in self.assays}
        for key, value in values.items():
            kind, _, name = key.rpartition(".")
            if kind and kind != "omega":
                self._refuse_kind(kind, f"value of {key}")
                name = nearest_or_raise(name, assays, "assay", f"{self.name}: {key}")
                assays[name] = with_number(assays[name], self._residual(assays[name], kind), value)
            elif kind == "omega":
                _refuse_omega(self, self[self._known(name)], value)
                prior = Prior("lognormal", float(np.log(value or 1.0)), OMEGA_PRIOR_SD)
                for p in [p for p in parameters.values() if name in (p.name, p.omega_of)]:
                    parameters[p.name] = replace(p, iiv=value, prior_omega=prior)
            else:
                changed = replace(parameters[self._known(key)], value=value)
                if not np.isfinite(changed.theta):
                    raise ModelError(f"{key} = {value:g} must be {changed.domain}.")
                parameters[key] = replace(changed, prior=replace(changed.prior, loc=changed.theta))
        return replace(
            self,
            parameters=tuple(parameters.values()),
            assays=tuple(assays.values()),
            prior_correlation=self._correlations_without(values),
        )

    def _correlations_without(self, keys: Iterable[str]) -> PriorCorrelation | None:
        """What is left of them when the priors of ``cmax``, ``omega.cmax``, ``sigma.qpcr`` are no longer theirs."""
        if self.prior_correlation is None:
            return None
        return self.prior_correlation.without(key.replace(".", " ") for key in keys)

    @property
    def acting(self) -> tuple[Treatment, ...]:
        """The treatments that act."""
        return tuple(t for t in self.treatments if t.active)

    def unknown(self, *, variability: bool = True, residual: bool = True) -> list[str]:
        """What nobody has published of this model: ``vmax``, ``omega.vmax``, ``sigma.qpcr``."""
        found = [p.name for p in self.parameters if p.value is UNKNOWN]
        if variability:
            found += [f"omega.{p.name}" for p in self.parameters if p.iiv is UNKNOWN]
        first = {a.name: RESIDUALS[a.error].params[0].name for a in self.assays}
        return found + [f"{first[a.name]}.{a.name}" for a in self.assays if residual and a.sigma is UNKNOWN]

    def refuse_unknown(self, what: str, *, variability: bool = True, residual: bool = True) -> None:
        """Raise :class:`ModelError` if a number that ``what`` needs is not known."""
        found = self.unknown(variability=variability, residual=residual)
        if found:
            raise ModelError(
                f"{self.name}: {what} needs numbers that are not known: {', '.join(found)}. The file says why; give "
                f'them with model.with_values({{"{found[0]}": ...}}).'
            )

    def with_treatments(self, *names: str) -> "Model":
        """A model in which these treatments of the model file act on growth; all of them if none is named.

        Their factors become parameters ``f_<name>``; the table has a column with the day of the first dose.
        """
        known = [t.name for t in self.treatments]
        if not known:
            raise ModelError(f"{self.name}: the model file has no [treatments].")
        chosen = {nearest_or_raise(n, known, "treatment", self.name) for n in names or known}
        own, acting = self.parameters[: len(self.structure.parameters._fields)], {p.name: p for p in self.parameters}
        factors = [acting.get(t.factor.name, t.factor) for t in self.treatments if t.name in chosen]
        ratios = [self[a.ratio.name] for a in self.assays if a.ratio is not None]
        gone = [t.factor.name for t in self.acting if t.name not in chosen]
        return replace(
            self,
            treatments=tuple(replace(t, active=t.name in chosen) for t in self.treatments),
            parameters=(*own, *factors, *ratios),
            prior_correlation=self._correlations_without([*gone, *(f"omega.{f}" for f in gone)]),
        )

    def with_covariates(self, *covariates: Covariate, shrinkage: Horseshoe | None = None) -> "Model":
        """A model with these covariates too; an effect of the same column on the same parameter is replaced.

        Parameters
        ----------
        shrinkage : Horseshoe, optional
            On all effects: for many covariates of which few are expected to matter.
        """
        for c in covariates:
            self._known(c.on)
        new = {(c.column, c.on) for c in covariates}
        kept = tuple(c for c in self.covariates if (c.column, c.on) not in new)
        gone = [c for c in self.covariates if shrinkage is not None or c not in kept]
        return replace(
            self,
            covariates=(*kept, *covariates),
            shrinkage=shrinkage or self.shrinkage,
            prior_correlation=self._correlations_without(effect_names(gone)),
        )

    def with_infusion_phase(self, *, c0: float | None = None, kd: float | None = None) -> "Model":
        """A model with an infusion phase: ``c0 exp(-kd t)`` is added to the structure's first output.

        Both are new parameters with wide priors, which ``with_priors`` changes; ``c0`` varies between patients, ``kd``
        does not (``with_values({"omega.kd": 0.3})`` lets it). Equations:
        :class:`~carkinetics.structures.infusion_phase.InfusionPhase`. Whether a table's early samples show the phase
        is what :func:`carkinetics.early_fall` says.

        Parameters
        ----------
        c0 : float, optional
            Typical level right after the infusion, in the unit of the output; by default 3 % of ``cmax``.
        kd : float, optional
            Typical rate at which infused cells leave the blood, per day; 4 by default.

        Raises
        ------
        ModelError
            The structure falls early by itself, its level counts the whole body, or ``c0`` is needed.
        """
        from carkinetics.infusion import add_infusion_phase  # it needs the models that are defined here

        return add_infusion_phase(self, c0=c0, kd=kd)

    def with_occasions(self, *parameters: str, n: int = 2, omega: float = OCCASION_OMEGA) -> "Model":
        """A model with inter-occasion variability: every infusion of a patient has its own values of these parameters.

        Each is multiplied by a factor ``<parameter>_occ1``, ``_occ2``, ... of the infusion: new parameters with a
        typical value of 1, fixed, and one SD between the occasions of a parameter, ``omega.<parameter>_occ1``.
        Structures in closed form, which take one infusion by themselves, take further ones so; equations:
        :class:`~carkinetics.structures.occasions.Occasions`.

        Parameters
        ----------
        parameters : str
            Log-normal ones of the structure, such as ``"cmax", "tmax"``.
        n : int
            The largest number of infusions of a patient. More of them cost a random effect each, in every patient.
        omega : float
            SD between occasions (of the log): the median of its prior, ``LogNormal(ln omega, 0.7)``.

        Raises
        ------
        ModelError
            A parameter that is unknown or not log-normal, or a structure that takes no further infusion.
        """
        from carkinetics.occasions import add_occasions  # it needs the models that are defined here

        return add_occasions(self, parameters, n=n, omega=omega)

    def without_covariates(self) -> "Model":
        """A model of the patient whose covariates are at their centres."""
        rest = self._correlations_without(effect_names(self.covariates))
        return replace(self, covariates=(), shrinkage=None, prior_correlation=rest)

    def with_correlation(self, *parameters: str, eta: float = LKJ_ETA, values: Iterable[float] = ()) -> "Model":
        """A model in which the random effects of these parameters are correlated, with an LKJ prior.

        Parameters
        ----------
        parameters : str
            All that vary between patients (not between occasions), if none is named.
        eta, values
            See :class:`carkinetics.model_parts.Correlation`.
        """
        varying = [p.name for p in self.parameters if p.iiv != 0]
        for name in parameters:
            if self._known(name) not in varying:
                raise ModelError(f"correlation: {name} has no between-patient variability in this model.")
        known = () if self.prior_correlation is None else self.prior_correlation.names
        between = self._factors()
        chosen = parameters or tuple(name for name in varying if name not in between)
        return replace(
            self,
            correlation=Correlation(chosen, eta, tuple(values)),
            prior_correlation=self._correlations_without(n for n in known if n.startswith("corr ")),
        )

    def with_mixture(self, on: str, value: float, probability: float, label: str = "second class") -> "Model":
        """A model with a second class of patients, in which the typical value of ``on`` is ``value``."""
        p = self[on]
        if p.iiv == 0:
            raise ModelError(f"mixture: {on} has no between-patient variability in this model.")
        if not np.isfinite(p.forward(value)) or p.forward(value) == p.theta:
            raise ModelError(f"mixture: {on} = {value:g} must be {p.domain}, and not the first class's typical value.")
        return replace(self.without_mixture(), mixture=Mixture(on, value, probability, label))

    def without_mixture(self) -> "Model":
        """A model in which every patient is of the first class."""
        if self.mixture is None:
            return self
        rest = self.prior_correlation
        rest = rest and rest.without((f"step {self.mixture.on}", f"odds {self.mixture.label}"))
        return replace(self, mixture=None, prior_correlation=rest)

    def fix(self, *names: str) -> "Model":
        """A model in which these typical values are known; their omegas are still estimated."""
        known = {self._known(n) for n in names}
        return replace(
            self,
            parameters=tuple(replace(p, fixed=True) if p.name in known else p for p in self.parameters),
            prior_correlation=self._correlations_without(known),
        )

    def table(self) -> pd.DataFrame:
        """Value, unit, transform, IIV (CV % for log, else SD), priors and source, one row per parameter."""
        from carkinetics.model_text import parameters

        return parameters(self)

    def _factors(self) -> set[str]:
        """What the factors of occasions are called."""
        s = self.structure
        return {f for v in s.varying for f in factors(v, s.n)} if isinstance(s, Occasions) else set()

    def _known(self, name: str) -> str:
        return nearest_or_raise(name, [p.name for p in self.parameters], "parameter", self.name)


def _refuse_omega(model: Model, p: Parameter, value: float = 1.0) -> None:
    """Refuse a new omega that is another parameter's, is none, or is 0 where something needs it."""
    if p.omega_of:
        raise ModelError(f"omega.{p.name}: {p.name} shares the omega of {p.omega_of}; change omega.{p.omega_of}.")
    if not 0 <= value < np.inf:
        raise ModelError(f"omega.{p.name} = {value:g} must be finite and above 0, or 0 for no variability.")
    tied = model.correlation is not None and p.name in model.correlation.parameters
    if value == 0 and (tied or (model.mixture is not None and model.mixture.on == p.name)):
        what = "effects are correlated with it" if tied else "classes differ in it"
        raise ModelError(f"omega.{p.name} = 0: {what}; take that out of the model first.")


def _positive(prior: Prior, key: str) -> Prior:
    if prior.family == "normal":
        raise ModelError(f"prior of {key}: it must be positive; choose lognormal or halfnormal.")
    return prior
