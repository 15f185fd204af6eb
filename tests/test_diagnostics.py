"""Tables of fit and data, against the draws themselves."""

import dataclasses

import mpmath
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from carkinetics.diagnostics import gof, individual_curves, individual_fits, individual_residuals, since_infusion
from carkinetics.errors import ModelError
from carkinetics.prediction_errors import npde


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


def with_residual(fit, error, **parameters):
    """The same fit, as if its residuals had been of another family, with these parameters in every draw."""
    names = list(parameters)
    model = fit.model.with_residual(error, values=parameters)
    posterior = fit.tree["posterior"].to_dataset().copy()
    for name, value in parameters.items():
        posterior["sigma" if name == names[0] else name] = posterior["sigma"] * 0 + value
    tree = fit.tree.copy()
    tree["posterior"] = posterior
    return dataclasses.replace(fit, model=model, tree=tree)


def normal_quantile(p):
    return float(mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1))


def test_iwres_of_student_t_is_the_normal_quantile_of_its_place(small_fit):
    """If it fails, outliers that the tails allow for look like faults. Against the cdf in 50 digits."""
    fit, sigma, nu = with_residual(small_fit, "student_t", sigma=0.4, nu=3.0), 0.4, 3.0
    ipred = np.full(fit.data.n_obs, 1000.0)
    place = np.array([-9.0, -1.0, 0.0, 0.5, 12.0])
    dv = fit.data.dv.copy()
    dv[:5] = 1000.0 * np.exp(sigma * place)
    found = individual_residuals(dataclasses.replace(fit, data=dataclasses.replace(fit.data, dv=dv)), ipred)[:5]
    with mpmath.workdps(50):
        for t, z in zip(place, found, strict=True):
            x = mpmath.mpf(nu) / (nu + mpmath.mpf(t) ** 2)
            tail = mpmath.betainc(nu / 2, mpmath.mpf(1) / 2, 0, x, regularized=True) / 2
            assert z == pytest.approx(normal_quantile(tail if t < 0 else 1 - tail), abs=1e-9)


def test_iwres_of_counts_is_in_the_middle_of_their_step(small_fit):
    """If it fails, a count of zero has an infinite residual, or counts lean to one side. Against sums in 50 digits."""
    fit, alpha, mean = with_residual(small_fit, "negative_binomial", dispersion=0.5), 0.5, 4.0
    counts, dv = np.array([0.0, 1.0, 4.0, 30.0, 90.0]), fit.data.dv.copy()
    dv[:5] = counts
    data = dataclasses.replace(fit.data, dv=dv)
    found = individual_residuals(dataclasses.replace(fit, data=data), np.full(len(dv), mean))[:5]
    with mpmath.workdps(50):
        k, q = mpmath.mpf(1) / alpha, mpmath.mpf(alpha * mean / (1 + alpha * mean))

        def pmf(y):
            return mpmath.gamma(y + k) / mpmath.gamma(k) / mpmath.factorial(y) * (1 - q) ** k * q**y

        for y, z in zip(counts.astype(int), found, strict=True):
            p = sum((pmf(j) for j in range(int(y))), mpmath.mpf(0)) + pmf(int(y)) / 2
            assert z == pytest.approx(normal_quantile(p), abs=1e-9)


def test_iwres_of_combined_and_replicated_samples_by_hand(small_fit):
    """If it fails, the residual's SD lacks one of its two parts."""
    combined = with_residual(small_fit, "combined", proportional=0.3, additive=20.0)
    dv, ipred = small_fit.data.dv, np.full(small_fit.data.n_obs, 200.0)
    expected = (dv - 200.0) / np.sqrt(60.0**2 + 20.0**2)
    np.testing.assert_allclose(individual_residuals(combined, ipred), expected, rtol=1e-12)
    twice = with_residual(small_fit, "replicates", sigma=0.3, sample=0.4)
    np.testing.assert_allclose(individual_residuals(twice, ipred), np.log(dv / 200.0) / 0.5, rtol=1e-12)


def test_gof_has_the_columns_of_the_house_and_takes_npde(small_fit):
    """If it fails, a table lacks what reviewers look for, or errors of other data are put beside the samples."""
    errors = npde(small_fit, seed=1, n=200)
    table = gof(small_fit, npde=errors)
    assert list(table.columns) == ["ID", "TIME", "DVID", "DV", "CENS", "PRED", "IPRED", "IWRES", "NPDE", "TAD"]
    np.testing.assert_array_equal(table["NPDE"], errors.rows["NPDE"])
    assert gof(small_fit)["NPDE"].isna().all()
    with pytest.raises(ModelError, match="other samples"):
        gof(small_fit, npde=dataclasses.replace(errors, rows=errors.rows[1:]))


def test_days_are_counted_from_the_last_infusion(small_fit):
    """If it fails, samples after a second infusion are counted from the first, or those before any from a later one."""
    data = small_fit.data
    first = data.subjects[0]
    doses = data.table[(data.table["ID"] == first) & (data.table["EVID"] == 1)]
    second = doses.assign(TIME=20.0)
    early = doses.assign(TIME=-1.0)
    table = pd.concat([data.table, second, early])
    time = data.time.copy()
    time[np.flatnonzero(data.subject == 1)[0]] = -3.0
    found = since_infusion(dataclasses.replace(data, table=table, time=time))
    mine = data.subject == 0
    np.testing.assert_allclose(found[mine], np.where(time[mine] < 20, time[mine], time[mine] - 20))
    np.testing.assert_allclose(found[~mine], time[~mine])


def test_bands_of_new_samples_are_the_predictions_and_their_residuals(small_fit):
    """If it fails, bands of new samples lack the residual, or those of the curve have it. Against the draws."""
    subject = small_fit.data.subjects[2]
    table = individual_fits(small_fit, subjects=[subject])
    row = table.iloc[(table["TIME"] - 20.0).abs().argmin()]
    posterior = small_fit.tree["posterior"].to_dataset().stack(s=("chain", "draw"))
    p = posterior["individual"].sel(subject=subject).to_pandas().T
    s = np.maximum(row["TIME"] - p["tmax"], 0)
    rise = np.log(p["foldx"]) / p["tmax"] * np.minimum(row["TIME"] - p["tmax"], 0)
    fall = np.log((1 - p["fb"]) * np.exp(-p["alpha"] * s) + p["fb"] * np.exp(-p["beta"] * s))
    ln, sigma = (np.log(p["cmax"]) + rise + fall).to_numpy(), posterior["sigma"].values.ravel()
    for q in (5, 25, 75, 95):
        assert np.log(row[f"IPRED_{q}"]) == pytest.approx(np.quantile(ln, q / 100), abs=1e-3)
    assert np.log(row["IPRED"]) == pytest.approx(np.median(ln), abs=1e-3)

    def share(x):  # of new samples below x: the residual's cdf, averaged over the draws
        return stats.norm.cdf((np.log(x) - ln) / sigma).mean()

    for q in (5, 25, 50, 75, 95):
        assert share(row[f"NEW_{q}"]) == pytest.approx(q / 100, abs=0.12)
    inner = table[["NEW_5", "NEW_25", "NEW_50", "NEW_75", "NEW_95"]].to_numpy()
    assert (np.diff(inner, axis=1) > 0).all()
    assert (np.log(table["NEW_95"] / table["NEW_5"]) > np.log(table["IPRED_95"] / table["IPRED_5"])).mean() > 0.95
