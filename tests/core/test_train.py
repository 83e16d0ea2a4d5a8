import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fewer.core.checkpoint import latest_checkpoint
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.ranks import rank, world_size
from fewer.core.train import FitPlan, fit, learning_rate_factor
from tests.fresh import run_as_torchrun


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))


def batch_at(step: int, generator: torch.Generator) -> Tensor:
    return torch.randn(16, 4, generator=generator)


def run(net: nn.Module, plan: FitPlan, stop_at: int | None = None, bad_at: int | None = None) -> object:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    calls = {"n": 0}

    def step(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        calls["n"] += 1
        if calls["n"] == stop_at:
            raise KeyboardInterrupt
        noise = torch.randn(batch.shape, generator=generator)
        loss = (net(batch + 0.1 * noise).squeeze(1) - batch.sum(1)).square().mean()
        return {"loss": loss * (math.nan if calls["n"] == bad_at else 1)}

    return fit(plan, {"model": net}, optimizer, step, batch_at)


def test_training_lowers_the_loss() -> None:
    result = run(network(), FitPlan(steps=200))
    assert sum(result.losses[-20:]) < 0.3 * sum(result.losses[:20])


@pytest.mark.parametrize("stop_at", [2, 38, 100])
def test_stopped_and_resumed_ends_bit_identical(stop_at: int, tmp_path: Path) -> None:
    def plan(folder: str, resume: bool) -> FitPlan:
        return FitPlan(
            steps=100,
            warmup=10,
            ema_decay=0.9,
            checkpoint_folder=tmp_path / folder,
            checkpoint_every=7,
            resume=resume,
            seed=5,
        )

    whole, parts = network(), network()
    expected = run(whole, plan("whole", False))
    with pytest.raises(KeyboardInterrupt):
        run(parts, plan("parts", False), stop_at=stop_at)
    torch.rand(17)  # the state of the global generator must not matter
    parts = network()
    with torch.no_grad():
        parts[0].weight.zero_()
    result = run(parts, plan("parts", True))
    assert result.step == 100
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    )
    for name, average in expected.averages["model"].items():
        assert torch.equal(average, result.averages["model"][name])


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(DataError, match="step 12"):
        run(net, FitPlan(steps=50, checkpoint_folder=tmp_path), bad_at=13)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 12
    assert all(torch.isfinite(t).all() for t in found.tensors.values() if t.is_floating_point())


def test_the_average_of_a_short_run_is_not_its_random_start() -> None:
    net = network()
    start = net[0].weight.detach().clone()
    average = run(net, FitPlan(steps=100, ema_decay=0.9999)).averages["model"]["0.weight"]
    end = net[0].weight.detach()
    assert (average - end).norm() < 0.5 * (start - end).norm()


def test_a_run_is_resumed_on_what_it_was_started_with(tmp_path: Path) -> None:
    known = {"pictures": "abc", "rate": "0.1"}
    run(network(), FitPlan(steps=3, checkpoint_folder=tmp_path, identity=known))
    same = FitPlan(steps=6, checkpoint_folder=tmp_path, identity=known | {"new setting": "1"}, resume=True)
    assert len(run(network(), same).losses) == 3
    other = FitPlan(steps=9, checkpoint_folder=tmp_path, identity=known | {"pictures": "abd"}, resume=True)
    with pytest.raises(ConfigError, match="with pictures abc, not abd"):
        run(network(), other)


def test_another_seed_is_refused_on_resume(tmp_path: Path) -> None:
    run(network(), FitPlan(steps=3, checkpoint_folder=tmp_path, seed=1))
    with pytest.raises(ConfigError, match="seed 1"):
        run(network(), FitPlan(steps=6, checkpoint_folder=tmp_path, seed=2, resume=True))


def test_another_optimizer_is_refused_on_resume(tmp_path: Path) -> None:
    run(network(), FitPlan(steps=3, checkpoint_folder=tmp_path))
    net = network()
    other = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = FitPlan(steps=6, checkpoint_folder=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="started with AdamW, not SGD"):
        fit(plan, {"model": net}, other, lambda batch, _: net(batch).mean(), lambda *_: torch.ones(1, 3))


@pytest.mark.parametrize("every", [4, 100])
def test_looking_seldom_changes_nothing(every: int) -> None:
    often, seldom = network(), network()
    expected = run(often, FitPlan(steps=10)).losses
    assert run(seldom, FitPlan(steps=10, look_every=every)).losses == pytest.approx(expected)
    assert torch.equal(often[0].weight, seldom[0].weight)


