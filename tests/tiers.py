"""Cases of a test that are of the thorough tier, beside one or two of the same kind that are of the fast one."""

from collections.abc import Collection, Iterable

import pytest


def tiered(names: Iterable, *, thorough: Collection) -> list:
    """The cases of a parametrised test, those named last marked as thorough."""
    names = list(names)
    assert set(thorough) < set(names), "a fast case has to stay, and the others to exist"
    return [pytest.param(n, id=str(n), marks=[pytest.mark.thorough] if n in thorough else []) for n in names]
