"""Shapes and types of every annotated function are checked while the tests run, and only then."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # nobody reads where in Python a program comes from
hook = install_import_hook("carkinetics", "typecheck.check")
hook.__enter__()

# Most programs of the fast tier are compiled for one test and run for milliseconds: to optimise them costs more than it
# gains.
_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    """Of the fast tier alone: what takes minutes computes more than it compiles."""
    if "not thorough" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICKLY}".strip()


_MAPS = 30_000  # half of what Linux lets a process map


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs are given back after a file when they are many: a process can map only so many."""
    import jax

    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Makes a fit, or reads it: the first process of a run that asks for it makes it, the others read its file."""
    import carkinetics as ck

    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made_once(name, make):
        kept = folder / f"{name}.nc"
        if not kept.exists():
            make().save(kept)
        return ck.load_fit(kept)

    return made_once


@pytest.fixture(scope="session", params=["importance", pytest.param("nuts", marks=pytest.mark.thorough)])
def method(request):
    """A method of :func:`carkinetics.fit` whose draws must be the posterior's.

    They go through tests/test_exactness.py and tests/test_calibration.py; the fast tier has the default one.
    """
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

    return Settings(draws=100, max_draws=100)  # as of `carkinetics fit --max-draws 100`: one program serves both


@pytest.fixture(scope="session")
def small_fit(small_trial, small_settings, once):
    """A short fit of the small trial."""
    from carkinetics.demo import read_trial
    from carkinetics.fitting import fit
    from carkinetics.model_files import load_model

    model = load_model("stein_2019_tisagenlecleucel")
    data = read_trial(small_trial)
    return once("small", lambda: fit(model, data, seed=3, chains=2, settings=small_settings, progress=False))


@pytest.fixture(scope="session")
def nuts_options(small_trial):
    """What a short fit by NUTS is called with."""
    from carkinetics.demo import read_trial
    from interrupted_fit import METHOD, SETTINGS, small_model

    what = {"model": small_model(), "data": read_trial(small_trial), "seed": 3, "method": METHOD}
    return what | {"chains": 2, "settings": SETTINGS, "progress": False}


@pytest.fixture(scope="session")
def small_nuts(nuts_options, once):
    """A short fit of the small trial by NUTS."""
    from carkinetics.fitting import fit

    return once("nuts", lambda: fit(**nuts_options))


@pytest.fixture(scope="session")
def rich_trial():
    """A virtual trial with covariates, and with outliers in its residuals."""
    import numpy as np
    import pandas as pd

    import carkinetics as ck

    rng = np.random.default_rng(2)
    people = pd.DataFrame({"BURDEN": np.exp(rng.normal(2.3, 1, 30)), "SEX": rng.choice(["F", "M"], 30)})
    model = ck.load_model("stein_2019_tisagenlecleucel")
    model = model.with_covariates(
        ck.Covariate("BURDEN", on="cmax", center=10.0, value=0.8),
        ck.Covariate("SEX", on="alpha", form="categorical", reference="F", levels=("M",), values=(0.5,)),
    )
    days = (2.0, 4, 7, 9, 11, 14, 21, 28, 42, 70, 98, 140, 168)
    return ck.simulate(model, ck.Cohort(n=30, times=days, covariates=people), seed=11)


@pytest.fixture(scope="session")
def rich_fit(rich_trial, once):
    """A Laplace approximation with covariates, two correlated effects, two classes and a Student-t residual.

    Its search is cut short and said to have ended: what it is for is how a fit is shown and used.
    """
    import dataclasses
    import json

    import carkinetics as ck
    from carkinetics.inference import approximation

    model = ck.load_model("stein_2019_tisagenlecleucel")
    assay = dataclasses.replace(
        model.assays[0], error="student_t", second=6.0, prior_second=ck.Prior("lognormal", 1.8, 0.5)
    )
    model = model.with_assay(assay).with_correlation("tmax", "cmax").with_mixture("fb", 0.001, 0.2, "non-persisters")
    model = model.with_covariates(
        ck.Covariate("BURDEN", on="cmax"), ck.Covariate("SEX", on="alpha", form="categorical", reference="F")
    )
    data = ck.read_dataset(rich_trial.table, units={"DV": "copies/ug"})

    def short():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(approximation, "ROUNDS", 1)
            found = ck.fit(model, data, seed=1, method="laplace", progress=False)
        ended = json.loads(found.tree.attrs["approximation"]) | {"last_move": 0.0}
        found.tree.attrs["approximation"] = json.dumps(ended)
        return found

    return once("rich", short)
