"""The population that ``phi`` stands for, and its patients: typical values, and how individuals spread about them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions.transforms import CorrCholeskyTransform

from carkinetics.covariates import EFFECT_PRIOR_SD
from carkinetics.layout import Layout


class Population(eqx.Module):
    """Where patients lie and how widely, on the transformed scale.

    A patient's random parameters are ``typical + omega (factor z)``; ``z`` is standard normal, or in the second class
    of a mixture normal about ``away``.

    Attributes
    ----------
    typical : Float["parameter n"]
        Of every patient's covariates; one column where there are none.
    omega : Float[" random"]
    factor : Float["random random"] or None
        Cholesky factor of the correlations; None where random effects are independent.
    residual : Float["2 assay"]
        First and second residual parameter; NaN where a family has no second.
    step : Float[" random"] or None
        From the first class to the second.
    log_odds : Float[""] or None
        Of the second class.
    """

    typical: Float[Array, "parameter n"]
    omega: Float[Array, " random"]
    factor: Float[Array, "random random"] | None
    residual: Float[Array, "2 assay"]
    step: Float[Array, " random"] | None
    log_odds: Float[Array, ""] | None
    random: tuple[int, ...] = eqx.field(static=True)

    def centre(self, ndim: int = 2) -> Float[Array, "random *n"]:
        """Typical values of the random parameters, patient axis last, for an array with this many axes."""
        found = self.typical[jnp.array(self.random, int)]
        return found.reshape(len(self.random), *(1,) * (ndim - 2), found.shape[-1])

    def spread(self, z: Float[Array, "random *n"]) -> Float[Array, "random *n"]:
        """Deviations of individual parameters, from standardised ones."""
        mixed = z if self.factor is None else jnp.einsum("kl,l...->k...", self.factor, z)
        return _along(self.omega, z) * mixed

    def varying(self, z: Float[Array, "random *n"]) -> Float[Array, "random *n"]:
        """Random parameters of individuals."""
        return self.centre(z.ndim) + self.spread(z)

    def whitened(self, x: Float[Array, "random *n"]) -> Float[Array, "random *n"]:
        """The ``z`` of individuals: the inverse of :meth:`varying`."""
        return self.standardised(x - self.centre(x.ndim))

    def standardised(self, deviation: Float[Array, "random *n"]) -> Float[Array, "random *n"]:
        """The inverse of :meth:`spread`."""
        scaled = deviation / _along(self.omega, deviation)
        if self.factor is None:
            return scaled
        # Of the small matrix alone: a triangular solve of thousands of columns is spread over threads, which the chains
        # fight over; the density's gradient was 20 times as slow with it.
        inverse = jax.scipy.linalg.solve_triangular(self.factor, jnp.eye(len(scaled)), lower=True)
        return jnp.einsum("kl,l...->k...", inverse, scaled)

    def parameters(self, x: Float[Array, "random n"]) -> Float[Array, "parameter n"]:
        """All individual parameters, of which ``x`` are those that vary between patients."""
        place = {i: k for k, i in enumerate(self.random)}
        rows = [x[place[i]] if i in place else jnp.broadcast_to(row, x.shape[1:]) for i, row in enumerate(self.typical)]
        return jnp.stack(rows)

    def individual(self, z: Float[Array, "random n"]) -> Float[Array, "parameter n"]:
        """All individual parameters."""
        return self.parameters(self.varying(z))

    def quadratic(self, matrix: Float[Array, "random random n"]) -> Float[Array, "random random n"]:
        """A quadratic form in random parameters as one in ``z``."""
        scaled = self.omega[:, None, None] * matrix * self.omega[None, :, None]
        if self.factor is None:
            return scaled
        return jnp.einsum("ka,kln,lb->abn", self.factor, scaled, self.factor)

    def linear(self, vector: Float[Array, "random n"]) -> Float[Array, "random n"]:
        """A linear form in random parameters as one in ``z``."""
        scaled = self.omega[:, None] * vector
        return scaled if self.factor is None else self.factor.T @ scaled

    def linear_inverse(self, vector: Float[Array, "random n"]) -> Float[Array, "random n"]:
        """The inverse of :meth:`linear`."""
        if self.factor is not None:
            vector = jax.scipy.linalg.solve_triangular(self.factor, vector, lower=True, trans=1)
        return vector / self.omega[:, None]

    @property
    def away(self) -> Float[Array, " random"]:
        """Middle of the second class, in ``z``."""
        assert self.step is not None
        return self.standardised(self.step)

    def log_density_z(self, z: Float[Array, "random *n"]) -> Float[Array, "*n"]:
        """Log density of ``z``, without the constant of a standard normal."""
        first = -0.5 * jnp.sum(z**2, axis=0)
        return first if self.step is None else first + self.log_mixed(z)

    def log_mixed(self, z: Float[Array, "random *n"]) -> Float[Array, "*n"]:
        """What a second class adds to the log density of ``z``."""
        assert self.log_odds is not None
        lift = jnp.einsum("k...,k->...", z, self.away) - 0.5 * jnp.sum(self.away**2)
        return jnp.logaddexp(0.0, self.log_odds + lift) - jnp.logaddexp(0.0, self.log_odds)

    def second_class(self, z: Float[Array, "random *n"]) -> Float[Array, "*n"]:
        """Probability of the second class, given ``z``."""
        assert self.log_odds is not None
        lift = jnp.einsum("k...,k->...", z, self.away) - 0.5 * jnp.sum(self.away**2)
        return jax.nn.sigmoid(self.log_odds + lift)

    @property
    def log_volume(self) -> Float[Array, ""]:
        """Log of the determinant of :meth:`spread`."""
        volume = jnp.log(jnp.abs(self.omega)).sum()
        return volume if self.factor is None else volume + jnp.log(jnp.diag(self.factor)).sum()

    def log_density(self, x: Float[Array, "random *n"]) -> Float[Array, "*n"]:
        """Log density of random parameters, without the constant of a standard normal."""
        return self.log_density_z(self.whitened(x)) - self.log_volume


def _along(vector: Float[Array, " random"], like: Float[Array, "random *n"]) -> Float[Array, "random ..."]:
    """The vector with as many axes as the array, to be broadcast along its first."""
    return vector.reshape(-1, *(1,) * (like.ndim - 1))


def population(
    layout: Layout,
    phi: Float[Array, " phi"],
    design: Float[Array, "effect n"],
    *,
    omega: Float[Array, " omega"] | None = None,
) -> Population:
    """The population of ``phi``, for patients of these covariates; ``omega`` in the place of that of ``phi``."""
    place = {i: j for j, i in enumerate(layout.estimated)}
    theta = jnp.stack([phi[place[i]] if i in place else p.theta for i, p in enumerate(layout.parameters)])
    own = jnp.exp(phi[layout.omegas]) if omega is None else omega
    step, log_odds = None, None
    if layout.mixture is not None:
        log_step, log_odds = phi[layout.classes]
        step = jnp.exp(log_step) * class_sign(layout)
    return Population(
        typical=theta[:, None] if not layout.effects else _shifted(layout, theta, effects(layout, phi), design),
        omega=own[jnp.array(layout.omega_of, int)],
        factor=_factor(layout, phi),
        residual=residuals(layout, phi),
        step=step,
        log_odds=log_odds,
        random=layout.random,
    )


def effects(layout: Layout, phi: Float[Array, " phi"]) -> Float[Array, " effect"]:
    """Effects of covariates, known ones included."""
    betas = phi[layout.betas]
    if layout.shrinkage is not None:
        global_, *local = jnp.exp(phi[layout.shrinking])
        local, slab = jnp.stack(local), layout.shrinkage.slab
        unit = jnp.array([layout.effects[j].prior.scale / EFFECT_PRIOR_SD for j in layout.estimated_effects])
        betas = betas * unit * global_ * local * slab / jnp.sqrt(slab**2 + (global_ * local) ** 2)
    known = jnp.array([e.value for e in layout.effects])
    return known.at[jnp.array(layout.estimated_effects, int)].set(betas)


def _shifted(layout: Layout, theta, beta, design) -> Float[Array, "parameter n"]:
    """Typical values of every patient."""
    names = [p.name for p in layout.parameters]
    rows = [jnp.broadcast_to(x, design.shape[1:]) for x in theta]
    for j, effect in enumerate(layout.effects):
        k = names.index(effect.on)
        factor = effect.form == "linear" and layout.parameters[k].transform == "log"
        rows[k] = rows[k] + (jnp.log1p(beta[j] * design[j]) if factor else beta[j] * design[j])
    return jnp.stack(rows)


def class_sign(layout: Layout) -> Float[np.ndarray, " random"]:
    """Direction of the second class: 1 or -1 at its parameter, 0 elsewhere."""
    assert layout.mixture is not None
    names = [layout.parameters[i].name for i in layout.random]
    k = names.index(layout.mixture.on)
    p = layout.parameters[layout.random[k]]
    found = np.zeros(len(names))
    found[k] = np.sign(float(p.forward(layout.mixture.value)) - p.theta)
    return found


def _factor(layout: Layout, phi: Float[Array, " phi"]) -> Float[Array, "random random"] | None:
    if layout.correlation is None:
        return None
    block = CorrCholeskyTransform()(phi[layout.correlations])
    at = np.array(layout.correlated)
    whole = jnp.eye(len(layout.random))
    if np.all(np.diff(at) > 0):
        return whole.at[at[:, None], at[None, :]].set(block)
    # In another order the block's factor is not triangular among the random parameters: what it is the factor of is.
    return jnp.linalg.cholesky(whole.at[at[:, None], at[None, :]].set(block @ block.T))


def correlations(layout: Layout, phi: Float[Array, " phi"]) -> Float[Array, "random random"]:
    """Correlations of the random effects."""
    factor = _factor(layout, phi)
    return jnp.eye(len(layout.random)) if factor is None else factor @ factor.T


def residuals(layout: Layout, phi: Float[Array, " phi"]) -> Float[Array, "2 assay"]:
    """First and second residual parameter of every assay; NaN where its family has no second."""
    known = jnp.array([[a.sigma for a in layout.assays], [a.second for a in layout.assays]])
    for (k, a), x in zip(layout.residuals, phi[layout.scales], strict=True):
        known = known.at[k, a].set(jnp.exp(x))
    return known


def natural(layout: Layout, individual: Float[Array, "parameter *n"]) -> Float[Array, "parameter *n"]:
    """Individual parameters on their natural scale."""
    return jnp.stack([p.inverse(x) for p, x in zip(layout.parameters, individual, strict=True)])
