"""Covariates: what the data leave to say, what is refused, and that a model file keeps all of it."""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from carkinetics.cohort import Cohort
from carkinetics.covariates import Covariate, resolve
from carkinetics.dependence import Correlation, Horseshoe, Mixture, PriorCorrelation
from carkinetics.errors import DataError, ModelError
from carkinetics.inputs import design_of, resolved
from carkinetics.layout import make_layout
from carkinetics.model_files import parse_model
from carkinetics.model_parts import Prior
from carkinetics.model_writing import to_toml
from carkinetics.priors import log_prior
from carkinetics.simulation import simulate
from everything import EVERYTHING, KNOWN_RATIO, PUBLISHED, RANDOM_RATIO, assay, bounded, read, table, tied

X = np.array([10.0, 20.0, 40.0, 400.0, np.nan])


def covariate(**more):
    return Covariate("X", on="cmax", **more)


def patients(**columns):
    """A small table with one value a patient in these columns."""
    frame = table(n=len(next(iter(columns.values()))), samples=2)
    number = frame["ID"].str[1:].astype(int)
    return frame.assign(**{name: [values[k] for k in number] for name, values in columns.items()})


def test_centres_and_priors_come_from_the_patients():
    """If it fails, an effect is of another patient than the table says, or its prior depends on the unit."""
    power = resolve(covariate(), X)
    assert power.center == 30.0  # of 10, 20, 40, 400
    assert resolve(covariate(center="mean"), X).center == 117.5
    assert resolve(covariate(center=7.0), X).center == 7.0
    assert power.prior_sd == pytest.approx(0.7 / np.std(np.log(X[:4])))
    assert resolve(covariate(form="linear"), X).prior_sd == pytest.approx(0.7 / np.std(X[:4]))
    assert resolve(covariate(prior_sd=0.1), X).prior_sd == 0.1
    in_other_units = resolve(covariate(), 1000 * X)
    assert in_other_units.prior_sd == pytest.approx(power.prior_sd)
    np.testing.assert_allclose(in_other_units.design(1000 * X), power.design(X), atol=1e-12)
    np.testing.assert_allclose(power.design(X)[0], [*np.log(X[:4] / 30), 0.0])
    np.testing.assert_allclose(resolve(covariate(form="exponential"), X).design(X)[0], [*(X[:4] - 30), 0.0])


def test_the_reference_is_the_most_frequent_category():
    """If it fails, effects are against another category than the one that is said."""
    x = np.array(["B", "A", "B", "C", ""], dtype=object)
    found = resolve(covariate(form="categorical"), x)
    assert (found.reference, found.levels, found.values) == ("B", ("A", "C"), (0.0, 0.0))
    np.testing.assert_array_equal(found.design(x), [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
    assert [e.name for e in found.effects] == ["e_x_a_cmax", "e_x_c_cmax"]
    assert [e.prior.scale for e in found.effects] == [0.7, 0.7]
    chosen = resolve(covariate(form="categorical", reference="C"), x)
    assert (chosen.reference, chosen.levels) == ("C", ("A", "B"))
    with pytest.raises(ModelError, match="reference category 'D'"):
        resolve(covariate(form="categorical", reference="D"), x)
    numbers = resolve(covariate(form="categorical"), np.array([1.0, 2.0, 1.0]))
    assert (numbers.reference, numbers.levels) == ("1", ("2",))


@pytest.mark.parametrize(
    ("given", "x", "said"),
    [
        ({}, [3.0, 3.0, np.nan], "same value, or none"),
        ({}, [np.nan, np.nan], "same value, or none"),
        ({"form": "categorical"}, ["F", "F", ""], r"one category \(F\)"),
        ({"form": "categorical"}, ["", ""], r"one category \(none\)"),
        ({}, [0.0, 1.0, 2.0], "X = 0 is outside what its power"),
        ({"form": "linear"}, [np.inf, 1.0, 2.0], "X = inf is outside"),
    ],
)
def test_what_tells_nothing_is_refused(given, x, said):
    """If it fails, an effect that no patient informs, or the log of 0, gets into a fit."""
    x = np.array(x, dtype=object if isinstance(x[0], str) else float)
    with pytest.raises(ModelError, match=said):
        resolve(covariate(**given), x)


def test_a_known_effect_needs_no_spread():
    """If it fails, a model whose tumour starts at its measured volume cannot be fitted to patients who are alike."""
    same = np.array([3.0, 3.0])
    assert resolve(covariate(center=2.0, value=1.0, fixed=True), same).design(same)[0] == pytest.approx(np.log(1.5))
    with pytest.raises(ModelError, match="same value"):
        resolve(covariate(value=1.0, fixed=True), same)  # the centre would be theirs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"form": "powr"}, "Did you mean 'power'"),
        ({"missing": "ignore"}, "unknown policy"),
        ({"center": "middle"}, "unknown center"),
        ({"center": 0.0}, "above 0 for a power"),
        ({"value": np.nan}, "must be finite"),
        ({"form": "categorical", "levels": ("A", "B"), "values": (0.1,)}, "1 values for 2 levels"),
        ({"prior_sd": 0.0}, "prior_sd = 0"),
    ],
)
def test_covariates_that_cannot_be_are_refused(given, said):
    """If it fails, a misspelt option is taken for another."""
    with pytest.raises(ModelError, match=said):
        covariate(**given)


