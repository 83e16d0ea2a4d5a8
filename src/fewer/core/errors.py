"""The four ways in which a user's input can be wrong, each with the exit code of the command line.

A message says what was given, what is allowed and what to try. Programming mistakes stay `assert`s.
"""


class FewerError(ValueError):
    """Base of the four; a `ValueError`, so that callers who know nothing of us still catch it."""

    exit_code: int = 2


class ConfigError(FewerError):
    """A setting, option or argument has a value that is not allowed."""


class FileError(FewerError):
    """A file is damaged, hostile, of the wrong kind, or (with `missing=True`) not there."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        self.exit_code = 4 if missing else 2


class DataError(FewerError):
    """The files are fine, but what they hold is not enough to do the work."""

    exit_code = 3


class CapacityError(FewerError):
    """The work needs more memory (or devices) than there is."""

    exit_code = 5
