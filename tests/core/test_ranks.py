import subprocess
import sys

import pytest

from fewer.core import ranks

PROGRAM = """
import sys, torch
from fewer.core.ranks import rank, ranks_of_launcher, world_size
with ranks_of_launcher("cpu", 30.0) as count:
    value = torch.tensor([float(rank() + 1)])
    torch.distributed.all_reduce(value)
    with ranks_of_launcher("cpu") as again:
        assert again == count == world_size() == 2
    assert value.item() == 3.0
assert world_size() == 1
"""


def test_a_process_alone_is_rank_0_of_1_and_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with ranks.ranks_of_launcher("cpu") as count:
        assert (count, ranks.rank(), ranks.world_size(), ranks.joined()) == (1, 0, 1, False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # left over from somewhere: not a launcher's announcement
    assert not ranks.under_torchrun() and ranks.announced_ranks() == 1


def test_two_processes_of_torchrun_meet_and_part() -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run = subprocess.run(
        [*words, "--no-python", sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
