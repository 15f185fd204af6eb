"""Draws in, one labelled tree out: the ArviZ layout, with the names and dimensions of the house.

Population quantities keep float64; arrays with one number per draw and patient or sample are float32, which
halves the file and is a thousand times finer than any Monte Carlo error.
"""

import json
import platform
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from carkinetics.dataset import Dataset
from carkinetics.inference.failures import Around
from carkinetics.inference.solver_check import SolverError
from carkinetics.model import Model
from carkinetics.observations import Observations, row_positions
from carkinetics.population import (
    Layout,
    individual_parameters,
    ln_pred,
    log_likelihood,
    make_layout,
    natural,
    prior_phi,
    split_phi,
)
from carkinetics.transforms import TRANSFORMS

if TYPE_CHECKING:
    from carkinetics.fitting import Run

SCHEMA = 2  # of the fit file
PRIOR_DRAWS = 2000
_BATCH = 500  # draws whose predictions are computed at once


def build_tree(
    model: Model, data: Dataset, obs: Observations, run: "Run", solver: SolverError, around: Around
) -> xr.DataTree:
    """The tree of a fit.

    Groups and dimensions: ``posterior`` (``tv``, ``theta``, ``omega`` by parameter, ``sigma`` by assay,
    ``eta`` and ``individual`` by subject and parameter, ``ipred`` and ``pred`` by obs), ``prior`` (the same
    population parameters), ``posterior_predictive`` and ``log_likelihood`` (``dv`` by obs), ``sample_stats``,
    ``observed_data``, ``constant_data``. Of a Laplace approximation, ``posterior`` holds draws from the Gaussian,
    and mean and covariance of ``theta``, ln ``omega`` and ln ``sigma`` over them are the Gaussian's own.
    """
    layout = make_layout(model)
    phi = np.stack([b.phi for b in run.blocks])
    z = np.stack([b.z for b in run.blocks])
    posterior = _population(layout, phi)
    per_draw = _per_draw(model, obs, phi, z)
    back = row_positions(data)  # of the dataset's rows among the density's
    for name in ("ipred", "pred", "log_likelihood"):
        per_draw[name] = per_draw[name][..., back]
    key = np.random.default_rng([run.seed, 1])
    sigma = posterior["sigma"][..., data.assay] if len(layout.assays) > 1 else posterior["sigma"]
    replicate = per_draw["ipred"] * np.exp(sigma * key.standard_normal(per_draw["ipred"].shape))
    posterior |= {k: per_draw[k] for k in ("eta", "individual", "ipred", "pred")}
    prior = prior_phi(model, jax.random.fold_in(jax.random.key(run.seed), 2), PRIOR_DRAWS)
    coords = _coords(model, data)
    tree = xr.DataTree.from_dict(
        {
            "posterior": _group(posterior, coords),
            "prior": _group(_population(layout, np.asarray(prior)[None]), coords),
            "posterior_predictive": _group({"dv": replicate.astype(np.float32)}, coords),
            "log_likelihood": _group({"dv": per_draw["log_likelihood"]}, coords),
            "sample_stats": _group(_stats(run), coords),
            "observed_data": xr.Dataset(
                {"dv": ("obs", data.dv), "cens": ("obs", data.cens), "limit": ("obs", data.limit)}
            ),
            "constant_data": _constants(data, coords),
        }
    )
    tree.attrs = _attributes(model, data, run) | {
        "solver_error": solver.largest,
        "solver_error_subject": data.subjects[solver.subject],
        "solver_draws": solver.draws,
        "solver_failed": _by_patient(data, solver.failed),
        "solver_unsolved": _by_patient(data, solver.unsolved),
        "around_places": around.places,
        "around_failed": _by_patient(data, around.failed),
    }
    return tree


def _by_patient(data: Dataset, counts: Int[np.ndarray, " subject"]) -> str:
    """Counts above 0 by patient, the largest first, as JSON."""
    hit = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    return json.dumps({data.subjects[i]: int(counts[i]) for i in hit})


def _coords(model: Model, data: Dataset) -> dict[str, list[str]]:
    return {
        "parameter": [p.name for p in model.parameters],
        "assay": [a.name for a in model.assays],
        "subject": list(data.subjects),
    }


_DIMS = {
    "tv": ("parameter",),
    "theta": ("parameter",),
    "omega": ("parameter",),
    "sigma": ("assay",),
    "eta": ("subject", "parameter"),
    "individual": ("subject", "parameter"),
    "ipred": ("obs",),
    "pred": ("obs",),
    "dv": ("obs",),
    "renewed": ("subject",),
}


