"""Covariates of a response as numbers: standardised, or one column for each category but the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from carkinetics.covariates import category
from carkinetics.errors import DataError
from carkinetics.findings import hint, listed


@dataclass(frozen=True)
class Column:
    """One covariate: ``(x - centre) / scale``, or, where ``levels`` are named, indicators of these categories."""

    name: str
    centre: float = 0.0
    scale: float = 1.0
    reference: str = ""
    levels: tuple[str, ...] = ()

    @property
    def effects(self) -> tuple[str, ...]:
        """Names of the numbers that it becomes."""
        return tuple(f"{self.name}={level}" for level in self.levels) if self.levels else (self.name,)

    def numbers(self, x: pd.Series) -> Float[np.ndarray, "effect n"]:
        """What the effects act on, of patients with these values."""
        if not self.levels:
            return ((x.to_numpy(float) - self.centre) / self.scale)[None]
        texts = [category(v) for v in x]
        unknown = sorted(set(texts) - {self.reference, *self.levels})
        if unknown:
            known = listed((self.reference, *self.levels))
            raise DataError(f"covariate {self.name}: {listed(unknown)} is none of the categories known: {known}.")
        return np.array([[float(t == level) for t in texts] for level in self.levels])


@dataclass(frozen=True)
class Encoder:
    """The covariates of a response model, in order."""

    columns: tuple[Column, ...] = ()

    @property
    def effects(self) -> tuple[str, ...]:
        """Names of all numbers."""
        return tuple(e for c in self.columns for e in c.effects)

    def numbers(self, frame: pd.DataFrame) -> Float[np.ndarray, "effect n"]:
        """Numbers of every row.

        Raises
        ------
        DataError
            A column is absent, or a value is missing or unknown.
        """
        for column in self.columns:
            if column.name not in frame:
                raise DataError(f"covariates lack the column {column.name}.{hint(column.name, map(str, frame))}")
        if self.columns and absent(frame[[c.name for c in self.columns]]).any():
            raise DataError("covariates have missing values; give one for every row.")
        found = [c.numbers(frame[c.name]) for c in self.columns]
        return np.concatenate([np.zeros((0, len(frame))), *found])


def absent(frame: pd.DataFrame) -> Bool[np.ndarray, " n"]:
    """Rows in which a value is missing."""
    return np.array([any(category(v) == "" for v in row) for row in frame.itertuples(index=False)], dtype=bool)


def encoder_of(frame: pd.DataFrame) -> Encoder:
    """Centres, scales and categories of these patients.

    Raises
    ------
    DataError
        A covariate is the same in all patients, or not finite.
    """
    return Encoder(tuple(_column(str(name), frame[name]) for name in frame))


def _column(name: str, x: pd.Series) -> Column:
    if pd.api.types.is_numeric_dtype(x) and not pd.api.types.is_bool_dtype(x):
        values = x.to_numpy(float)
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise DataError(
                f"covariate {name} must be finite and differ between patients; leave it out, or correct it."
            )
        return Column(name, float(values.mean()), float(values.std()))
    counts = pd.Series([category(v) for v in x]).value_counts().sort_index().sort_values(kind="stable", ascending=False)
    names: Sequence[str] = [str(t) for t in counts.index]
    if len(names) < 2:
        raise DataError(f"covariate {name}: all patients are in one category ({listed(names)}); leave it out.")
    return Column(name, reference=names[0], levels=tuple(sorted(names[1:])))
