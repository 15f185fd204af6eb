"""Tables that say how a fit and its data agree; :mod:`carkinetics.plots` draws them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int
from scipy import special

from carkinetics import solvers
from carkinetics.dataset import Dataset
from carkinetics.density import ln_curves
from carkinetics.errors import ModelError
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import counted_in, design_of, inputs_of, ln_offset
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_parts import Assay, nearest_or_raise
from carkinetics.population import natural, population, residuals
from carkinetics.prediction_errors import PredictionErrors
from carkinetics.residuals import RESIDUALS
from carkinetics.structure import Inputs

_LN_ZERO = -700.0  # stands for the natural log of 0, so that quantiles can be interpolated


def gof(fit: Fit, *, npde: PredictionErrors | None = None) -> pd.DataFrame:
    """The goodness-of-fit table, one row per observation, in the dataset's order.

    Parameters
    ----------
    npde : PredictionErrors, optional
        Of :func:`carkinetics.npde`, of the same data: what fills the column ``NPDE``.

    Returns
    -------
    DataFrame
        ``ID TIME DVID DV CENS PRED IPRED IWRES NPDE TAD``. ``PRED`` is the prediction with all random effects at zero,
        ``IPRED`` the individual's: posterior medians, in the assay's unit. ``IWRES`` is the individual weighted
        residual at the posterior means of the residual parameters, see :func:`individual_residuals`; it is missing
        where the value is censored, since the residual of a limit is none. ``NPDE`` is missing unless it is given.
        ``TAD``: days since the last infusion on or before ``TIME``; of a sample before the first, ``TIME`` itself.

    Raises
    ------
    ModelError
        The prediction errors are of other samples.
    """
    data, posterior = fit.data, fit.tree["posterior"].to_dataset()
    pred = np.median(posterior["pred"].values, axis=(0, 1))
    ipred = np.median(posterior["ipred"].values, axis=(0, 1)).astype(float)
    if npde is not None and not all(np.array_equal(npde.rows[c], x) for c, x in (("DV", data.dv), ("TIME", data.time))):
        raise ModelError(f"npde: it is of other samples than {data.source}, to which the model was fitted.")
    return pd.DataFrame(
        {
            "ID": np.array(data.subjects, dtype=object)[data.subject],
            "TIME": data.time,
            "DVID": np.array(data.assays, dtype=object)[data.assay],
            "DV": data.dv,
            "CENS": data.cens,
            "PRED": pred,
            "IPRED": ipred,
            "IWRES": np.where(data.cens == 0, individual_residuals(fit, ipred), np.nan),
            "NPDE": np.full(data.n_obs, np.nan) if npde is None else npde.rows["NPDE"].to_numpy(),
            "TAD": since_infusion(data),
        }
    )


def since_infusion(data: Dataset) -> Float[np.ndarray, " row"]:
    """Days from the last infusion on or before every row; before the first one, the row's own day."""
    rows, found = data.doses(), data.time.copy()
    for i, name in enumerate(data.subjects):
        days = np.append(rows.loc[rows["ID"] == name, "TIME"].to_numpy(float), 0.0)
        days = np.unique(np.maximum(days, 0.0))  # what is infused before day 0 is, together, the infusion of day 0
        here = np.flatnonzero((data.subject == i) & (data.time >= 0))
        found[here] = data.time[here] - days[np.searchsorted(days, data.time[here], side="right") - 1]
    return found


def individual_residuals(fit: Fit, ipred: Float[np.ndarray, " obs"]) -> Float[np.ndarray, " obs"]:
    """Residuals that are standard normal if the prediction and the residual's family are right.

    ``(ln DV - ln IPRED) / sigma`` of log-normal residuals, with both SDs together where replicates share a sample;
    ``(DV - IPRED) / SD`` of combined ones; of Student-t and of counts the normal quantile of the predicted probability
    of a smaller value, of a count that of half its own probability more.
    """
    data, posterior = fit.data, fit.tree["posterior"].to_dataset().mean(("chain", "draw"))
    found = weighted_residuals(fit, ipred)
    for k, name in enumerate(data.assays):
        here, assay = data.assay == k, next(a for a in fit.model.assays if a.name == name)
        family = RESIDUALS[assay.error]
        names = ("sigma", *(p.name for p in family.params[1:]))
        parameters = [float(posterior[n].sel(assay=name)) for n in names]
        with np.errstate(divide="ignore"):
            ln_dv, ln_pred = np.log(data.dv[here]), np.log(ipred[here].astype(float))
        if assay.error == "replicates":
            found[here] = (ln_dv - ln_pred) / np.hypot(parameters[0], parameters[1])
        elif assay.error == "student_t":
            sigma, nu = parameters
            z = (ln_dv - ln_pred) / sigma
            found[here] = -np.sign(z) * special.ndtri(special.stdtr(nu, -np.abs(z)))  # the lower tail keeps its digits
        elif family.counts:
            found[here] = _of_counts(np.round(data.dv[here]), ipred[here].astype(float), parameters[0])
    return found


