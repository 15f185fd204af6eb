"""What a structural model is: the equations of one patient, with named parameters, states and outputs.

A structure knows nothing of populations, assays or samplers. It is written for one patient; the batch is
made outside, by :mod:`carkinetics.solvers`. Levels leave a structure as natural logarithms, because copies
per ug span eight decades and the likelihood lives on the log scale.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float


def level(ln_level: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A level from its log, for :meth:`AbstractStructure.from_coordinates`; kept between e^-200 and e^200.

    A loss rate of 5 per day empties a compartment to e^-800, which is zero in floating point: its log, and
    the derivative of its log, would no longer be finite.
    """
    return jnp.exp(jnp.clip(ln_level, -200.0, 200.0))


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
    """

    name: ClassVar[str]
    parameters: ClassVar[type[Any]]
    states: ClassVar[type[Any]]
    outputs: ClassVar[tuple[str, ...]]
    stiff: ClassVar[bool] = False

    @property
    def closed_form(self) -> bool:
        """Whether the structure gives its curve without solving an ODE."""
        return type(self).curve is not AbstractStructure.curve

    def curve(self, t: Float[Array, "*time"], dose: Float[Array, ""], p: P) -> dict[str, Float[Array, "*time"]]:
        """Natural log of every output at times ``t`` (day), in closed form."""
        raise NotImplementedError(f"{self.name} has no closed form; it is solved as an ODE")

    @abstractmethod
    def initial(self, dose: Float[Array, ""], p: P) -> S:
        """States at the infusion, day 0; ``dose`` in viable CAR+ cells."""

    @abstractmethod
    def rhs(self, t: Float[Array, ""], y: S, p: P) -> S:
        """Rate of change of every state, per day."""

    @abstractmethod
    def output(self, y: S, p: P) -> dict[str, Float[Array, ""]]:
        """Natural log of every output, from the states."""

    def breakpoints(self, p: P) -> tuple[Float[Array, ""], ...]:
        """Times (day) at which ``rhs`` jumps; a solver must step onto each of them."""
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
