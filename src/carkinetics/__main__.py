"""``python -m carkinetics``."""

from carkinetics.cli import entry

entry()
