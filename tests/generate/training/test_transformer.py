"""Training: it learns, resumes to the bit, and does in two processes what it does in one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.checkpoint import save_checkpoint
from fewer.core.errors import ConfigError
from fewer.core.progress import SilentProgress
from fewer.generate.training.transformer import TransformerTraining, fit_plan, train_transformer
from tests.fresh import run_as_torchrun
from tests.generate.training import two_ranks

PLAN = TransformerTraining(steps=8, batch=4, learning_rate=3e-3, warmup=2, ema_decay=0.9, dtype="fp32")
SHAPES = [(4, 4)] * 5 + [(2, 8)] * 3


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer", ["adamw", "came"])
def test_the_loss_falls(tiny, encoded, optimizer: str) -> None:
    plan = replace(PLAN, steps=30, optimizer=optimizer, ema_decay=None)
    losses = train_transformer(tiny(), encoded(SHAPES), plan).losses
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(tiny, encoded, tmp_path: Path) -> None:
    whole = tiny()
    train_transformer(whole, encoded(SHAPES), PLAN)
    first, second = tiny(), tiny()
    data = encoded(SHAPES)

    class Stopping(SilentProgress):
        """Ctrl-C after five steps."""

        done = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.done += steps
            if self.done == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_transformer(first, data, PLAN, checkpoints=tmp_path, progress=Stopping())
    result = train_transformer(second, data, PLAN, checkpoints=tmp_path, resume=True)
    assert result.step == 8 and len(result.losses) == 3
    assert torch.equal(weights(second), weights(whole))


def test_recomputing_blocks_changes_nothing(tiny, encoded) -> None:
    plain, frugal = tiny(), tiny()
    train_transformer(plain, encoded(SHAPES), replace(PLAN, steps=2))
    train_transformer(frugal, encoded(SHAPES), replace(PLAN, steps=2, recompute=True))
    assert torch.allclose(weights(plain), weights(frugal), atol=1e-6)


def test_bf16_keeps_fp32_weights_and_a_near_loss(tiny, encoded) -> None:
    exact = train_transformer(tiny(), encoded(SHAPES), replace(PLAN, steps=2)).losses
    model = tiny()
    rounded = train_transformer(model, encoded(SHAPES), replace(PLAN, steps=2, dtype="bf16")).losses
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_frozen_model_and_fp16_are_refused(tiny, encoded) -> None:
    with pytest.raises(ConfigError, match="trainable"):
        train_transformer(tiny().requires_grad_(False), encoded(SHAPES), PLAN)
    with pytest.raises(ConfigError, match="fp16"):
        train_transformer(tiny(), encoded(SHAPES), replace(PLAN, dtype="fp16"))


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    alone = two_ranks.run(str(tmp_path / "one.json"))
    run_as_torchrun(2, two_ranks.run, str(tmp_path / "two.json"))
    assert json.loads((tmp_path / "two.json").read_text()) == pytest.approx(alone, rel=1e-4)


def test_a_run_beside_an_earlier_one_is_resumed_or_refused(tmp_path: Path) -> None:
    training, cpu = TransformerTraining(steps=2), torch.device("cpu")
    assert fit_plan(training, cpu, tmp_path, False).checkpoint_folder == tmp_path
    save_checkpoint(tmp_path, 7, {"weight": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match=r"step 7.*--resume"):
        fit_plan(training, cpu, tmp_path, False)
    assert fit_plan(training, cpu, tmp_path, True).resume
