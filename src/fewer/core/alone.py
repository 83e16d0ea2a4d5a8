"""One run at a time in a folder: two would take each other's checkpoints away and mix their results."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewer.core.errors import ConfigError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of an existing folder. The lock ends with its process, so none is ever left over.

    Raises `ConfigError` where another run holds it. Where the system has no such locks, nothing is kept out.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another run is writing to {folder}; wait for its end, or choose another --output"
            ) from None
        except OSError:  # some network drives cannot lock
            pass
        yield
    finally:
        os.close(held)
