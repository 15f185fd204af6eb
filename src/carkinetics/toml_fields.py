"""Values out of a TOML table: of the right kind, or a :class:`ModelError` that says where and what was wanted."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carkinetics.errors import ModelError
from carkinetics.model_parts import UNKNOWN, nearest_or_raise

NOT_KNOWN = "unknown"  # what a file says in the place of a number that nobody has published
MAX_BYTES = 1_000_000  # of a file


def file_text(path: Path, what: str) -> str:
    """The text of a file of ``what``, such as a model."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file.")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path.name}: {path.stat().st_size} bytes; a {what} file has at most {MAX_BYTES}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name}: not UTF-8 text ({error}).") from None


def parsed(text: str, keys: Sequence[str], schema: int, where: str) -> dict[str, Any]:
    """A TOML text of this schema, with none but these keys at its top."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{where}: not valid TOML: {error}.") from None
    only_keys(raw, keys, where)
    if isinstance(raw.get("schema"), bool) or raw.get("schema") != schema:
        raise ModelError(f"{where}: schema = {raw.get('schema')!r}; this version reads schema = {schema}.")
    return raw


def only_keys(raw: Mapping, known: Sequence[str], where: str) -> None:
    if not isinstance(raw, Mapping):
        raise ModelError(f"{where}: {raw!r} must be a table.")
    for key in raw:
        nearest_or_raise(key, known, "key", where)


def get_value(raw: Mapping, key: str, where: str):
    if key not in raw:
        raise ModelError(f"{where}: {key} is missing.")
    return raw[key]


def get_table(raw: Mapping, key: str, where: str) -> Mapping:
    if not isinstance(get_value(raw, key, where), Mapping):
        raise ModelError(f"{where}: {key} = {raw[key]!r} must be a table.")
    return raw[key]


def optional_table(raw: Mapping, key: str, where: str) -> Mapping:
    return get_table(raw, key, where) if key in raw else {}


def get_tables(raw: Any, where: str, key: str) -> list[Mapping]:
    if not isinstance(raw, list) or not all(isinstance(c, Mapping) for c in raw):
        raise ModelError(f"{where}: {key} = {raw!r} must be tables: write [[{key}]].")
    return raw


def get_text(raw: Mapping, key: str, where: str, default: str | None = None) -> str:
    value = get_value(raw, key, where) if default is None else raw.get(key, default)
    if not isinstance(value, str):
        raise ModelError(f"{where}: {key} = {value!r} must be text in quotes.")
    return value


def get_flag(raw: Mapping, key: str, where: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ModelError(f"{where}: {key} = {value!r} must be true or false.")
    return value


def get_notes(raw: Mapping, where: str) -> tuple[str, ...]:
    notes = raw.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
        raise ModelError(f"{where}: notes must be a list of texts.")
    return tuple(notes)


def get_number_or_unknown(raw: Mapping, key: str, where: str) -> float:
    return UNKNOWN if raw.get(key) == NOT_KNOWN else get_number(raw, key, where)


def get_positive(raw: Mapping, key: str, where: str) -> float:
    value = get_number(raw, key, where)
    if value <= 0:
        raise ModelError(f"{where}: {key} = {value:g} must be above 0.")
    return value


def get_number(raw: Mapping, key: str, where: str) -> float:
    value = get_value(raw, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{where}: {key} = {value!r} must be a finite number.")
    return float(value)


def get_numbers(raw: Mapping, key: str, where: str, n: int | None = None) -> tuple[float, ...]:
    """A list of finite numbers, of ``n`` if that is given; none where the key is absent."""
    values = raw.get(key, [])
    if not isinstance(values, list) or (n is not None and len(values) != n):
        raise ModelError(f"{where}: {key} = {values!r} must be a list of {'numbers' if n is None else f'{n} numbers'}.")
    return tuple(get_number({key: v}, key, where) for v in values)


def get_texts(raw: Mapping, key: str, where: str) -> tuple[str, ...]:
    """A list of texts; none where the key is absent."""
    values = raw.get(key, [])
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ModelError(f"{where}: {key} = {values!r} must be a list of texts.")
    return tuple(values)
