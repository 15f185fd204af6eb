"""A finished fit: what was estimated, whether to trust it, and its file."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from carkinetics.dataset import Dataset
from carkinetics.model import Model, iiv_cv_pct

# The gates: a fit that passes none of the thresholds below is never shown as converged.
RHAT_MAX = 1.01
ESS_MIN = 400
EBFMI_MIN = 0.3
SOLVER_SHARE = 0.05  # of the residual SD: the solver may be off by that much in ln level
# Beyond these a fit is not a weak one but a wrong one.
RHAT_FAILED = 1.05
ESS_FAILED = 100
DIVERGENT_FAILED = 0.01  # share of transitions

INTERVAL = (0.025, 0.975)  # equal-tailed 95 %
_TAIL = (0.05, 0.95)  # quantiles of which tail ESS is the smaller: Vehtari et al. 2021


@dataclass(frozen=True)
class Check:
    """Whether a fit can be trusted.

    Attributes
    ----------
    status : {"ok", "warning", "failed"}
    reasons : tuple of str
        Why it is not ok, worst first; then what else is worth knowing about the run.
    numbers : dict
        Largest R-hat, smallest bulk and tail ESS over population parameters, divergences, E-BFMI.
    """

    status: Literal["ok", "warning", "failed"]
    reasons: tuple[str, ...]
    numbers: dict[str, float]

    def __str__(self) -> str:
        n = self.numbers
        head = (
            f"{self.status}: R-hat <= {n['rhat']:.3f}, bulk ESS >= {n['ess_bulk']:.0f}, "
            f"tail ESS >= {n['ess_tail']:.0f}, {n['divergences']:.0f} divergences in {n['draws']:.0f} draws"
        )
        return "\n".join([head, *(f"- {r}" for r in self.reasons)])


@dataclass(frozen=True, eq=False)
class Fit:
    """A model, the data it was fitted to, and the draws.

    Attributes
    ----------
    tree : xarray.DataTree
        ArviZ layout; see :func:`carkinetics.fit_tree.build_tree` for its groups, names and dimensions.
    """

    model: Model
    data: Dataset
    tree: xr.DataTree

    def parameters(self) -> pd.DataFrame:
        """The parameter table, as in a paper.

        Returns
        -------
        DataFrame
            One row per parameter, then per residual SD: ``TV`` (posterior mean of the typical value, natural
            scale; of sigma for a residual), ``RSE %``, ``2.5 %`` and ``97.5 %``, ``IIV CV %`` (log-normal;
            else the SD), its interval, ``shrinkage %``, and the worse of R-hat and ESS over TV and omega.
        """
        post = self.tree["posterior"].to_dataset()
        rows = []
        for p in self.model.parameters:
            typical = post["tv"].sel(parameter=p.name).values
            row = {"parameter": p.name, "unit": p.unit} | _location(typical)
            draws = [] if p.fixed else [typical]
            if p.iiv:
                omega = post["omega"].sel(parameter=p.name).values
                spread = iiv_cv_pct(omega) if p.transform == "log" else omega
                low, high = np.quantile(spread, INTERVAL)
                row |= {"IIV CV %": float(np.median(spread)), "IIV 2.5 %": low, "IIV 97.5 %": high}
                row["shrinkage %"] = 100 * self._shrinkage(p.name)
                draws.append(omega)
            rows.append(row | _convergence(draws))
        for a in self.model.assays:
            sigma = post["sigma"].sel(assay=a.name).values
            rows.append({"parameter": f"sigma {a.name}", "unit": "ln"} | _location(sigma) | _convergence([sigma]))
        return pd.DataFrame(rows).set_index("parameter")

    def _shrinkage(self, name: str) -> float:
        post = self.tree["posterior"].to_dataset()
        means = post["eta"].sel(parameter=name).mean(("chain", "draw")).values
        return 1 - float(np.std(means, ddof=1)) / float(post["omega"].sel(parameter=name).mean())

    def check(self) -> Check:
        """Whether the fit can be trusted, and why not."""
        numbers = self._numbers()
        faults = list(_faults(numbers))
        failed = [text for text, bad, wrong in faults if wrong]
        weak = [text for text, bad, wrong in faults if bad and not wrong]
        if not self.tree.attrs["complete"]:
            weak.insert(0, "The fit was interrupted: it is incomplete.")
        # How the start went is worth a word, and no reason to distrust draws that passed every gate.
        notes = json.loads(self.tree.attrs["notes"])
        status = "failed" if failed else "warning" if weak else "ok"
        return Check(status, (*failed, *weak, *notes), {k: v for k, v in numbers.items() if not isinstance(v, str)})

    def _numbers(self) -> dict:
        names, draws = population_draws(self)
        rhat, bulk, tail = convergence(draws)
        stats = self.tree["sample_stats"].to_dataset()
        return {
            "rhat": float(rhat.max()),
            "worst_rhat": names[int(rhat.argmax())],
            "ess_bulk": float(bulk.min()),
            "worst_ess": names[int(bulk.argmin())],
            "ess_tail": float(tail.min()),
            "divergences": float(stats["diverging"].sum()) if "diverging" in stats else 0.0,
            "draws": float(stats["lp"].size),
            "solver_error": float(self.tree.attrs["solver_error"]),
            "solver_subject": str(self.tree.attrs["solver_error_subject"]),
            "solver_unsolved": float(self.tree.attrs["solver_unsolved"]),
            "sigma": float(self.tree["posterior"].to_dataset()["sigma"].mean(("chain", "draw")).min()),
        } | _of_method(stats)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fit to a netCDF file; an existing file is replaced only once the new one is complete."""
        from carkinetics.fit_file import write_fit

        return write_fit(self, Path(path))


