"""For all tests: without a GPU, Triton kernels run in Triton's interpreter, on CPU tensors."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import quick_checks

quick_checks.install()
if not Path("/dev/nvidiactl").exists():
    # Triton reads it when it is first imported, which the imports of any test may do.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