def _group(values: dict[str, np.ndarray], coords: dict[str, list[str]]) -> xr.Dataset:
    dims = {name: ("chain", "draw", *_DIMS.get(name, ())) for name in values}
    used = {d for each in dims.values() for d in each}
    return xr.Dataset(
        {name: (dims[name], value) for name, value in values.items()},
        coords={d: c for d, c in coords.items() if d in used},
    )


def _population(layout: Layout, phi: np.ndarray) -> dict[str, np.ndarray]:
    """Typical values, omegas (0 where there is no variability) and sigmas; ``phi`` has shape (chain, draw, phi)."""
    theta, omega_random, sigma = jax.vmap(jax.vmap(lambda x: split_phi(layout, x)))(jnp.asarray(phi))
    theta = np.asarray(theta)
    omega = np.zeros_like(theta)
    omega[..., list(layout.random)] = omega_random
    tv = np.stack(
        [np.asarray(TRANSFORMS[p.transform].inverse(theta[..., i])) for i, p in enumerate(layout.parameters)], axis=-1
    )
    return {"tv": tv, "theta": theta, "omega": omega, "sigma": np.asarray(sigma)}


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, None, 0, 0))
def _of_draw(model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]):
    """Random effects, individual parameters, predictions and log likelihood of a draw, float32."""
    layout = make_layout(model)
    theta, omega, sigma = split_phi(layout, phi)
    individual = individual_parameters(layout, theta, omega, z)
    ln_ipred = ln_pred(layout, individual, obs)
    typical = individual_parameters(layout, theta, omega, jnp.zeros_like(z))
    found = {
        "eta": (individual - theta[:, None]).T,
        "individual": natural(layout, individual).T,
        "ipred": jnp.exp(ln_ipred),
        "pred": jnp.exp(ln_pred(layout, typical, obs)),
        "log_likelihood": log_likelihood(ln_ipred, sigma, obs),
    }
    return {name: x.astype(jnp.float32) for name, x in found.items()}


def _per_draw(model: Model, obs: Observations, phi: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """:func:`_of_draw` of every draw, in batches."""
    chains, draws = phi.shape[:2]
    phi, z = phi.reshape(-1, phi.shape[-1]), z.reshape(-1, *z.shape[2:])
    pad = -len(phi) % _BATCH  # one shape, one compiled program
    phi, z = (np.concatenate([x, np.repeat(x[-1:], pad, 0)]) for x in (phi, z))
    parts = [_of_draw(model, obs, phi[i : i + _BATCH], z[i : i + _BATCH]) for i in range(0, len(phi), _BATCH)]
    joined = {k: np.concatenate([np.asarray(p[k]) for p in parts])[: chains * draws] for k in parts[0]}
    return {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in joined.items()}


def _stats(run: "Run") -> dict[str, np.ndarray]:
    stats = {name: np.stack([b.stats[name] for b in run.blocks]) for name in run.blocks[0].stats}
    if run.method == "nuts":
        stats["tree_depth"] = np.ceil(np.log2(stats["n_steps"] + 1)).astype(int)
        stats["reached_max_treedepth"] = stats["tree_depth"] >= run.settings.max_tree_depth
    return stats


def _constants(data: Dataset, coords: dict[str, list[str]]) -> xr.Dataset:
    return xr.Dataset(
        {
            "time": ("obs", data.time, {"units": "day"}),
            "subject_of_obs": ("obs", data.subject),
            "assay_of_obs": ("obs", np.array([coords["assay"].index(a) for a in data.assays], int)[data.assay]),
        },
        coords={"subject": coords["subject"], "assay": coords["assay"]},
    )


def _attributes(model: Model, data: Dataset, run: "Run") -> dict[str, str | int | float]:
    """Everything needed to say later what was run, on what, with which versions."""
    packages = ("carkinetics", "jax", "jaxlib", "numpyro", "numpy", "xarray")
    return {
        "schema": SCHEMA,
        "model": model.name,
        "model_toml": model.toml,
        "data_source": data.source,
        "data_sha256": data.sha256,
        "seed": int(run.seed),
        "method": run.method,
        "approximation": json.dumps(run.approximation),
        "settings": json.dumps(asdict(run.settings)),
        "seconds": json.dumps(run.seconds),
        "gradients": run.gradients,
        "complete": int(run.complete),
        "notes": json.dumps(run.notes),
        "versions": json.dumps({p: version(p) for p in packages}),
        "machine": f"{platform.machine()}, {platform.system()}, {jax.default_backend()}",
    }
