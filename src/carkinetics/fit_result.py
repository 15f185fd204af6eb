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
from carkinetics.errors import ModelError
from carkinetics.findings import listed
from carkinetics.inference.gates import ESS_MIN, RHAT_MAX, convergence
from carkinetics.inference.laplace import OMEGA_BOUNDS
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.parameter_table import INTERVAL, parameter_table, prior_notes

EBFMI_MIN = 0.3
SOLVER_SHARE = 0.05  # of the residual SD: the solver may be off by that much in ln level
# Beyond these a fit is not a weak one but a wrong one.
RHAT_FAILED = 1.05
ESS_FAILED = 100
DIVERGENT_FAILED = 0.01  # share of transitions
# Of a Laplace approximation: how far its search still moved in the last round, in posterior SDs.
MOVE_MAX = 0.1
MOVE_FAILED = 0.5

_NAMED = 5  # patients about whom chains disagree
_BESIDE = 0.5  # of the population's R-hat - 1: a patient's that comes near it may be its cause


@dataclass(frozen=True)
class Check:
    """Whether a fit can be trusted.

    Attributes
    ----------
    status : {"ok", "approximation", "warning", "failed"}
        ``approximation`` is the best that a fit which was not sampled can be.
    reasons : tuple of str
        Why it is not ok, worst first; then what else is worth knowing about the run.
    numbers : dict
        Largest R-hat, smallest bulk and tail ESS over population parameters, divergences, E-BFMI; of a Laplace
        approximation ``last_move``.
    """

    status: Literal["ok", "approximation", "warning", "failed"]
    reasons: tuple[str, ...]
    numbers: dict[str, float]

    def __str__(self) -> str:
        n = self.numbers
        head = (
            f"{self.status}: a Laplace approximation, not sampled; its search moved by {n['last_move']:.2f} SD at last"
            if "last_move" in n
            else f"{self.status}: R-hat <= {n['rhat']:.3f}, bulk ESS >= {n['ess_bulk']:.0f}, "
            f"tail ESS >= {n['ess_tail']:.0f}, {n['divergences']:.0f} divergences in {n['draws']:.0f} draws"
        )
        return "\n".join([head, *(f"- {r}" for r in self.reasons)])


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A model, the data it was fitted to, and the draws: of the posterior, or of a Gaussian approximation to it.

    Attributes
    ----------
    tree : xarray.DataTree
        ArviZ layout; see :func:`carkinetics.fit_tree.build_tree` for its groups, names and dimensions.
    """

    model: Model
    data: Dataset
    tree: xr.DataTree

    @property
    def method(self) -> str:
        """``nuts``: the posterior was sampled. ``laplace``: it was approximated."""
        return str(self.tree.attrs["method"])

    @property
    def label(self) -> str:
        """What a table or figure of this fit has to say about how it was made; empty if the posterior was sampled."""
        return "Laplace approximation, not sampled" if self.method == "laplace" else ""

    def __repr__(self) -> str:
        return f"Fit({self.model.name}, {self.data.n_subjects} subjects, method={self.method!r}" + (
            f": {self.label})" if self.label else ")"
        )

    def parameters(self) -> pd.DataFrame:
        """The parameter table, as in a paper.

        Returns
        -------
        DataFrame
            One row per parameter, then per SD between occasions (``iov cmax``, of the log; its factors, ``cmax_occ1``
            and so on, are in ``tree`` alone), effect of a covariate, second class, correlation and residual parameter:
            ``TV`` (posterior mean of the typical value, natural scale, or of what the row names), ``RSE %``, ``2.5 %``
            and ``97.5 %``, ``contraction %`` (how much of its prior variance it has lost, on the sampler's scale: 0 is
            the prior), ``IIV CV %`` (log-normal; else the SD), its interval, ``shrinkage %``, and the worse of R-hat
            and ESS over TV and omega. Of a
            Laplace approximation ``TV`` and ``IIV CV %`` are the values at the Gaussian's centre, the intervals its
            own, and in the place of R-hat and ESS the column ``method`` says so.
        """
        return parameter_table(self)

    def classes(self) -> pd.DataFrame:
        """Of a mixture: every patient's probability of being of the second class.

        Returns
        -------
        DataFrame
            One row a patient: ``probability``, and ``2.5 %`` and ``97.5 %`` of the probability given the population
            and the patient's own parameters, over the draws of both.

        Raises
        ------
        ModelError
            The model has one class.
        """
        if self.model.mixture is None:
            raise ModelError(f"{self.model.name} has one class of patients; see model.with_mixture.")
        second = self.tree["posterior"].to_dataset()["second"]
        low, high = np.quantile(second.values, INTERVAL, axis=(0, 1))
        columns = {"probability": second.values.mean(axis=(0, 1)), "2.5 %": low, "97.5 %": high}
        return pd.DataFrame(columns, index=pd.Index(self.data.subjects, name="ID"))

    def check(self) -> Check:
        """Whether the fit can be trusted, and why not."""
        numbers = self._approximation() if self.method == "laplace" else self._numbers()
        faults = list(_faults(numbers) if "rhat" in numbers else _faults_of_approximation(numbers))
        failed = [text for text, bad, wrong in faults if wrong]
        weak = [text for text, bad, wrong in faults if bad and not wrong]
        if not self.tree.attrs["complete"]:
            weak.insert(0, "The fit was interrupted: it is incomplete.")
        # How the start went is worth a word, and no reason to distrust draws that passed every gate.
        notes = json.loads(self.tree.attrs["notes"]) + prior_notes(self)
        status = "failed" if failed else "warning" if weak else "approximation" if self.label else "ok"
        return Check(status, (*failed, *weak, *notes), {k: v for k, v in numbers.items() if not isinstance(v, str)})

    def _approximation(self) -> dict:
        found = json.loads(self.tree.attrs["approximation"])
        named = {k: ", ".join(found[k]) for k in ("lost", "at_bound")}
        return {"last_move": found["last_move"]} | named | self._solver()

    def _numbers(self) -> dict:
        names, draws = population_draws(self)
        rhat, bulk, tail = convergence(draws)
        stats = self.tree["sample_stats"].to_dataset()
        return (
            {
                "rhat": float(rhat.max()),
                "worst_rhat": names[int(rhat.argmax())],
                "disagreed": self._disagreed(rhat.max()) if rhat.max() > RHAT_MAX else "",
                "ess_bulk": float(bulk.min()),
                "worst_ess": names[int(bulk.argmin())],
                "ess_tail": float(tail.min()),
                "divergences": float(stats["diverging"].sum()),
                "draws": float(stats["diverging"].size),
            }
            | _of_method(stats)
            | self._solver()
        )

    def _disagreed(self, population: float) -> str:
        """The patients and parameters with the largest R-hat, in words: large, or beside the population's."""
        random = [p.name for p in self.model.parameters if p.iiv]
        eta = self.tree["posterior"].to_dataset()["eta"].sel(parameter=random)
        eta = eta.transpose("chain", "draw", "subject", "parameter")
        rhat, _, _ = convergence(eta.values.reshape(*eta.shape[:2], -1).astype(float))
        beside = min(RHAT_FAILED, max(RHAT_MAX, 1 + _BESIDE * (population - 1)))
        order = [k for k in np.argsort(-np.nan_to_num(rhat)) if rhat[k] > beside]
        worst: dict[str, str] = {}  # by patient
        for k in order:
            subject, parameter = divmod(int(k), eta.shape[3])
            text = f"{eta['parameter'].values[parameter]}, R-hat {rhat[k]:.2f}"
            worst.setdefault(str(eta["subject"].values[subject]), text)
        named = [f"patient {who} ({text})" for who, text in list(worst.items())[:_NAMED]]
        return listed(named) if named else ""

    def _solver(self) -> dict:
        return {
            "solver_error": float(self.tree.attrs["solver_error"]),
            "solver_subject": str(self.tree.attrs["solver_error_subject"]),
            **_counted("solver_failed", self.tree.attrs, "solver_draws"),
            **_counted("solver_unsolved", self.tree.attrs, "solver_draws"),
            **_counted("around_failed", self.tree.attrs, "around_places"),
            "sigma": float(self.tree["posterior"].to_dataset()["sigma"].mean(("chain", "draw")).min()),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fit to a netCDF file; an existing file is replaced only once the new one is complete."""
        from carkinetics.fit_file import write_fit

        return write_fit(self, Path(path))

    def to_model(self, path: str | os.PathLike[str] | None = None, *, name: str | None = None) -> Model:
        """The model whose priors are this posterior: for the next trial, and for simulating.

        Typical values (transformed), ln omegas and ln sigmas get the posterior's means, SDs and correlations: a
        Gaussian on the sampler's scale. Values are the exponentials (logistic of logit) of those means.

        Parameters
        ----------
        path : str or Path, optional
            Also write it as a model file; ``name`` is then the file's name unless given.
        """
        from carkinetics.posterior_model import posterior_model, write_model

        file = None if path is None else Path(path)
        model = posterior_model(self, name or (file.stem if file is not None else f"{self.model.name}_posterior"))
        return model if file is None else write_model(model, file)


def _counted(name: str, attributes: dict, of: str) -> dict[str, float | str]:
    """How many failures were counted, and in which patients, as ``patient V07 (3 of 8)``."""
    counts = json.loads(attributes[name])
    who = listed(f"{i} ({k} of {attributes[of]})" for i, k in counts.items())
    return {name: float(sum(counts.values())), f"{name}_patients": f"patient{'s' if len(counts) > 1 else ''} {who}"}


def _faults(n: dict) -> Iterator[tuple[str, bool, bool]]:
    """Each possible fault of a fit: what to say, whether it is there, whether it makes the fit a failed one."""
    text = f"R-hat {n['rhat']:.3f} > {RHAT_MAX} ({n['worst_rhat']}): the chains disagree."
    yield text, n["rhat"] > RHAT_MAX, n["rhat"] > RHAT_FAILED
    text = f"The chains disagree most about {n['disagreed']}: look at their curves for a second explanation."
    yield text, bool(n["disagreed"]), bool(n["disagreed"]) and n["rhat"] > RHAT_FAILED
    text = f"Bulk ESS {n['ess_bulk']:.0f} < {ESS_MIN} ({n['worst_ess']}): sample longer."
    yield text, n["ess_bulk"] < ESS_MIN, n["ess_bulk"] < ESS_FAILED
    text = f"Tail ESS {n['ess_tail']:.0f} < {ESS_MIN}: interval ends are rough."
    yield text, n["ess_tail"] < ESS_MIN, n["ess_tail"] < ESS_FAILED
    text = f"{n['divergences']:.0f} divergent transitions: a region may be missed; raise target_accept."
    yield text, n["divergences"] > 0, n["divergences"] > DIVERGENT_FAILED * n["draws"]
    text = (
        "Near divergent transitions a density or its gradient is not finite, in places looked at: "
        f"{n['around_failed_patients']}. Tighten what the priors allow there: see carkinetics.stress_test."
    )
    yield text, n["around_failed"] > 0, False
    yield from _faults_of_solver(n)
    if "renewals" in n:
        text = f"Patient {n['least_renewed']}'s parameters were renewed {n['renewals']:.0f} times < {ESS_MIN}: "
        yield text + "raise Settings.proposals, or use method='nuts'.", n["renewals"] < ESS_MIN, False
    else:
        yield f"E-BFMI {n['ebfmi']:.2f} < {EBFMI_MIN}: the tails are explored slowly.", n["ebfmi"] < EBFMI_MIN, False
        yield f"{n['deepest']:.0f} trajectories were cut at the largest tree depth.", n["deepest"] > 0, False


def _of_method(stats: xr.Dataset) -> dict[str, float | str]:
    """What only one of the samplers has to say."""
    if "renewed" in stats:
        renewals = stats["renewed"].sum(("chain", "draw")).values
        least = int(renewals.argmin())
        return {"renewals": float(renewals[least]), "least_renewed": str(stats["subject"].values[least])}
    return {"deepest": float(stats["reached_max_treedepth"].sum()), "ebfmi": _ebfmi(stats["energy"].values)}


def _faults_of_solver(n: dict) -> Iterator[tuple[str, bool, bool]]:
    limit = SOLVER_SHARE * n["sigma"]
    text = f"Solver error {n['solver_error']:.3f} in ln level (patient {n['solver_subject']}): set Settings(refine=2)."
    yield text, n["solver_error"] > limit, n["solver_error"] > n["sigma"]
    text = f"The curve is not finite at posterior draws: {n['solver_failed_patients']}."
    yield text, n["solver_failed"] > 0, False
    text = f"The reference solver failed at posterior draws, unchecked there: {n['solver_unsolved_patients']}."
    yield text, n["solver_unsolved"] > 0, False


def _faults_of_approximation(n: dict) -> Iterator[tuple[str, bool, bool]]:
    """As :func:`_faults`, of a Laplace approximation."""
    text = f"The search still moved by {n['last_move']:.2f} > {MOVE_MAX} posterior SDs at last: use method='nuts'."
    yield text, not n["last_move"] <= MOVE_MAX, not n["last_move"] <= MOVE_FAILED
    yield f"No Gaussian fits patient(s) {n['lost']}: do not trust their individual estimates.", bool(n["lost"]), False
    text = f"{n['at_bound']}: at the bound of {OMEGA_BOUNDS[0]} or {OMEGA_BOUNDS[1]}; the estimate is the bound."
    yield text, bool(n["at_bound"]), False
    yield from _faults_of_solver(n)


def population_draws(
    fit: Fit, *, group: str = "posterior"
) -> tuple[list[str], Float[np.ndarray, "chain draw quantity"]]:
    """Names and draws of all estimated population parameters, the positive ones (omegas, sigmas) on natural scale."""
    components = make_layout(fit.model).components
    phi = fit.tree[group].to_dataset()["phi"].values
    return [c.name for c in components], np.where([c.log for c in components], np.exp(phi), phi)


def phi_draws(fit: Fit) -> Float[np.ndarray, "draw phi"]:
    """All draws of ``phi``, the population parameters as the sampler moves them."""
    phi = fit.tree["posterior"].to_dataset()["phi"].values
    return phi.reshape(-1, phi.shape[-1])


def _ebfmi(energy: Float[np.ndarray, "chain draw"]) -> float:
    """Smallest energy Bayesian fraction of missing information over chains (Betancourt 2016, arXiv:1604.00695)."""
    jumps = np.square(np.diff(energy, axis=1)).mean(1)
    return float((jumps / energy.var(1)).min())
