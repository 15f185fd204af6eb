"""Fit files: one netCDF file with the draws, the model and the data; written whole or not at all."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr

from carkinetics.dataset import DataReport, Dataset, Note
from carkinetics.errors import FitError
from carkinetics.fit_result import Fit
from carkinetics.fit_tree import SCHEMA
from carkinetics.model_files import parse_model
from carkinetics.structure import AbstractStructure

MAX_BYTES = 16 * 2**30  # declared size of all arrays, before any is read
_ENGINE = "h5netcdf"


def write_fit(fit: Fit, path: Path) -> Path:
    """Write ``fit`` to ``path``: to a temporary file beside it first, which then takes its place.

    Raises
    ------
    FitError
        The folder does not exist or cannot be written; a file that was there before is untouched.
    """
    tree = fit.tree.copy()
    tree.attrs = fit.tree.attrs | {"dataset": _dataset_to_json(fit.data)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        tree.to_netcdf(temporary, engine=_ENGINE)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FitError(
            f"{path}: cannot write ({error.strerror or error}). Choose a folder that exists and is writable."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_fit(path: str | os.PathLike[str], *, structures: Sequence[AbstractStructure] = ()) -> Fit:
    """A fit from its file.

    Parameters
    ----------
    path : path
        What :meth:`Fit.save` wrote.
    structures : sequence of AbstractStructure
        Your own structures, if the model used one.

    Raises
    ------
    FitError
        Not a fit file, damaged, too large, or written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FitError(f"{path}: there is no such file.")
    try:
        _inspect(path)
        with xr.open_datatree(path, engine=_ENGINE) as opened:
            tree = opened.load()
    except (OSError, ValueError, KeyError) as error:
        raise FitError(f"{path.name}: not a fit file of carkinetics, or damaged ({error}).") from error
    if "schema" not in tree.attrs or "dataset" not in tree.attrs:
        raise FitError(f"{path.name}: a netCDF file, but not a fit of carkinetics.")
    if int(tree.attrs["schema"]) != SCHEMA:
        raise FitError(
            f"{path.name}: written as schema {tree.attrs['schema']}, this version reads {SCHEMA}. "
            f"It was written by {tree.attrs.get('versions', 'an unknown version')}."
        )
    model = parse_model(str(tree.attrs["model_toml"]), where=path.name, structures=structures)
    data = _dataset_from_json(str(tree.attrs.pop("dataset")), tree)
    return Fit(model=model, data=data, tree=tree)


def _inspect(path: Path) -> None:
    """Refuse links out of the file and arrays too large to read, before anything is read."""
    total = 0
    with h5py.File(path, "r") as file:
        waiting: list[h5py.Group] = [file]
        while waiting:
            group = waiting.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name} is a link")
                item = group[name]
                if isinstance(item, h5py.Group):
                    waiting.append(item)
                    continue
                if not isinstance(item, h5py.Dataset):
                    raise ValueError(f"{name} is neither a group nor an array")
                if item.external or item.is_virtual:
                    raise ValueError(f"{name} keeps its data outside the file")
                total += item.size * item.dtype.itemsize
    if total > MAX_BYTES:
        raise ValueError(f"it declares {total / 2**30:.0f} GiB; the limit is {MAX_BYTES / 2**30:.0f}")


def _dataset_to_json(data: Dataset) -> str:
    return json.dumps(
        {
            "table": _frame_to_json(data.table),
            "outcomes": None if data.outcomes is None else _frame_to_json(data.outcomes.reset_index()),
            "excluded": _frame_to_json(data.report.excluded),
            "notes": [vars(n) for n in data.report.notes],
            "assays": data.assays,
            "source": data.source,
            "sha256": data.sha256,
            "units": _plain(data.units),
        }
    )


def _dataset_from_json(text: str, tree: xr.DataTree) -> Dataset:
    raw = json.loads(text)
    observed, constant = tree["observed_data"].to_dataset(), tree["constant_data"].to_dataset()
    known = [str(a) for a in constant["assay"].values]
    place = np.array([raw["assays"].index(a) if a in raw["assays"] else -1 for a in known])
    outcomes = raw["outcomes"]
    return Dataset(
        table=_frame_from_json(raw["table"]),
        subjects=tuple(str(s) for s in constant["subject"].values),
        assays=tuple(raw["assays"]),
        subject=constant["subject_of_obs"].values,
        assay=place[constant["assay_of_obs"].values],
        time=constant["time"].values,
        dv=observed["dv"].values,
        cens=observed["cens"].values,
        limit=observed["limit"].values,
        outcomes=None if outcomes is None else _frame_from_json(outcomes).set_index("ID"),
        report=DataReport(
            notes=tuple(_note(n) for n in raw["notes"]),
            excluded=_frame_from_json(raw["excluded"]),
        ),
        source=raw["source"],
        sha256=raw["sha256"],
        units=raw["units"],
    )


def _note(raw: dict) -> Note:
    fields: dict[str, Any] = raw | {"lines": tuple(raw["lines"]), "subjects": tuple(raw["subjects"])}
    return Note(**fields)


def _plain(value):
    """Read-only mappings as dictionaries, for JSON."""
    return {k: _plain(v) for k, v in value.items()} if hasattr(value, "items") else value


def _frame_to_json(frame: pd.DataFrame) -> dict:
    columns = {}
    for name in frame.columns:
        values = frame[name]
        kind = values.dtype.kind if isinstance(values.dtype, np.dtype) else "O"
        cells = [None if pd.isna(v) else v for v in values.tolist()]
        columns[name] = {"kind": kind, "cells": cells}
    return columns


def _frame_from_json(columns: dict) -> pd.DataFrame:
    kinds = {"f": float, "i": int, "b": bool}
    return pd.DataFrame(
        {
            name: pd.Series(
                [np.nan if c is None and spec["kind"] == "f" else c for c in spec["cells"]],
                dtype=kinds.get(spec["kind"]),
            )
            for name, spec in columns.items()
        }
    )
