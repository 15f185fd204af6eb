"""The exact posterior of the normal one-way layout: closed form given the two SDs, and a grid over these."""

import numpy as np
from scipy import interpolate, optimize, stats

from agreement import PROBABILITIES


class OneWay:
    """The normal one-way layout: mu and the patients integrated in closed form, (omega, sigma) on a grid.

    Priors: mu Normal(5, 2), omega HalfNormal(1), sigma LogNormal(ln 0.4, 0.5).
    """

    def __init__(self, ln_dv: list[np.ndarray], steps: tuple[int, int]):
        self.ln_omega, self.ln_sigma = np.linspace(-16, 2.5, steps[0]), np.linspace(-3, 2, steps[1])
        omega, sigma = (np.exp(x)[..., None] for x in np.meshgrid(self.ln_omega, self.ln_sigma, indexing="ij"))
        n, mean = np.array([len(y) for y in ln_dv]), np.array([y.mean() for y in ln_dv])
        within = np.array([np.square(y - y.mean()).sum() for y in ln_dv])
        variance = omega**2 + sigma**2 / n
        precision = 1 / 4 + (1 / variance).sum(-1)
        self.mu = (5 / 4 + (mean / variance).sum(-1)) / precision, precision**-0.5
        square = (mean**2 / variance).sum(-1) + 25 / 4 - precision * self.mu[0] ** 2
        log_weight = -0.5 * (np.log(variance).sum(-1) + square + np.log(precision))
        log_weight -= ((n - 1) * np.log(sigma) + within / (2 * sigma**2)).sum(-1)
        omega, sigma = omega[..., 0], sigma[..., 0]
        log_weight += stats.halfnorm.logpdf(omega) + stats.lognorm.logpdf(sigma, s=0.5, scale=0.4)
        log_weight += np.log(omega) + np.log(sigma)  # the grid is even in the logs
        weight = np.exp(log_weight - log_weight.max())
        self.weight = weight / weight.sum()
        share = omega[..., None] ** 2 / variance  # of a patient's own mean in its level
        spread = np.sqrt(((1 - share) * self.mu[1][..., None]) ** 2 + (1 - share) * omega[..., None] ** 2)
        self.patients = self.mu[0][..., None] * (1 - share) + share * mean, spread

    def facts(self) -> np.ndarray:
        """Mean, SD and quantiles of mu, ln omega, ln sigma and every patient's level."""
        scales = [of_density(x, self.weight.sum(1 - i)) for i, x in enumerate((self.ln_omega, self.ln_sigma))]
        keep = self.weight > 1e-12 * self.weight.max()
        weight, mean, sd = self.weight[keep], self.patients[0][keep], self.patients[1][keep]
        patients = [of_mixture(weight, m, s) for m, s in zip(mean.T, sd.T, strict=True)]
        return np.array([of_mixture(weight, self.mu[0][keep], self.mu[1][keep]), *scales, *patients])


def of_mixture(weight, mean, sd):
    """Facts of a mixture of normals."""
    weight = weight / weight.sum()
    centre = weight @ mean
    spread = np.sqrt(weight @ (sd**2 + (mean - centre) ** 2))
    ends = centre - 8 * spread, centre + 8 * spread
    quantiles = [
        optimize.brentq(lambda x, p=p: weight @ stats.norm.cdf((x - mean) / sd) - p, *ends) for p in PROBABILITIES
    ]
    return [centre, spread, *quantiles]


def of_density(x, density):
    """Facts of a density given on an even grid that holds all of it."""
    density = density / density.sum()
    mean = density @ x
    cumulative = interpolate.CubicSpline(x, density / (x[1] - x[0])).antiderivative()
    quantiles = [optimize.brentq(lambda y, p=p: cumulative(y) - p, x[0], x[-1]) for p in PROBABILITIES]
    return [mean, np.sqrt(density @ (x - mean) ** 2), *quantiles]
