"""What a structural model is: the equations of one patient, with named parameters, states and outputs.

A structure knows nothing of populations, assays or samplers. It is written for one patient; the batch is
made outside, by :mod:`carkinetics.solvers`. Levels leave a structure as natural logarithms, because copies
per ug span eight decades and the likelihood lives on the log scale.
"""

from abc import ABC, abstractmethod
from collections import namedtuple
from functools import cache
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

INTERPOLATIONS = ("locf", "nocb", "linear")


class Course(eqx.Module):
    """Something measured over time that is not modelled, such as the white blood count.

    Attributes
    ----------
    time, value : Float["knot *n"]
        Day of every measurement, not decreasing down a column, and what was found. A column that is filled up
        repeats its last.
    interpolation : {"locf", "nocb", "linear"}
        Between measurements: the last one carried forward, the next one carried backward, or a straight line.
        Outside of them the nearest one holds.
    """

    time: Float[Array, "knot *n"]
    value: Float[Array, "knot *n"]
    interpolation: str = eqx.field(static=True)

    def __call__(self, t: Float[Array, "*m"]) -> Float[Array, "*k"]:
        """The value at ``t`` (day)."""
        found = self.value[0]
        for k in range(1, self.time.shape[0]):
            begin, end = self.time[k - 1], self.time[k]
            if self.interpolation == "linear":
                length = jnp.where(end > begin, end - begin, 1.0)
                share = jnp.clip((t - begin) / length, 0.0, 1.0)
            else:
                share = t >= end if self.interpolation == "locf" else t > begin
            found = found + share * (self.value[k] - self.value[k - 1])
        return jnp.broadcast_to(found, jnp.broadcast_shapes(jnp.shape(t), jnp.shape(found)))


class Inputs(eqx.Module):
    """What is done to one patient and measured beside the cells: data, not parameters (but for ``factor``).

    Attributes
    ----------
    dose : Float[" *n"]
        Viable CAR+ cells infused up to day 0; NaN where it is not known.
    later_day, later_dose : Float["infusion *n"]
        Further infusions: the day (inf for none), and viable CAR+ cells.
    since : Float["treatment *n"]
        Day from which each treatment acts on growth; inf for never.
    factor : Float["treatment *n"]
        What it multiplies the growth rate by.
    course : dict of str to Course
        What is measured beside, by name.
    """

    dose: Float[Array, " *n"]
    later_day: Float[Array, "infusion *n"]
    later_dose: Float[Array, "infusion *n"]
    since: Float[Array, "treatment *n"]
    factor: Float[Array, "treatment *n"]
    course: dict[str, Course]

    def growth(self, t: Float[Array, "*m"]) -> Any:
        """What treatments given before ``t`` multiply the growth rate by; 1 without any."""
        found = jnp.ones(())
        for since, factor in zip(self.since, self.factor, strict=True):
            found = found * jnp.where(t >= since, factor, 1.0)
        return found

    def growth_time(self, t: Float[Array, "*m"]) -> Any:
        """The integral of :meth:`growth` from 0 to ``t``: the time (day) that growth has had, in its own terms."""
        if not len(self.since):
            return t
        order = jnp.argsort(self.since, axis=0)
        begin = jnp.clip(jnp.take_along_axis(self.since, order, axis=0), 0.0, _FAR)
        factor = jnp.cumprod(jnp.take_along_axis(self.factor, order, axis=0), axis=0)
        total = jnp.minimum(t, begin[0])
        for k in range(len(begin)):
            end = begin[k + 1] if k + 1 < len(begin) else _FAR
            total = total + factor[k] * jnp.clip(t - begin[k], 0.0, end - begin[k])
        return total


_FAR = 1e6  # day; where "never" lies for arithmetic that must stay finite


def inputs(dose: Any = jnp.nan, **others: Any) -> Inputs:
    """Inputs of which only some matter: ``dose`` (viable CAR+ cells), and any attribute of :class:`Inputs`."""
    dose = jnp.asarray(dose, float)
    none = jnp.zeros((0, *dose.shape))
    return Inputs(
        dose, **({"later_day": none, "later_dose": none, "since": none, "factor": none, "course": {}} | others)
    )


