"""Complete response of real patients against their exposure: overall, adjusted for disease, and within one disease.

    CARKINETICS_REAL_DATA=... uv run python benchmarks/bench_response.py [--method importance] [--seed 1] [--dry]
        [--fit FILE]

Rules for the data and the kinetic model are in ``real_patients.py``. Exposure is of the model's curves from day 3 on,
so that infused cells are not the peak. Per metric: odds ratios per tenfold exposure, with exposure's uncertainty and
without; weights of the linear form against none. Results are of groups; nothing about a single patient is kept. They
are appended to ``results/<machine>.json`` (``--dry``: printed only).
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import carkinetics as ck
from bench_fit import save
from carkinetics.exposures import CurveRules
from real_patients import TABLE, models, patients, rules

MODEL = "phase, student 4, corr 3"
METRICS = ("cmax", "auc_3_28")
COMPLETE, ANY = {"CR", "CR_then_relapse"}, {"CR", "CR_then_relapse", "PR", "PR_transformed"}
DRAWS = 1000


def outcomes(ids: tuple[str, ...]) -> pd.DataFrame:
    """Complete and any response, 1 or 0, and whether the disease is ALL or CLL, by patient.

    A response on which two published tables disagree counts as none: that fits the published medians.
    """
    table = pd.read_csv(TABLE).groupby("patient")[["disease", "response"]].first()
    table.index = table.index.astype(str)
    table = table.loc[list(ids)]
    return pd.DataFrame(
        {
            "CR": table["response"].isin(COMPLETE).astype(int),
            "ANY": table["response"].isin(ANY).astype(int),
            "DISEASE": np.where(table["disease"] == "CLL", "CLL", "ALL"),
        }
    )


def effect(metric, outcome: pd.Series, **options) -> dict:
    """Odds ratio per tenfold exposure, and what the model says against itself."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = ck.logistic(metric, outcome, seed=1, **options)
    row = found.effects().query("EFFECT.str.endswith('x 10')").iloc[0]
    flat = ck.logistic(metric, outcome, seed=1, form="flat", **options)
    weights = ck.average({"linear": found, "flat": flat}, seed=1).weights
    return {
        "patients": len(found.patients.ids),
        "responders": int(outcome.sum()),
        "odds_ratio": [round(float(row[c]), 3) for c in ("MEDIAN", "LOW", "HIGH")],
        "p_positive": round(float(row["ABOVE_1"]), 4),
        "weight_of_an_effect": round(weights["linear"], 3),
        "status": found.check().status,
        "said": sorted({str(w.message).split(":")[0] for w in said}),
    }


def compared(fit: ck.Fit, name: str, response: str) -> dict:
    """One metric and response: all, adjusted, within CLL, and with medians in the place of draws."""
    values = ck.exposure(fit, [name], rules=CurveRules(peak=(3.0, 90.0)), draws=DRAWS, allow_failed=True)[name]
    known = outcomes(values.subjects)
    cll = known.index[known["DISEASE"] == "CLL"]
    outcome = known[response]
    some = ck.ResponseOptions(missing="drop")  # all but the others
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "metric": name,
            "response": response,
            "overall": effect(values, outcome),
            "overall, point": effect(values, outcome, two_stage="point"),
            "adjusted": effect(values, outcome, covariates=known[["DISEASE"]]),
            "within CLL": effect(values, outcome[cll], options=some),
            "within CLL, point": effect(values, outcome[cll], options=some, two_stage="point"),
            "by disease": known.groupby("DISEASE")[response].agg(["size", "sum"]).to_dict("index"),
            "geometric mean by disease": {
                str(k): float(
                    np.exp(np.log(np.nanmedian(values.draws, axis=0))[known["DISEASE"].to_numpy() == k].mean())
                )
                for k in ("ALL", "CLL")
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="importance", choices=("laplace", "importance", "nuts"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fit", type=Path, help="keep the fit in this file, or use it if it is there")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    if not TABLE.exists():
        sys.exit("the real patients are absent; set CARKINETICS_REAL_DATA to the folder that has ctl019")
    warnings.simplefilter("ignore", ck.FitWarning)
    started = time.perf_counter()
    if arguments.fit is not None and arguments.fit.exists():
        fit = ck.load_fit(arguments.fit)
    else:
        fit = ck.fit(models()[MODEL], patients(), seed=arguments.seed, method=arguments.method, progress=False)
        if arguments.fit is not None:
            fit.save(arguments.fit)
    result = {
        "patients": fit.data.n_subjects,
        "rules": rules(),
        "model": MODEL,
        "method": fit.method,
        "status": fit.check().status,
        "fit_s": time.perf_counter() - started,
        "effects": [compared(fit, name, response) for response in ("CR", "ANY") for name in METRICS],
    }
    print(json.dumps(result, indent=1), file=sys.stderr)
    if not arguments.dry:
        print(save("response", result))


if __name__ == "__main__":
    main()
