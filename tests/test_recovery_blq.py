"""Trials in which a quarter of the samples are below the limit: what M3 recovers, and what dropping them does."""

import numpy as np
import pytest

from bench_recovery import LAYOUT, bias_and_cover, recovered, stored, trial

NAMES = LAYOUT.phi_names


def by_name(values):
    return dict(zip(NAMES, values, strict=True))


def test_a_hundred_sampled_trials_hold_the_truth():
    """If it fails, samples below the limit bend what is sampled, or its intervals are not what they say.

    Stored by ``benchmarks/bench_recovery.py``, since they take an hour; the test below makes some of them anew. An
    interval that holds the truth in 95 of 100 does so in 90 to 99 of a hundred trials with probability 0.97.
    """
    rows = stored("importance")
    assert [row["seed"] for row in rows] == list(range(1, 101))
    assert 0.2 < np.mean([row["censored"] for row in rows]) < 0.3
    off, held = bias_and_cover(rows)
    bias, cover = by_name(np.expm1(off.mean(axis=0))), by_name(held.mean(axis=0))
    assert max(abs(bias[p.name]) for p in LAYOUT.parameters) < 0.15
    assert all(0.90 <= c <= 0.99 for name, c in cover.items() if name != "omega beta"), cover
    assert cover["omega beta"] >= 0.90  # 1.00: the samples say little of it, and its prior is centred on the truth
    assert 0.94 <= held.mean() <= 0.97  # of 1300


@pytest.mark.slow
def test_the_stored_trials_are_what_the_sampler_finds():
    """If it fails, the engine has changed since the hundred trials were run, and they have to be run again.

    Means of a converged fit are good to a twentieth of a posterior SD or so (an ESS of 400), whatever the machine.
    """
    for row in stored("importance")[:3]:
        found = recovered(trial(row["seed"]), row["seed"], "importance")
        assert found["censored"] == row["censored"]
        sd = (np.array(row["high"]) - row["low"]) / 3.92
        for name in ("mean", "low", "high"):
            z = (np.array(found[name]) - row[name]) / sd
            assert np.abs(z).max() < (0.3 if name == "mean" else 0.8), (row["seed"], name, by_name(z.round(2)))


@pytest.mark.slow
def test_a_hundred_trials_by_laplace():
    """If it fails, samples below the limit bend what is estimated more than a Gaussian approximation has to.

    Means of 100 trials. The approximation is off where patients' posteriors are least Gaussian: the late loss (its
    omega is 40 % too small, and its intervals hold the truth in 71 of 100), the size of the expansion and the
    persistent fraction (85 of 100). The others' hold it in 85 to 97 of 100.
    """
    rows = [recovered(trial(seed), seed, "laplace") for seed in range(1, 101)]
    off, held = bias_and_cover(rows)
    bias, cover = by_name(np.expm1(off.mean(axis=0))), by_name(held.mean(axis=0))
    print(bias, cover)
    assert max(abs(bias[n]) for n in ("tmax", "cmax", "alpha", "fb", "beta")) < 0.15
    assert abs(bias["foldx"]) < 0.2
    assert all(0.83 <= cover[n] <= 0.99 for n in NAMES if n not in ("beta", "omega beta"))
    assert 0.90 <= np.mean([cover[n] for n in ("tmax", "cmax", "omega tmax", "omega cmax", "omega fb")]) <= 0.99
    assert min(cover["beta"], cover["omega beta"]) > 0.6


@pytest.mark.slow
def test_dropping_what_is_below_the_limit_raises_the_persistent_fraction():
    """If it fails, M1 does no harm here, and the page that warns of it says something else than is true."""
    ratio, fb = [], NAMES.index("fb")
    for seed in range(1, 9):
        table = trial(seed)
        quantified = table[(table["EVID"] == 1) | (table["CENS"] == 0)]
        each = [recovered(t, seed, "laplace")["mean"][fb] for t in (table, quantified)]
        ratio.append(each[1] - each[0])
    print(np.exp(np.mean(ratio)), np.std(ratio, ddof=1) / np.sqrt(len(ratio)))
    assert 1.3 < np.exp(np.mean(ratio)) < 2.2  # 1.64 in 20 trials, standard error 0.10