def _of_counts(
    count: Float[np.ndarray, " n"], mean: Float[np.ndarray, " n"], dispersion: float
) -> Float[np.ndarray, " n"]:
    """Normal quantiles of negative binomial counts, each in the middle of its own probability."""
    k, x = 1 / dispersion, dispersion * mean / (1 + dispersion * mean)
    # P(count > y) and P(count <= y) are incomplete beta functions, each with the digits of its own tail.
    above, below = (f(np.maximum(count, 0) + 1, k, x) for f in (special.betainc, special.betaincc))
    some, shift = count > 0, np.where(count > 0, count, 1.0)
    above = 0.5 * (above + np.where(some, special.betainc(shift, k, x), 1.0))
    below = 0.5 * (below + np.where(some, special.betaincc(shift, k, x), 0.0))
    return np.where(below < 0.5, special.ndtri(below), -special.ndtri(above))


def weighted_residuals(
    fit: Fit, ipred: Float[np.ndarray, "*draw obs"], dv: Float[np.ndarray, "*draw obs"] | None = None
) -> Float[np.ndarray, "*draw obs"]:
    """Residuals in units of their scale, at posterior means of the residual parameters; of the data unless given."""
    dv = fit.data.dv if dv is None else dv
    data, posterior = fit.data, fit.tree["posterior"].to_dataset().mean(("chain", "draw"))
    found = np.full(ipred.shape, np.nan)
    for k, name in enumerate(data.assays):
        here, assay = data.assay == k, next(a for a in fit.model.assays if a.name == name)
        with np.errstate(divide="ignore"):
            found[..., here] = _weighted(assay, posterior.sel(assay=name), dv[..., here], ipred[..., here])
    return found


def _weighted(assay: Assay, posterior: xr.Dataset, dv, ipred):
    first = float(posterior["sigma"])
    if assay.error == "combined":
        return (dv - ipred) / np.hypot(first * ipred, float(posterior["additive"]))
    if assay.error == "negative_binomial":
        return (dv - ipred) / np.sqrt(ipred + first * ipred**2)
    least = np.finfo(float).tiny  # what is stored in single precision may be 0 on both sides
    return (np.log(np.maximum(dv, least)) - np.log(np.maximum(ipred, least))) / first


def individual_curves(
    fit: Fit, *, subjects: Sequence[str] | None = None, points: int = 120, draws: int = 400, interval: float = 0.90
) -> pd.DataFrame:
    """Each patient's curve over its own follow-up, with the uncertainty of the fit.

    Parameters
    ----------
    subjects : sequence of str, optional
        Patients; all by default.
    points : int
        Times per patient, from day 0 to the patient's last sample.
    draws : int
        Posterior draws used, spread evenly over the chains.
    interval : float
        Width of the equal-tailed interval.

    Returns
    -------
    DataFrame
        ``ID TIME DVID IPRED LOW HIGH PRED``, in the assay's unit: posterior median and interval of the
        individual's curve, and the median curve with all random effects at zero. The interval is of the
        curve; a sample's residual error comes on top. Of counts, as of :func:`individual_fits`.
    """
    low, high = (1 - interval) / 2, (1 + interval) / 2
    tables = []
    for grid in _grids(fit, subjects, points, draws):
        ipred, below, above = np.exp(np.quantile(grid.curves, [0.5, low, high], axis=0) + grid.ln_per)
        typical = np.exp(np.median(grid.typical, axis=0) + grid.ln_per)
        columns = {"IPRED": ipred, "LOW": below, "HIGH": above, "PRED": typical}
        tables += list(grid.tables(columns))
    return pd.concat(tables, ignore_index=True)


def individual_fits(
    fit: Fit, *, subjects: Sequence[str] | None = None, points: int = 80, draws: int = 1000
) -> pd.DataFrame:
    """Each patient's curve over its own follow-up, with 50 % and 90 % bands of the curve and of new samples.

    Parameters
    ----------
    subjects : sequence of str, optional
        Patients; all by default.
    points : int
        Times per patient, as of :func:`individual_curves`.
    draws : int
        Posterior draws used; of each, one new sample a time. Their residuals are drawn with the fit's own seed.

    Returns
    -------
    DataFrame
        ``ID TIME DVID PRED IPRED``, then quantiles in percent: ``IPRED_5 IPRED_25 IPRED_75 IPRED_95`` of the curve, and
        ``NEW_5 NEW_25 NEW_50 NEW_75 NEW_95`` of a sample that might have been taken then; in the assay's unit. Of
        counts, in the median of what the patient's samples were counted in. ``IPRED`` and ``PRED`` are medians.
    """
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    rng, tables = np.random.default_rng([int(fit.tree.attrs["seed"]), 3]), []
    layout = make_layout(fit.model)
    with jax.enable_x64(True):
        residual = np.asarray(jax.vmap(lambda phi: residuals(layout, phi))(jnp.asarray(phi_draws(fit))))
    for grid in _grids(fit, subjects, points, draws):
        a = fit.model.assays.index(grid.assay)
        family, curves = RESIDUALS[grid.assay.error], grid.curves + grid.ln_per
        parameters = [residual[grid.keep, j, a, None, None] for j in range(len(family.params))]
        drawn = np.maximum(family.draw(rng, curves, *parameters), _LN_ZERO)
        old, new = (np.exp(np.quantile(x, levels, axis=0)) for x in (curves, drawn))
        columns = {"PRED": np.exp(np.median(grid.typical + grid.ln_per, axis=0)), "IPRED": old[2]}
        columns |= {f"IPRED_{100 * q:.0f}": x for q, x in zip(levels, old, strict=True) if q != 0.5}
        columns |= {f"NEW_{100 * q:.0f}": x for q, x in zip(levels, new, strict=True)}
        tables += list(grid.tables(columns))
    return pd.concat(tables, ignore_index=True)


