"""For all tests: without a GPU, Triton kernels run in Triton's interpreter, on CPU tensors."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    # Triton reads it when it is first imported, which the imports of any test may do.
    os.environ.setdefault("TRITON_INTERPRET", "1")
