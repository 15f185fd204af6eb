"""What a dose is judged by: the responses, what is asked of them, their targets and weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.response.ordinal_model import OrdinalResponse
from carkinetics.response.result import AbstractResponse
from carkinetics.response.terms import AbstractTerms
from carkinetics.response.tte_model import TteResponse

# Defaults that change a recommendation, in one place.
EFFICACY_TARGET = 0.5  # a rate of at least this is wanted
TOXICITY_TARGET = 0.25  # a rate of at most this is borne
EFFICACY_WEIGHT = 1.0  # utility of one response; of the first efficacy endpoint, others have none unless stated
TOXICITY_WEIGHT = -1.5  # utility of one severe toxicity; of the first toxicity endpoint
GRADE = 3  # severe toxicities are of this grade at least
SIX_MONTHS = 182.0  # day until which patients are without the event


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One thing that a dose is judged by.

    Attributes
    ----------
    response : response
        Of :func:`carkinetics.logistic`, :func:`~carkinetics.ordinal` or :func:`~carkinetics.tte`.
    at : float, optional
        Grade (3 by default) or day (182 by default) that is asked for: the rate of a grade of at least ``at``, of no
        event until day ``at``; as a toxicity, of an event until then.
    target : float, optional
        Rate that an efficacy is to exceed (0.5 by default), that a toxicity is to stay at or below (0.25).
    weight : float, optional
        Utility of one patient with it. By default 1 for the first efficacy, -1.5 for the first toxicity, and 0 for all
        others, as they are about the same patients and would be counted twice.
    name : str
        What it is called in tables; ``ORR``, ``CRS>=3``, ``PFS_182`` unless given.
    """

    response: AbstractResponse
    at: float | None = None
    target: float | None = None
    weight: float | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """An endpoint with nothing left open; ``toxic`` where less of it is better."""

    name: str
    response: AbstractResponse
    at: float | None
    target: float
    weight: float
    toxic: bool

    def reached(self, rate: Float[np.ndarray, "*n"]) -> np.ndarray:
        """Whether a rate meets the target."""
        return rate <= self.target if self.toxic else rate > self.target

    def rates(
        self,
        u: Float[np.ndarray, "draw slot"],
        z: Float[np.ndarray, "draw effect slot"],
        which: Int[np.ndarray, " draw"],
    ) -> Float[np.ndarray, "draw slot"]:
        """Probability of every patient, each row by a draw of the response's own: ``which`` of them.

        Parameters
        ----------
        u, z
            Standardised ln exposure and covariates.
        """
        response = self.response
        with jax.enable_x64(True):
            theta = jnp.asarray(response.posterior.draws[which])
            scale, at = jnp.asarray(response.patients.scale, float), jnp.asarray(response.asked(self.at), float)
            p = np.asarray(_paired(response.terms, theta, jnp.asarray(u), jnp.asarray(z), scale, at))
        return 1 - p if self.toxic and isinstance(response, TteResponse) else p


@partial(jax.jit, static_argnums=0)
def _paired(terms: AbstractTerms, theta, u, z, s, at):
    return jax.vmap(lambda t, v, w: terms.chance(t, v, w, s, at))(theta, u, z)


Given = AbstractResponse | Endpoint | Sequence[AbstractResponse | Endpoint]


def judged(efficacy: Given, toxicity: Given) -> tuple[Judged, ...]:
    """Efficacies, then toxicities, with defaults filled in.

    Raises
    ------
    ModelError
        There is none of either; two have one name; a target is no rate; a weight has the wrong sign or is none; what
        is asked cannot be asked.
    """
    found = [*_of_role(efficacy, toxic=False), *_of_role(toxicity, toxic=True)]
    names = [e.name for e in found]
    if len(set(names)) < len(names):
        raise ModelError(f"endpoints {listed(names)}: give those of one name names of their own: Endpoint(name=...).")
    if not any(e.weight for e in found):
        raise ModelError("all weights are 0: no dose is better than another. Give an Endpoint a weight.")
    return tuple(found)


def _of_role(given: Given, *, toxic: bool) -> list[Judged]:
    several = [given] if isinstance(given, AbstractResponse | Endpoint) else list(given)
    role = "toxicity" if toxic else "efficacy"
    if not several:
        raise ModelError(f"{role} = []: give a response, an Endpoint, or several of them.")
    return [_judged(e if isinstance(e, Endpoint) else Endpoint(e), k, toxic=toxic) for k, e in enumerate(several)]


def _judged(e: Endpoint, place: int, *, toxic: bool) -> Judged:
    e = replace(e, at=_at(e))
    e.response.asked(e.at)
    name = e.name or _name(e)
    target = e.target if e.target is not None else TOXICITY_TARGET if toxic else EFFICACY_TARGET
    if not 0 < target < 1:
        raise ModelError(f"{name}: target = {target!r} must be a rate between 0 and 1, such as 0.3.")
    first = TOXICITY_WEIGHT if toxic else EFFICACY_WEIGHT
    weight = float(e.weight) if e.weight is not None else (0.0 if place else first)
    if not np.isfinite(weight) or (weight > 0 if toxic else weight < 0):
        wanted = "at most 0, as of a harm" if toxic else "at least 0, as of a benefit"
        raise ModelError(f"{name}: weight = {weight:g} must be {wanted}.")
    return Judged(name, e.response, e.at, float(target), weight, toxic)


def _at(e: Endpoint) -> float | None:
    if e.at is not None:
        return e.at
    if isinstance(e.response, OrdinalResponse):
        return float(GRADE)
    return SIX_MONTHS if isinstance(e.response, TteResponse) else None


def _name(e: Endpoint) -> str:
    if e.at is None:
        return e.response.what
    return f"{e.response.what}{'>=' if isinstance(e.response, OrdinalResponse) else '_'}{e.at:g}"
