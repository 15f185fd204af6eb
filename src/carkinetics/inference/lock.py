"""One process at a time in a folder; and an orderly end when a batch system asks for one."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from carkinetics.errors import FitError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however that happens.

    Raises
    ------
    FitError
        Another process holds it (named by pid and host), or the folder cannot be written.
    """
    path = folder / "lock"
    try:
        handle = path.open("a+", encoding="ascii")
    except OSError as error:
        raise FitError(
            f"{folder}: cannot write the checkpoint ({error.strerror or error}). Choose a folder that can be written."
        ) from error
    with handle:
        free = _take(handle)
        handle.seek(0)
        pid, host = _holder(handle.read(200))
        here = socket.gethostname()
        # The system's lock need not reach other machines that share the folder: there the name decides.
        if not free or (host is not None and host != here):
            raise FitError(
                f"{folder}: in use by process {pid} on {host}. Wait for it, or choose another folder; if that process "
                f"is gone, delete {path}."
            )
        _write(handle, json.dumps({"pid": os.getpid(), "host": here}))
        try:
            yield
        finally:
            _write(handle, "")


def _write(handle: IO[str], text: str) -> None:
    handle.seek(0)
    handle.truncate()
    handle.write(text)
    handle.flush()


def _take(handle: IO[str]) -> bool:
    """Take the system's lock on an open file, if it is free."""
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(1 << 20)  # a byte that nobody reads: what is locked cannot be read there
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(text: str) -> tuple[int | None, str | None]:
    """Who wrote the lock: pid and host; unknown where it is empty or was cut short."""
    try:
        raw = json.loads(text)
        return int(raw["pid"]), str(raw["host"])
    except (ValueError, KeyError, TypeError):
        return None, None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit (143) here instead of ending the process at once.

    Only where it can (the main thread) and where nobody else has decided otherwise.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return

    def end(number, frame):
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
