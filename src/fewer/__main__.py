"""The command `fewer`, and `python -m fewer`; under `torchrun -m fewer` every rank runs the same verb."""

import sys


def main() -> int:
    """Runs the command line. Ctrl-C is answered in one line from the first import on."""
    try:
        from fewer.cli import main as run

        return run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("fewer: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
