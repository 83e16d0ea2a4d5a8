"""Batches drawn on the device: repeatable, of the right captions, and good to train on."""

from dataclasses import replace

import pytest
import torch

from fewer.core.errors import DataError
from fewer.generate.training.on_device import DeviceSet
from fewer.generate.training.transformer import TransformerTraining, train_transformer


def pool(pictures: int = 6) -> DeviceSet:
    generator = torch.Generator().manual_seed(0)
    captions = torch.arange(1, 2 * pictures + 1).view(pictures, 2)
    rows = torch.arange(2 * pictures + 1, dtype=torch.bfloat16)
    return DeviceSet(
        torch.randn(pictures, 4, 4, 4, generator=generator),
        captions,
        torch.tensor([[1.0, 0.0]]).repeat(pictures, 1),
        rows[:, None, None].expand(-1, 8, 12).contiguous(),
        torch.ones(2 * pictures + 1, 8, dtype=torch.bool),
    )


def test_a_seed_draws_one_batch_and_impossible_captions_never() -> None:
    data = pool()
    first, again = (data.flow_batch(50, 1.5, 0.2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.latents, again.latents)
    rows = first.text[:, 0, 0].long()
    assert set(rows.tolist()) <= {0, 1, 3, 5, 7, 9, 11}
    assert 0 < int((rows == 0).sum()) < 30
    for latents, row in zip(first.latents, rows.tolist(), strict=True):
        assert row == 0 or torch.equal(latents, data.latents[(row - 1) // 2])
    assert first.levels.min() >= 0 and first.levels.max() < 1


def test_it_trains_and_resumes_to_the_bit(tiny, tmp_path) -> None:
    plan = TransformerTraining(steps=6, batch=4, learning_rate=3e-3, warmup=2, ema_decay=0.9, dtype="fp32")
    whole, parts = tiny(), tiny()
    train_transformer(whole, pool(), plan)
    train_transformer(parts, pool(), replace(plan, steps=3), checkpoints=tmp_path)
    parts = tiny()
    result = train_transformer(parts, pool(), plan, checkpoints=tmp_path, resume=True)
    assert result.step == 6
    same = train_transformer(tiny(), pool(), plan).losses
    assert result.losses == pytest.approx(same[3:], rel=0.5)


def test_lists_of_different_lengths_are_refused() -> None:
    data = pool()
    with pytest.raises(DataError, match="as many"):
        DeviceSet(data.latents[:2], data.captions, data.chances, data.text, data.text_mask)
