"""What is estimated, in which order: the names, places and priors of the components of ``phi``.

``phi`` is the population as one unconstrained vector: typical values (transformed), effects of covariates and what
shrinks them, the second class of a mixture, log omegas, partial correlations (inverse hyperbolic tangent), and the
logs of residual parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from carkinetics.covariates import Effect
from carkinetics.dependence import Correlation, Horseshoe, Mixture
from carkinetics.model import Model
from carkinetics.model_parts import Assay, Parameter, Prior
from carkinetics.residuals import RESIDUALS
from carkinetics.structure import AbstractStructure


class Component(NamedTuple):
    """One component of ``phi``.

    Attributes
    ----------
    name : str
        As in the parameter table: ``cmax``, ``e_burden_cmax``, ``omega cmax``, ``corr rate tmax``, ``sigma qpcr``.
    site : str
        Of the NumPyro model.
    prior : Prior
    value : float
        Where the model puts it, on the scale of ``phi``.
    log : bool
        The prior is on its exponential.
    """

    name: str
    site: str
    prior: Prior
    value: float
    log: bool


@dataclass(frozen=True)
class Layout:
    """What is estimated, in which order.

    Attributes
    ----------
    parameters : tuple of Parameter
        All parameters of the model, in its order.
    estimated, random : tuple of int
        Positions of those with an estimated typical value, and of those with between-patient variability.
    omega_of : tuple of int
        For each random one, which omega is its own.
    effects : tuple of Effect
        Of covariates, known ones included; the rows of a design.
    correlated : tuple of int
        Positions among the random ones.
    residuals : tuple of (int, int)
        Which residual parameter (first, second) of which assay is estimated.
    ratios : tuple of int
        For each assay the position of its ratio among the parameters; -1 without one.
    components : tuple of Component
        Of ``phi``.
    """

    structure: AbstractStructure
    parameters: tuple[Parameter, ...]
    assays: tuple[Assay, ...]
    effects: tuple[Effect, ...]
    shrinkage: Horseshoe | None
    mixture: Mixture | None
    correlation: Correlation | None
    estimated: tuple[int, ...]
    random: tuple[int, ...]
    omega_of: tuple[int, ...]
    correlated: tuple[int, ...]
    residuals: tuple[tuple[int, int], ...]
    ratios: tuple[int, ...]
    components: tuple[Component, ...]
    starts: tuple[int, ...]

    @property
    def n_phi(self) -> int:
        """Number of population parameters."""
        return len(self.components)

    def _part(self, k: int) -> slice:
        return slice(self.starts[k], self.starts[k + 1])

    @property
    def typical(self) -> slice:
        """Where ``phi`` has the estimated typical values."""
        return self._part(0)

    @property
    def betas(self) -> slice:
        """Where ``phi`` has the estimated effects."""
        return self._part(1)

    @property
    def shrinking(self) -> slice:
        """Where ``phi`` has the scales of a horseshoe: the global one, then one for each effect."""
        return self._part(2)

    @property
    def classes(self) -> slice:
        """Where ``phi`` has the log distance of the second class and its log odds."""
        return self._part(3)

    @property
    def locations(self) -> slice:
        """Everything before the omegas: what says where patients lie, not how widely."""
        return slice(0, self.starts[4])

    @property
    def omegas(self) -> slice:
        """Where ``phi`` has the log omegas."""
        return self._part(4)

    @property
    def correlations(self) -> slice:
        """Where ``phi`` has the partial correlations."""
        return self._part(5)

    @property
    def scales(self) -> slice:
        """Where ``phi`` has the logs of residual parameters."""
        return self._part(6)

    @property
    def phi_names(self) -> list[str]:
        """What the components of ``phi`` are called."""
        return [c.name for c in self.components]

    @property
    def priors(self) -> list[Prior]:
        """Of the components, each by itself."""
        return [c.prior for c in self.components]

    @property
    def start(self) -> Float[np.ndarray, " phi"]:
        """``phi`` of the model's own numbers."""
        return np.array([c.value for c in self.components])

    @property
    def moving(self) -> tuple[int, ...]:
        """Positions of the parameters that differ between patients or draws; the others are known numbers."""
        on = {e.on for e in self.effects}
        varying = {*self.estimated, *self.random, *(i for i, p in enumerate(self.parameters) if p.name in on)}
        return tuple(sorted(varying))

    @property
    def estimated_effects(self) -> list[int]:
        """Positions of the effects that are not known."""
        return [j for j, e in enumerate(self.effects) if not e.fixed]

    def among_random(self) -> list[int]:
        """Components that act on the distribution of individual parameters and on nothing else."""
        typical = [j for j, i in enumerate(self.estimated) if i in self.random]
        varying = {self.parameters[i].name for i in self.random}
        betas = [j for j, e in zip(self._indices(1), self._estimated(), strict=True) if e.on in varying]
        others = [j for k in (3, 4, 5) for j in self._indices(k)]
        # A scale of shrinkage acts on all effects at once, also on those of parameters that do not vary.
        every = len(betas) == len(self._estimated())
        return typical + betas + (self._indices(2) if every else []) + others

    def _estimated(self) -> list[Effect]:
        return [e for e in self.effects if not e.fixed]

    def _indices(self, k: int) -> list[int]:
        return list(range(self.starts[k], self.starts[k + 1]))


