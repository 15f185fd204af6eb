"""Compiled programs are kept between runs, in the user's cache folder."""

import os
import sys
from pathlib import Path

import jax


def use_compile_cache() -> Path | None:
    """Switch JAX's persistent compilation cache on, unless the user set one or switched it off.

    ``CARKINETICS_CACHE=off`` switches it off, ``CARKINETICS_CACHE=<folder>`` moves it. The folder is the only
    global JAX setting that the library touches, and only where it was unset.
    """
    choice = os.environ.get("CARKINETICS_CACHE", "")
    if choice.lower() == "off":
        return None
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    folder = Path(choice) if choice else _user_cache() / "carkinetics" / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home is no reason to refuse a fit
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return folder


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
