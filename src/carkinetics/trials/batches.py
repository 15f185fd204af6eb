"""Finished batches of trials on disk: one file each, written whole or not at all, and what they belong to."""

import hashlib
import json
import os
import secrets
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from carkinetics.errors import FitError
from carkinetics.model_writing import to_toml
from carkinetics.observations import Fill
from carkinetics.trials.parts import Trial

FORMAT = "carkinetics-trials-1"
MANIFEST = "trials.json"
_MODELS = ("model", "analysis")

Row = dict[str, Any]


def digest(trial: Trial) -> str:
    """SHA-256 of all that a trial says, whatever file it came from."""
    said = [(f.name, repr(getattr(trial, f.name))) for f in fields(trial) if f.name not in (*_MODELS, "toml")]
    how = trial.analysis
    said += [("model", to_toml(trial.model)), ("fitted", to_toml(how.model))]
    said += [(f.name, repr(getattr(how, f.name))) for f in fields(how) if f.name != "model"]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class Folder:
    """Where finished batches are kept.

    Raises
    ------
    FitError
        It holds batches of another trial, seed, analysis or version, or cannot be written.
    """

    def __init__(self, path: Path, trial: Trial, seed: int, analyse: str, batch: int):
        self.path, self.batch = path, batch
        ours: Row = {"format": FORMAT, "trial": trial.name, "sha256": digest(trial), "seed": int(seed)}
        ours |= {
            "analyse": analyse,
            "batch": batch,
            "versions": {p: version(p) for p in ("carkinetics", "jax", "numpy")},
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FitError(f"{path}: cannot be written ({error.strerror or error}).") from error
        known = path / MANIFEST
        if not known.exists():
            if any(path.glob("batch_*.json")):
                raise FitError(f"{path}: batches without {MANIFEST}: whose are they? Use another folder.")
            _write(known, ours)
            return
        theirs = _read(known)
        differ = [k for k in ours if theirs.get(k) != ours[k]]
        if differ:
            text = "; ".join(f"{k}: {str(theirs.get(k))[:40]} there, {str(ours[k])[:40]} here" for k in differ)
            raise FitError(
                f"{path}: batches of another run ({text}). Use another folder, or the same trial and options."
            )

    def file(self, number: int) -> Path:
        """Of a batch."""
        return self.path / f"batch_{number:06d}.json"

    def finished(self, number: int, replicates: list[int]) -> list[Row] | None:
        """The rows of a batch, if all of its replicates are there."""
        path = self.file(number)
        if not path.exists():
            return None
        try:
            rows = _read(path)["rows"]
            numbers = [int(row["replicate"]) for row in rows]
        except (KeyError, TypeError, ValueError):
            raise FitError(f"{path}: not a batch that this version wrote. Delete it; it is simulated again.") from None
        return rows[: len(replicates)] if numbers[: len(replicates)] == replicates else None

    def keep(self, number: int, rows: list[Row]) -> None:
        """Write a finished batch."""
        _write(self.file(number), {"rows": rows})

    def fill(self, made: Fill | None = None) -> Fill | None:
        """The sizes of arrays that the run began with; ``made`` ones are kept."""
        path = self.path / "fill.json"
        if made is not None:
            _write(path, {"groups": [list(g) for g in made.groups], "depth": made.depth})
            return made
        if not path.exists():
            return None
        raw = _read(path)
        return Fill(tuple((str(k), str(f), int(n)) for k, f, n in raw["groups"]), int(raw["depth"]))


def _write(path: Path, content: Row) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump(content, handle, allow_nan=False)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        text = f"{path}: cannot be written ({error.strerror or error}). Batches that were finished before are kept."
        raise FitError(text) from error


def _read(path: Path) -> Row:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FitError(f"{path}: cannot be read ({error}). Delete it; it is simulated again.") from None
    if not isinstance(found, dict):
        raise FitError(f"{path}: not a file that this version wrote. Delete it; it is simulated again.")
    return found
