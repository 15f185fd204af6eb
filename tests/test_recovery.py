"""Over many virtual trials the truth is where the intervals say, and every fit passes its gates."""

import numpy as np
import pytest

from carkinetics.demo import MODEL, read_trial, virtual_trial
from carkinetics.fit_result import population_draws
from carkinetics.fitting import fit
from carkinetics.model_files import load_model

SEEDS = range(1, 21)


@pytest.mark.slow
def test_twenty_virtual_trials_are_recovered():
    """If a density, a transform or the sampler were wrong, the truth would leave the 99 % intervals."""
    model, outside, not_ok = load_model(MODEL), {}, {}
    for seed in SEEDS:
        trial = virtual_trial(seed)
        result = fit(model, read_trial(trial), seed=seed, progress=False)
        check = result.check()
        n = check.numbers
        if n["rhat"] > 1.01 or n["ess_bulk"] < 400 or n["divergences"] > 0:
            not_ok[seed] = str(check)
        names, draws = population_draws(result)
        truth = trial.truth | {p.name: p.theta for p in model.parameters}
        low, high = np.quantile(draws, (0.005, 0.995), axis=(0, 1))
        missed = [n for n, lo, hi in zip(names, low, high, strict=True) if not lo <= truth[n] <= hi]
        if missed:
            outside[seed] = missed
        print(seed, check.numbers, missed, result.tree.attrs["seconds"], flush=True)
    assert not not_ok
    assert len(outside) <= 1, outside
