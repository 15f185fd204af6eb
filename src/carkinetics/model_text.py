"""A model in words: its equations, numbers, sources and what to know, for a terminal or a page."""

import inspect
import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd

from carkinetics.covariates import Covariate
from carkinetics.model import Model
from carkinetics.model_parts import UNKNOWN, Assay, iiv_cv_pct
from carkinetics.residuals import RESIDUALS
from carkinetics.structure import AbstractStructure
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.structures.occasions import Occasions

WIDTH = 110


def describe(model: Model) -> str:
    """Everything that the model file and its structure say, as text."""
    equations = _equations(model.structure)
    parts = [_wrapped(f"{model.name}: {model.label}"), _wrapped(f"{model.reference}, doi:{model.doi}")]
    parts += [f"\nStructure {model.structure.name}", textwrap.indent(equations, "  ")]
    parts += ["\nParameters", aligned(_parameters(model)), "\nAssays", aligned(_assays(model))]
    parts += [*map(_wrapped, _beside(model)), "\nSources", *map(_wrapped, _sources(model))]
    if model.notes:
        parts += ["\nTo know", *(_wrapped(f"- {note}") for note in model.notes)]
    return "\n".join(parts)


def _equations(structure: AbstractStructure) -> str:
    """What the structure's docstring says; with an infusion phase or occasions, of all."""
    inner = f"{_equations(structure.base)}\n\n" if isinstance(structure, InfusionPhase | Occasions) else ""
    return inner + inspect.cleandoc(type(structure).__doc__ or "").replace("``", "")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def aligned(table: pd.DataFrame) -> str:
    """A table of texts, every column to the left."""
    rows = [[str(table.index.name or ""), *map(str, table.columns)]]
    rows += [[str(i), *map(str, row)] for i, row in zip(table.index, table.to_numpy(), strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _number(x: float) -> str:
    return "unknown" if np.isnan(x) else f"{x:.4g}"


def _parameters(model: Model) -> pd.DataFrame:
    table = model.table()
    rows = {
        "value": [_number(p.value) for p in model.parameters],
        "unit": table["unit"],
        "scale": table["transform"],
        "omega": ["none" if p.iiv == 0 else _number(p.iiv) for p in model.parameters],
        "prior": [
            "-" if p.value is UNKNOWN else text for p, text in zip(model.parameters, table["prior"], strict=True)
        ],
        "meaning": table["label"],
    }
    return pd.DataFrame(rows, index=table.index)


def _assays(model: Model) -> pd.DataFrame:
    rows = [
        {
            "assay": a.name,
            "output": a.output,
            "matrix": a.matrix,
            "unit": a.unit,
            "residual": _residual(a),
            "lloq": "" if a.lloq is None else _number(a.lloq),
        }
        for a in model.assays
    ]
    return pd.DataFrame(rows).set_index("assay")


def _residual(a: Assay) -> str:
    values = zip(RESIDUALS[a.error].params, (a.sigma, a.second), strict=False)
    of = f" of {a.per}" if a.per else ""
    return f"{a.error}{of}, " + ", ".join(f"{p.name} {_number(value)}" for p, value in values)


def _beside(model: Model) -> Iterator[str]:
    """Treatments, regressors, covariates and classes, one line each."""
    if isinstance(model.structure, Occasions):
        yield f"Between up to {model.structure.n} infusions of a patient vary: {', '.join(model.structure.varying)}"
    for t in model.treatments:
        yield f"Treatment {t.name}: growth times {_number(t.factor.value)} from the day in column {t.column} on"
    for r in model.regressors:
        yield f"Regressor {r.name}: column {r.column} ({r.unit}), {r.interpolation}; typical {_number(r.typical)}"
    for c in model.covariates:
        yield f"Covariate {c.column} on {c.on}: {_effect(c)}"
    if model.correlation is not None:
        yield f"Correlated random effects: {', '.join(model.correlation.parameters)}; LKJ({model.correlation.eta:g})"
    for a in model.assays:
        if a.ratio is not None:
            ratio = model[a.ratio.name]
            yield f"Assay {a.name}: {a.output} times {ratio.name} = {_number(ratio.value)} in {a.matrix}"
    if model.mixture is not None:
        m = model.mixture
        yield f"Mixture: {100 * m.probability:.3g} % of patients are {m.label}, with {m.on} = {_number(m.value)}"


def _effect(c: Covariate) -> str:
    if c.form != "categorical":
        centre = c.center if isinstance(c.center, str) else _number(c.center)
        return f"{c.form}, {_number(c.value)}, centre {centre}"
    values = c.values or (c.value,) * len(c.levels)
    levels = ", ".join(f"{level} {_number(value)}" for level, value in zip(c.levels, values, strict=True))
    return f"categorical, reference {c.reference or 'the most frequent'}" + (f"; {levels}" if levels else "")


def _sources(model: Model) -> Iterator[str]:
    """Every number's source and confidence; parameters that share both, in one line."""
    cited: dict[tuple[str, str], list[str]] = {}
    parts = [(p.name, p) for p in model.parameters] + [(f"assay {a.name}", a) for a in model.assays]
    parts += [(f"covariate {c.column}", c) for c in model.covariates]
    parts += [] if model.mixture is None else [("mixture", model.mixture)]
    for name, part in parts:
        cited.setdefault((part.source, part.confidence), []).append(name)
    for (source, confidence), names in cited.items():
        yield f"- {', '.join(names)}: {source} (confidence: {confidence or 'not stated'})"


def parameters(model: Model) -> pd.DataFrame:
    """What :meth:`carkinetics.Model.table` returns."""
    rows = [
        {
            "parameter": p.name,
            "label": p.label,
            "value": p.value,
            "unit": p.unit,
            "transform": p.transform,
            "omega": p.iiv,
            "IIV CV %": iiv_cv_pct(p.iiv) if p.transform == "log" else np.nan,
            "prior": "fixed" if p.fixed else str(p.prior),
            "prior omega": str(p.prior_omega) if p.iiv else "none",
            "source": p.source,
        }
        for p in model.parameters
    ]
    return pd.DataFrame(rows).set_index("parameter")
