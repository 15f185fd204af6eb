"""Shapes and types of every annotated function are checked while the tests run, and only then."""

import pytest
from jaxtyping import install_import_hook

hook = install_import_hook("carkinetics", "typecheck.check")
hook.__enter__()


# Methods of inference that must be exact: put through tests/test_exactness.py and tests/test_calibration.py.
EXACT_METHODS = ("importance", "nuts")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of a finished file are given back: a process can map only so many."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture(scope="session", params=EXACT_METHODS)
def method(request):
    """One of the methods of :func:`carkinetics.fit` whose draws must be the posterior's."""
    return request.param


@pytest.fixture(scope="session")
def small_trial():
    """A virtual trial of twelve patients."""
    from carkinetics.demo import virtual_trial

    return virtual_trial(1, patients=12)


@pytest.fixture(scope="session")
def small_settings():
    """Enough iterations to have something to look at, too few to trust."""
    from carkinetics.inference.chains import Settings

    return Settings(pilot=100, warmup=100, draws=100, max_draws=100, target_accept=0.8)


@pytest.fixture(scope="session")
def small_fit(small_trial, small_settings):
    """A short fit of the small trial."""
    from carkinetics.demo import read_trial
    from carkinetics.fitting import fit
    from carkinetics.model_files import load_model

    model = load_model("stein_2019_tisagenlecleucel")
    return fit(model, read_trial(small_trial), seed=3, chains=2, settings=small_settings, progress=False)


@pytest.fixture(scope="session")
def nuts_options(small_trial):
    """What a short fit by NUTS is called with."""
    from carkinetics.demo import MODEL, read_trial
    from carkinetics.inference.chains import Settings
    from carkinetics.model_files import load_model

    settings = Settings(pilot=150, warmup=100, draws=100, max_draws=100, target_accept=0.8)
    what = {"model": load_model(MODEL), "data": read_trial(small_trial), "seed": 3, "method": "nuts"}
    return what | {"chains": 2, "settings": settings, "progress": False}


@pytest.fixture(scope="session")
def small_nuts(nuts_options):
    """A short fit of the small trial by NUTS."""
    from carkinetics.fitting import fit

    return fit(**nuts_options)
