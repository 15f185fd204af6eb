"""Made patients for the tests of response models."""

import numpy as np
import pandas as pd
import pytest

import carkinetics as ck


def names(n):
    return [f"P{i:03d}" for i in range(n)]


def observed(values, window=(0.0, 14.0), name="cmax"):
    """A metric with one draw."""
    n = len(values)
    return drawn(np.asarray(values, float)[None], window, name, names(n))


def drawn(draws, window=(0.0, 14.0), name="cmax", ids=None):
    """A metric with draws (draw, subject)."""
    n = np.shape(draws)[1]
    ids = tuple(ids or names(n))
    return ck.Metric(name, "copies/ug", ids, np.asarray(draws, float), ("model",) * n, ("",) * n, "qpcr", window)


def series(values, name):
    return pd.Series(np.asarray(values), names(len(values)), name=name)


def responders(n, slope, seed, intercept=0.0):
    """Exposures whose ln is standard normal, and responses with this slope of it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = rng.random(n) < 1 / (1 + np.exp(-intercept - slope * x))
    return np.exp(x), y.astype(int)


@pytest.fixture
def modes_only(monkeypatch):
    """Fits without draws, where only their modes are asked for."""
    import carkinetics.response.result as result
    from carkinetics.response.sampling import Posterior

    def nothing(terms, arrays, *, seed, **_):
        return Posterior(np.zeros((1, len(terms.names))), np.zeros((1, 0)), 0.0, "importance", {"k": 0.0, "ess": 1e4})

    monkeypatch.setattr(result, "sample", nothing)
