"""What ties patients and parameters together: classes of patients, correlations, shrinkage; frozen data."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from carkinetics.errors import ModelError
from carkinetics.model_parts import UNKNOWN

# Defaults that change a report, in one place.
STEP_PRIOR_SD = 0.5  # of the log distance between two classes: half or twice as far
ODDS_PRIOR_SD = 1.0  # of the log odds of a class: 0.2 may be 0.03 or 0.6
LKJ_ETA = 2.0  # of correlations between random effects: held a little towards zero


@dataclass(frozen=True)
class Mixture:
    """A second class of patients, in which one typical value is another: lower, or higher, for good.

    Attributes
    ----------
    on : str
        The parameter; it must vary between patients.
    value : float
        Its typical value in the second class.
    probability : float
        Of a patient to be of the second class.
    label : str
        What the second class is called.
    prior_step : float
        SD of the prior on the log of the distance between the two typical values (transformed scale), whose sign is
        the model's: classes cannot change places.
    prior_odds : float
        SD of the prior on the log odds of the second class.
    """

    on: str
    value: float
    probability: float
    label: str
    source: str = ""
    confidence: str = ""
    prior_step: float = STEP_PRIOR_SD
    prior_odds: float = ODDS_PRIOR_SD

    def __post_init__(self):
        if not (self.probability is UNKNOWN or 0 < self.probability < 1):
            raise ModelError(f"mixture on {self.on}: probability = {self.probability:g} must lie between 0 and 1.")
        if not (0 < self.prior_step < np.inf and 0 < self.prior_odds < np.inf):
            raise ModelError(f"mixture on {self.on}: prior_step and prior_odds must be finite and above 0.")


@dataclass(frozen=True)
class Correlation:
    """Random effects of these parameters are correlated; the others are independent.

    Attributes
    ----------
    parameters : tuple of str
    eta : float
        Of the LKJ prior: 1 is uniform over correlation matrices, larger values hold correlations nearer to zero.
    values : tuple of float
        Correlations of the model, in the order (2, 1), (3, 1), (3, 2), ...; zero unless given.
    prior_sd : tuple of float
        In the place of the LKJ prior: SDs of the inverse hyperbolic tangents of the partial correlations about those
        of ``values``; of a posterior that becomes a prior.
    """

    parameters: tuple[str, ...]
    eta: float = LKJ_ETA
    values: tuple[float, ...] = ()
    prior_sd: tuple[float, ...] = ()

    def __post_init__(self):
        n = len(self.parameters)
        if n < 2 or len(set(self.parameters)) != n:
            raise ModelError(f"correlation of {', '.join(self.parameters) or 'nothing'}: two parameters or more.")
        if not (np.isfinite(self.eta) and self.eta > 0):
            raise ModelError(f"correlation: eta = {self.eta:g} must be finite and above 0.")
        pairs = n * (n - 1) // 2
        for given in (self.values, self.prior_sd):
            if given and len(given) != pairs:
                raise ModelError(f"correlation: {n} parameters have {pairs} correlations, not {len(given)}.")
        if np.linalg.eigvalsh(self.matrix).min() <= 0:
            raise ModelError("correlation: the matrix of these values is not positive definite.")

    @property
    def matrix(self) -> np.ndarray:
        """Correlations, as a matrix."""
        n = len(self.parameters)
        found = np.eye(n)
        found[np.tril_indices(n, -1)] = self.values or (0.0,) * (n * (n - 1) // 2)
        return found + np.tril(found, -1).T


@dataclass(frozen=True)
class Horseshoe:
    """Shrinks covariate effects that the data do not support, and leaves the others alone: for many covariates.

    The regularised horseshoe with a fixed slab, on effects of one SD of their covariate.

    Attributes
    ----------
    expected : float
        Effects that are expected to matter; the global scale follows from it and from the number of patients.
    slab : float
        SD beyond which an effect that matters is held back.

    References
    ----------
    Piironen J, Vehtari A, Electron J Stat 2017;11:5018-5051, doi:10.1214/17-EJS1337SI.
    """

    expected: float = 1.0
    slab: float = 0.7
    scale: float | None = None  # global; of the data, once they are known

    def __post_init__(self):
        if not (self.expected > 0 and self.slab > 0 and (self.scale is None or self.scale > 0)):
            raise ModelError("horseshoe: expected, slab and scale must be above 0.")


@dataclass(frozen=True)
class PriorCorrelation:
    """Correlations between priors that are normal on the sampler's scale: of a posterior that becomes a prior.

    Attributes
    ----------
    names : tuple of str
        As in the parameter table: ``cmax`` (its transformed typical value), ``omega cmax`` and ``sigma qpcr`` (their
        logs).
    matrix : tuple of tuple of float
        Correlations, positive definite.
    """

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]

    def __post_init__(self):
        n = len(self.names)
        if len(set(self.names)) != n or [len(row) for row in self.matrix] != [n] * n:
            raise ModelError(f"prior_correlation: {n} names, all different, need a matrix of {n} by {n}.")
        matrix = np.array(self.matrix, float)
        if not (np.isfinite(matrix).all() and np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1.0)):
            raise ModelError("prior_correlation: the matrix must be symmetric with ones on its diagonal.")
        if np.linalg.eigvalsh(matrix).min() <= 0:
            raise ModelError("prior_correlation: the matrix must be positive definite.")

    def without(self, names: Iterable[str]) -> "PriorCorrelation | None":
        """The correlations of the others."""
        gone = set(names)
        stay = [i for i, name in enumerate(self.names) if name not in gone]
        if not stay:
            return None
        return PriorCorrelation(
            tuple(self.names[i] for i in stay), tuple(tuple(self.matrix[i][j] for j in stay) for i in stay)
        )
