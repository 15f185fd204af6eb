"""Which run a checkpoint belongs to: everything that decides a draw."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from carkinetics.dataset import Dataset
from carkinetics.density import log_joint
from carkinetics.inference.chains import BLOCK, Settings
from carkinetics.inference.guess import starting_values
from carkinetics.model import Model
from carkinetics.observations import Observations

_PACKAGES = ("carkinetics", "jax", "jaxlib", "numpyro", "numpy", "arviz-stats")
_DENSITY_TOLERANCE = 1e-9  # relative: processors may differ in the last digits


def identity(
    model: Model, data: Dataset, obs: Observations, method: str, settings: Settings, seed: int, chains: int, width: int
) -> dict[str, Any]:
    """What decides the draws, as plain values: data, model, its density, method, settings, seed, chains, versions."""
    generator = f"{jax.random.key_impl(jax.random.key(0))}, partitionable {jax.config.jax_threefry_partitionable}"
    return {
        "data": _digest(data.sha256, str(obs.rows), *map(_bytes, jax.tree.leaves(obs))),
        "model": _digest(model.toml, *_numbers(model), _source(model)),
        "density": _density(model, data, obs),
        "method": method,
        "settings": asdict(settings),
        "seed": int(seed),
        "chains": chains,
        "vectorised": width,
        "versions": {p: version(p) for p in _PACKAGES},
        "machine": {"backend": jax.default_backend(), "generator": generator, "block": BLOCK},
    }


def differences(kept: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words."""
    found = []
    for name, value in ours.items():
        other = kept.get(name)
        if name == "density":
            a, b = ([float.fromhex(x) for x in each or []] for each in (other, value))
            if len(a) != len(b) or not np.allclose(a, b, rtol=_DENSITY_TOLERANCE, atol=0, equal_nan=True):
                found.append("the density of the model (its equations or its likelihood)")
        elif other == value:
            continue
        elif isinstance(value, dict):
            old = other if isinstance(other, dict) else {}
            found += [f"{name}: {k} ({old.get(k)} there, {v} here)" for k, v in value.items() if old.get(k) != v]
        elif isinstance(value, int):
            found.append(f"{name} ({other} there, {value} here)")
        else:
            found.append(f"the {name}")
    return found


def _numbers(model: Model) -> list[str]:
    parts = (model.parameters, model.assays, model.covariates, model.shrinkage, model.mixture, model.correlation)
    return [repr(part) for part in parts]


def _source(model: Model) -> str:
    """The structure, as far as it can be seen: its name, its fields, its equations' text."""
    kind = type(model.structure)
    try:
        text = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt; the density's values still tell
        text = ""
    return f"{kind.__module__}.{kind.__qualname__} {re.sub(r' at 0x[0-9a-f]+', '', repr(model.structure))} {text}"


def _density(model: Model, data: Dataset, obs: Observations) -> list[str]:
    """The log density at two points: whatever changes it anywhere in the code is likely to change these."""
    phi, z = (jnp.asarray(x) for x in starting_values(model, data))
    density = jax.jit(lambda obs, phi, z: log_joint(model, obs, phi, z))
    return [float(density(obs, phi + step, z * (1 - step))).hex() for step in (0.0, 0.1)]


def _bytes(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
