"""The joint density of a population: one NumPyro model function, and the arrays it reads.

``Model`` + ``Dataset`` -> ``Layout`` (what is static) and ``Observations`` (what is data) -> ``joint``. The
data are arguments of the compiled density, not constants in it, so that another dataset of the same shape
reuses the compiled program.
"""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.infer.util import log_density

from carkinetics import observation, solvers
from carkinetics.dataset import Dataset
from carkinetics.errors import ModelError
from carkinetics.model import Model, Parameter, Prior
from carkinetics.solvers import Grid
from carkinetics.structure import AbstractStructure
from carkinetics.transforms import TRANSFORMS

# Rows of a kind are filled up to a multiple of this: data with a few more or fewer of them need no other program.
_BUCKET = 32
# A grid of subject x time holds more cells than there are samples; beyond this ratio it is laid out flat.
_MAX_PADDING = 4


class Rows(NamedTuple):
    """How many rows of each kind there are, filled up; they stand in this order."""

    quantified: int
    below: int
    above: int
    between: int


class Observations(eqx.Module):
    """The data as arrays that enter the compiled density, and the static facts that shape it.

    Rows are sorted by kind (quantified, left-, right-, interval-censored), then as in the dataset. Those that fill a
    kind up belong to no subject and no assay: sums by either leave them out.

    Attributes
    ----------
    grid : Grid
        Times on which curves are solved (day); a patient's last time is repeated to fill its column.
    cell : Int[" obs"]
        Where in the flattened grid each row stands.
    subject, assay : Int[" obs"]
    ln_dv : Float[" obs"]
        Natural log of the value, or of the limit; for an interval its upper end.
    ln_limit : Float[" obs"]
        Lower end of an interval; equal to ``ln_dv`` elsewhere.
    dose : Float[" subject"]
    rows : Rows
    n_subjects : int
    order : tuple of int
        Position of each row in the dataset's order.
    """

    grid: Grid
    cell: Int[Array, " obs"]
    subject: Int[Array, " obs"]
    assay: Int[Array, " obs"]
    ln_dv: Float[Array, " obs"]
    ln_limit: Float[Array, " obs"]
    dose: Float[Array, " subject"]
    rows: Rows = eqx.field(static=True)
    flat: bool = eqx.field(static=True)

    @property
    def n_subjects(self) -> int:
        return self.dose.shape[0]

    @property
    def n_obs(self) -> int:
        return self.cell.shape[0]


def row_positions(data: Dataset) -> Int[np.ndarray, " row"]:
    """Where each row of the dataset stands among those that the density reads."""
    kind, rows = _kind(data), _rows(data)
    positions = np.empty(len(kind), int)
    for k, begin in enumerate(np.cumsum(rows) - rows):
        here = np.flatnonzero(kind == k)
        positions[here] = begin + np.arange(len(here))
    return positions