def test_missing_values_are_refused_by_name_or_imputed_and_said():
    """If it fails, patients without a value are dropped or imputed in silence."""
    data = read(patients(X=[5.0, np.nan, 20.0, 60.0], SEX=["F", "M", "", "M"]))
    with pytest.raises(DataError, match=r"covariate X is empty.*1 patients \(P01\).*missing='center'"):
        resolved(PUBLISHED.with_covariates(covariate()), data)
    imputed = covariate(missing="center"), Covariate("SEX", on="tmax", form="categorical", missing="center")
    model, notes = resolved(PUBLISHED.with_covariates(*imputed), data)
    assert notes == ["SEX imputed as M for 1 patients (P02).", "X imputed as 20 for 1 patients (P01)."]
    found = design_of(model, data)
    np.testing.assert_allclose(found[0], [np.log(5 / 20), 0, 0, np.log(3)])
    np.testing.assert_array_equal(found[1], [1, 0, 0, 0])


@pytest.mark.parametrize("empty", ["", np.nan])
def test_an_empty_column_is_refused(empty):
    """If it fails, a column that nobody filled in ends in a traceback."""
    data = read(patients(X=[empty] * 3))
    with pytest.raises(DataError, match=r"empty in all rows: 3 patients"):
        resolved(PUBLISHED.with_covariates(covariate()), data)
    with pytest.raises(ModelError, match="same value, or none"):
        resolved(PUBLISHED.with_covariates(covariate(missing="center")), data)


def test_columns_that_cannot_be_read_are_refused():
    """If it fails, texts become numbers, or a value that changes within a patient is taken from any row."""
    frame = patients(X=["many", "few", "1"])
    with pytest.raises(DataError, match=r"'many' is not a number; use form='categorical'"):
        resolved(PUBLISHED.with_covariates(covariate()), read(frame))
    with pytest.raises(DataError, match="column X, which is absent"):
        resolved(PUBLISHED.with_covariates(covariate()), read(frame.drop(columns="X")))
    for values in ([1.0, 2.0], ["a", "b"]):
        changing = frame.assign(X=[values[k % 2] for k in range(len(frame))])
        form = "power" if values[0] == 1.0 else "categorical"
        with pytest.raises(DataError, match=r"X changes within a patient: 3 patients \(P00"):
            resolved(PUBLISHED.with_covariates(covariate(form=form)), read(changing))


def test_what_the_model_does_not_know_is_refused_at_prediction():
    """If it fails, a patient of an unseen product is simulated as one of the reference."""
    effects = Covariate("SEX", on="cmax", form="categorical", reference="F", levels=("M",), values=(0.5,))
    model = PUBLISHED.with_covariates(effects, Covariate("X", on="tmax", center=2.0, value=0.5))
    times = [1.0, 7.0, 28.0]
    with pytest.raises(ModelError, match=r"no effect of 'other' on cmax; it knows 'F' \(reference\) and 'M'"):
        simulate(model, Cohort(2, times, covariates=pd.DataFrame({"SEX": ["F", "other"]})), seed=1)
    with pytest.raises(ModelError, match="X = 0 is outside"):
        simulate(model, Cohort(2, times, covariates=pd.DataFrame({"X": [0.0, 1.0]})), seed=1)
    with pytest.raises(ModelError, match="levels come from the data of a fit"):
        simulate(PUBLISHED.with_covariates(covariate(form="categorical")), Cohort(2, times), seed=1)
    cohort = Cohort(2, times, covariates=pd.DataFrame({"SEX": ["F", "M"], "X": [2.0, 8.0]}))
    found = simulate(model, cohort, seed=1, variability=False).individual
    assert (found["cmax"] / 24000).tolist() == pytest.approx([1.0, np.exp(0.5)])
    assert (found["tmax"] / 9.3).tolist() == pytest.approx([1.0, 2.0])


