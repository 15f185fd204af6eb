"""Stan by way of PyStan: its NUTS with its default warm-up (1000 iterations, diagonal metric, target 0.8)."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from peers.worker import CHAINS, FB_MAX, Problem, Sampled, main

PROGRAM = Path(__file__).with_name("population.stan")
WARMUP = 1000


class Stan:
    """A compiled Stan program with its data."""

    def __init__(self, problem: Problem):
        import stan

        names = ("n_subjects", "n_quantified", "time", "ln_dv", "theta_loc", "theta_scale", "omega_scale")
        data = {name: getattr(problem, name) for name in (*names, "sigma_loc", "sigma_scale")}
        data |= {"n_rows": len(problem.time), "subject": problem.subject + 1, "fb_max": FB_MAX}
        data = {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in data.items()}
        self.model = stan.build(PROGRAM.read_text(), data=data)

    def log_density(self, point: np.ndarray) -> float:
        """Stan's log_prob, with the Jacobian of the logarithms."""
        return self.model.log_prob(point.tolist(), adjust_transform=True)

    def sample(self, draws: int, thin: int, seed: int) -> Sampled:
        """One process a chain; the warm-up is kept only to count its gradients."""
        found = dataclasses.replace(self.model, random_seed=seed).sample(
            num_chains=CHAINS, num_warmup=WARMUP, num_samples=draws, num_thin=thin, save_warmup=True
        )
        warmup = math.ceil(WARMUP / thin)

        def kept(name: str) -> np.ndarray:
            flat = found[name]
            by_chain = flat.reshape(*flat.shape[:-1], -1, CHAINS)[..., warmup:, :]
            return np.moveaxis(by_chain.reshape(-1, *by_chain.shape[-2:]), (0, 2), (2, 0))

        population = [kept("theta"), np.log(kept("omega")), np.log(kept("sigma"))]
        return Sampled(
            draws=np.concatenate(population, axis=-1),
            divergences=int(kept("divergent__").sum()),
            gradients=int(found["n_leapfrog__"].sum()) if thin == 1 else None,
            notes={"chain_seconds": _chain_seconds(found.stan_outputs)},
        )


def _chain_seconds(outputs: tuple[bytes, ...]) -> list[float]:
    """Seconds of every chain by Stan's own clock, without the transport of its draws to Python."""
    found = (re.findall(rb"([0-9.e+-]+) seconds \(Total\)", text) for text in outputs)
    return [float(x[-1]) for x in found if x]  # the message is logged more than once


if __name__ == "__main__":
    main(Stan, ("pystan", "httpstan"))