def test_a_bad_loss_noticed_late_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    plan = FitPlan(steps=50, checkpoint_folder=tmp_path, checkpoint_every=8, look_every=5)
    with pytest.raises(DataError, match="step 12"):
        run(network(), plan, bad_at=13)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 8
    assert all(torch.isfinite(t).all() for t in found.tensors.values() if t.is_floating_point())


def test_a_time_limit_ends_the_run_and_moves_the_schedule() -> None:
    result = run(network(), FitPlan(steps=10**9, seconds=0.2, look_every=3))
    assert 1 <= result.step < 10**9 and len(result.losses) == result.step
    limited = FitPlan(steps=10**9, seconds=1.0, final_rate=0.1)
    assert learning_rate_factor(limited, 5, 0.5) == pytest.approx(0.55)
    assert learning_rate_factor(limited, 5, 2.0) == pytest.approx(0.1)


def test_compiling_counts_as_time_but_not_for_the_schedule(monkeypatch) -> None:
    now, rates = [0.0], []
    monkeypatch.setattr("fewer.core.train.time", SimpleNamespace(monotonic=lambda: now[0]))
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)

    def step(batch: Tensor, generator: torch.Generator) -> Tensor:
        now[0] += 1.0 if rates else 50.0  # the first step compiles
        rates.append(optimizer.param_groups[0]["lr"])
        return sum(p.square().sum() for p in optimizer.param_groups[0]["params"])  # type: ignore[return-value]

    plan = FitPlan(steps=10**6, seconds=100.0, final_rate=0.0, clip_norm=None)
    assert fit(plan, {"model": network()}, optimizer, step, batch_at).step == 52
    assert rates[1] == pytest.approx(1.0) and rates[26] == pytest.approx(0.5, abs=0.02) and rates[-1] < 0.01


def test_a_folder_that_cannot_hold_the_checkpoints_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(FileError, match="choose another --output"):
        run(net, FitPlan(steps=3, checkpoint_folder=tmp_path / "file" / "below"))
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_no_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        run(network(), FitPlan(steps=0))


def test_schedules() -> None:
    cosine = FitPlan(steps=110, warmup=10, final_rate=0.1)
    assert learning_rate_factor(cosine, 0) == pytest.approx(0.1)
    assert learning_rate_factor(cosine, 10) == pytest.approx(1.0)
    assert learning_rate_factor(cosine, 60) == pytest.approx(0.55)
    assert learning_rate_factor(FitPlan(steps=9, schedule="constant"), 8) == 1.0
    slow = FitPlan(steps=100, schedule="seven-sixteenths")
    assert learning_rate_factor(slow, 0) == 1.0
    assert learning_rate_factor(slow, 100) == pytest.approx(math.cos(7 * math.pi / 16))


def train_on_ranks(losses: Path) -> None:
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    unused = nn.Linear(2, 2)

    def batch_at(step: int, generator: torch.Generator) -> Tensor:
        return torch.randn(16, 4, generator=generator)[rank() :: world_size()]

    def step(batch: Tensor, generator: torch.Generator) -> Tensor:
        return (net(batch).squeeze(1) - batch.sum(1)).square().mean()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    plan = FitPlan(steps=20, clip_norm=None)  # clipping would make the sum of the ranks and their mean alike
    result = fit(plan, {"model": net, "unused": unused}, optimizer, step, batch_at)
    if rank() == 0:
        losses.write_text(json.dumps(result.losses))
    torch.distributed.destroy_process_group()


def test_two_processes_train_like_one_at_the_same_total_batch(tmp_path: Path) -> None:
    losses = []
    for ranks in (1, 2):
        run_as_torchrun(ranks, train_on_ranks, tmp_path / f"{ranks}.json")
        losses.append(json.loads((tmp_path / f"{ranks}.json").read_text()))
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_the_middle_of_a_step_leaves_no_half_of_it(tmp_path: Path) -> None:
    """The forward pass has moved the running statistics already when the signal comes."""

    def trained(stop_at: int | None, resume: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        calls = []

        def step(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            calls.append(1)
            loss = (net(batch).squeeze(1) - batch.sum(1)).square().mean()
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(1000))  # the interpreter looks for signals between instructions
            return {"loss": loss}

        plan = FitPlan(steps=12, checkpoint_folder=tmp_path, resume=resume)
        fit(plan, {"model": net}, torch.optim.AdamW(net.parameters(), lr=0.01), step, batch_at)
        return net.state_dict()

    whole = trained(None, False)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        trained(5, False)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 5
    resumed = trained(None, True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
