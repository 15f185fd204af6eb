"""Assays that a user changes: other residuals, the same measurement in another tissue."""

import numpy as np
import pytest

from carkinetics.errors import ModelError
from carkinetics.model_files import load_model
from carkinetics.model_parts import Prior
from carkinetics.model_writing import to_toml
from carkinetics.residuals import RESIDUALS

STEIN = load_model("stein_2019_tisagenlecleucel")
TWO = STEIN.with_tissue("marrow", "BM")


@pytest.mark.parametrize("error", sorted(RESIDUALS))
def test_every_family_can_be_had_and_is_read_back(error, tmp_path):
    """If it fails, a residual family needs the assay's inside, or a model with it is lost in its file."""
    values = {"additive": 5.0} if error == "combined" else {}
    model = STEIN.with_residual(error, values=values)
    assert model.assays[0].error == error
    given = [p.default if p.default is not None else 5.0 for p in RESIDUALS[error].params]
    assert [model.assays[0].sigma, model.assays[0].second][: len(given)] == given
    assert model.assays[0].lloq == STEIN.assays[0].lloq
    path = tmp_path / "model.toml"
    path.write_text(to_toml(model))
    assert load_model(path).assays == model.assays


def test_what_is_held_and_what_is_estimated():
    """If it fails, the degrees of freedom are estimated unasked, or not when asked."""
    held = STEIN.with_residual("student_t", values={"nu": 3.0})
    assert (held.assays[0].second, held.assays[0].prior_second) == (3.0, None)
    free = STEIN.with_residual("student_t", estimated=["nu"])
    assert free.assays[0].prior_second == Prior("lognormal", np.log(4.0), 0.5)
    assert free.with_residual("lognormal", values={"sigma": STEIN.assays[0].sigma}).assays[0].prior_second is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: STEIN.with_residual("student"), "Did you mean 'student_t'"),
        (lambda: STEIN.with_residual("student_t", values={"mu": 4.0}), "Did you mean 'nu'"),
        (lambda: STEIN.with_residual("student_t", estimated=["df"]), "unknown parameter of student_t 'df'"),
        (lambda: STEIN.with_residual("student_t", values={"nu": 0.5}), "nu = 0.5 must be above 1 and up to 100"),
        (lambda: STEIN.with_residual("lognormal", assay="qpc"), "Did you mean 'qpcr'"),
        (lambda: STEIN.with_residual("lognormal", values={"sigma": 0.0}), "sigma = 0 must be above 0"),
        (lambda: STEIN.with_tissue("marrow", "bone"), "unknown matrix 'bone'"),
        (lambda: STEIN.with_tissue("marrow", "BM", ratio=0.0), "ratio = 0 must be"),
        (lambda: STEIN.with_tissue("marrow", "BM", omega=-1.0), "omega of the ratio = -1 must be"),
        (lambda: STEIN.with_tissue("marrow", "BM", of="flow"), "unknown assay 'flow'"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    """If it fails, a misspelt family or tissue is taken for something else."""
    with pytest.raises(ModelError, match=message):
        change()


def test_a_tissue_has_a_ratio_of_its_own():
    """If it fails, marrow and blood share what differs, or a residual's change loses the ratio."""
    assert [a.name for a in TWO.assays] == ["qpcr", "marrow"]
    assert [p.name for p in TWO.parameters] == [*(p.name for p in STEIN.parameters), "ratio_marrow"]
    assert (TWO["ratio_marrow"].value, TWO["ratio_marrow"].iiv, TWO["ratio_marrow"].transform) == (1.0, 0.4, "log")
    assert TWO["ratio_marrow"].prior == Prior("normal", 0.0, 1.0)
    changed = TWO.with_residual("student_t", assay="qpcr")
    assert [(a.name, a.error) for a in changed.assays] == [("qpcr", "student_t"), ("marrow", "lognormal")]
    assert changed.with_residual("student_t", assay="marrow").assays[1].ratio == TWO.assays[1].ratio
    assert TWO.with_tissue("node", "LN", omega=0.0)["ratio_node"].iiv == 0
    assert TWO.with_tissue("node", "LN", of="marrow", ratio=2.0)["ratio_node"].value == 2.0
