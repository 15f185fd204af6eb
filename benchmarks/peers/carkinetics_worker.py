"""carkinetics: ``fit`` with its default settings."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.density import log_joint
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.layout import make_layout
from carkinetics.observations import make_observations
from peers.problem import peers_data, peers_model
from peers.worker import CHAINS, Problem, Sampled, main


class Carkinetics:
    """The verb compiles and samples; how long each took is in the fit."""

    def __init__(self, problem: Problem):
        self.model, self.data = peers_model(), peers_data(problem.seed)

    def log_density(self, point: np.ndarray) -> float:
        """The density as this process evaluates it."""
        n = make_layout(self.model).n_phi
        with jax.enable_x64(True):
            obs = make_observations(self.model, self.data)
            phi, z = jnp.asarray(point[:n]), jnp.asarray(point[n:]).reshape(-1, obs.n_subjects)
            return float(log_joint(self.model, obs, phi, z))

    def sample(self, draws: int, thin: int, seed: int) -> Sampled:
        """Length, warm-up and care are the verb's own: it goes on until its gates pass."""
        result = fit(self.model, self.data, seed=seed, chains=CHAINS, progress=False)
        _, population = population_draws(result)
        k = len(self.model.parameters)
        population = np.concatenate([population[..., :k], np.log(population[..., k:])], axis=-1)
        seconds = json.loads(result.tree.attrs["seconds"])
        return Sampled(
            draws=population,
            divergences=int(result.check().numbers["divergences"]),
            gradients=0,  # most of the work is not gradients
            # Finding the start is mostly compilation; what it computes takes a few tenths of a second.
            notes={
                "compile": seconds["start"] + seconds["compile"],
                "sampling": seconds["sampling"],
                "status": result.check().status,
            },
        )


if __name__ == "__main__":
    main(Carkinetics, ("carkinetics", "jax", "jaxlib", "numpyro"))
