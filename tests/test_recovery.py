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
    """If a density, a transform or the sampler were wrong, the truth would leave the 99 % intervals.

    Each of the 13 population parameters is inside for at least 19 of 20 trials, and all misses together are no
    more than chance allows: of 260 intervals 2.6 miss on average, more than 8 once in 600 times.
    """
    model, outside, not_ok = load_model(MODEL), [], {}
    for seed in SEEDS:
        trial = virtual_trial(seed)
        result = fit(model, read_trial(trial), seed=seed, progress=False)
        n = result.check().numbers
        if n["rhat"] > 1.01 or n["ess_bulk"] < 400 or n["divergences"] > 0:
            not_ok[seed] = n
        names, draws = population_draws(result)
        truth = trial.truth | {p.name: p.theta for p in model.parameters}
        low, high = np.quantile(draws, (0.005, 0.995), axis=(0, 1))
        missed = [name for name, lo, hi in zip(names, low, high, strict=True) if not lo <= truth[name] <= hi]
        outside += missed
        print(seed, n, missed, result.tree.attrs["seconds"], flush=True)
    assert not not_ok
    assert all(outside.count(name) <= 1 for name in outside), outside
    assert len(outside) <= 8, outside