def _faults(n: dict) -> Iterator[tuple[str, bool, bool]]:
    """Each possible fault of a fit: what to say, whether it is there, whether it makes the fit a failed one."""
    text = f"R-hat {n['rhat']:.3f} > {RHAT_MAX} ({n['worst_rhat']}): the chains disagree."
    yield text, n["rhat"] > RHAT_MAX, n["rhat"] > RHAT_FAILED
    text = f"Bulk ESS {n['ess_bulk']:.0f} < {ESS_MIN} ({n['worst_ess']}): sample longer."
    yield text, n["ess_bulk"] < ESS_MIN, n["ess_bulk"] < ESS_FAILED
    text = f"Tail ESS {n['ess_tail']:.0f} < {ESS_MIN}: interval ends are rough."
    yield text, n["ess_tail"] < ESS_MIN, n["ess_tail"] < ESS_FAILED
    text = f"{n['divergences']:.0f} divergent transitions: a region may be missed; raise target_accept."
    yield text, n["divergences"] > 0, n["divergences"] > DIVERGENT_FAILED * n["draws"]
    limit = SOLVER_SHARE * n["sigma"]
    text = f"Solver error {n['solver_error']:.3f} in ln level (patient {n['solver_subject']}): set Settings(refine=2)."
    yield text, n["solver_error"] > limit, n["solver_error"] > n["sigma"]
    text = f"The reference solver failed on {n['solver_unsolved']:.0f} patient-draws: the grid was not checked there."
    yield text, n["solver_unsolved"] > 0, False
    if "renewals" in n:
        text = f"Patient {n['least_renewed']}'s parameters were renewed {n['renewals']:.0f} times < {ESS_MIN}: "
        yield text + "raise Settings.proposals, or use method='nuts'.", n["renewals"] < ESS_MIN, False
    else:
        yield f"E-BFMI {n['ebfmi']:.2f} < {EBFMI_MIN}: the tails are explored slowly.", n["ebfmi"] < EBFMI_MIN, False
        yield f"{n['deepest']:.0f} trajectories were cut at the largest tree depth.", n["deepest"] > 0, False


def _of_method(stats: xr.Dataset) -> dict[str, float | str]:
    """What only one of the samplers has to say."""
    if "renewed" in stats:
        renewals = stats["renewed"].sum(("chain", "draw"))
        least = int(renewals.argmin())
        return {"renewals": float(renewals[least]), "least_renewed": str(stats["subject"].values[least])}
    return {"deepest": float(stats["reached_max_treedepth"].sum()), "ebfmi": _ebfmi(stats["energy"].values)}


def population_draws(
    fit: Fit, *, group: str = "posterior"
) -> tuple[list[str], Float[np.ndarray, "chain draw quantity"]]:
    """Names and draws of all estimated population parameters: typical values (transformed), omegas, sigmas."""
    post = fit.tree[group].to_dataset()
    names, columns = [], []
    for p in fit.model.parameters:
        if not p.fixed:
            names.append(p.name)
            columns.append(post["theta"].sel(parameter=p.name).values)
    for p in fit.model.parameters:
        if p.iiv:
            names.append(f"omega {p.name}")
            columns.append(post["omega"].sel(parameter=p.name).values)
    for a in fit.model.assays:
        names.append(f"sigma {a.name}")
        columns.append(post["sigma"].sel(assay=a.name).values)
    return names, np.stack(columns, axis=-1)


def convergence(
    draws: Float[np.ndarray, "chain draw quantity"],
) -> tuple[Float[np.ndarray, " quantity"], Float[np.ndarray, " quantity"], Float[np.ndarray, " quantity"]]:
    """Rank-normalised split R-hat, bulk ESS and tail ESS of every quantity.

    References
    ----------
    Vehtari A et al., Bayesian Anal 2021;16:667-718, doi:10.1214/20-BA1221; as implemented in ArviZ.
    """
    from arviz_stats.base.array import array_stats

    rhat = array_stats.rhat(draws, chain_axis=0, draw_axis=1)
    bulk = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk")
    tail = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="tail", prob=_TAIL)
    return np.atleast_1d(rhat), np.atleast_1d(bulk), np.atleast_1d(tail)


def gate_failures(draws: Float[np.ndarray, "chain draw quantity"]) -> int:
    """How many quantities miss a gate: R-hat, bulk ESS or tail ESS."""
    rhat, bulk, tail = convergence(draws)
    return int(np.sum(~((rhat <= RHAT_MAX) & (bulk >= ESS_MIN) & (tail >= ESS_MIN))))


def _ebfmi(energy: Float[np.ndarray, "chain draw"]) -> float:
    """Smallest energy Bayesian fraction of missing information over chains (Betancourt 2016, arXiv:1604.00695)."""
    jumps = np.square(np.diff(energy, axis=1)).mean(1)
    return float((jumps / energy.var(1)).min())


def _location(draws: Float[np.ndarray, "chain draw"]) -> dict[str, float]:
    mean, (low, high) = float(draws.mean()), np.quantile(draws, INTERVAL)
    return {"TV": mean, "RSE %": 100 * float(draws.std()) / abs(mean), "2.5 %": float(low), "97.5 %": float(high)}


def _convergence(draws: list[Float[np.ndarray, "chain draw"]]) -> dict[str, float]:
    if not draws:
        return {"R-hat": np.nan, "ESS": np.nan}
    rhat, bulk, _ = convergence(np.stack(draws, axis=-1))
    return {"R-hat": float(rhat.max()), "ESS": float(bulk.min())}
