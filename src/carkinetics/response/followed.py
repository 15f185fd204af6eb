"""The level of every day in the hazard: ``h(t) = h0(t) exp(slope u(t) + covariates)``, integrated exactly.

``u(t)``, the standardised ln level, is linear between the days of a grid and ``h0`` is constant between cuts; so on
every step the cumulative hazard is a width times ``(exp(slope u_b) - exp(slope u_a)) / (slope (u_b - u_a))``, without
an error of quadrature. Today's hazard depends on today's level only: nobody has to survive to be measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from carkinetics.errors import DataError
from carkinetics.findings import listed
from carkinetics.metric import Metric
from carkinetics.response.survival import Survival
from carkinetics.response.terms import AbstractTerms

NODES = 100  # draws of a patient's curve that are averaged over
_NARROW = 1e-4


@dataclass(frozen=True, eq=False)
class Course:
    """Levels over time.

    Attributes
    ----------
    name, unit : str
    subjects : tuple of str
    days : array
        Since the infusion, increasing.
    ln : array of shape (draw, day, subject)
        Natural log of the level; one draw if it is taken as known. Between days it is linear.
    """

    name: str
    unit: str
    subjects: tuple[str, ...]
    days: Float[np.ndarray, " day"]
    ln: Float[np.ndarray, "draw day subject"]

    def mean(self, until: pd.Series | None = None) -> Metric:
        """The geometric mean level over the grid, up to each patient's own day."""
        last = np.full(len(self.subjects), self.days[-1])
        if until is not None:
            last = until.reindex(list(self.subjects)).fillna(self.days[-1]).to_numpy(float)
        inside = self.days[:, None] <= np.maximum(last, self.days[1])
        values = np.exp((self.ln * inside).sum(axis=1) / inside.sum(axis=0))
        n = len(self.subjects)
        window = (float(self.days[0]), float("nan"))
        return Metric(self.name, self.unit, self.subjects, values, ("model",) * n, ("",) * n, self.name, window)


@dataclass(frozen=True)
class Followed(AbstractTerms):
    """``ln hazard = ln_rate of the piece + slope u(t) + covariates``.

    ``y`` has, of every step of a patient's time at risk, ``ya`` and ``yb`` (standardised ln level at its ends, by node,
    step and patient), ``width`` (step, patient; 0 of steps that he did not reach) and ``piece`` (step); and of his last
    day ``y_end`` (node, patient), ``piece_end`` and ``event``.

    Attributes
    ----------
    cuts : tuple of float
        Where the baseline hazard changes, in the model's time.
    """

    cuts: tuple[float, ...] = ()

    @property
    def constant(self) -> Survival:
        """The same hazard of a level that stays where it is."""
        return Survival(self.form, self.covariates, self.priors, distribution="piecewise", cuts=self.cuts)

    @property
    def baseline(self) -> tuple[tuple[str, float, float], ...]:
        """Log rates of the pieces."""
        return self.constant.baseline

    @property
    def departures(self) -> tuple[tuple[str, float, float], ...]:
        """None."""
        return ()

    @property
    def begin(self) -> tuple[float, ...]:
        """The crude rate."""
        return self.constant.begin

    @property
    def ratio(self) -> str:
        """Of hazards, by the level of the day."""
        return "hazard ratio"

    def baseline_prior(self, theta: Float[Array, " p"]) -> Float[Array, ""]:
        """Nothing beside the normal one."""
        return jnp.zeros(())

    def log_lik(self, theta: Array, u: Array, z: Array, s: Array, y: Mapping[str, Array]) -> Float[Array, "node n"]:
        """Of every patient at every node of his curve; ``u`` is not used."""
        rates = theta[: len(self.baseline)]
        slope = theta[len(self.baseline)] if self.form == "linear" else jnp.zeros(())
        adds = self.predictor(theta, jnp.zeros_like(u), z, s)
        rise = slope * (y["yb"] - y["ya"])
        narrow = jnp.abs(rise) < _NARROW
        wide = jnp.where(narrow, 1.0, rise)
        mean = jnp.where(narrow, 1 + rise / 2 + rise**2 / 6, jnp.expm1(wide) / wide)
        step = jnp.exp(rates[y["piece"]][:, None] + slope * y["ya"]) * mean * y["width"]
        at_event = rates[y["piece_end"]] + slope * y["y_end"] + adds
        return jnp.where(y["event"] == 1, at_event, 0.0) - jnp.exp(adds) * step.sum(axis=1)

    def chance(self, theta: Array, u: Array, z: Array, s: Array, at: Array) -> Array:
        """No event until ``at[0]``, given none until ``at[1]``, at a level that stays where it is."""
        return self.constant.chance(theta, u, z, s, at)


def steps_of(
    course: Course, standardised: Float[np.ndarray, "draw day subject"], times: pd.DataFrame, cuts_days, unit: float
) -> dict[str, np.ndarray]:
    """What :class:`Followed` reads: the grid and the cuts, clipped to each patient's time at risk.

    Raises
    ------
    DataError
        The grid does not cover the time at risk of somebody.
    """
    entry, end = times["ENTRY"].to_numpy(float), times["TIME"].to_numpy(float)
    outside = (entry < course.days[0]) | (end > course.days[-1])
    if outside.any():
        raise DataError(
            f"{course.name}: the days {course.days[0]:g} to {course.days[-1]:g} do not cover the time at risk of "
            f"patients {listed(times.index[outside])}. Give the course up to their last day."
        )
    edges = np.unique(np.concatenate([course.days, cuts_days]))
    begin = np.clip(edges[:-1, None], entry, end)
    stop = np.clip(edges[1:, None], entry, end)
    piece = np.searchsorted(cuts_days, edges[1:], side="left")
    levels = [_at(course.days, standardised, t) for t in (begin, stop)]
    return {
        "ya": levels[0],
        "yb": levels[1],
        "width": (stop - begin) / unit,
        "piece": piece,
        "y_end": _at(course.days, standardised, end[None])[:, 0],
        "piece_end": np.searchsorted(cuts_days, end, side="left"),
        "event": times["EVENT"].to_numpy(float),
    }


def _at(days: np.ndarray, values: np.ndarray, when: np.ndarray) -> np.ndarray:
    """Linear in between, of every draw, at (step, subject) days."""
    k = np.clip(np.searchsorted(days, when, side="right") - 1, 0, len(days) - 2)
    share = (when - days[k]) / (days[k + 1] - days[k])
    who = np.arange(values.shape[2])[None]
    return values[:, k, who] * (1 - share) + values[:, k + 1, who] * share
