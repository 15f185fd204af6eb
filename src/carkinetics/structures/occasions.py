"""Any structure with inter-occasion variability: every infusion of a patient has kinetics of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax.numpy as jnp

from carkinetics.errors import ModelError
from carkinetics.structure import AbstractStructure, Inputs, longer

SHARED = ("tumour", "antigen", "normal")  # outputs that are no sum over infusions
MOST = 20  # infusions; more are a mistake, and each is a curve of its own
_NOTHING = -1e30  # ln of what an infusion that has not been given contributes: nothing is added, and it is a number


@dataclass(frozen=True)  # equal bases are equal: they share a compiled program
class Occasions(AbstractStructure[Any, Any]):
    """With occasions: in the k-th infusion of a patient the parameters that vary are multiplied by factors of it::

        p_k = p p_occk,  k = 1 .. n

    A structure in closed form gives each infusion its own curve, with the infusion's own dose, where the dose is an
    input; what is seen is their sum::

        level(t) = sum_k level_k(t - t_k; p_k, dose_k),  t > t_k

    so that it takes further infusions, which it does not by itself. Days of treatments and of what is measured beside
    stay those of the table. An ODE that takes further infusions goes on with p_k from the k-th infusion on: cells of
    earlier infusions are among those that change, the states of day 0 belong to the first infusion, and an infusion of
    no cells is none. A sample at the time of an infusion is drawn before it. With one infusion it is the structure by
    itself, with p_1.

    Every infusion is an occasion, also the parts of a split dose: where these are one expansion, record one infusion.

    References
    ----------
    Inter-occasion variability: Karlsson MO, Sheiner LB, J Pharmacokinet Biopharm 1993;21:735-750,
    doi:10.1007/BF01113502.
    """

    base: AbstractStructure
    varying: tuple[str, ...]
    n: int = 2

    def __post_init__(self):
        """Take over what the base is; a base that cannot have occasions is refused with a :class:`ModelError`."""
        base = self.base
        _refuse(base, self.varying, self.n)
        taken_over = ("outputs", "stiff", "uses_dose", "treatable", "regressors", "refine", "falls_by")
        own = {name: getattr(base, name) for name in taken_over} | {
            "name": f"{base.name} with occasions",
            "max_infusions": self.n,
            "parameters": longer(base.parameters, *(f for p in self.varying for f in factors(p, self.n))),
            "states": longer(base.states, *self._further_states(), "occasion"),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def closed_form(self):
        return self.base.closed_form

    @property
    def repeatable(self):
        return True

    def curve(self, t, p, x):
        found = []
        for k, (day, own) in enumerate(self._inputs(x)):
            ln = self.base.curve(t if k == 0 else jnp.maximum(t - day, 0.0), self._of(p, k), own)
            if k > 0:  # a sample at an infusion's time is drawn before it, as in the solver
                ln = {name: jnp.where(t > day, v, _NOTHING) for name, v in ln.items()}
            found.append(ln)
        return _summed(found)

    def initial(self, p, x):
        if not self.closed_form:
            return self.states(*self.base.initial(self._of(p, 0), x), jnp.ones_like(p[0]))
        given = [own for _, own in self._inputs(x)]
        given += [given[-1]] * (self.n - len(given))  # of infusions that never come; nobody sees them
        cells = [y for k, own in enumerate(given) for y in self.base.initial(self._of(p, k), own)]
        return self.states(*cells, jnp.ones_like(p[0]))

    def rhs(self, t, y, p, x):
        none = jnp.zeros_like(y.occasion)
        if not self.closed_form:
            return self.states(*self.base.rhs(t, self._cells(y), self._now(p, y.occasion), x), none)
        rates = []
        for k, (day, own) in enumerate(self._inputs(x)):
            rate = self.base.rhs(t if k == 0 else jnp.maximum(t - day, 0.0), self._cells(y, k), self._of(p, k), own)
            rates += rate if k == 0 else [jnp.where(t > day, r, 0.0) for r in rate]
        return self.states(*rates, *(none,) * (len(y) - len(rates)))

    def output(self, y, p):
        if not self.closed_form:
            return self.base.output(self._cells(y), self._now(p, y.occasion))
        found = []
        for k in range(self.n):
            ln = self.base.output(self._cells(y, k), self._of(p, k))
            found.append({name: jnp.where(_given(y.occasion, k), v, _NOTHING) for name, v in ln.items()})
        return _summed(found)

    def infuse(self, y, dose, p):
        if self.closed_form:  # the next one's cells have waited
            return y._replace(occasion=y.occasion + 1)
        after = y.occasion + jnp.where(dose > 0, 1.0, 0.0)
        return self.states(*self.base.infuse(self._cells(y), dose, self._now(p, after)), after)

    def breakpoints(self, p, x):
        if not self.closed_form:
            return tuple(b for k in range(self.n) for b in self.base.breakpoints(self._of(p, k), x))
        each = enumerate(self._inputs(x))
        return tuple(b + day for k, (day, own) in each for b in self.base.breakpoints(self._of(p, k), own))

    def to_coordinates(self, y, p):
        if not self.closed_form:
            return self.base.to_coordinates(self._cells(y), self._now(p, y.occasion)), y.occasion
        each = tuple(self.base.to_coordinates(self._cells(y, k), self._of(p, k)) for k in range(self.n))
        return each, y.occasion

    def from_coordinates(self, u, p):
        cells, occasion = u
        if not self.closed_form:
            return self.states(*self.base.from_coordinates(cells, self._now(p, occasion)), occasion)
        each = [y for k, own in enumerate(cells) for y in self.base.from_coordinates(own, self._of(p, k))]
        return self.states(*each, occasion)

    def guess(self, t, ln_level):
        """As the base, of samples of the first infusion: those of further ones are not for it."""
        return self.base.guess(t, ln_level)

    def _further_states(self) -> tuple[str, ...]:
        """Of the second infusion and those after it; of a closed form, whose infusions do not mix."""
        if not self.closed_form:
            return ()
        return tuple(f for k in range(2, self.n + 1) for f in (f"{s}_occ{k}" for s in self.base.states._fields))

    def _of(self, p, k: int):
        """The base's parameters in the infusion after ``k`` others."""
        own = self.base.parameters(*p[: len(self.base.parameters._fields)])
        return own._replace(**{v: getattr(own, v) * getattr(p, f"{v}_occ{k + 1}") for v in self.varying})

    def _now(self, p, occasion):
        """The base's parameters after that many infusions."""
        each = [self._of(p, k) for k in range(self.n)]
        return each[0]._replace(
            **{
                v: reduce(
                    lambda found, k, v=v: jnp.where(_given(occasion, k), getattr(each[k], v), found),
                    range(1, self.n),
                    getattr(each[0], v),
                )
                for v in self.varying
            }
        )

    def _cells(self, y, k: int = 0):
        """The base's states, of the infusion after ``k`` others."""
        width = len(self.base.states._fields)
        return self.base.states(*y[k * width : (k + 1) * width])

    def _inputs(self, x: Inputs) -> list[tuple[Any, Inputs]]:
        """Day of every infusion that somebody has, and the base's inputs in days from then on."""
        if len(x.later_day) >= self.n:
            raise ModelError(f"{self.name} takes {self.n} infusions, got {1 + len(x.later_day)}.")
        alone = replace(x, later_day=x.later_day[:0], later_dose=x.later_dose[:0])
        found: list[tuple[Any, Inputs]] = [(0.0, alone)]
        for day, dose in zip(x.later_day, x.later_dose, strict=True):
            shift = jnp.where(jnp.isfinite(day), day, 0.0)  # none: any finite curve, of which nothing is seen
            course = {name: replace(c, time=c.time - shift) for name, c in x.course.items()}
            found.append((day, replace(alone, dose=dose, since=x.since - shift, course=course)))
        return found


