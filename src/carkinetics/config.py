"""How a table is to be read, from the command line's options and a small TOML file; the options win."""

import argparse
import tomllib
from pathlib import Path
from typing import Any

from carkinetics.dataset import ReadOptions
from carkinetics.errors import DataError
from carkinetics.model_parts import nearest_or_raise

_KEYS = ("columns", "keep", "units", "lloq", "outcomes", "options")
_MAX_BYTES = 100_000


def table_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`carkinetics.read_dataset`."""
    settings = _read(arguments.config) if arguments.config else {}
    for key, given in (("columns", arguments.column), ("units", arguments.unit)):
        if given:
            settings[key] = settings.get(key, {}) | dict(_pair(text, "--" + key[:-1]) for text in given)
    if arguments.keep:
        kept: dict[str, list[str]] = {}
        for name, value in (_pair(text, "--keep") for text in arguments.keep):
            kept.setdefault(name, []).append(value)
        settings["keep"] = settings.get("keep", {}) | kept
    if arguments.lloq is not None:
        settings["lloq"] = arguments.lloq
    chosen = {k: getattr(arguments, k) for k in ("duplicates", "predose", "after") if getattr(arguments, k) is not None}
    settings["options"] = ReadOptions(**settings.get("options", {}) | chosen)
    return settings


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path.name}: a configuration has at most {_MAX_BYTES} bytes.")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not valid TOML: {error}.") from None
    for key in raw:
        nearest_or_raise(key, _KEYS, "key", path.name)
    for key in raw.get("options", {}):
        nearest_or_raise(key, tuple(ReadOptions.__dataclass_fields__), "option", path.name)
    return raw


def _pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise DataError(f"{option} {text}: write NAME=VALUE.")
    return name, value
