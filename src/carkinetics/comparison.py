"""Which of several models predicts patients best: leave-one-patient-out density, side by side."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from carkinetics.errors import FitError
from carkinetics.fit_result import Fit
from carkinetics.predictive import lopo

MEANS_NOTHING = 4.0  # a smaller difference in log density is not told from none (Sivula 2020)


class Comparison(NamedTuple):
    """What :func:`compare` returns.

    Attributes
    ----------
    table : DataFrame
        By model, the best first: ``ELPD`` and its ``SE`` over patients; ``DIFF``, what is lost against the best, and
        ``DIFF_SE``; ``WEIGHT`` by stacking; ``ESS_MIN`` and ``K_MAX`` of the weights that leave patients out;
        ``REFITS``; ``STATUS`` of the fit.
    patients : DataFrame
        ``ELPD`` by ID, one column a model.
    """

    table: pd.DataFrame
    patients: pd.DataFrame

    def __str__(self) -> str:
        best = self.table.index[0]
        lost, unsure = (self.table[column].to_numpy(float) for column in ("DIFF", "DIFF_SE"))
        told = -lost >= np.maximum(MEANS_NOTHING, 2 * unsure)
        close = list(self.table.index[1:][~told[1:]])
        verdict = f"{best} predicts patients best"
        if close:
            verdict += f"; {', '.join(close)} cannot be told from it"
        return f"{self.table.round(2).to_string()}\n{verdict}."


def compare(fits: Mapping[str, Fit], *, seed: int, refit: bool = True) -> Comparison:
    """Models of the same data, by how well they predict each patient from the others.

    The log predictive density of all samples of a patient together, with the random effects integrated out, from
    importance weights that are smoothed (PSIS), or from a fit without the patient where the weights fail. Put a plain
    model among them: what it loses is what the others' parts are worth. Differences are summed over patients, and
    their standard error is over patients too: models share what is hard to predict.

    Parameters
    ----------
    fits : mapping of str to Fit
        At least two, of the same samples.
    refit : bool
        Fit again without every patient whose weights fail.

    Raises
    ------
    FitError
        Fewer than two fits, fits of other data, or a Laplace approximation.

    References
    ----------
    Vehtari A, Gelman A, Gabry J, Stat Comput 2017;27:1413-1432, doi:10.1007/s11222-016-9696-4. Stacking: Yao Y et al.,
    Bayesian Anal 2018;13:917-1007, doi:10.1214/17-BA1091. Small differences: Sivula T et al., arXiv:2008.10296.
    """
    if len(fits) < 2:
        raise FitError(f"compare: got {len(fits)} fit; give at least two, by name.")
    first, *others = fits
    for name in others:
        _refuse_other_data(first, fits[first], name, fits[name])
    found = {name: lopo(fit, seed=seed, refit=refit) for name, fit in fits.items()}
    patients = pd.DataFrame({name: table["ELPD"] for name, table in found.items()})
    best = patients.sum().idxmax()
    off, n = patients.sub(patients[best], axis=0), len(patients)
    table = pd.DataFrame(
        {
            "ELPD": patients.sum(),
            "SE": np.sqrt(n) * patients.std(),
            "DIFF": off.sum(),
            "DIFF_SE": np.sqrt(n) * off.std(),
            "WEIGHT": stacking(patients.to_numpy()),
            "ESS_MIN": [t["ESS"].min() for t in found.values()],
            "K_MAX": [t["K"].max() for t in found.values()],
            "REFITS": [int(t["REFIT"].sum()) for t in found.values()],
            "STATUS": [fit.check().status for fit in fits.values()],
        }
    )
    return Comparison(table.sort_values("ELPD", ascending=False), patients)


def stacking(elpd: Float[np.ndarray, "patient model"]) -> Float[np.ndarray, " model"]:
    """Weights of a mixture of the models that predicts left-out patients best; they add up to one."""
    n = elpd.shape[1]

    def loss(free):
        share = log_softmax(np.append(free, 0.0))
        mixed = logsumexp(elpd + share, axis=1, keepdims=True)
        each = np.exp(elpd + share - mixed)
        return -np.sum(mixed), -(each.sum(axis=0) - len(elpd) * np.exp(share))[:-1]

    found = minimize(loss, np.zeros(n - 1), jac=True, method="BFGS", options={"gtol": 1e-9})
    return np.exp(log_softmax(np.append(found.x, 0.0)))


def _refuse_other_data(name: str, fit: Fit, other: str, fit_of_other: Fit) -> None:
    """Densities of other samples cannot be compared."""
    one, two = fit.data, fit_of_other.data
    same = one.subjects == two.subjects and one.n_obs == two.n_obs
    for field in ("time", "dv", "cens", "subject"):
        same = same and np.array_equal(getattr(one, field), getattr(two, field))
    if not same:
        raise FitError(
            f"compare: {name} and {other} are fits of other samples ({one.n_obs} of {len(one.subjects)} patients, "
            f"{two.n_obs} of {len(two.subjects)}). Fit both to the same data, in the same order."
        )