def factors(parameter: str, n: int) -> tuple[str, ...]:
    """What the factors of a parameter that varies between ``n`` infusions are called."""
    return tuple(f"{parameter}_occ{k}" for k in range(1, n + 1))


def _given(occasion, k: int):
    """Whether the infusion after ``k`` others has been given, by the number of those that have."""
    return occasion > k + 0.5


def _summed(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Natural log of the sum of levels, output by output."""
    return {name: reduce(jnp.logaddexp, [ln[name] for ln in each]) for name in each[0]}


def _refuse(base: AbstractStructure, varying: tuple[str, ...], n: int) -> None:
    """Raise :class:`ModelError` if a base cannot have these occasions."""
    if isinstance(base, Occasions):
        raise ModelError(f"{base.base.name} has occasions already; name all parameters that vary at once.")
    if not base.closed_form and not base.repeatable:
        raise ModelError(
            f"{base.name} cannot have occasions: it has no closed form, of which one could be added for every "
            "infusion, and its equations do not say what a further infusion adds to the states."
        )
    shared = sorted(set(SHARED) & set(base.outputs))
    if base.closed_form and shared:
        raise ModelError(f"{base.name} cannot have occasions: its {', '.join(shared)} is no sum over infusions.")
    unknown = [v for v in varying if v not in base.parameters._fields]
    if unknown or not varying or len(set(varying)) < len(varying):
        raise ModelError(
            f"{base.name}: occasions vary in some of its parameters, each named once, got {list(varying)}. It has "
            f"{', '.join(base.parameters._fields)}."
        )
    if isinstance(n, bool) or not 2 <= n <= MOST:
        raise ModelError(
            f"{base.name}: n = {n} occasions; n is the largest number of infusions of a patient, from 2 to {MOST}."
        )
    added = {f for v in varying for f in factors(v, n)} | {"occasion"}
    taken = sorted(added & {*base.parameters._fields, *base.states._fields})
    if taken:
        raise ModelError(f"{base.name} has {', '.join(taken)} already; occasions need that name.")
