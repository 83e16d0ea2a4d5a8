import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.parallel import ParallelPlan, parallelize
from fewer.parallel.own_group import own_group
from tests.parallel.ranks import small_sana, steps_of


def test_a_process_alone_is_a_group_of_one_and_draws_the_same() -> None:
    model = small_sana()
    assert own_group(1).size == 1
    assert torch.allclose(steps_of(parallelize(model, ParallelPlan())), steps_of(model), atol=1e-6)


def test_more_devices_than_processes_say_how_to_start_them() -> None:
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node 2.*run_on_devices"):
        parallelize(small_sana(), ParallelPlan(devices=2))


def test_a_torchrun_script_needs_no_group(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from fewer.parallel import ParallelPlan, parallelize\n"
        "from tests.parallel.ranks import small_sana, steps_of\n"
        "model = small_sana()\n"
        "found = steps_of(parallelize(model, ParallelPlan(devices=2)))\n"
        "assert torch.allclose(found, steps_of(model), atol=1e-5)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run(
        run, cwd=Path(__file__).parents[2], env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
