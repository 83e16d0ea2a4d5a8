import subprocess
import sys
from pathlib import Path

import pytest

from fewer.core.alone import alone_in
from fewer.core.errors import ConfigError

HOLDER = """
import sys
from pathlib import Path
from fewer.core.alone import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_ends_or_dies(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        with pytest.raises(ConfigError, match="another run is writing"), alone_in(tmp_path):
            pass
        (tmp_path / "other").mkdir()
        with alone_in(tmp_path / "other"):
            pass
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another run is writing"), alone_in(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with alone_in(tmp_path):
            assert list(tmp_path.iterdir()) == [tmp_path / "other"]  # nothing is left over
