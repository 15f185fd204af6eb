"""What the data told, and what priors and shrinkage stand in for: shrinkage, sensitivity, identifiability."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from carkinetics.diagnostics import gof
from carkinetics.fit_result import Fit, phi_draws
from carkinetics.layout import make_layout
from carkinetics.parameter_table import PRIOR_SAYS, contraction
from carkinetics.priors import log_prior

SHRINKAGE_MAX = 30.0  # %: beyond it plots of random effects or of individual residuals mislead
SENSITIVE = 0.05  # power-scaling sensitivity from which on it counts
HALF_KNOWN = 0.5  # share of the prior's variance
_ETA = "plots of it against covariates mislead, since patients are drawn to the middle: put the covariate in the model"
_EPSILON = "IPRED and IWRES look better than the model is: judge it by NPDE and VPC"


def shrinkage(fit: Fit) -> pd.DataFrame:
    """How far individual estimates and residuals are drawn together.

    Returns
    -------
    DataFrame
        One row for each random effect (``KIND`` eta, by parameter; ``iov <parameter>`` between infusions) and assay
        (``KIND`` epsilon): ``SHRINKAGE %``, ``FLAG`` (above 30 %) and ``NOTE``, what then misleads. Of an eta it is
        ``1 - SD over patients of the posterior mean / posterior mean of omega``; of epsilon ``1 - SD of IWRES`` of the
        quantified samples.

    References
    ----------
    Savic RM, Karlsson MO, AAPS J 2009;11:558-569, doi:10.1208/s12248-009-9133-0.
    """
    rows = []
    for name, eta in fit.parameters()["shrinkage %"].dropna().items():
        rows.append({"NAME": name, "KIND": "eta", "SHRINKAGE %": float(eta), "NOTE": _ETA})
    for assay, part in gof(fit).groupby("DVID", sort=False)["IWRES"]:
        residual = part.dropna()
        value = 100 * (1 - float(residual.std(ddof=1))) if len(residual) > 1 else np.nan
        rows.append({"NAME": assay, "KIND": "epsilon", "SHRINKAGE %": value, "NOTE": _EPSILON})
    table = pd.DataFrame(rows).set_index("NAME")
    table.insert(2, "FLAG", table["SHRINKAGE %"] > SHRINKAGE_MAX)
    table.loc[~table["FLAG"], "NOTE"] = ""
    return table


def sensitivity(fit: Fit) -> pd.DataFrame:
    """How much the posterior of the population moves when its prior, or the likelihood, is raised to a power near 1.

    The draws are weighed anew, by Pareto-smoothed importance sampling, for powers of 0.99 and 1.01; the number is the
    cumulative Jensen-Shannon distance between old and new marginals per doubling of the power. The prior is that of all
    population parameters together; random effects keep their distribution; the likelihood is that of all samples.

    Returns
    -------
    DataFrame
        By component of ``phi`` (on the sampler's scale): ``PRIOR``, ``LIKELIHOOD``, and ``NOTE``: with both at 0.05 or
        more prior and data may pull apart, or the prior is informative as was meant; with the prior's alone, the prior
        tells more than the data.

    References
    ----------
    Kallioinen N, Paananen T, Burkner PC, Vehtari A, Stat Comput 2024;34:57, doi:10.1007/s11222-023-10366-5. Computed by
    ArviZ.
    """
    from arviz_stats.psense import psense

    phi = fit.tree["posterior"].to_dataset()["phi"]
    tree = xr.DataTree.from_dict(
        {
            "posterior": phi.to_dataset(),
            "log_prior": xr.Dataset({"phi": (("chain", "draw"), _log_prior(fit))}),
            "log_likelihood": fit.tree["log_likelihood"].to_dataset().astype(float),
        }
    )
    found = {
        group.upper(): psense(tree, group=group, sample_dims=["chain", "draw"])["phi"].values
        for group in ("prior", "likelihood")
    }
    table = pd.DataFrame(found, index=pd.Index(phi["component"].values, name="parameter"))
    strong, heard = table["PRIOR"] >= SENSITIVE, table["LIKELIHOOD"] >= SENSITIVE
    both, alone = "prior and data may pull apart", "the prior tells more than the data"
    return table.assign(NOTE=np.select([strong & heard, strong], [both, alone], default=""))


def _log_prior(fit: Fit) -> Float[np.ndarray, "chain draw"]:
    """Log prior density of every draw of the population."""
    chains = fit.tree["posterior"].to_dataset().sizes["chain"]
    with jax.enable_x64(True):
        density = jax.jit(jax.vmap(lambda phi: log_prior(fit.model, phi)))(jnp.asarray(phi_draws(fit)))
    return np.asarray(density).reshape(chains, -1)


@dataclass(frozen=True, eq=False)
class Identifiability:
    """What the data say of each population parameter, and which of them they tell only together.

    Attributes
    ----------
    parameters : DataFrame
        By component of ``phi``, the least known first: ``CONTRACTION %`` (of its prior variance, 0 is the prior),
        ``SD`` and ``PRIOR SD`` on the sampler's scale, ``WITH`` and ``CORRELATION`` (the component that it is most
        correlated with in the posterior), and ``NOTE``.
    pairs : DataFrame
        Pairs of components by the size of their posterior correlation: ``A B CORRELATION``.
    label : str
        How the fit was made, where that has to be said.
    """

    parameters: pd.DataFrame
    pairs: pd.DataFrame
    label: str = ""


def identifiability(fit: Fit, *, pairs: int = 10) -> Identifiability:
    """Contraction of every population parameter from prior to posterior, and the most correlated pairs.

    Parameters
    ----------
    pairs : int
        How many.
    """
    names, draws = make_layout(fit.model).phi_names, phi_draws(fit)
    before = fit.tree["prior"].to_dataset()["phi"].values.reshape(-1, len(names))
    correlation = np.atleast_2d(np.corrcoef(draws, rowvar=False))
    np.fill_diagonal(correlation, 0.0)
    most = np.abs(correlation).argmax(axis=1)
    known = contraction(fit)
    table = pd.DataFrame(
        {
            "CONTRACTION %": [100 * known[n] for n in names],
            "SD": draws.std(axis=0),
            "PRIOR SD": before.std(axis=0),
            "WITH": [names[k] for k in most],
            "CORRELATION": correlation[np.arange(len(names)), most],
        },
        index=pd.Index(names, name="parameter"),
    )
    share = table["CONTRACTION %"] / 100
    told = ["the posterior is the prior", "the prior has a say"]
    table["NOTE"] = np.select([share < PRIOR_SAYS, share < HALF_KNOWN], told, default="")
    above = np.triu_indices(len(names), 1)
    values = correlation[above]
    order = np.argsort(-np.abs(values), kind="stable")[:pairs]
    worst = [(names[above[0][k]], names[above[1][k]], values[k]) for k in order]
    return Identifiability(
        parameters=table.sort_values("CONTRACTION %", kind="stable"),
        pairs=pd.DataFrame(worst, columns=["A", "B", "CORRELATION"]),
        label=fit.label,
    )
