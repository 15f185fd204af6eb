"""Records: files of plain arrays with a checksum, written whole or not at all.

One line with the format and the SHA-256 of all that follows, one line of JSON that names the arrays, then their
bytes. Numbers and booleans only: there is nothing in a record that could be executed, and no size is believed
before it has been compared with the file's own.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from carkinetics.errors import FitError

_MAGIC = b"carkinetics-record-1"
_TYPES = ("<f8", "<f4", "<i8", "<i4", "<u4", "|b1")


class Damaged(FitError):
    """A record that is not what was written: truncated, altered, or of another kind."""


class Record(NamedTuple):
    """What a file holds: facts, arrays, and the checksum of both."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sha256: str


def write_record(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Write a record and wait until it is on the disk; returns its checksum.

    Raises
    ------
    FitError
        The disk is full or the folder cannot be written; a file that was there before is untouched.
    """
    parts, digest = _encoded(facts, arrays)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(_MAGIC + b" " + digest.encode() + b"\n")
            handle.writelines(parts)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FitError(
            f"{path}: cannot write the checkpoint ({error.strerror or error}). What was saved before is intact: make "
            "room, or choose a folder that can be written, and call fit again."
        ) from error
    return digest


def checksum(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """The checksum that the record would have."""
    return _encoded(facts, arrays)[1]


def _encoded(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[list[bytes], str]:
    plain = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    layout = [[name, x.dtype.str, list(x.shape)] for name, x in plain.items()]
    head = json.dumps({"facts": dict(facts), "arrays": layout}, allow_nan=False).encode() + b"\n"
    parts = [head, *(x.tobytes() for x in plain.values())]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return parts, digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_record(path: Path) -> Record:
    """A record from its file.

    Raises
    ------
    Damaged
        The file is not what was written; names the file and both checksums.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FitError(f"{path}: cannot read the checkpoint ({error.strerror or error}).") from error
    first, _, body = content.partition(b"\n")
    magic, _, promised = first.partition(b" ")
    if magic != _MAGIC:
        raise Damaged(f"{path}: damaged ({len(content)} bytes that do not begin as a checkpoint does).")
    found = hashlib.sha256(body).hexdigest()
    written = promised.decode("ascii", "replace")
    if written != found:
        raise Damaged(f"{path}: damaged (its SHA-256 is {found[:16]}..., written was {written[:16]}...).")
    try:
        return _parse(body, found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path}: not a checkpoint that this version wrote ({error}).") from error


def _parse(body: bytes, sha256: str) -> Record:
    head, _, data = body.partition(b"\n")
    raw = json.loads(head)
    arrays, at = {}, 0
    for name, kind, shape in raw["arrays"]:
        if kind not in _TYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"array {name!r} of type {kind!r} and shape {shape}")
        size = math.prod(shape) * np.dtype(kind).itemsize
        if at + size > len(data):
            raise ValueError(f"array {name!r} is longer than the file")
        arrays[name] = np.frombuffer(data, kind, math.prod(shape), at).reshape(shape) if size else np.zeros(shape, kind)
        at += size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes too many")
    return Record(dict(raw["facts"]), arrays, sha256)