def _rows(data: Dataset) -> Rows:
    return Rows(*(-(-int(np.sum(_kind(data) == k)) // _BUCKET) * _BUCKET for k in range(4)))


def make_observations(model: Model, data: Dataset, *, refine: int = 1) -> Observations:
    """The arrays of ``data`` as ``model`` reads them; ``refine`` divides the solver's steps.

    Raises
    ------
    ModelError
        An assay of the table is not an assay of the model.
    """
    if not any(p.iiv for p in model.parameters):
        raise ModelError(f"{model.name}: no parameter varies between patients; give at least one an omega.")
    known = [a.name for a in model.assays]
    unknown = [a for a in data.assays if a not in known]
    if unknown:
        raise ModelError(
            f"{model.name} has no assay {', '.join(map(repr, unknown))}; it has {', '.join(known)}. "
            "Map the table's DVID to those names, or add the assay with model.with_assay(...)."
        )
    rows, positions, n = _rows(data), row_positions(data), len(data.subjects)

    def filled(values, rest):
        found = np.full(sum(rows), rest)
        found[positions] = values
        return found

    assay = np.array([known.index(a) for a in data.assays], dtype=int)[data.assay]
    with np.errstate(invalid="ignore"):
        ln_dv, ln_limit = np.log(data.dv), np.log(data.limit)
    # LIMIT is the other end of an interval, whichever way the row is censored.
    ln_limit = np.where(_kind(data) == 3, ln_limit, ln_dv)
    upper, lower = filled(np.maximum(ln_dv, ln_limit), 0.0), filled(np.minimum(ln_dv, ln_limit), -1.0)
    flat, times, cell = _grid(data.subject, data.time, n, model.structure.closed_form)
    if flat:
        times, cell = filled(data.time, 1.0)[None, :], np.arange(sum(rows))
    else:
        cell = filled(cell, 0)
    arrays = (cell, filled(data.subject, n), filled(assay, len(known)), upper, lower, doses_of(data))
    with jax.enable_x64(True):
        cell, subject, assay, ln_dv, ln_limit, dose = (jnp.asarray(x) for x in arrays)
    return Observations(
        grid=solvers.make_grid(model.structure, times, refine=refine),
        cell=cell,
        subject=subject,
        assay=assay,
        ln_dv=ln_dv,
        ln_limit=ln_limit,
        dose=dose,
        rows=rows,
        flat=flat,
    )


def _kind(data: Dataset) -> Int[np.ndarray, " obs"]:
    return np.select([data.cens == 0, np.isfinite(data.limit), data.cens == 1], [0, 3, 1], default=2)


def _grid(subject, time, n_subjects: int, may_be_flat: bool):
    """Distinct times of every patient side by side, and the cell of every row in it."""
    distinct = [np.unique(time[subject == i]) for i in range(n_subjects)]
    depth = max((len(t) for t in distinct), default=0)
    if may_be_flat and depth * n_subjects > _MAX_PADDING * len(time):
        # One patient with thousands of rows would make everybody's column that deep.
        return True, time, np.arange(len(time))
    grid = np.stack([np.pad(t, (0, depth - len(t)), mode="edge") if len(t) else np.ones(depth) for t in distinct], 1)
    row = np.array([np.searchsorted(distinct[i], t) for i, t in zip(subject, time, strict=True)], dtype=int)
    return False, grid, row * n_subjects + subject


def doses_of(data: Dataset) -> Float[np.ndarray, " subject"]:
    """Every patient's total dose as recorded; NaN where there is no dose record."""
    doses = data.doses().groupby("ID")["AMT"].sum()
    return np.array([float(doses.get(i, np.nan)) for i in data.subjects])


@dataclass(frozen=True)
class Layout:
    """What is estimated, in which order: the names behind the columns of every array.

    Attributes
    ----------
    parameters : tuple of Parameter
        All parameters of the structure, in its order.
    estimated, random : tuple of int
        Positions of those with an estimated typical value, and of those with between-patient variability.
    """

    structure: AbstractStructure
    parameters: tuple[Parameter, ...]
    estimated: tuple[int, ...]
    random: tuple[int, ...]
    assays: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def n_phi(self) -> int:
        """Number of population parameters."""
        return len(self.estimated) + len(self.random) + len(self.assays)

    @property
    def omegas(self) -> slice:
        """Where ``phi`` has the log omegas: after the estimated typical values, before the residual SDs."""
        first = len(self.estimated)
        return slice(first, first + len(self.random))

    @property
    def phi_names(self) -> list[str]:
        """What the components of ``phi`` are called: ``cmax``, ``omega cmax``, ``sigma qpcr``."""
        names = [p.name for p in self.parameters]
        typical, omegas = [names[i] for i in self.estimated], [f"omega {names[i]}" for i in self.random]
        return typical + omegas + [f"sigma {a}" for a in self.assays]


def make_layout(model: Model) -> Layout:
    """The layout of a model's population parameters."""
    return Layout(
        structure=model.structure,
        parameters=model.parameters,
        estimated=tuple(i for i, p in enumerate(model.parameters) if not p.fixed),
        random=tuple(i for i, p in enumerate(model.parameters) if p.iiv > 0),
        assays=tuple(a.name for a in model.assays),
        outputs=tuple(a.output for a in model.assays),
    )


def joint(model: Model, obs: Observations) -> None:
    """The population density, as a NumPyro model.

    Sites: ``theta.<parameter>`` (typical value, transformed scale), ``omega.<parameter>``,
    ``sigma.<assay>``, and ``z`` of shape ``(random, subject)``: standard normal random effects, so that an
    individual's transformed parameter is ``theta + omega z``.
    """
    layout = make_layout(model)
    theta = jnp.stack(
        [
            jnp.asarray(p.theta) if p.fixed else numpyro.sample(f"theta.{p.name}", distribution(p.prior))
            for p in model.parameters
        ]
    )
    omega = jnp.stack(
        [
            numpyro.sample(f"omega.{p.name}", distribution(p.prior_omega))
            for p in (model.parameters[i] for i in layout.random)
        ]
    )
    sigma = jnp.stack([numpyro.sample(f"sigma.{a.name}", distribution(a.prior)) for a in model.assays])
    shape = (len(layout.random), obs.n_subjects)
    z = jnp.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape).to_event(2)))
    individual = individual_parameters(layout, theta, omega, z)
    subjects = log_likelihood_by_subject(ln_pred(layout, individual, obs), sigma, obs)
    numpyro.factor("log_likelihood", subjects.sum())


