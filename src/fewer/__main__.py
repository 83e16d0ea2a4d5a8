"""`python -m fewer` is the command `fewer`; under `torchrun -m fewer` every rank runs the same verb."""

import sys

from fewer.cli import main

if __name__ == "__main__":
    sys.exit(main())
