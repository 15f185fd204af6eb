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

from carkinetics import replicates
from carkinetics.dataset import Dataset
from carkinetics.density import ln_pred, log_likelihood
from carkinetics.inference.failures import Around
from carkinetics.inference.solver_check import SolverError
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.observations import Observations, row_positions
from carkinetics.population import correlations, effects, natural, population, residuals
from carkinetics.priors import prior_phi
from carkinetics.residuals import RESIDUALS

if TYPE_CHECKING:
    from carkinetics.fitting import Run

SCHEMA = 3  # of the fit file
PRIOR_DRAWS = 2000
_BATCH = 500  # draws whose predictions are computed at once


def build_tree(
    model: Model, data: Dataset, obs: Observations, run: "Run", solver: SolverError, around: Around
) -> xr.DataTree:
    """The tree of a fit.

    Groups and dimensions: ``posterior`` (``phi`` by component, the population as the sampler moves it; ``tv``,
    ``theta``, ``omega`` by parameter, ``sigma`` by assay, and where the model has them ``beta`` by effect,
    ``correlation`` by two parameters, ``nu`` and other second residual parameters by assay, ``tv_second`` and
    ``share_second`` of a second class, and ``second`` by subject, the probability of being of it; ``eta`` and
    ``individual`` by subject and parameter, ``ipred`` and ``pred`` by obs), ``prior`` (the same
    population parameters), ``posterior_predictive`` and ``log_likelihood`` (``dv`` by obs), ``sample_stats``,
    ``observed_data``, ``constant_data``. Of a Laplace approximation, ``posterior`` holds draws from the Gaussian,
    and mean and covariance of ``theta``, ln ``omega`` and ln ``sigma`` over them are the Gaussian's own.
    """
    phi = np.stack([b.phi for b in run.blocks])
    z = np.stack([b.z for b in run.blocks])
    posterior = _population(model, phi)
    per_draw = _per_draw(model, obs, phi, z)
    back = row_positions(model, data, obs.rows)  # of the dataset's rows among the density's
    for name in ("ipred", "pred", "log_likelihood"):
        per_draw[name] = per_draw[name][..., back]
    replicate = _replicates(model, data, phi, per_draw["ipred"], np.random.default_rng([run.seed, 1]))
    posterior |= {k: per_draw[k] for k in per_draw if k != "log_likelihood"}
    prior = prior_phi(model, jax.random.fold_in(jax.random.key(run.seed), 2), PRIOR_DRAWS)
    coords = _coords(model, data)
    tree = xr.DataTree.from_dict(
        {
            "posterior": _group(posterior, coords),
            "prior": _group(_population(model, np.asarray(prior)[None]), coords),
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


def _replicates(model: Model, data: Dataset, phi, ipred, rng) -> np.ndarray:
    """What the assays might have reported instead, of every draw and row."""
    values = np.empty_like(ipred)
    residual = np.asarray(_residuals(model, jnp.asarray(phi)))  # (..., 2, assay)
    names = [a.name for a in model.assays]
    for k, name in enumerate(data.assays):
        a = names.index(name)
        family, here = RESIDUALS[model.assays[a].error], data.assay == k
        parameters = [residual[..., j, a, None] for j in range(len(family.params))]
        with np.errstate(divide="ignore", over="ignore"):
            ln = np.log(ipred[..., here].astype(float))
            if family.name == replicates.NAME:
                taken = np.stack([data.subject[here], data.time[here]])
                drawn = np.exp(replicates.draw_together(rng, ln, parameters[0], parameters[1], taken))
            else:
                drawn = np.exp(family.draw(rng, ln, *parameters))
        # A draw far in a heavy tail may be beyond what single precision holds.
        drawn = np.minimum(drawn, np.finfo(values.dtype).max)
        values[..., here] = np.round(drawn) if family.counts else drawn
    return values


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0))
@partial(jax.vmap, in_axes=(None, 0))
def _residuals(model: Model, phi: Float[Array, " phi"]) -> Float[Array, "2 assay"]:
    return residuals(make_layout(model), phi)


