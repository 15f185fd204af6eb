"""Any structure with an infusion phase: a fast initial fall, added to its first output."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from carkinetics.errors import ModelError
from carkinetics.structure import AbstractStructure, Inputs, level, longer
from carkinetics.structures.occasions import Occasions

ADDED = ("c0", "kd")  # parameters
FALLEN = 1.0  # day from which on samples are taken for the structure's own
FIRST_HOURS = 0.5  # day up to which a sample shows the level right after the infusion
KD = 4.0  # per day, where samples do not tell: ctl019, 29 patients
_KD_RANGE = (0.5, 20.0)  # per day, of a slope between two samples
_NONE = 1e-30  # of an infusion, where there was none: its log must be a number


@dataclass(frozen=True)  # equal bases and doses are equal: they share a compiled program
class InfusionPhase(AbstractStructure[Any, Any]):
    """With an infusion phase: what was infused leaves the blood, while the first output's own cells begin to grow::

        level + c0 sum_k (dose_k / dose) exp(-kd (t - t_k)),  t_k <= t

    Where the dose is not an input there is one infusion, and the sum is ``exp(-kd t)``; where it is, ``c0`` is the
    level right after an infusion of ``dose`` cells, the model's typical dose. The cells that fall are seen and do
    nothing: they drive no tumour and no cytokine, and are in no other output (infused cells leave the blood for the
    tissues, and what of them engrafts is the structure's own first cells). One exponential is what one or two samples
    of the first day can tell.

    References
    ----------
    An initial distribution before expansion: Liu C et al., Clin Pharmacol Ther 2021;109:716-727,
    doi:10.1002/cpt.2040. Added to the rise, not before it, and the rate of about 4 per day: samples of the first days
    of Nobles CL et al., J Clin Invest 2020;130:673-685, doi:10.1172/JCI130144.
    """

    base: AbstractStructure
    dose: float | None = None  # viable CAR+ cells; None where the dose is not an input

    def __post_init__(self):
        """Take over what the base is; a base that cannot have the phase is refused with a :class:`ModelError`."""
        base = self.base
        if isinstance(base, Occasions):  # every infusion has its own phase, with parameters that may vary
            raise ModelError(f"{base.name}: the infusion phase belongs inside: Occasions(InfusionPhase(base), ...).")
        if base.falls_by:
            raise ModelError(f"{base.name} needs no infusion phase: its level falls early by {base.falls_by}.")
        taken = sorted({*ADDED, "infused"} & {*base.parameters._fields, *base.states._fields})
        if taken:
            raise ModelError(f"{base.name} has {', '.join(taken)} already; an infusion phase needs that name.")
        if base.uses_dose and not (self.dose is not None and 0 < self.dose < np.inf):
            raise ModelError(f"{base.name} uses the dose: an infusion phase needs the typical_dose that c0 belongs to.")
        if not base.uses_dose and self.dose is not None:
            raise ModelError(f"{base.name} does not use the dose: its infusion phase has none either.")
        taken_over = ("outputs", "stiff", "uses_dose", "treatable", "regressors", "refine")
        own = {name: getattr(base, name) for name in taken_over} | {
            "name": f"{base.name} with infusion phase",
            "falls_by": "the infusion phase that it has",
            "parameters": longer(base.parameters, *ADDED),
            "states": longer(base.states, "infused"),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def closed_form(self):
        return self.base.closed_form

    @property
    def repeatable(self):
        return self.base.repeatable

    def curve(self, t, p, x):
        infused = jnp.log(self._first(p, x)) - p.kd * t
        if self.repeatable:
            for day, dose in zip(x.later_day, x.later_dose, strict=True):
                since = jnp.maximum(t - day, 0.0)
                # A sample at an infusion's time is drawn before it, as in the solver.
                share = jnp.where(t > day, self._share(dose), _NONE)
                infused = jnp.logaddexp(infused, jnp.log(share) - p.kd * since)
        return self._seen(self.base.curve(t, self._own(p), x), infused, p)

    def initial(self, p, x):
        return self.states(*self.base.initial(self._own(p), x), infused=self._first(p, x))

    def rhs(self, t, y, p, x):
        return self.states(*self.base.rhs(t, self._cells(y), self._own(p), x), infused=-p.kd * y.infused)

    def output(self, y, p):
        # A solver of natural states ends a little below zero.
        infused = jnp.log(jnp.maximum(y.infused, _NONE))
        return self._seen(self.base.output(self._cells(y), self._own(p)), infused, p)

    def infuse(self, y, dose, p):
        cells = self.base.infuse(self._cells(y), dose, self._own(p))
        return self.states(*cells, infused=y.infused + self._share(dose))

    def breakpoints(self, p, x):
        return self.base.breakpoints(self._own(p), x)

    def to_coordinates(self, y, p):
        return self.base.to_coordinates(self._cells(y), self._own(p)), jnp.log(y.infused)

    def from_coordinates(self, u, p):
        cells, ln_infused = u
        return self.states(*self.base.from_coordinates(cells, self._own(p)), infused=level(ln_infused))

    def guess(self, t, ln_level):
        """As the base, of samples from day 1 on: the largest level may be the infusion's, and no peak."""
        grown, first = t >= FALLEN, t < FALLEN
        found = self.base.guess(t[grown], ln_level[grown]) if grown.any() else {}
        if not first.any():
            return found
        top = int(np.argmax(ln_level[first]))  # the first sample of the day may have been drawn before the infusion
        kd, after = KD, t > t[top]
        if after.any() and t[after][0] <= 2 * FALLEN and ln_level[after][0] < ln_level[top]:
            slope = (ln_level[top] - ln_level[after][0]) / (t[after][0] - t[top])
            kd = found["kd"] = float(np.clip(slope, *_KD_RANGE))
        if t[top] <= FIRST_HOURS:
            found["c0"] = float(np.exp(ln_level[top] + kd * t[top]))
        return found

    def _own(self, p):
        """The base's parameters."""
        return self.base.parameters(*p[: -len(ADDED)])

    def _cells(self, y):
        """The base's states."""
        return self.base.states(*y[:-1])

    def _share(self, dose):
        return jnp.maximum(dose / self.dose, _NONE)

    def _first(self, p, x: Inputs):
        """Infused up to day 0, in units of ``dose``."""
        one = jnp.ones_like(p.c0)
        return one if self.dose is None else one * self._share(x.dose)

    def _seen(self, ln, ln_infused, p):
        first = self.outputs[0]
        return ln | {first: jnp.logaddexp(ln[first], jnp.log(p.c0) + ln_infused)}