def distribution(prior: Prior) -> dist.Distribution:
    """The NumPyro distribution of a prior."""
    if prior.family == "halfnormal":
        return dist.HalfNormal(prior.scale)
    family = dist.LogNormal if prior.family == "lognormal" else dist.Normal
    return family(prior.loc, prior.scale)


def individual_parameters(
    layout: Layout, theta: Float[Array, " parameter"], omega: Float[Array, " random"], z: Float[Array, "random subject"]
) -> Float[Array, "parameter subject"]:
    """Individual parameters on the transformed scale."""
    return with_random(layout, theta, theta[jnp.array(layout.random)][:, None] + omega[:, None] * z)


def with_random(
    layout: Layout, theta: Float[Array, " parameter"], x: Float[Array, "random subject"]
) -> Float[Array, "parameter subject"]:
    """Individual parameters, transformed scale, of which ``x`` are those that vary between patients."""
    varying = dict(zip(layout.random, x, strict=True))
    return jnp.stack([varying.get(i, jnp.full(x.shape[1], theta[i])) for i in range(len(theta))])


def natural(layout: Layout, individual: Float[Array, "parameter *n"]) -> tuple:
    """Individual parameters on their natural scale, as the structure names them."""
    values = (TRANSFORMS[p.transform].inverse(x) for p, x in zip(layout.parameters, individual, strict=True))
    return layout.structure.parameters(*values)


def ln_pred(layout: Layout, individual: Float[Array, "parameter subject"], obs: Observations) -> Float[Array, " obs"]:
    """Natural log of the predicted level of every row, from transformed individual parameters."""
    if obs.flat:
        individual, dose = individual[:, obs.subject], obs.dose[obs.subject]
    else:
        dose = obs.dose
    outputs = solvers.curves(layout.structure, obs.grid, dose, natural(layout, individual))
    if len(set(layout.outputs)) == 1:
        return outputs[layout.outputs[0]].reshape(-1)[obs.cell]
    stacked = jnp.stack([outputs[name].reshape(-1) for name in layout.outputs])
    return stacked[obs.assay, obs.cell]


def log_likelihood(
    ln_prediction: Float[Array, " obs"], sigma: Float[Array, " assay"], obs: Observations
) -> Float[Array, " obs"]:
    """Log likelihood of every row: a density where it is quantified, a probability where it is censored."""
    s = jnp.full(obs.n_obs, sigma[0]) if sigma.shape[0] == 1 else sigma[obs.assay]
    return log_likelihood_of_rows(ln_prediction, s, obs)


