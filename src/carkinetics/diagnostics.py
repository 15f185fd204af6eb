"""Tables that say how a fit and its data agree; :mod:`carkinetics.plots` draws them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from carkinetics import solvers
from carkinetics.density import ln_curves
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import design_of, inputs_of, ln_offset
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_parts import Assay, nearest_or_raise
from carkinetics.population import natural, population
from carkinetics.structure import Inputs


def gof(fit: Fit) -> pd.DataFrame:
    """The goodness-of-fit table, one row per observation, in the dataset's order.

    Returns
    -------
    DataFrame
        ``ID TIME DVID DV CENS PRED IPRED IWRES``. ``PRED`` is the prediction with all random effects at zero,
        ``IPRED`` the individual's: posterior medians, in the assay's unit. ``IWRES`` is the individual
        weighted residual: ``(ln DV - ln IPRED) / sigma`` of residuals on the log scale, ``(DV - IPRED) / SD`` of
        others; it is missing where the value is censored, since the residual of a limit is none.
    """
    data, posterior = fit.data, fit.tree["posterior"].to_dataset()
    pred = np.median(posterior["pred"].values, axis=(0, 1))
    ipred = np.median(posterior["ipred"].values, axis=(0, 1))
    assays = np.array(data.assays, dtype=object)[data.assay]
    residual = weighted_residuals(fit, ipred)
    return pd.DataFrame(
        {
            "ID": np.array(data.subjects, dtype=object)[data.subject],
            "TIME": data.time,
            "DVID": assays,
            "DV": data.dv,
            "CENS": data.cens,
            "PRED": pred,
            "IPRED": ipred,
            "IWRES": np.where(data.cens == 0, residual, np.nan),
        }
    )


def weighted_residuals(
    fit: Fit, ipred: Float[np.ndarray, "*draw obs"], dv: Float[np.ndarray, "*draw obs"] | None = None
) -> Float[np.ndarray, "*draw obs"]:
    """Residuals in units of their SD, at the posterior means of the residual parameters; of the data unless given."""
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
    return (np.log(dv) - np.log(ipred)) / first


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
        curve; a sample's residual error comes on top.
    """
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
    low, high = (1 - interval) / 2, (1 + interval) / 2
    with jax.enable_x64(True):
        inputs = jax.tree.map(lambda a: a[..., np.array(place)], inputs_of(model, data))
    tables = []
    for assay in model.assays:
        curves = _ln_curves(model, assay, times, inputs, individual.values)
        middle = _ln_curves(model, assay, times, inputs, typical)
        ipred, below, above = np.exp(np.quantile(curves, [0.5, low, high], axis=0))
        pred = np.exp(np.median(middle, axis=0))
        for j, subject in enumerate(chosen):
            tables.append(
                pd.DataFrame(
                    {
                        "ID": subject,
                        "TIME": times[:, j],
                        "DVID": assay.name,
                        "IPRED": ipred[:, j],
                        "LOW": below[:, j],
                        "HIGH": above[:, j],
                        "PRED": pred[:, j],
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def _typical(fit: Fit, keep: np.ndarray) -> Float[np.ndarray, "parameter sample subject"]:
    """Natural-scale parameters of patients without random effects, of these draws; of the first class of a mixture."""
    layout, phi = make_layout(fit.model), phi_draws(fit)[keep]
    with jax.enable_x64(True):
        design = jnp.asarray(design_of(fit.model, fit.data))

        def one(phi):
            typical = population(layout, phi, design).typical
            return natural(layout, jnp.broadcast_to(typical, (len(typical), fit.data.n_subjects)))

        return np.asarray(jax.vmap(one, out_axes=1)(jnp.asarray(phi)))


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
