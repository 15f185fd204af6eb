"""Averages over exposure metrics and forms, with the null model among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.model_parts import nearest_or_raise
from carkinetics.response.guards import CAUTION, collinear
from carkinetics.response.judging import loo
from carkinetics.response.result import AbstractResponse, ResponseCheck, Status
from carkinetics.simulation import refuse_seed

METHODS = ("stacking", "evidence")
K_MAX = 0.7
_ROUNDS = 20000
_SEVERITY: tuple[Status, ...] = ("ok", "warning", "failed")


@dataclass(frozen=True, eq=False, repr=False)
class Average:
    """Response models of one outcome, and what each weighs.

    Attributes
    ----------
    members : mapping of str to response
    weights : dict of str to float
        Of the method that was asked for; they sum to one.
    method : {"stacking", "evidence"}
    seed : int
    comparison : DataFrame
        See :meth:`table`.
    """

    members: Mapping[str, AbstractResponse]
    weights: dict[str, float]
    method: str
    seed: int
    comparison: pd.DataFrame

    def __repr__(self) -> str:
        return f"Average({listed(f'{k} {w:.2f}' for k, w in self.weights.items())}; {self.method})"

    def table(self) -> pd.DataFrame:
        """By member, best ``ELPD`` first.

        ``METRIC FORM``; ``ELPD`` (leave-one-patient-out log predictive density), ``DIFF`` from the best and ``SE`` of
        the difference; ``K`` (largest; above 0.7 not reliable); ``LN_EVIDENCE``; weights by ``STACKING`` and by
        ``EVIDENCE`` (posterior probabilities of models that were equally likely before).
        """
        return self.comparison

    @property
    def null(self) -> float:
        """Weight of the models without an effect of exposure."""
        return sum(w for k, w in self.weights.items() if self.members[k].terms.form == "flat")

    def predict(
        self, values: Mapping[str, float | Sequence[float] | Float[np.ndarray, "..."]], *, at: float | None = None
    ) -> Float[np.ndarray, "draw ..."]:
        """Draws of the members, each as often as it weighs.

        Parameters
        ----------
        values : mapping
            Exposures by name of the metric, all of one shape.
        at : float, optional
            As of the members' ``predict``.
        """
        names = [k for k, w in self.weights.items() if w > 0]
        draws = min(len(m.posterior.draws) for m in self.members.values())
        random = np.random.default_rng(self.seed)
        share = np.array([self.weights[k] for k in names])
        which = np.searchsorted(np.cumsum(share / share.sum()), (np.arange(draws) + random.random()) / draws)
        found = []
        for k, name in enumerate(names):
            member = self.members[name]
            metric = member.patients.metric.name
            if metric not in values:
                raise ModelError(f"values have {listed(values)}; member {name} needs {metric}.")
            every = member.predict(np.asarray(values[metric], float), at=at)
            found.append(random.permutation(every)[: int((which == k).sum())])
        return np.concatenate(found)

    def check(self) -> ResponseCheck:
        """The members' faults, metrics that say the same, and unreliable weights."""
        reasons: list[str] = []
        worst: Status = "ok"
        for name, member in self.members.items():
            found = member.check()
            reasons += [f"{name}: {r}" for r in found.reasons]
            if _SEVERITY.index(found.status) > _SEVERITY.index(worst):
                worst = found.status
        said = [f"{n}: {r}" for n, r in collinear({k: m.patients for k, m in self.members.items()})]
        bad = list(self.comparison.index[~(self.comparison["K"] <= K_MAX)])
        if bad and self.method == "stacking":
            said.append(f"weights: leaving patients out is not reliable of {listed(bad)} (k > {K_MAX}).")
        status: Status = "warning" if worst == "ok" and said else worst
        numbers = {f"weight {k}": w for k, w in self.weights.items()}
        return ResponseCheck(status, (*reasons, *said), numbers, (CAUTION,))


def average(members: Mapping[str, AbstractResponse], *, seed: int, method: str = "stacking") -> Average:
    """Weigh response models that differ in metric, form or covariates.

    Parameters
    ----------
    members : mapping of str to response
        Of the same outcome and patients; at least one of ``form="flat"``, so that no effect can win.
    method : {"stacking", "evidence"}
        ``stacking``: weights that predict patients left out best. ``evidence``: posterior probabilities, which depend
        on the priors of the effects.

    Raises
    ------
    ModelError
        There is no null model, outcomes or patients differ, or an evidence is not known.

    References
    ----------
    Yao Y, Vehtari A, Simpson D, Gelman A. Bayesian Anal 2018;13:917-1007, doi:10.1214/17-BA1091.
    """
    refuse_seed(seed)
    nearest_or_raise(method, METHODS, "method", "average")
    _refuse(members)
    pointwise = {name: loo(member) for name, member in members.items()}
    elpd = pd.DataFrame({name: table["ELPD"] for name, table in pointwise.items()})
    evidence = np.array([m.posterior.log_evidence for m in members.values()])
    with np.errstate(invalid="ignore"):
        likely = np.exp(evidence - evidence.max())
    stacked = stacking(elpd.to_numpy())
    best = elpd.sum().idxmax()
    away = elpd.sub(elpd[best], axis=0)
    table = pd.DataFrame(
        {
            "METRIC": [m.patients.metric.name for m in members.values()],
            "FORM": [m.terms.form for m in members.values()],
            "ELPD": elpd.sum(),
            "DIFF": away.sum(),
            "SE": np.sqrt(len(away)) * away.std(ddof=1),
            "K": [float(t["K"].max()) for t in pointwise.values()],
            "LN_EVIDENCE": evidence,
            "STACKING": stacked,
            "EVIDENCE": likely / likely.sum(),
        },
        index=pd.Index(list(members), name="MEMBER"),
    ).sort_values("ELPD", ascending=False, kind="stable")
    if method == "evidence" and not np.isfinite(evidence).all():
        raise ModelError(
            "the evidence of a member is not known (flat priors, or drawn by NUTS); use method='stacking'."
        )
    weights = {str(k): float(w) for k, w in table[method.upper()].items()}
    return Average(dict(members), weights, method, seed, table)


def stacking(elpd: Float[np.ndarray, "subject member"]) -> Float[np.ndarray, " member"]:
    """Weights of the mixture with the largest log predictive density: a concave problem, solved by EM."""
    p = np.exp(elpd - elpd.max(axis=1, keepdims=True))
    w = np.full(p.shape[1], 1 / p.shape[1])
    for _ in range(_ROUNDS):
        mix = p * w
        new = (mix / mix.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(new - w).max() < 1e-10:
            break
        w = new
    return w / w.sum()


def _refuse(members: Mapping[str, AbstractResponse]) -> None:
    if not any(m.terms.form == "flat" for m in members.values()):
        raise ModelError("none of the members has form='flat': add one, so that no effect of exposure can win.")
    first = next(iter(members.values()))
    for name, member in members.items():
        same = sorted(member.patients.ids) == sorted(first.patients.ids) and type(member) is type(first)
        ids = list(first.patients.ids)
        if not same or not member.patients.outcome.loc[ids].equals(first.patients.outcome):
            raise ModelError(
                f"{name} has other patients, or another outcome, than the first member: fit them to the same."
            )
