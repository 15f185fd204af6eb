"""The peers' problem: 40 patients x 14 samples, six random effects, about 16 % left-censored, HalfNormal(1) omegas."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from carkinetics.dataset import Dataset
from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.density import log_joint
from carkinetics.layout import make_layout
from carkinetics.model import Model
from carkinetics.model_files import load_model
from carkinetics.model_parts import Prior
from carkinetics.observations import make_observations
from peers.worker import Problem

SEEDS = (6, 5, 4, 11, 9)  # of the first twelve virtual trials, those with 15.5 to 17.5 % of samples censored
POINTS = 12


def peers_model() -> Model:
    """Stein's model with HalfNormal(1) on every omega; the other priors are the model file's."""
    model = load_model(MODEL)
    return model.with_priors({f"omega.{p.name}": Prior("halfnormal", 0.0, 1.0) for p in model.parameters})


def peers_data(seed: int) -> Dataset:
    """The virtual trial of that seed."""
    return read_trial(virtual_trial(seed))


def make_problem(seed: int) -> Problem:
    """The problem as plain arrays, with carkinetics' log density at random points."""
    model, data = peers_model(), peers_data(seed)
    obs, layout = make_observations(model, data), make_layout(model)
    points = _points(model, obs.n_subjects, np.random.default_rng(seed))
    n = layout.n_phi
    with jax.enable_x64(True):
        density = jax.jit(lambda x: log_joint(model, obs, x[:n], x[n:].reshape(-1, obs.n_subjects)))
        log_density = np.array([float(density(jnp.asarray(x))) for x in points])
    (assay,) = model.assays
    rows = np.flatnonzero(np.asarray(obs.subject) < obs.n_subjects)  # without those that fill a kind up
    assert assay.prior.family == "lognormal" and obs.rows.above == obs.rows.between == 0
    return Problem(
        seed=seed,
        n_subjects=obs.n_subjects,
        n_quantified=int(np.sum(data.cens == 0)),
        subject=np.asarray(obs.subject)[rows],
        time=np.asarray(obs.grid.time).reshape(-1)[np.asarray(obs.cell)][rows],
        ln_dv=np.asarray(obs.ln_dv)[rows],
        theta_loc=np.array([p.prior.loc for p in model.parameters]),
        theta_scale=np.array([p.prior.scale for p in model.parameters]),
        omega_scale=np.array([p.prior_omega.scale for p in model.parameters]),
        sigma_loc=assay.prior.loc,
        sigma_scale=assay.prior.scale,
        points=points,
        log_density=log_density,
    )


def _points(model: Model, n_subjects: int, random: np.random.Generator) -> Float[np.ndarray, "point x"]:
    """Around the values the data were simulated from, near ones and far ones."""
    phi = [p.theta for p in model.parameters] + [np.log(p.iiv) for p in model.parameters]
    phi += [np.log(a.sigma) for a in model.assays]
    spread = np.repeat([0.1, 0.5, 1.0], POINTS // 3)[:, None]
    near_phi = np.array(phi) + spread * random.standard_normal((POINTS, len(phi)))
    return np.hstack([near_phi, random.standard_normal((POINTS, len(model.parameters) * n_subjects))])
