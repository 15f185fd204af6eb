"""Where chains run: threads on a CPU, one vectorised program per accelerator."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from carkinetics.errors import FitError

VARIABLE = "CARKINETICS_DEVICES"


class Lanes(NamedTuple):
    """So many chains, and the devices in the order in which lanes of ``width`` are given to them, round and round."""

    devices: tuple[Any, ...]
    width: int
    chains: int


def lanes(chains: int, devices: int | None = None, *, found: Sequence[Any] | None = None) -> Lanes:
    """How so many chains are spread over devices.

    Parameters
    ----------
    devices : int, optional
        How many of JAX's default devices to use; ``CARKINETICS_DEVICES`` where it is not given, else all of an
        accelerator's. On a CPU one serves all chains, each in a thread of its own.
    found : sequence of jax.Device, optional
        Instead of ``jax.devices()``.

    Raises
    ------
    FitError
        There are not as many devices: chains would run one after another, unnoticed. Or the chains do not fill them.
    """
    found = jax.devices() if found is None else found
    wanted = _wanted(devices)
    on_cpu = found[0].platform == "cpu"
    n = wanted or (1 if on_cpu else min(len(found), chains))
    if n > len(found):
        raise FitError(
            f"{n} devices were asked for and JAX has {len(found)} ({found[0].platform}): chains would run one after "
            f"another. Ask for {len(found)}, or give JAX more before it starts "
            "(XLA_FLAGS=--xla_force_host_platform_device_count on a CPU)."
        )
    if on_cpu:
        return Lanes(tuple(found[:n]), 1, chains)
    if chains % n:
        raise FitError(f"{chains} chains cannot be spread evenly over {n} devices; choose a multiple.")
    return Lanes(tuple(found[:n]), chains // n, chains)


def _wanted(devices: int | None) -> int | None:
    text = os.environ.get(VARIABLE, "") if devices is None else str(devices)
    if not text:
        return None
    if isinstance(devices, bool) or not text.isdecimal() or int(text) < 1:
        name = VARIABLE if devices is None else "devices"
        raise FitError(f"{name} = {text!r} must be a whole number above 0.")
    return int(text)