def _coords(model: Model, data: Dataset) -> dict[str, list[str]]:
    layout = make_layout(model)
    varying = [model.parameters[i].name for i in layout.random]
    return {
        "component": layout.phi_names,
        "effect": [e.name for e in layout.effects],
        "random": varying,
        "with": varying,
        "parameter": [p.name for p in model.parameters],
        "assay": [a.name for a in model.assays],
        "subject": list(data.subjects),
    }


_DIMS = {
    "phi": ("component",),
    "beta": ("effect",),
    "correlation": ("random", "with"),
    "second": ("subject",),
    "tv": ("parameter",),
    "theta": ("parameter",),
    "omega": ("parameter",),
    "sigma": ("assay",),
    "nu": ("assay",),
    "additive": ("assay",),
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


def _population(model: Model, phi: np.ndarray) -> dict[str, np.ndarray]:
    """What the population is, draw by draw, on natural scales; ``phi`` has shape (chain, draw, phi)."""
    found = _populations(model, jnp.asarray(phi.reshape(-1, phi.shape[-1])))
    return {"phi": phi} | {name: np.asarray(x).reshape(*phi.shape[:2], *x.shape[1:]) for name, x in found.items()}


@partial(jax.jit, static_argnums=0)
def _populations(model: Model, phi: Float[Array, "draw phi"]) -> dict[str, Array]:
    layout = make_layout(model)
    middle = jnp.zeros((len(layout.effects), 1))  # every covariate at its centre

    def of_one(phi):
        of = population(layout, phi, middle)
        theta = of.typical[:, 0]
        found = {"theta": theta, "tv": natural(layout, theta), "sigma": of.residual[0]}
        found["omega"] = jnp.zeros_like(theta).at[jnp.array(layout.random)].set(of.omega)
        seconds = {RESIDUALS[a.error].params[1].name for a in layout.assays if len(RESIDUALS[a.error].params) > 1}
        for name in seconds:
            own = [[p.name for p in RESIDUALS[a.error].params[1:]] == [name] for a in layout.assays]
            found[name] = jnp.where(jnp.array(own), of.residual[1], jnp.nan)
        if layout.effects:
            found["beta"] = effects(layout, phi)
        if layout.correlation is not None:
            found["correlation"] = correlations(layout, phi)
        if of.step is not None and of.log_odds is not None:
            away = theta.at[jnp.array(layout.random)].add(of.step)
            on = [p.name for p in layout.parameters].index(layout.mixture.on)  # pyright: ignore
            found |= {"tv_second": natural(layout, away)[on], "share_second": jax.nn.sigmoid(of.log_odds)}
        return found

    return jax.vmap(of_one)(phi)


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, None, 0, 0))
def _of_draw(model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]):
    """Random effects, individual parameters, predictions and log likelihood of a draw, float32."""
    layout = make_layout(model)
    of = population(layout, phi, obs.design)
    x, expected, found = of.varying(z), jnp.broadcast_to(of.centre(), z.shape), {}
    if of.step is not None:
        found["second"] = of.second_class(z)
        expected = expected + found["second"] * of.step[:, None]
    individual, typical = of.parameters(x), of.parameters(expected)
    ln_ipred = ln_pred(layout, individual, obs)
    found |= {
        "eta": (individual - typical).T,
        "individual": natural(layout, individual).T,
        "ipred": jnp.exp(ln_ipred),
        "pred": jnp.exp(ln_pred(layout, typical, obs)),
        "log_likelihood": log_likelihood(ln_ipred, of.residual, obs),
    }
    return {name: value.astype(jnp.float32) for name, value in found.items()}


def _per_draw(model: Model, obs: Observations, phi: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """:func:`_of_draw` of every draw, in batches."""
    chains, draws = phi.shape[:2]
    phi, z = phi.reshape(-1, phi.shape[-1]), z.reshape(-1, *z.shape[2:])
    batch = min(_BATCH, len(phi))
    pad = -len(phi) % batch  # one shape, one compiled program
    phi, z = (np.concatenate([x, np.repeat(x[-1:], pad, 0)]) for x in (phi, z))
    parts = [_of_draw(model, obs, phi[i : i + batch], z[i : i + batch]) for i in range(0, len(phi), batch)]
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
