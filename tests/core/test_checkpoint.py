import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from fewer.core.checkpoint import (
    copy_into,
    flatten_state,
    latest_checkpoint,
    refuse_earlier_run,
    save_checkpoint,
    unflatten_state,
)
from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import write_tensors
from tests.fresh import fresh_processes


def test_the_newest_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, {"w": torch.full((3,), float(step))}, {"note": step}, keep=2)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.facts, found.tensors["w"].tolist()) == (10, {"note": 10}, [10.0] * 3)
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path / "none") is None


def test_a_damaged_newest_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, 1, {"w": torch.ones(3)}, {})
    newest = save_checkpoint(tmp_path, 2, {"w": torch.ones(3)}, {})
    newest.write_bytes(newest.read_bytes()[:-1])
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert "passing over" in caplog.text
    for facts in ('{"a":' * 100_000, "9" * 5000, "[]"):
        caplog.clear()
        write_tensors(newest, {"w": torch.ones(3)}, {"fewer.step": "2", "fewer.facts": facts})
        found = latest_checkpoint(tmp_path)
        assert found is not None and found.step == 1 and "passing over" in caplog.text


def save_on(folder: Path, started: Connection) -> None:
    for step in range(1, 10**6):
        save_checkpoint(folder, step, {"w": torch.full((40_000,), float(step))}, {"step": step})
        if step == 1:
            started.send("started")


def test_killed_while_saving_the_newest_always_loads(tmp_path: Path) -> None:
    for kill in range(6):  # benchmarks/kill_while_saving.py does the fifty of the bar
        folder = tmp_path / str(kill)
        heard, started = fresh_processes().Pipe(duplex=False)
        process = fresh_processes().Process(target=save_on, args=(folder, started))
        process.start()
        assert heard.recv() == "started"
        time.sleep(0.01 + 0.013 * kill)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = latest_checkpoint(folder)
        assert found is not None
        assert found.facts["step"] == found.step
        assert torch.equal(found.tensors["w"], torch.full((40_000,), float(found.step)))


def test_optimizer_state_survives_flattening() -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    tensors, rest = flatten_state(optimizer.state_dict(), "optimizer")
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(unflatten_state(tensors, rest, "optimizer"))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert other.param_groups[0]["lr"] == 0.1


def test_a_checkpoint_of_another_model_is_refused_by_name() -> None:
    with pytest.raises(FileError, match="missing"):
        copy_into(torch.nn.Linear(2, 2), {"model/weight": torch.ones(2, 2)}, "model")
    layer = torch.nn.Linear(2, 2)
    before = layer.bias.detach().clone()
    saved = {"model/weight": torch.ones(3, 2), "model/bias": torch.ones(2)}
    with pytest.raises(FileError, match=r"of another shape \['weight'\]; resume with the settings"):
        copy_into(layer, saved, "model")
    assert torch.equal(layer.bias, before)


def test_a_run_beside_an_earlier_one_needs_resume(tmp_path: Path) -> None:
    refuse_earlier_run(tmp_path / "run" / "checkpoints", resume=False)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "phase-1", 7, {"x": torch.ones(1)}, {})
    with pytest.raises(ConfigError, match=r"'run' holds checkpoints .* step 7\); go on with it by --resume"):
        refuse_earlier_run(tmp_path / "run" / "checkpoints", resume=False)
    refuse_earlier_run(tmp_path / "run" / "checkpoints", resume=True)
