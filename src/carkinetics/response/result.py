"""What a response model returns: draws, tables, predictions, and what to be wary of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.errors import ModelError
from carkinetics.inference.gates import ESS_MIN, RHAT_MAX
from carkinetics.parameter_table import INTERVAL
from carkinetics.response.carrying import TWO_STAGE, carried
from carkinetics.response.guards import CAUTION, MILD, Finding
from carkinetics.response.patients import Patients
from carkinetics.response.sampling import (
    K_MAX,
    Arrays,
    Posterior,
    find_mode,
    log_likelihoods,
    read_by_likelihood,
    sample,
)
from carkinetics.response.terms import AbstractTerms, acting

FOLDS = (2.0, 10.0)
GRID = 60  # points of a curve
_SOME = 400  # draws that are enough for an average over patients and nodes
_RHAT_FAILED, _ESS_FAILED = 1.05, 100


type Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class ResponseCheck:
    """Whether a response model can be trusted, and what to be wary of.

    Attributes
    ----------
    status : {"ok", "warning", "failed"}
    reasons : tuple of str
        Each begins with its name: ``separation: ...``.
    numbers : dict
        Of the draws: ``k`` and ``ess`` of importance weights, or R-hat, ESS and divergences of NUTS.
    notes : tuple of str
        Who was left out, what is taken for granted, and what a response model cannot tell.
    """

    status: Status
    reasons: tuple[str, ...]
    numbers: dict[str, float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.status}: " + ", ".join(f"{k} {v:.3g}" for k, v in self.numbers.items())
        return "\n".join([head, *(f"- {r}" for r in (*self.reasons, *self.notes))])


@dataclass(frozen=True, eq=False, repr=False)
class AbstractResponse(ABC):
    """A fitted response model.

    Attributes
    ----------
    terms : AbstractTerms
        Likelihood and priors.
    patients : Patients
        Exposure, covariates and outcome.
    arrays : Arrays
        The same, as the likelihood reads them.
    posterior : Posterior
    two_stage : {"propagate", "point", "joint"}
    seed : int
    findings : tuple of (name, reason)
    """

    terms: AbstractTerms
    patients: Patients
    arrays: Arrays
    posterior: Posterior
    two_stage: str
    seed: int
    findings: tuple[Finding, ...]

    @property
    @abstractmethod
    def what(self) -> str:
        """The outcome, in words."""

    @abstractmethod
    def asked(self, at: float | None) -> Float[np.ndarray, " k"]:
        """``at`` as the likelihood counts it: :meth:`AbstractTerms.chance`.

        Raises
        ------
        ModelError
            It cannot be asked.
        """

    @abstractmethod
    def observed(self, at: float | None) -> Float[np.ndarray, " n"]:
        """1 where the outcome that is asked for was seen, 0 where not, NaN where it is not known."""

    def __repr__(self) -> str:
        n, metric = len(self.patients.ids), self.patients.metric.name
        head = f"{type(self).__name__}({self.what} by {metric}, {self.terms.form}, {n} patients, {self.two_stage})"
        return head + ("" if self.check().status == "ok" else f" [{self.check().status}]")

    @property
    def draws(self) -> pd.DataFrame:
        """One row a draw, one column a parameter (of standardised ln exposure and covariates)."""
        return pd.DataFrame(self.posterior.draws, columns=list(self.terms.names))

    @cached_property
    def log_lik(self) -> Float[np.ndarray, "draw subject"]:
        """Each patient's log likelihood at every draw, his exposure integrated out."""
        return log_likelihoods(self.terms, self.arrays, self.posterior)

    def table(self) -> pd.DataFrame:
        """Parameters: ``MEDIAN LOW HIGH`` (95 % interval), ``POSITIVE`` (probability of being above 0), their prior.

        ``slope`` is of one SD of ln exposure between patients, a covariate's effect of one SD of it, or of a category.
        """
        x = self.posterior.draws
        low, high = np.quantile(x, INTERVAL, axis=0)
        columns = {"MEDIAN": np.median(x, axis=0), "LOW": low, "HIGH": high, "POSITIVE": (x > 0).mean(axis=0)}
        columns["PRIOR"] = self.terms.prior_says()
        return pd.DataFrame(columns, index=pd.Index(self.terms.names, name="PARAMETER"))

    def effects(self) -> pd.DataFrame:
        """Ratios of odds, hazards or times: per doubling and per tenfold exposure, and of every covariate.

        Returns
        -------
        DataFrame
            ``EFFECT RATIO KIND MEDIAN LOW HIGH ABOVE_1``. An Emax form has no one ratio: it is from the mean ln
            exposure up. A covariate's is per SD, or against its reference.
        """
        x, terms = self.posterior.draws, self.terms
        k = len(terms.baseline)
        rows = []
        folds = FOLDS if terms.form != "flat" else ()
        with jax.enable_x64(True):
            s, steps = self.patients.scale, jnp.asarray(np.log([1.0, *folds]) / self.patients.scale)
            eta = np.asarray(jax.vmap(lambda t: acting(terms.form, t[k:], steps, jnp.asarray(s)))(jnp.asarray(x)))
        for j, fold in enumerate(folds, 1):
            rows.append((f"{self.patients.metric.name} x {fold:g}", np.exp(eta[:, j] - eta[:, 0])))
        rows += [(c, np.exp(x[:, terms.names.index(c)])) for c in terms.covariates]
        found = []
        for name, ratio in rows:
            low, high = np.quantile(ratio, INTERVAL)
            row = {"EFFECT": name, "RATIO": terms.ratio, "MEDIAN": float(np.median(ratio)), "LOW": low, "HIGH": high}
            found.append(row | {"ABOVE_1": float((ratio > 1).mean())})
        return pd.DataFrame(found, columns=["EFFECT", "RATIO", "MEDIAN", "LOW", "HIGH", "ABOVE_1"])

    def predict(
        self,
        values: float | Sequence[float] | Float[np.ndarray, "..."],
        *,
        at: float | None = None,
        covariates: pd.DataFrame | None = None,
    ) -> Float[np.ndarray, "draw ..."]:
        """Probability at these exposures, of every posterior draw.

        Parameters
        ----------
        values : float or array
            Exposures on the natural scale, any shape.
        at : float, optional
            ``ordinal``: of a grade of at least ``at``. ``tte``: of no event until day ``at`` since the infusion, given
            none until the landmark. ``logistic`` takes none.
        covariates : DataFrame, optional
            One row, or one for each of ``values`` (then one axis). By default a patient with mean covariates, and
            of the reference category; see :meth:`marginal` for an average over patients.

        Returns
        -------
        array of shape (draw, ...)
        """
        u = np.asarray(self.patients.standardised(np.asarray(values, float)), float)
        flat = u.reshape(-1)
        z = np.zeros((len(self.terms.covariates), len(flat)))
        if covariates is not None:
            z = z + self.patients.encoder.numbers(covariates)
        return self.chances(flat, z, at=at).reshape(-1, *u.shape)

    def chances(
        self, u: Float[np.ndarray, " n"], z: Float[np.ndarray, "effect n"], *, at: float | None, every: int = 1
    ) -> Float[np.ndarray, "draw n"]:
        """Probability at standardised ln exposures and covariates, of every (``every``-th) draw."""
        with jax.enable_x64(True):
            arguments = (self.posterior.draws[::every], u, z, self.patients.scale, self.asked(at))
            return np.asarray(_chances(self.terms, *(jnp.asarray(a, float) for a in arguments)))

    def curve(
        self, values: Sequence[float] | None = None, *, at: float | None = None, level: float = 0.95
    ) -> pd.DataFrame:
        """:meth:`predict` summarised: ``VALUE MEDIAN LOW HIGH``, by default over the patients' range of exposure."""
        x = self.grid() if values is None else np.asarray(values, float)
        return _summary(x, self.predict(x, at=at), level)

    def grid(self) -> Float[np.ndarray, " value"]:
        """Exposures from the smallest to the largest median of a patient, evenly on the log scale."""
        medians = self.patients.metric.value
        return np.geomspace(medians.min(), medians.max(), GRID)

    def marginal(
        self,
        values: Sequence[float] | None = None,
        *,
        factors: Sequence[float] | None = None,
        at: float | None = None,
        level: float = 0.95,
    ) -> pd.DataFrame:
        """Average probability over the patients (g-computation), if all had one exposure, or a multiple of theirs.

        That it is what an intervention would do, needs more than this model knows; see :data:`guards.CAUTION`.

        Parameters
        ----------
        values : sequence of float, optional
            Exposure of all patients; covariates stay their own.
        factors : sequence of float, optional
            Multiples of each patient's own exposure, of which the draws given the kinetics are averaged.

        Returns
        -------
        DataFrame
            ``VALUE`` or ``FACTOR``, then ``MEDIAN LOW HIGH`` over draws of the parameters.
        """
        if (values is None) == (factors is None):
            raise ModelError("marginal: give either values or factors.")
        z, base = self.patients.z, np.asarray(self.arrays.base)
        if values is not None:
            x = np.asarray(values, float)
            u = np.asarray(self.patients.standardised(x), float)
            means = [self.chances(np.full(z.shape[1], one), z, at=at).mean(axis=1) for one in u]
            return _summary(x, np.stack(means, axis=1), level)
        x, weight = np.asarray(factors, float), np.exp(np.asarray(self.arrays.log_weight))
        every = max(1, len(self.posterior.draws) // _SOME)
        found = []
        for factor in x:
            moved = (base + np.log(factor) / self.patients.scale).reshape(-1)
            p = self.chances(moved, np.tile(z, len(base)), at=at, every=every)
            found.append((p.reshape(len(p), *base.shape) * weight).sum(axis=1).mean(axis=1))
        return _summary(x, np.stack(found, axis=1), level).rename(columns={"VALUE": "FACTOR"})

    def mode(self, *, flat: bool = False) -> pd.Series:
        """Parameters at the maximum of the posterior, or with ``flat`` of the likelihood.

        Raises
        ------
        FitError
            There is no maximum: outcomes are separated.
        """
        terms = self.terms.flat() if flat else self.terms
        x, _, _ = find_mode(terms, self.arrays, terms.start)
        return pd.Series(x[: len(terms.names)], index=list(terms.names))

    def by_carrying(self) -> pd.DataFrame:
        """What was estimated had exposure been carried otherwise: :meth:`effects` for each way, one below the other."""
        tables = []
        for way in TWO_STAGE:
            part = carried(self.patients.u, way)
            arrays = self.arrays._replace(base=part.base, log_weight=part.log_weight, loadings=part.loadings)
            found = sample(self.terms, arrays, seed=self.seed)
            again = replace(self, arrays=arrays, posterior=found, two_stage=way)
            tables.append(again.effects().assign(TWO_STAGE=way))
        return pd.concat(tables, ignore_index=True)

    def feedback(self) -> pd.DataFrame:
        """How the outcome moved what is known of each patient's exposure.

        Returns
        -------
        DataFrame
            By ID: ``BEFORE`` and ``AFTER`` (means of ln exposure given kinetics, and given the outcome as well), and
            ``SHIFT`` between them in SDs of ``BEFORE``. Large shifts say that the response, not the kinetics, tells
            the exposure.
        """
        a, n = self.arrays, len(self.patients.ids)
        every = max(1, len(self.posterior.draws) // _SOME)
        x = np.concatenate([self.posterior.draws, self.posterior.factors], axis=1)[::every]
        with jax.enable_x64(True):
            after = np.asarray(_updated(self.terms, jnp.asarray(x), a))
        base, log_weight, loadings = (np.asarray(v) for v in (a.base, a.log_weight, a.loadings))
        weight = np.exp(log_weight)
        before = (weight * base).sum(axis=0)
        variance = (weight * np.square(base - before)).sum(axis=0) + np.square(loadings).sum(axis=0)
        sd = np.sqrt(np.maximum(variance, 1e-300))
        shift = np.where(variance > 1e-16, (after - before) / sd, np.zeros(n))
        ln = {"BEFORE": before, "AFTER": after}
        frame = pd.DataFrame({k: v * self.patients.scale + self.patients.centre for k, v in ln.items()})
        return frame.assign(SHIFT=shift).set_index(pd.Index(self.patients.ids, name="ID"))

    def check(self) -> ResponseCheck:
        """Whether the draws can be trusted, and what may fool a reader."""
        n = self.posterior.numbers
        failed, weak = _faults(n)
        weak += [f"{name}: {reason}" for name, reason in self.findings if name not in MILD]
        mild = [f"{name}: {reason}" for name, reason in self.findings if name in MILD]
        status = "failed" if failed else "warning" if weak else "ok"
        return ResponseCheck(status, (*failed, *weak), dict(n), (*mild, *self.patients.notes, CAUTION))


def fitted(
    terms: AbstractTerms, patients: Patients, y: dict[str, np.ndarray], *, two_stage: str, seed: int, draws: int
) -> tuple[Arrays, Posterior]:
    """The arrays of these patients, and the posterior."""
    part = carried(patients.u, two_stage)
    arrays = read_by_likelihood(part, patients.z, patients.scale, y)
    return arrays, sample(terms, arrays, seed=seed, draws=draws)


def _faults(n: dict[str, float]) -> tuple[list[str], list[str]]:
    if "k" in n:
        text = f"draws: the weights' tail has k = {n['k']:.2f} > {K_MAX}, and {n['ess']:.0f} draws carry them."
        bad = not n["k"] <= K_MAX or n["ess"] < _ESS_FAILED
        return ([text], []) if bad else ([], [text] if n["ess"] < ESS_MIN else [])
    text = (
        f"draws: R-hat {n['rhat']:.3f}, ESS {min(n['ess_bulk'], n['ess_tail']):.0f}, {n['divergences']:.0f} divergent."
    )
    wrong = n["rhat"] > _RHAT_FAILED or min(n["ess_bulk"], n["ess_tail"]) < _ESS_FAILED
    bad = n["rhat"] > RHAT_MAX or min(n["ess_bulk"], n["ess_tail"]) < ESS_MIN or n["divergences"] > 0
    return ([text], []) if wrong else ([], [text] if bad else [])


def _summary(x: np.ndarray, p: np.ndarray, level: float) -> pd.DataFrame:
    tails = ((1 - level) / 2, 0.5, (1 + level) / 2)
    low, median, high = np.quantile(p, tails, axis=0)
    return pd.DataFrame({"VALUE": x, "MEDIAN": median, "LOW": low, "HIGH": high})


@partial(jax.jit, static_argnums=0)
def _chances(terms: AbstractTerms, draws, u, z, s, at):
    return jax.lax.map(lambda theta: terms.chance(theta, u, z, s, at), draws, batch_size=64)


@partial(jax.jit, static_argnums=0)
def _updated(terms: AbstractTerms, x, a: Arrays):
    """Mean over draws of each patient's exposure given the outcome."""
    k = len(terms.names)

    def of_one(x):
        u = a.base + x[k:] @ a.loadings if a.loadings.shape[0] else a.base
        log_weight = a.log_weight + terms.log_lik(x[:k], u, a.z, a.s, a.y)
        return (jax.nn.softmax(log_weight, axis=0) * u).sum(0)

    return jax.lax.map(of_one, x, batch_size=64).mean(0)
