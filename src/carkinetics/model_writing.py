"""A model as a TOML text that :func:`~carkinetics.model_files.load_model` reads back as the same model."""

import json
from collections.abc import Mapping
from typing import Any

from carkinetics.model import Model
from carkinetics.model_parts import UNKNOWN, Assay, Check, Parameter, Prior, Treatment
from carkinetics.residuals import RESIDUALS
from carkinetics.structures.infusion_phase import InfusionPhase
from carkinetics.structures.occasions import Occasions

_Table = dict[str, Any]


def to_toml(model: Model) -> str:
    """The model file of a model; numbers are written so that they come back to the last digit."""
    top: _Table = {"schema": 1, "name": model.name, "label": model.label} | _structure(model)
    top |= {"reference": model.reference, "doi": model.doi, "notes": list(model.notes)}
    if model.typical_dose is not UNKNOWN:
        top["typical_dose"] = model.typical_dose
    own = model.parameters[: len(model.structure.parameters._fields)]
    blocks = [_lines(top)]
    blocks += [_block(f"[parameters.{p.name}]", _parameter(p)) for p in own]
    blocks += [_block(f"[assays.{_key(a.name)}]", _assay(a, model)) for a in model.assays]
    blocks += [_block(f"[treatments.{_key(t.name)}]", _treatment(t, model)) for t in model.treatments]
    blocks += [_block(f"[regressors.{_key(r.name)}]", _fields(r, without="name")) for r in model.regressors]
    blocks += [_block("[[covariates]]", _fields(c)) for c in model.covariates]
    if model.shrinkage is not None:
        blocks.append(_block("[shrinkage]", _fields(model.shrinkage)))
    if model.correlation is not None:
        blocks.append(_block("[correlation]", _fields(model.correlation)))
    if model.mixture is not None:
        blocks.append(_block("[mixture]", _fields(model.mixture)))
    if model.prior_correlation is not None:
        blocks.append(_block("[prior_correlation]", _fields(model.prior_correlation)))
    blocks += [_block("[[checks]]", _check(c)) for c in model.checks]
    return "\n".join(blocks)


def _structure(model: Model) -> _Table:
    """The structure's name, and what it is wrapped in."""
    structure, wrapped = model.structure, {}
    if isinstance(structure, Occasions):
        wrapped["occasions"] = {"varying": structure.varying, "n": structure.n}
        structure = structure.base
    if isinstance(structure, InfusionPhase):
        wrapped["infusion_phase"] = True if structure.dose in (None, model.typical_dose) else {"dose": structure.dose}
        structure = structure.base
    return {"structure": structure.name} | dict(reversed(wrapped.items()))


def _parameter(p: Parameter) -> _Table:
    table: _Table = {"label": p.label, "value": p.value, "unit": p.unit, "transform": p.transform}
    if (p.low, p.high) != (0.0, 1.0):
        table["bounds"] = [p.low, p.high]
    table |= {"no_iiv": True} if p.iiv == 0 else {"omega_sd": p.iiv}
    if p.omega_of:
        table["omega_of"] = p.omega_of
    if p.fixed:
        table["fixed"] = True
    table["prior_sd"] = p.prior.scale
    if p.prior.loc != p.theta and p.value is not UNKNOWN:
        table["prior_mean"] = p.prior.loc
    if p.iiv:
        table["prior_omega"] = _scale_prior(p.prior_omega)
    return table | {"source": p.source, "confidence": p.confidence}


def _scale_prior(prior: Prior) -> _Table:
    if prior.family == "halfnormal":
        return {"family": "halfnormal", "scale": prior.scale}
    return {"family": "lognormal", "ln_median": prior.loc, "scale": prior.scale}


def _assay(a: Assay, model: Model) -> _Table:
    table: _Table = {k: getattr(a, k) for k in ("label", "output", "matrix", "unit", "error")}
    values = ((a.sigma, a.prior), (a.second, a.prior_second))
    for p, (value, prior) in zip(RESIDUALS[a.error].params, values, strict=False):
        table[p.name] = value
        table[f"prior_{p.name}"] = "fixed" if prior is None else _scale_prior(prior)
    table |= {k: getattr(a, k) for k in ("lloq", "lod") if getattr(a, k) is not None}
    table |= {"source": a.source, "confidence": a.confidence}
    if a.per:
        table["per"] = a.per
    if a.ratio is not None:
        table["ratio"] = _parameter(model[a.ratio.name])
    if a.conversion is not None:
        table["conversion"] = _fields(a.conversion)
    return table


def _treatment(t: Treatment, model: Model) -> _Table:
    if not t.active:
        return {"column": t.column} | _parameter(t.factor)
    return {"column": t.column, "active": True} | _parameter(model[t.factor.name])


def _check(c: Check) -> _Table:
    return {k: v for k, v in (_fields(c) | {"where": dict(c.where)}).items() if v not in ("", {})}


def _fields(part: Any, *, without: str = "") -> _Table:
    return {k: v for k, v in vars(part).items() if k != without and v is not None}


def _block(head: str, table: Mapping[str, Any]) -> str:
    return f"\n{head}\n{_lines(table)}"


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(k)} = {_value(v)}\n" for k, v in table.items())


def _key(name: str) -> str:
    bare = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    return name if bare else json.dumps(name)


def _value(value: Any) -> str:
    """A TOML value; JSON's strings are TOML's as well."""
    if value is UNKNOWN:
        return '"unknown"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(int(value) if isinstance(value, int) else float(value))
