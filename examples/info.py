"""What can this installation do? The same answer as `fewer info --json`."""

from fewer.core.info import InfoRequest, info_command
from fewer.core.progress import SilentProgress


def main() -> None:
    facts = info_command(InfoRequest(), SilentProgress())
    print(facts["versions"], facts["devices"], sep="\n")


if __name__ == "__main__":
    main()