class _Grid(NamedTuple):
    """One assay's curves of some patients at their own times, natural logs, by draw."""

    assay: Assay
    subjects: list[str]
    times: Float[np.ndarray, "time subject"]
    keep: Int[np.ndarray, " sample"]  # draws
    curves: Float[np.ndarray, "sample time subject"]
    typical: Float[np.ndarray, "sample time subject"]
    ln_per: Float[np.ndarray, " subject"]  # of what counts were made in

    def tables(self, columns: Mapping[str, Float[np.ndarray, "time subject"]]) -> Iterator[pd.DataFrame]:
        """One table a patient."""
        for j, subject in enumerate(self.subjects):
            where = {"ID": subject, "TIME": self.times[:, j], "DVID": self.assay.name}
            yield pd.DataFrame(where | {name: values[:, j] for name, values in columns.items()})


def _grids(fit: Fit, subjects: Sequence[str] | None, points: int, draws: int) -> Iterator[_Grid]:
    model, data = fit.model, fit.data
    chosen = list(data.subjects if subjects is None else subjects)
    place = [data.subjects.index(nearest_or_raise(s, data.subjects, "patient", data.source)) for s in chosen]
    posterior = fit.tree["posterior"].to_dataset().stack(sample=("chain", "draw"))
    keep = np.unique(np.linspace(0, posterior.sizes["sample"] - 1, draws).astype(int))
    individual = posterior["individual"].isel(subject=place, sample=keep).transpose("parameter", "sample", "subject")
    typical = _typical(fit, keep)[:, :, place]
    last = [data.time[data.subject == i].max(initial=28.0) for i in place]
    times = np.linspace(0.0, last, points)  # (time, subject)
    # A patient whose samples lie close together early on needs a finer grid there: half of it before day 40.
    early = np.linspace(0.0, np.minimum(last, 40.0), points // 2)
    times = np.sort(np.concatenate([early, times]), axis=0)
    with jax.enable_x64(True):
        inputs = jax.tree.map(lambda a: a[..., np.array(place)], inputs_of(model, data))
    for assay in model.assays:
        curves = _ln_curves(model, assay, times, inputs, individual.values)
        middle = _ln_curves(model, assay, times, inputs, typical)
        yield _Grid(assay, chosen, times, keep, curves, middle, _ln_per(data, assay)[place])


def _ln_per(data: Dataset, assay: Assay) -> Float[np.ndarray, " subject"]:
    """ln of the median of what each patient's samples were counted in; 0 of other assays and without samples."""
    found = np.zeros(data.n_subjects)
    if assay.per and assay.name in data.assays:
        amount, mine = counted_in(data, assay.per), data.assay == data.assays.index(assay.name)
        for i in np.unique(data.subject[mine]):
            found[i] = np.log(np.median(amount[mine & (data.subject == i)]))
    return found


def _typical(fit: Fit, keep: np.ndarray) -> Float[np.ndarray, "parameter sample subject"]:
    """Natural-scale parameters of patients without random effects, of these draws; of the first class of a mixture."""
    layout, phi = make_layout(fit.model), phi_draws(fit)[keep]
    with jax.enable_x64(True):
        design = jnp.asarray(design_of(fit.model, fit.data))

        def one(phi):
            typical = population(layout, phi, design).typical
            return natural(layout, jnp.broadcast_to(typical, (len(typical), fit.data.n_subjects)))

        return np.asarray(jax.jit(jax.vmap(one, out_axes=1))(jnp.asarray(phi)))


def _ln_curves(
    model: Model,
    assay: Assay,
    times: Float[np.ndarray, "time subject"],
    inputs: Inputs,
    values: Float[np.ndarray, "parameter sample subject"],
) -> Float[np.ndarray, "sample time subject"]:
    """Natural log of what an assay reads, for every draw of the natural-scale individual parameters."""
    with jax.enable_x64(True):
        grid, offset = solvers.make_grid(model.structure, times, inputs), ln_offset(assay, inputs, times)
        ratio = make_layout(model).ratios[model.assays.index(assay)]

        def one(draw):
            ln = ln_curves(model.structure, grid, draw, inputs)[assay.output] + offset
            return ln if ratio < 0 else ln + jnp.log(draw[ratio])

        return np.asarray(jax.jit(jax.vmap(one, in_axes=1))(jnp.asarray(values, float)))
