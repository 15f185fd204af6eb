"""PyMC, sampled by nutpie with its defaults (its own warm-up and gradient-based diagonal metric, numba)."""

import numpy as np

from peers.worker import CHAINS, CORES, FB_MAX, Problem, Sampled, main


class PyMC:
    """A PyMC model compiled for nutpie."""

    def __init__(self, problem: Problem):
        import nutpie

        self.model = _model(problem)
        self.compiled = nutpie.compile_pymc_model(self.model)
        self._log_density = None

    def log_density(self, point: np.ndarray) -> float:
        """PyMC's logp, with the Jacobian of the logarithms."""
        if self._log_density is None:
            self._log_density = self.model.compile_logp()
        z = point[13:].reshape(6, -1)
        values = {"theta": point[:6], "omega_log__": point[6:12], "sigma_log__": np.array(point[12]), "z": z}
        return float(self._log_density(values))

    def sample(self, draws: int, thin: int, seed: int) -> Sampled:
        """One thread a chain, as many at a time as there are cores."""
        import nutpie

        found = nutpie.sample(self.compiled, draws=draws, chains=CHAINS, cores=CORES, seed=seed, progress_bar=False)
        post, stats = found["posterior"].to_dataset(), found["sample_stats"].to_dataset()
        population = [post["theta"].values, np.log(post["omega"].values), np.log(post["sigma"].values)[..., None]]
        warmup = found["warmup_sample_stats"].to_dataset()
        return Sampled(
            draws=np.concatenate(population, axis=-1)[:, ::thin],
            divergences=int(stats["diverging"].sum()),
            gradients=int(stats["n_steps"].sum() + warmup["n_steps"].sum()),
            notes={"warmup": int(warmup.sizes["draw"])},
        )


def _model(problem: Problem):
    """Non-centred, rows split into quantified and left-censored."""
    import pymc as pm
    import pytensor.tensor as pt

    who, n = problem.subject, problem.n_quantified
    with pm.Model() as model:
        theta = pm.Normal("theta", problem.theta_loc, problem.theta_scale)
        omega = pm.HalfNormal("omega", problem.omega_scale)
        sigma = pm.LogNormal("sigma", problem.sigma_loc, problem.sigma_scale)
        z = pm.Normal("z", 0.0, 1.0, shape=(6, problem.n_subjects))
        individual = theta[:, None] + omega[:, None] * z
        ln_foldx, ln_cmax = individual[0], individual[2]
        tmax, alpha, beta = pt.exp(individual[1]), pt.exp(individual[3]), pt.exp(individual[5])
        fb = pt.minimum(pt.exp(individual[4]), FB_MAX)
        since = problem.time - tmax[who]
        s = pt.maximum(since, 0.0)
        growth = (ln_foldx / tmax)[who] * pt.minimum(since, 0.0)
        decline = pt.logaddexp(pt.log1p(-fb)[who] - alpha[who] * s, pt.log(fb)[who] - beta[who] * s)
        ln_pred = ln_cmax[who] + growth + decline
        pm.Normal("quantified", ln_pred[:n], sigma, observed=problem.ln_dv[:n])
        if n < len(who):
            below = pm.logcdf(pm.Normal.dist(ln_pred[n:], sigma), problem.ln_dv[n:])
            pm.Potential("below", below.sum())
    return model


if __name__ == "__main__":
    main(PyMC, ("pymc", "nutpie", "pytensor", "numba"))
