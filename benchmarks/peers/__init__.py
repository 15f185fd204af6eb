"""One process per sampler: each worker reads the problem, compiles, checks its density, samples, and writes."""