def level(ln_level: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A level from its log, for :meth:`AbstractStructure.from_coordinates`; kept between e^-200 and e^200.

    A loss rate of 5 per day empties a compartment to e^-800, which is zero in floating point: its log, and
    the derivative of its log, would no longer be finite.
    """
    return jnp.exp(jnp.clip(ln_level, -200.0, 200.0))


@cache  # of one type, since JAX compiles anew for another one
def longer(kind: type, *more: str) -> Any:
    """A named tuple with more fields: the parameters or states of a structure that wraps another one."""
    fields: Any = kind
    return namedtuple(kind.__name__, (*fields._fields, *more))


class AbstractStructure[P, S](ABC):
    """The equations of one patient, with parameters ``P`` and states ``S``; subclasses are final, without state.

    A subclass gives ``curve`` (a closed form), or ``initial``, ``rhs`` and ``output`` (an ODE), or both: then
    the closed form is used and the ODE is its check.

    Attributes
    ----------
    name : str
        What a model file calls it.
    parameters : type of NamedTuple
        Individual parameters on their natural scale; a field's name is what users type.
    states : type of NamedTuple
        States of the ODE, on their natural scale.
    outputs : tuple of str
        What an assay can measure.
    stiff : bool
        Rates differ so much that only an implicit solver is stable.
    uses_dose : bool
        The dose is an input: a patient without a dose record cannot be solved. With a dose of 0 there are no cells,
        at any time: a trace that stands for none in a logarithm must not grow.
    treatable : bool
        Growth is multiplied by ``x.growth(t)``, so that treatments can act on it.
    regressors : tuple of str
        What ``x.course`` must have.
    refine : int
        How much finer than the standard grid the fixed-grid solver must step.
    falls_by : str
        What already makes the first output fall within the first days, in words; empty if nothing does, so that an
        infusion phase can be added (:class:`~carkinetics.structures.infusion_phase.InfusionPhase`).
    max_infusions : int or None
        How many infusions of a patient it takes, where it is ``repeatable``; None for any number.
    """

    # Not ClassVar: a structure that wraps another one has them of the other one.
    name: str
    parameters: type[Any]
    states: type[Any]
    outputs: tuple[str, ...]
    stiff: bool = False
    uses_dose: bool = False
    treatable: bool = False
    regressors: tuple[str, ...] = ()
    refine: int = 1
    falls_by: str = ""
    max_infusions: int | None = None

    @property
    def closed_form(self) -> bool:
        """Whether the structure gives its curve without solving an ODE."""
        return type(self).curve is not AbstractStructure.curve

    @property
    def repeatable(self) -> bool:
        """Whether further infusions add cells; without ``infuse`` a patient has one infusion."""
        return type(self).infuse is not AbstractStructure.infuse

    def curve(self, t: Float[Array, "*time"], p: P, x: Inputs) -> dict[str, Float[Array, "*time"]]:
        """Natural log of every output at times ``t`` (day), in closed form."""
        raise NotImplementedError(f"{self.name} has no closed form; it is solved as an ODE")

    @abstractmethod
    def initial(self, p: P, x: Inputs) -> S:
        """States at the infusion, day 0."""

    @abstractmethod
    def rhs(self, t: Float[Array, ""], y: S, p: P, x: Inputs) -> S:
        """Rate of change of every state, per day."""

    @abstractmethod
    def output(self, y: S, p: P) -> dict[str, Float[Array, ""]]:
        """Natural log of every output, from the states."""

    def infuse(self, y: S, dose: Float[Array, ""], p: P) -> S:
        """States right after a further infusion of ``dose`` viable CAR+ cells."""
        raise NotImplementedError(f"{self.name} takes one infusion")

    def breakpoints(self, p: P, x: Inputs) -> tuple[Float[Array, ""], ...]:
        """Times (day) that depend on parameters and at which ``rhs`` jumps; a solver must step onto each of them.

        Times in ``x``, of treatments and of regressors, are known to the solver.
        """
        return ()

    def to_coordinates(self, y: S, p: P) -> Any:
        """The states in the coordinates in which the solver steps; logs of levels need fewer steps than levels."""
        return y

    def from_coordinates(self, u: Any, p: P) -> S:
        """The states from the solver's coordinates."""
        return u

    def guess(self, t, ln_level) -> dict[str, float]:
        """Rough individual parameters from one patient's quantified samples (NumPy; day, ln level).

        A parameter that the samples do not show is left out, and starts at its typical value.
        """
        return {}
