"""Correlated random effects: their density and their coordinates, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from carkinetics.layout import make_layout
from carkinetics.model_files import load_model
from carkinetics.population import correlations, population
from tiers import tiered

PUBLISHED = load_model("stein_2019_tisagenlecleucel")
# Neighbours, every other one, all, and an order that is not the model's.
BLOCKS = [("foldx", "tmax"), ("tmax", "alpha", "beta"), (), ("beta", "foldx", "cmax")]


def place(block, seed=0):
    model = PUBLISHED.with_correlation(*block)
    layout = make_layout(model)
    return layout, jnp.asarray(layout.start + 0.6 * np.random.default_rng(seed).standard_normal(layout.n_phi))


def matrix_of(layout, phi):
    """Correlations from partial ones, by the recursion for a pair given all parameters before both."""
    names = [layout.parameters[i].name for i in layout.random]
    block = layout.correlation.parameters
    partial = np.eye(len(block))
    partial[np.tril_indices(len(block), -1)] = np.tanh(np.asarray(phi)[layout.correlations])
    found = np.eye(len(block))
    for i in range(1, len(block)):
        for j in range(i):
            given = range(j)
            a, b = found[i, given], found[j, given]
            inverse = np.linalg.inv(found[:j, :j]) if j else np.zeros((0, 0))
            left = (1 - a @ inverse @ a) * (1 - b @ inverse @ b)
            found[i, j] = found[j, i] = a @ inverse @ b + partial[i, j] * np.sqrt(left)
    whole = np.eye(len(names))
    at = [names.index(n) for n in block]
    whole[np.ix_(at, at)] = found
    return whole


@pytest.mark.parametrize("block", tiered(BLOCKS, thorough=BLOCKS[:2]))
def test_density_of_correlated_parameters_is_scipys(block):
    """If it fails, the population is another one than its correlations say."""
    with jax.enable_x64(True):
        layout, phi = place(block)
        of, wanted = population(layout, phi, jnp.zeros((0, 1))), matrix_of(layout, phi)
        np.testing.assert_allclose(correlations(layout, phi), wanted, atol=1e-12)
        omega, centre = np.asarray(of.omega), np.asarray(of.centre())[:, 0]
        normal = stats.multivariate_normal(centre, omega[:, None] * wanted * omega)
        x = np.random.default_rng(1).normal(centre[:, None, None], 2 * omega[:, None, None], (len(omega), 7, 3))
        found = of.log_density(jnp.asarray(x)) - 0.5 * len(omega) * np.log(2 * np.pi)
        np.testing.assert_allclose(found, normal.logpdf(np.moveaxis(x, 0, -1)), rtol=1e-11)
        np.testing.assert_allclose(of.varying(of.whitened(jnp.asarray(x))), x, rtol=1e-12, atol=1e-12)


def solves(jaxpr):
    """Shapes of the right-hand sides of all triangular solves, also inside of calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "triangular_solve":
            yield eqn.invars[1].aval.shape
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from solves(inner)


def test_thousands_of_proposals_are_not_solved_for_one_by_one():
    """If it fails, threads of a linear algebra library fight with the chains: the sampler is many times as slow."""
    with jax.enable_x64(True):
        layout, phi = place(())
        x = jnp.zeros((len(layout.random), 48, 29))
        density = jax.value_and_grad(lambda phi: population(layout, phi, jnp.zeros((0, 1))).log_density(x).sum())
        shapes = list(solves(jax.make_jaxpr(density)(phi).jaxpr))
    assert shapes
    assert max(np.prod(shape) for shape in shapes) <= len(x) ** 2
