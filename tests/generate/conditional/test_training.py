from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.conditional import training
from fewer.generate.conditional.build import build
from fewer.generate.conditional.pictures import LabelledPictures
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.conditional.training import (
    TrainingOptions,
    drawn_prefix,
    flow_error,
    parameter_groups,
    train_class_conditional,
    use_average,
    validation_error,
)
from tests.generate.conditional.conftest import SHAPES


def stripes(count: int = 40) -> LabelledPictures:
    labels = torch.arange(count) % 5
    images = torch.full((count, 2, 6, 6), -1.0)
    for row, label in enumerate(labels.tolist()):
        images[row, :, label] = 1.0
    return LabelledPictures(images, labels, ("a", "b", "c", "d", "e"))


def test_the_error_of_a_perfect_velocity_is_zero() -> None:
    images, noise = torch.randn(3, 2, 6, 6), torch.randn(3, 2, 6, 6)
    level = torch.tensor([0.1, 0.5, 0.9])

    def perfect(noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        mixing = (times / 1000).view(-1, 1, 1, 1)
        return (noisy - images) / mixing  # noise - images, from the noisy picture

    assert flow_error(perfect, images, torch.zeros(3), level, noise).max() < 1e-8


def test_a_prefix_hides_the_other_channels_from_network_and_loss() -> None:
    images, noise, level = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6), torch.full((3,), 0.5)
    seen = []

    def network(noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(noisy)
        return torch.cat([(noise - images)[:, :3], torch.full_like(noisy[:, 3:], 9)], 1)

    assert flow_error(network, images, torch.zeros(3), level, noise, kept=3).max() < 1e-12
    assert flow_error(network, images, torch.zeros(3), level, noise).min() > 1
    assert not seen[0][:, 3:].any() and torch.equal(seen[0][:, :3], seen[1][:, :3])


def test_prefixes_are_drawn_alike_and_change_what_is_learned() -> None:
    drawn = [drawn_prefix((1, 2), torch.Generator().manual_seed(seed)) for seed in range(100)]
    assert set(drawn) == {1, 2} and 30 < drawn.count(1) < 70
    assert drawn_prefix((), torch.Generator()) is None
    losses = []
    for prefixes in ((), (1, 2)):
        model = build(SHAPES["cat tokens"], None, 0)
        options = TrainingOptions(steps=4, batch=8, warmup=1, ema_decay=None, prefixes=prefixes)
        losses.append(train_class_conditional(model, stripes(), options).losses)
    assert losses[0][-1] != losses[1][-1]


def test_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: str, steps: int, resume: bool = False) -> tuple:
        model = build(SHAPES["cat tokens"], ConditionPlan(rank=2), 0)
        options = TrainingOptions(
            steps=steps, batch=8, rate=5e-3, warmup=2, ema_decay=0.5, checkpoint_folder=tmp_path / folder,
            checkpoint_every=10, resume=resume,
        )  # fmt: skip
        return model, train_class_conditional(model, stripes(), options)

    model, result = run("whole", 30)
    assert sum(result.losses[-5:]) < 0.9 * sum(result.losses[:5])
    assert validation_error(model, stripes()) < validation_error(
        build(SHAPES["cat tokens"], None, 0), stripes()
    )
    checkpoints = tmp_path / "whole"
    (checkpoints / "step-00000030.safetensors").unlink()  # as if killed after step 20
    again, _ = run("whole", 30, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    use_average(model, result)
    assert not torch.equal(model.base.blocks[0].attn.to_q.weight, again.base.blocks[0].attn.to_q.weight)


def test_ranks_see_the_noise_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SHAPES["cat tokens"], None, 0)
    images, labels = stripes(8).images, stripes(8).labels

    def loss(rank: int, ranks: int) -> float:
        monkeypatch.setattr(training, "rank", lambda: rank)
        monkeypatch.setattr(training, "world_size", lambda: ranks)
        step = training.flow_matching_step(model, TrainingOptions(label_dropout=0.5))
        batch = (images[rank::ranks], labels[rank::ranks])
        return float(step(batch, torch.Generator().manual_seed(3)).detach())

    halves = [loss(rank, 2) for rank in (0, 1)]
    assert halves[0] != halves[1]
    assert sum(halves) / 2 == pytest.approx(loss(0, 1))
    monkeypatch.setattr(training, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="the batch is 64; 3 processes must share it"):
        train_class_conditional(model, stripes(), TrainingOptions(steps=1))


def test_generated_weights_do_not_decay() -> None:
    model = build(SHAPES["cat tokens"], ConditionPlan(rank=2), 0)
    decayed, free = (group["params"] for group in parameter_groups(model, 0.1))
    kept = {id(p) for p in free}
    assert id(model.can["attn_out"].b.weight) in kept and id(model.can["attn_out"].a.weight) not in kept
    assert id(model.base.y_embedder.embedding_table.weight) in kept
    assert len(decayed) + len(free) == len(list(model.parameters()))
