"""From a density to draws: a start near the posterior, coordinates in which it is round, and a sampler."""
