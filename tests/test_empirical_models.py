"""Files of the empirical models, and of the prior for another target: what they say, and what they leave open."""

import numpy as np
import pytest

from carkinetics.errors import ModelError
from carkinetics.model_checks import typical_curve
from carkinetics.model_files import load_model
from one_patient import solved

TIMES = np.array([0.0, 5, 14, 28, 180])


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("ogasawara_2021_lisocabtagene", ["cmax", "fb"]),
        ("wu_2025_idecabtagene", ["e0", "tlag", "tmax", "vmax", "km", "delta_e"]),
    ],
)
def test_a_number_that_nobody_could_read_is_not_made_up(name, missing):
    """If it fails, a model whose table could not be read has a curve all the same."""
    model = load_model(name)
    assert model.unknown(variability=False, residual=False) == missing
    assert len(model.unknown()) == len(missing) + len(model.parameters) + 1
    with pytest.raises(ModelError, match=", ".join(missing)):
        typical_curve(model, TIMES)


def test_the_lag_of_lisocabtagene_has_the_half_lives_of_the_abstract():
    """If it fails, a rate in the file is not ln 2 over the half-life that its source names."""
    model = load_model("ogasawara_2021_lisocabtagene")
    assert np.log(2) / model["alpha"].value == pytest.approx(5.00, rel=1e-3)
    assert np.log(2) / model["beta"].value == pytest.approx(352, rel=1e-3)


def test_the_prior_for_another_target_is_wider_than_the_one_it_is_borrowed_from():
    """If it fails, a CD38 trial starts as sure of itself as if it gave tisagenlecleucel."""
    ours, stein = load_model("cd38_ball_prior"), load_model("stein_2019_tisagenlecleucel")
    for p in stein.parameters:
        assert ours[p.name].prior.loc == p.prior.loc
        assert ours[p.name].iiv == p.iiv
        assert ours[p.name].prior.scale > p.prior.scale, p.name
        assert ours[p.name].prior_omega.scale > p.prior_omega.scale, p.name
        assert ours[p.name].prior_omega.loc == pytest.approx(p.prior_omega.loc, abs=0.01)
        assert "wider" in ours[p.name].source.lower()  # and says why
    assert ours.assays[0].prior.scale > stein.assays[0].prior.scale
    marrow = ours["ratio_bm"].prior
    assert marrow.loc == pytest.approx(-0.37, abs=0.005)
    assert marrow.scale == 0.74
    for name in ("ratio_ln", "ratio_csf"):
        assert ours[name].source.startswith("not known")
        assert "assumption" in ours[name].confidence
        assert ours[name].prior.scale > marrow.scale
    assert {(a.output, a.matrix) for a in ours.assays} == {("level", "PB"), ("level_bm", "BM"), ("level_ln", "LN")}


@pytest.mark.parametrize("name", ["stein_2019_tisagenlecleucel", "cd38_ball_prior"])
def test_treatments_of_the_files_are_steins(name):
    """If it fails, tocilizumab or steroids act with another factor than Stein's, or from another column's day."""
    model = load_model(name)
    assert model.acting == ()
    treated = model.with_treatments()
    found = {t.column: (t.factor.name, t.factor.value, t.factor.iiv) for t in treated.acting}
    assert found == {"TOCI_DAY": ("f_tocilizumab", 1.2, 0.0), "STEROID_DAY": ("f_steroids", 1.0, 0.0)}
    values = {p.name: p.value for p in model.parameters}
    level = solved(model.structure.name, np.array([9.3]), values, given=[(5.3, 1.2), (6.0, 1.0)])
    assert level[0] == pytest.approx(np.log(24000) + 0.2 * np.log(3900) / 9.3 * 4.0, rel=1e-9)
