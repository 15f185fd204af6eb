"""The parameter table of a fit, as in a paper: typical values, variability, effects, residuals, and how well known."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from carkinetics.inference.gates import convergence
from carkinetics.inputs import infusions_of
from carkinetics.layout import make_layout
from carkinetics.model_parts import Parameter, iiv_cv_pct
from carkinetics.residuals import RESIDUALS
from carkinetics.structures.occasions import Occasions, factors

if TYPE_CHECKING:
    from carkinetics.fit_result import Fit

Draws = Float[np.ndarray, "chain draw"]  # of one number

INTERVAL = (0.025, 0.975)  # equal-tailed 95 %
_NORMAL_END = 1.959963984540054  # the SDs from the mean to either end of that interval of a Gaussian


def parameter_table(fit: "Fit") -> pd.DataFrame:
    """What :meth:`carkinetics.Fit.parameters` returns."""
    table = _Table(fit)
    rows = [*table.typical(), *table.occasions(), *table.effects(), *table.classes(), *table.correlations()]
    rows += table.residuals()
    return pd.DataFrame(rows).set_index("parameter")


def contraction(fit: "Fit") -> dict[str, float]:
    """How much of its prior variance every component of ``phi`` has lost: 1 is known, 0 is the prior.

    On the sampler's scale (logs of positive quantities), from the draws of both; negative where the data have moved a
    skewed prior to where it is wide.
    """
    names = make_layout(fit.model).phi_names
    after, before = (fit.tree[group].to_dataset()["phi"].values for group in ("posterior", "prior"))
    ratio = after.var(axis=(0, 1)) / before.var(axis=(0, 1))
    return dict(zip(names, (1 - ratio).tolist(), strict=True))


class _Table:
    """Rows of the table, by kind."""

    def __init__(self, fit: "Fit"):
        self.fit, self.model, self.label = fit, fit.model, fit.label
        self.post: xr.Dataset = fit.tree["posterior"].to_dataset()
        self.layout, self.contracted = make_layout(fit.model), contraction(fit)

    def typical(self) -> Iterator[dict]:
        """Typical values with their variability."""
        folded = {name for names in self._factors().values() for name in names if self._is_one(name)}
        for p in self.model.parameters:
            if p.name in folded:
                continue
            typical, theta = (self.post[name].sel(parameter=p.name).values for name in ("tv", "theta"))
            row = {"parameter": p.name, "unit": p.unit}
            row |= self._location(typical, theta, partial(_natural, p)) | self._contraction(p.name)
            draws = [] if p.fixed else [typical]
            if p.iiv:
                omega = self.post["omega"].sel(parameter=p.name).values
                row |= self._variability(omega, iiv_cv_pct if p.transform == "log" else np.asarray)
                row["shrinkage %"] = 100 * self._shrinkage(p.name)
                draws.append(omega)
            yield row | self._made(draws)

    def occasions(self) -> Iterator[dict]:
        """The SD between infusions of a patient, one row in the place of those of the factors."""
        for parameter, names in self._factors().items():
            if self.model[names[0]].iiv:
                omega = self.post["omega"].sel(parameter=names[0]).values
                row = {"parameter": f"iov {parameter}", "unit": "ln"} | self._location(omega, np.log(omega), np.exp)
                eta = self.post["eta"].sel(parameter=list(names)).mean(("chain", "draw")).values
                given = np.arange(len(names)) < infusions_of(self.fit.data)[:, None]  # others have no samples
                row["shrinkage %"] = 100 * (1 - float(np.std(eta[given], ddof=1)) / float(omega.mean()))
                yield row | self._contraction(f"omega {names[0]}") | self._made([omega])

    def _factors(self) -> dict[str, tuple[str, ...]]:
        """Factors of the infusions, of every parameter that varies between them."""
        structure = self.model.structure
        return {v: factors(v, structure.n) for v in structure.varying} if isinstance(structure, Occasions) else {}

    def _is_one(self, name: str) -> bool:
        """Whether a factor's typical value is 1 and known, and its SD that of the first infusion's."""
        p = self.model[name]
        return p.fixed and p.value == 1 and (bool(p.omega_of) or name.endswith("_occ1"))

    def effects(self) -> Iterator[dict]:
        """Effects of covariates."""
        for e in self.layout.effects:
            beta = self.post["beta"].sel(effect=e.name).values
            row = {"parameter": e.name, "unit": ""} | self._location(beta, beta, float)
            yield row | self._contraction(e.name) | self._made([] if e.fixed else [beta])

    def classes(self) -> Iterator[dict]:
        """The second class of a mixture: its typical value and its share."""
        mixture = self.model.mixture
        if mixture is None:
            return
        on = self.model[mixture.on]
        for name, unit, key, component in (
            (f"{mixture.on} {mixture.label}", on.unit, "tv_second", f"step {mixture.on}"),
            (f"share {mixture.label}", "1", "share_second", f"odds {mixture.label}"),
        ):
            values = self.post[key].values
            row = {"parameter": name, "unit": unit} | self._location(values, values, float)
            yield row | self._contraction(component) | self._made([values])

    def correlations(self) -> Iterator[dict]:
        """Correlations of random effects, one row a pair."""
        if self.model.correlation is None:
            return
        names = self.model.correlation.parameters
        for i in range(1, len(names)):
            for j in range(i):
                values = self.post["correlation"].sel({"random": names[i], "with": names[j]}).values
                name = f"corr {names[j]} {names[i]}"
                row = {"parameter": name, "unit": ""} | self._location(values, values, float)
                yield row | self._contraction(name) | self._made([values])

    def residuals(self) -> Iterator[dict]:
        """Residual parameters of every assay."""
        for k, a in enumerate(self.model.assays):
            for j, p in enumerate(RESIDUALS[a.error].params):
                values = self.post["sigma" if j == 0 else p.name].sel(assay=a.name).values
                unit = {"sigma": "ln", "additive": a.unit}.get(p.name, "1")
                row = {"parameter": f"{p.name} {a.name}", "unit": unit} | self._location(values, np.log(values), np.exp)
                known = (j, k) not in self.layout.residuals
                yield row | self._contraction(f"{p.name} {a.name}") | self._made([] if known else [values])

    def _contraction(self, name: str) -> dict[str, float]:
        return {"contraction %": 100 * self.contracted.get(name, np.nan)}

    def _location(self, natural: Draws, transformed: Draws, to_natural: Callable) -> dict[str, float]:
        if self.fit.method == "laplace":
            middle, low, high = _gaussian(transformed, to_natural)
        else:
            middle, (low, high) = float(natural.mean()), np.quantile(natural, INTERVAL)
        rse = 100 * float(natural.std()) / abs(middle) if middle else np.nan
        return {"TV": middle, "RSE %": rse, "2.5 %": float(low), "97.5 %": float(high)}

    def _variability(self, omega: Draws, spread: Callable) -> dict[str, float]:
        if self.fit.method == "laplace":
            middle, low, high = _gaussian(np.log(omega), lambda x: spread(np.exp(x)))
        else:
            middle, (low, high) = float(np.median(spread(omega))), np.quantile(spread(omega), INTERVAL)
        return {"IIV CV %": middle, "IIV 2.5 %": low, "IIV 97.5 %": high}

    def _made(self, draws: list[Draws]) -> dict:
        """How well the draws represent the posterior, or that they are of an approximation."""
        if self.label:
            return {"method": self.label}
        if not draws:
            return {"R-hat": np.nan, "ESS": np.nan}
        rhat, bulk, _ = convergence(np.stack(draws, axis=-1))
        return {"R-hat": float(rhat.max()), "ESS": float(bulk.min())}

    def _shrinkage(self, name: str) -> float:
        means = self.post["eta"].sel(parameter=name).astype(float).mean(("chain", "draw")).values
        return 1 - float(np.std(means, ddof=1)) / float(self.post["omega"].sel(parameter=name).mean())


def _natural(parameter: Parameter, x: float) -> float:
    with jax.enable_x64(True):
        return float(parameter.inverse(x))


def _gaussian(transformed: Draws, to_natural: Callable) -> tuple[float, float, float]:
    """Centre and 95 % interval, natural scale, of the Gaussian whose mean and SD are those of its draws."""
    mean, sd = float(transformed.mean()), float(transformed.std())
    middle, low, high = (float(to_natural(mean + k * sd)) for k in (0, -_NORMAL_END, _NORMAL_END))
    return middle, low, high


PRIOR_SAYS = 0.2  # share of the prior's variance, a tenth of its SD: with less of it gone, the posterior is the prior's


def prior_notes(fit: "Fit") -> list[str]:
    """What of the population the data do not tell, in words."""
    notes = []
    if not fit.label:  # an approximation names them itself
        names = [name for name, gone in contraction(fit).items() if gone < PRIOR_SAYS]
        if names:
            notes.append(f"{', '.join(names)}: not identified by these data; the posterior is as wide as the prior.")
    last = float(fit.data.time.max(initial=0.0))
    typical = fit.tree["posterior"].to_dataset()["tv"]
    for p in fit.model.parameters:
        rate = float(np.median(typical.sel(parameter=p.name).values)) if p.unit == "1/day" else 0.0
        half_life = np.log(2) / rate if rate > 0 else 0.0  # a process that is switched off has none
        if half_life > last:
            notes.append(
                f"{p.name}: a half-life of {half_life:.0f} days, and no sample after day {last:.0f}. Beyond that the "
                "curves are extrapolated."
            )
    return notes
