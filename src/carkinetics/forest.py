"""What covariates do to exposure: ratios of a typical patient's Cmax and AUC, for a forest plot."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from carkinetics.cohort import design_for
from carkinetics.covariates import Covariate
from carkinetics.errors import ModelError
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.inputs import baseline
from carkinetics.layout import make_layout
from carkinetics.model_checks import typical_inputs
from carkinetics.parameter_table import INTERVAL
from carkinetics.population import natural, population
from carkinetics.simulation import solve

NULL_BAND = (0.8, 1.25)  # ratios of exposure that a bioequivalence trial would call none
_DRAWS = 400
_TIMES = np.concatenate([np.arange(280) / 10, np.arange(28, 91, 1.0)])  # day; a peak after day 90 is not looked for
_WINDOW = 28.0  # of the AUC, day


def covariate_effects(
    fit: Fit, *, quantiles: Sequence[float] = (0.05, 0.95), null_band: tuple[float, float] = NULL_BAND
) -> pd.DataFrame:
    """The typical patient at one value of one covariate against the same at its centre, all others at theirs.

    All effects of a covariate act together, so the ratio is that of a patient with this value.

    Parameters
    ----------
    quantiles : sequence of float
        Of a continuous covariate among the fitted patients: where it is looked at.
    null_band : (float, float)
        Ratios that count as no effect.

    Returns
    -------
    DataFrame
        One row for each covariate, value and quantity (``cmax``, ``auc_0_28``, of the structure's first output):
        ``COVARIATE VALUE AGAINST QUANTITY RATIO LOW HIGH`` (posterior median, 95 % interval) and ``NULL``, the
        probability that the ratio lies in the band.

    Raises
    ------
    ModelError
        The model has no covariates.
    """
    model = fit.model
    if not model.covariates:
        raise ModelError(f"{model.name} has no covariates; see model.with_covariates.")
    looked_at = _values(fit, quantiles)
    people = pd.DataFrame([{}, *({c.column: value} for c, value in looked_at)])
    phi = phi_draws(fit)
    phi = phi[np.unique(np.linspace(0, len(phi) - 1, _DRAWS).astype(int))]
    ln = _curves(fit, phi, people)  # (time, draw, person)
    found = {"cmax": ln.max(axis=0), "auc_0_28": np.log(_area(np.exp(ln)))}
    rows = []
    for k, (covariate, value) in enumerate(looked_at):
        for quantity, values in found.items():
            ratio = np.exp(values[:, k + 1] - values[:, 0])
            low, high = np.quantile(ratio, INTERVAL)
            rows.append(
                {
                    "COVARIATE": covariate.column,
                    "VALUE": value,
                    "AGAINST": covariate.reference or covariate.center,
                    "QUANTITY": quantity,
                    "RATIO": float(np.median(ratio)),
                    "LOW": float(low),
                    "HIGH": float(high),
                    "NULL": float(np.mean((ratio > null_band[0]) & (ratio < null_band[1]))),
                }
            )
    return pd.DataFrame(rows)


def _values(fit: Fit, quantiles: Sequence[float]) -> list[tuple[Covariate, float | str]]:
    """Where each covariate is looked at; one that acts on several parameters, once."""
    found: list[tuple[Covariate, float | str]] = []
    for column in dict.fromkeys(c.column for c in fit.model.covariates):
        covariate = next(c for c in fit.model.covariates if c.column == column)
        if covariate.form == "categorical":
            found += [(covariate, level) for level in covariate.levels]
            continue
        known = baseline(fit.data, column)
        found += [(covariate, float(q)) for q in np.quantile(known[~np.isnan(known)], quantiles)]
    return found


def _curves(fit: Fit, phi: Float[np.ndarray, "draw phi"], people: pd.DataFrame) -> Float[np.ndarray, "time draw n"]:
    """ln of the first output, of every draw's typical patient with these covariates."""
    model, layout, n = fit.model, make_layout(fit.model), len(people)
    with jax.enable_x64(True):
        design = np.zeros((len(layout.effects), n))
        for k in range(n):  # a column that a person lacks is at its centre
            design[:, k] = design_for(model, people.iloc[[k]].dropna(axis=1))[:, 0]

        def one(phi):
            typical = population(layout, phi, jnp.asarray(design)).typical
            return natural(layout, jnp.broadcast_to(typical, (len(typical), n)))

        each = jax.jit(jax.vmap(one, out_axes=1))
        values = np.asarray(each(jnp.asarray(phi))).reshape(len(layout.parameters), -1)
        typical = jax.tree.map(lambda a: jnp.repeat(a, values.shape[1], axis=-1), typical_inputs(model))
    ln = solve(model.structure, _TIMES, values, typical)[model.structure.outputs[0]]
    return ln.reshape(len(_TIMES), len(phi), n)


def _area(level: Float[np.ndarray, "time draw n"]) -> Float[np.ndarray, "draw n"]:
    within = _TIMES <= _WINDOW
    return np.trapezoid(level[within], _TIMES[within], axis=0)