def log_likelihood_of_rows(
    ln_prediction: Float[Array, " obs"], s: Float[Array, " obs"], obs: Observations
) -> Float[Array, " obs"]:
    """:func:`log_likelihood` with a residual SD ``s`` of every row's own."""
    ends = np.cumsum(obs.rows)
    quantified, below, above, between = (slice(e - n, e) for e, n in zip(ends, obs.rows, strict=True))
    f, y, lower = ln_prediction, obs.ln_dv, obs.ln_limit
    parts = [observation.log_density(y[quantified], f[quantified], s[quantified])]
    if obs.rows.below:
        parts.append(observation.log_prob_below(y[below], f[below], s[below]))
    if obs.rows.above:
        parts.append(observation.log_prob_above(y[above], f[above], s[above]))
    if obs.rows.between:
        parts.append(observation.log_prob_between(lower[between], y[between], f[between], s[between]))
    return jnp.concatenate(parts)


def log_likelihood_by_subject(
    ln_prediction: Float[Array, " obs"], sigma: Float[Array, " assay"], obs: Observations
) -> Float[Array, " subject"]:
    """Log likelihood of every patient's rows."""
    return jax.ops.segment_sum(log_likelihood(ln_prediction, sigma, obs), obs.subject, obs.n_subjects)


def subject_log_likelihood(
    layout: Layout,
    theta: Float[Array, " parameter"],
    x: Float[Array, "random subject"],
    sigma: Float[Array, " assay"],
    obs: Observations,
) -> Float[Array, " subject"]:
    """Log likelihood of every patient's rows at individual parameters ``x`` (transformed scale)."""
    return log_likelihood_by_subject(ln_pred(layout, with_random(layout, theta, x), obs), sigma, obs)


def split_phi(
    layout: Layout, phi: Float[Array, " phi"]
) -> tuple[Float[Array, " parameter"], Float[Array, " random"], Float[Array, " assay"]]:
    """Typical values (transformed), omegas and sigmas, from one unconstrained vector.

    ``phi`` holds the estimated typical values, then ln omega, then ln sigma.
    """
    omegas = layout.omegas
    position = {i: j for j, i in enumerate(layout.estimated)}
    theta = jnp.stack([phi[position[i]] if i in position else p.theta for i, p in enumerate(layout.parameters)])
    return theta, jnp.exp(phi[omegas]), jnp.exp(phi[omegas.stop :])


def log_joint(
    model: Model, obs: Observations, phi: Float[Array, " phi"], z: Float[Array, "random subject"]
) -> Float[Array, ""]:
    """Log of the joint density in ``(phi, z)``: NumPyro's density of :func:`joint`, with d(omega, sigma)/d phi."""
    layout = make_layout(model)
    theta, omega, sigma = split_phi(layout, phi)
    names = [p.name for p in layout.parameters]
    sites = {f"theta.{names[i]}": theta[i] for i in layout.estimated}
    sites |= {f"omega.{names[i]}": omega[j] for j, i in enumerate(layout.random)}
    sites |= {f"sigma.{a}": sigma[j] for j, a in enumerate(layout.assays)}
    density, _ = log_density(joint, (model, obs), {}, sites | {"z": z})
    return density + phi[len(layout.estimated) :].sum()


def log_prior_phi(model: Model, phi: Float[Array, " phi"]) -> Float[Array, " phi"]:
    """Log prior density of every component of ``phi``."""
    layout = make_layout(model)
    priors = [model.parameters[i].prior for i in layout.estimated]
    scales = [model.parameters[i].prior_omega for i in layout.random] + [a.prior for a in model.assays]
    terms = [distribution(p).log_prob(x) for p, x in zip(priors, phi, strict=False)]
    terms += [distribution(p).log_prob(jnp.exp(x)) + x for p, x in zip(scales, phi[len(priors) :], strict=True)]
    return jnp.stack(terms)


def prior_phi(model: Model, key: PRNGKeyArray, draws: int) -> Float[Array, "draw phi"]:
    """``phi`` drawn from the prior."""
    layout = make_layout(model)
    keys = jax.random.split(key, layout.n_phi)
    priors = [model.parameters[i].prior for i in layout.estimated]
    scales = [model.parameters[i].prior_omega for i in layout.random] + [a.prior for a in model.assays]
    columns = [distribution(p).sample(k, (draws,)) for p, k in zip(priors, keys, strict=False)]
    columns += [jnp.log(distribution(p).sample(k, (draws,))) for p, k in zip(scales, keys[len(priors) :], strict=True)]
    return jnp.stack(columns, axis=-1)
