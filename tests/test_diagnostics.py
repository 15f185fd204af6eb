"""Tables of fit and data, against the draws themselves."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from carkinetics.diagnostics import gof, individual_curves
from carkinetics.errors import ModelError


def test_gof_rows_are_the_data_in_their_order(small_fit):
    """A table whose rows are shifted would set every residual against another sample."""
    table, data = gof(small_fit), small_fit.data
    assert list(table["TIME"]) == list(data.time)
    assert list(table["ID"]) == [data.subjects[i] for i in data.subject]
    assert list(table["DV"]) == list(data.dv)


def test_ipred_is_the_individuals_own_curve(small_fit):
    """IPRED of every draw is the structure's curve at that draw's individual parameters, by an ODE solver of scipy."""
    posterior, data = small_fit.tree["posterior"].to_dataset(), small_fit.data
    draw = {"chain": 1, "draw": 7}
    for i in (0, 5):
        p = dict(
            zip(
                posterior["parameter"].values,
                posterior["individual"].isel(subject=i, **draw).values.astype(float),
                strict=True,
            )
        )
        rows = np.flatnonzero(data.subject == i)
        up = rows[data.time[rows] <= p["tmax"]]
        growth = np.log(p["foldx"]) / p["tmax"]
        expected = {r: p["cmax"] / p["foldx"] * np.exp(growth * data.time[r]) for r in up}
        after = rows[data.time[rows] > p["tmax"]]
        conversion = p["fb"] * (p["alpha"] - p["beta"])
        solved = solve_ivp(
            lambda t, y, p=p, k=conversion: [-p["alpha"] * y[0], k * y[0] - p["beta"] * y[1]],
            (p["tmax"], data.time.max() + 1),
            [p["cmax"], 0.0],
            t_eval=data.time[after],
            rtol=1e-10,
            atol=1e-12,
        )
        expected |= dict(zip(after, solved.y.sum(0), strict=True))
        found = posterior["ipred"].isel(**draw).values[list(expected)]
        np.testing.assert_allclose(found, list(expected.values()), rtol=1e-4)  # individual parameters are float32


def test_iwres_by_hand(small_fit):
    """IWRES is the residual on the log scale over sigma, and missing where a value is censored."""
    table = gof(small_fit)
    posterior = small_fit.tree["posterior"].to_dataset()
    sigma = float(posterior["sigma"].mean())
    quantified = table["CENS"] == 0
    expected = (np.log(table["DV"]) - np.log(table["IPRED"])) / sigma
    np.testing.assert_allclose(table["IWRES"][quantified], expected[quantified], rtol=1e-12)
    assert table["IWRES"][~quantified].isna().all()


def test_individual_curves_pass_through_ipred(small_fit):
    """The drawn curve and the table's IPRED are the same function of the same draws."""
    subject = small_fit.data.subjects[2]
    curves = individual_curves(small_fit, subjects=[subject], draws=200)
    table = gof(small_fit)
    mine = table[(table["ID"] == subject) & (table["IPRED"] > 1)]
    on_curve = np.exp(np.interp(mine["TIME"], curves["TIME"], np.log(curves["IPRED"])))
    np.testing.assert_allclose(np.log(on_curve), np.log(mine["IPRED"]), atol=0.1)
    assert (curves["LOW"] <= curves["IPRED"]).all()
    assert (curves["IPRED"] <= curves["HIGH"]).all()


def test_unknown_patient_is_refused(small_fit):
    """A typo in an ID must not give an empty panel."""
    with pytest.raises(ModelError, match="unknown patient 'V99'"):
        individual_curves(small_fit, subjects=["V99"])
