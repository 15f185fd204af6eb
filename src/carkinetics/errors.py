"""What the library raises and warns with, so that a caller can tell a user's mistake from a bug."""


class CarkineticsError(Exception):
    """Base of every error that a user can mend; its message says what came, where, and what to do."""


class DataError(CarkineticsError, ValueError):
    """The table cannot be used as it is."""


class ModelError(CarkineticsError, ValueError):
    """The model, its file, or a name in it cannot be used as it is."""


class DesignError(CarkineticsError, ValueError):
    """A dose-finding design cannot be made, or not used, as it was asked for."""


class FitError(CarkineticsError, RuntimeError):
    """A fit could not be started, finished, saved or read."""


class DataWarning(UserWarning):
    """The table can be used, but something in it deserves a look; also kept in ``data.report``."""


class FitWarning(UserWarning):
    """A fit ran, but something about it deserves a look; also kept in ``fit.check()``."""