def test_an_effect_of_the_same_column_on_the_same_parameter_is_replaced():
    """If it fails, burden acts twice on the peak."""
    first = PUBLISHED.with_covariates(covariate(), Covariate("X", on="tmax"), Covariate("AGE", on="cmax"))
    again = first.with_covariates(covariate(form="linear"))
    assert [(c.column, c.on, c.form) for c in again.covariates] == [
        ("X", "tmax", "power"), ("AGE", "cmax", "power"), ("X", "cmax", "linear")
    ]  # fmt: skip
    assert again.without_covariates().covariates == ()
    with pytest.raises(ModelError, match="Did you mean 'cmax'"):
        PUBLISHED.with_covariates(Covariate("X", on="cmaxx"))


def related(model):
    """The model with a prior in which all its components are correlated."""
    names = tuple(n for n, p in zip(make_layout(model).phi_names, make_layout(model).priors, strict=True)
                  if p.family in ("normal", "lognormal"))  # fmt: skip
    matrix = 0.2 * np.ones((len(names),) * 2) + 0.8 * np.eye(len(names))
    return replace(model, prior_correlation=PriorCorrelation(names, tuple(map(tuple, matrix.tolist()))))


AFTER = related(
    replace(
        PUBLISHED.with_assay(assay("flow", "student_t", 0.5, 4.0, ratio=RANDOM_RATIO))
        .with_covariates(covariate(center=2.0, prior_sd=0.4))
        .with_mixture("cmax", 900.0, 0.2, "low v. 2"),
        correlation=Correlation(("cmax", "tmax"), values=(0.3,), prior_sd=(0.2,)),
    )
)
REPLACED = {
    "covariate": (lambda m: m.with_covariates(covariate(form="linear", center=2.0, prior_sd=0.1)), {"e_x_cmax"}),
    "shrinkage": (lambda m: m.with_covariates(shrinkage=Horseshoe(scale=1.0)), {"e_x_cmax"}),
    "no covariates": (lambda m: m.without_covariates(), {"e_x_cmax"}),
    "mixture": (lambda m: m.with_mixture("cmax", 90.0, 0.1, "b"), {"step cmax", "odds low v. 2"}),
    "no mixture": (lambda m: m.without_mixture(), {"step cmax", "odds low v. 2"}),
    "correlation": (lambda m: m.with_correlation("cmax", "fb"), {"corr cmax tmax"}),
    "assay": (
        lambda m: m.with_assay(assay("flow")),
        {"sigma flow", "nu flow", "ratio_flow", "omega ratio_flow"},
    ),
    "nu": (lambda m: m.with_values({"nu.flow": 3.0}), {"nu flow"}),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_part_that_is_replaced_loses_its_place_in_the_prior(name):
    """If it fails, a model from a fit cannot be changed, or a new prior still moves with the old one's others."""
    change, gone = REPLACED[name]
    model = change(AFTER)
    assert set(AFTER.prior_correlation.names) - set(model.prior_correlation.names) == gone
    with jax.enable_x64(True):
        assert jnp.isfinite(log_prior(model, jnp.asarray(make_layout(model).start)))


def test_a_shared_omega_is_changed_where_it_belongs():
    """If it fails, a model says two different numbers for one omega, or a prior that is set does nothing."""
    model = tied(PUBLISHED)
    changed = model.with_values({"omega.tmax": 0.9})
    assert changed["alpha"].iiv == changed["tmax"].iiv == 0.9
    assert parse_model(to_toml(changed)).parameters == changed.parameters
    for change in (lambda: model.with_values({"omega.alpha": 0.9}),
                   lambda: model.with_priors({"omega.alpha": Prior("halfnormal", 0.0, 1.0)})):  # fmt: skip
        with pytest.raises(ModelError, match=r"alpha shares the omega of tmax; change omega\.tmax"):
            change()


EVERY_COVARIATE = (
    Covariate("A B%", on="cmax", value=0.1 + 0.2, prior_sd=1 / 3, source='a "source"', confidence="high"),
    Covariate("AGE", on="tmax", form="exponential", center="mean", missing="center"),
    Covariate("AGE", on="fb", form="linear", center=50.0, fixed=True, value=-0.01),
    Covariate("P", on="beta", form="categorical", reference="x y", levels=("1", "ü"), values=(0.1, -0.2),
              prior_sds=(0.3, 0.4)),
)  # fmt: skip
WRITTEN = {
    "covariates": PUBLISHED.with_covariates(*EVERY_COVARIATE),
    "shrinkage": PUBLISHED.with_covariates(*EVERY_COVARIATE[:2], shrinkage=Horseshoe(2.5, 0.6)),
    "shrinkage, scale": PUBLISHED.with_covariates(*EVERY_COVARIATE[:2], shrinkage=Horseshoe(2.5, 0.6, 0.0123)),
    "mixture": replace(PUBLISHED, mixture=Mixture("cmax", 240.5, 1 / 7, "a b", "s", "low", 0.31, 0.77)),
    "correlation": PUBLISHED.with_correlation("beta", "cmax", "foldx", eta=1.5, values=(0.1, -0.2, 1 / 3)),
    "correlation of a posterior": replace(
        PUBLISHED, correlation=Correlation(("cmax", "beta"), values=(0.3,), prior_sd=(0.123,))
    ),
    "ratio": PUBLISHED.with_assay(assay("bm", ratio=RANDOM_RATIO, lloq=20.0, lod=5.0)),
    "ratio known": PUBLISHED.with_assay(assay("bm", ratio=KNOWN_RATIO)),
    "nu known": PUBLISHED.with_assay(assay("flow", "student_t", 0.5, 3.5, estimated=False)),
    "nu estimated": PUBLISHED.with_assay(assay("flow", "student_t", 0.5, 3.5)),
    "combined": PUBLISHED.with_assay(assay("flow", "combined", 0.5, 3.5)),
    "counts": PUBLISHED.with_assay(assay("flow", "negative_binomial", 0.5)),
    "bounds": bounded(PUBLISHED),
    "omega_of": tied(PUBLISHED),
    "everything": EVERYTHING,
    "after a fit": AFTER,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_file_keeps_every_part(name):
    """If it fails, a part of a model is lost, rounded or read as another when it is written."""
    model = WRITTEN[name]
    again = parse_model(to_toml(model))
    assert replace(again, toml=model.toml) == model
    assert to_toml(again) == to_toml(model)


FILE = to_toml(
    replace(WRITTEN["everything"], covariates=EVERY_COVARIATE, shrinkage=Horseshoe(2.5, 0.6, 0.0123))
)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('missing = "center"', 'mising = "center"', "Did you mean 'missing'"),
        ('missing = "center"', 'missing = "centre"', "Did you mean 'center'"),
        ("prior_sds = [0.3", "prior_sdss = [0.3", "Did you mean 'prior_sds'"),
        ('levels = ["1"', 'level = ["1"', "Did you mean 'levels'"),
        ('reference = "x y"', 'referense = "x y"', "Did you mean 'reference'"),
        ("slab = 0.6", "slap = 0.6", "Did you mean 'slab'"),
        ("[shrinkage]", "[shrinkag]", "Did you mean 'shrinkage'"),
        ("slab = 0.6", "slab = -0.6", "must be above 0"),
        ("prior_step = ", "prior_stepp = ", "Did you mean 'prior_step'"),
        ("prior_odds = 1.0", "prior_odds = 0", "must be above 0"),
        ("eta = 2.0", "eda = 2.0", "Did you mean 'eta'"),
        ('"beta", "cmax", "ratio_flow"]', '"beta", "cmaxx", "ratio_flow"]', "Did you mean 'cmax'"),
        ("prior_nu = ", "prior_mu = ", "Did you mean 'prior_nu'"),
        ("ratio = {", "ratios = {", "Did you mean 'ratio'"),
        ("bounds = [0.0, 0.3]", "bound = [0.0, 0.3]", "Did you mean 'bounds'"),
        ("bounds = [0.0, 0.3]", "bounds = [0.3, 0.0]", "low below high"),
        ("bounds = [0.0, 0.3]", "bounds = [0.1, 0.3]", "must be between 0.1 and 0.3"),
        ('omega_of = "tmax"', 'omegas_of = "tmax"', "Did you mean 'omega_of'"),
        ('omega_of = "tmax"', 'omega_of = "tmx"', "Did you mean 'tmax'"),
        ('omega_of = "tmax"', 'omega_of = "cmax"', "with an omega of its own, and state the same number"),
    ],
)
def test_what_cannot_be_is_refused(old, new, said):
    """If it fails, a misspelt key of a model file is ignored."""
    assert FILE.count(old) == 1, old
    with pytest.raises(ModelError, match=said):
        parse_model(FILE.replace(old, new))


@pytest.mark.slow
def test_the_fit_says_what_was_imputed():
    """If it fails, a result does not record that a patient's covariate was made up."""
    from carkinetics.demo import virtual_trial
    from carkinetics.fitting import fit

    frame = virtual_trial(1, patients=8).table
    frame["X"] = frame["ID"].map({i: 1.0 + k for k, i in enumerate(sorted(set(frame["ID"]))) if k != 3})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(
            PUBLISHED.with_covariates(covariate(missing="center")),
            read(frame),
            seed=1,
            method="laplace",
            progress=False,
        )
    assert any("X imputed as 5 for 1 patients (V4)" in note for note in result.check().reasons)
    assert result.model.covariates[0].center == 5.0
    assert "missing" in result.tree.attrs["model_toml"]