@lru_cache(maxsize=64)
def make_layout(model: Model) -> Layout:
    """The layout of a model's population parameters."""
    parameters = model.parameters
    names = [p.name for p in parameters]
    estimated = tuple(i for i, p in enumerate(parameters) if not p.fixed)
    random = tuple(i for i, p in enumerate(parameters) if p.iiv > 0)
    own = [i for i in random if not parameters[i].omega_of]
    omega_of = tuple(own.index(names.index(parameters[i].omega_of or names[i])) for i in random)
    effects = tuple(e for c in model.covariates for e in c.effects)
    correlation = model.correlation
    correlated = () if correlation is None else tuple(random.index(names.index(n)) for n in correlation.parameters)
    residuals = tuple(
        (k, a) for k in range(2) for a, assay in enumerate(model.assays) if _residual(assay, k) is not None
    )
    parts = (
        [_typical(parameters[i]) for i in estimated],
        [_effect(e, model.shrinkage) for e in effects if not e.fixed],
        list(_shrinking(effects, model.shrinkage)),
        list(_classes(model)),
        [_omega(parameters[i]) for i in own],
        list(_correlations(correlation)),
        [c for k, a in residuals if (c := _residual(model.assays[a], k)) is not None],
    )
    return Layout(
        structure=model.structure,
        parameters=parameters,
        assays=model.assays,
        effects=effects,
        shrinkage=model.shrinkage,
        mixture=model.mixture,
        correlation=correlation,
        estimated=estimated,
        random=random,
        omega_of=omega_of,
        correlated=correlated,
        residuals=residuals,
        ratios=tuple(-1 if a.ratio is None else names.index(a.ratio.name) for a in model.assays),
        components=tuple(c for part in parts for c in part),
        starts=tuple(np.cumsum([0, *map(len, parts)]).tolist()),
    )


def _typical(p: Parameter) -> Component:
    return Component(p.name, f"theta.{p.name}", p.prior, p.theta, False)


def _effect(effect: Effect, shrinkage: Horseshoe | None) -> Component:
    if shrinkage is not None:  # in units of what the horseshoe allows
        return Component(effect.name, f"effect.{effect.name}", Prior("normal", 0.0, 1.0), 0.0, False)
    return Component(effect.name, f"effect.{effect.name}", effect.prior, effect.value, False)


def _shrinking(effects: tuple[Effect, ...], shrinkage: Horseshoe | None) -> Iterator[Component]:
    if shrinkage is not None:
        scale = shrinkage.scale or 1.0
        yield Component("horseshoe", "horseshoe", Prior("halfcauchy", 0.0, scale), float(np.log(scale)), True)
        for e in effects:
            if not e.fixed:
                name = f"horseshoe {e.name}"
                yield Component(name, name.replace(" ", "."), Prior("halfcauchy", 0.0, 1.0), 0.0, True)


def _classes(model: Model) -> Iterator[Component]:
    mixture = model.mixture
    if mixture is not None:
        on = model[mixture.on]
        step = float(np.log(abs(on.forward(mixture.value) - on.theta)))
        odds = float(np.log(mixture.probability / (1 - mixture.probability)))
        yield Component(
            f"step {mixture.on}", f"step.{mixture.on}", Prior("normal", step, mixture.prior_step), step, False
        )
        name = f"odds {mixture.label}"
        yield Component(name, name.replace(" ", "."), Prior("normal", odds, mixture.prior_odds), odds, False)


def _omega(p: Parameter) -> Component:
    with np.errstate(invalid="ignore", divide="ignore"):
        return Component(f"omega {p.name}", f"omega.{p.name}", p.prior_omega, float(np.log(p.iiv)), True)


def _correlations(correlation: Correlation | None) -> Iterator[Component]:
    if correlation is None:
        return
    values, k = partial_correlations(correlation.matrix), 0
    n = len(correlation.parameters)
    for i in range(1, n):
        for j in range(i):
            # Partial correlations of a matrix with an LKJ prior are independent, each a beta on (-1, 1).
            prior, value = Prior("lkj", 0.0, correlation.eta + 0.5 * (n - 2 - j)), float(np.arctanh(values[k]))
            if correlation.prior_sd:
                prior = Prior("normal", value, correlation.prior_sd[k])
            a, b = correlation.parameters[j], correlation.parameters[i]
            yield Component(f"corr {a} {b}", f"corr.{a}.{b}", prior, value, False)
            k += 1


def partial_correlations(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, " pair"]:
    """Of every pair, given the parameters before both, in the order (2, 1), (3, 1), (3, 2), ..."""
    factor = np.linalg.cholesky(matrix)
    left = np.sqrt(1 - np.cumsum(factor**2, axis=1) + factor**2)
    rows, columns = np.tril_indices(len(matrix), -1)
    return factor[rows, columns] / left[rows, columns]


def _residual(assay: Assay, k: int) -> Component | None:
    """The component of an assay's first or second residual parameter, if it is estimated."""
    prior, value = (assay.prior, assay.sigma) if k == 0 else (assay.prior_second, assay.second)
    if prior is None:
        return None
    name = RESIDUALS[assay.error].params[k].name
    with np.errstate(invalid="ignore", divide="ignore"):
        return Component(f"{name} {assay.name}", f"{name}.{assay.name}", prior, float(np.log(value)), True)
