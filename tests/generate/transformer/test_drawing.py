"""Blocks as a CPU draws them against the blocks themselves, and when they must run themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fewer.generate.lora import LowRank, attach, fresh
from fewer.generate.transformer import sana as rooms
from fewer.generate.transformer.drawing import draws_on_a_cpu


@contextmanager
def blocks_themselves(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(rooms, "draws_on_a_cpu", lambda *_: False)
        yield


def texts(words: int, empty: int, others: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    text, mask = torch.randn(empty + others, 12, 12), torch.ones(empty + others, 12)
    mask[:empty, 1:] = 0
    mask[empty:, words:] = 0
    return text, mask


@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (5, 3)])
@pytest.mark.parametrize("words", [1, 7, 12])
@pytest.mark.parametrize(("empty", "others"), [(0, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "attention_bias": True, "head_dim": 8, "heads": 2}]
)
@torch.inference_mode()
def test_the_velocity_is_that_of_the_blocks(
    tiny, grid, words: int, empty: int, others: int, changes: dict, monkeypatch
) -> None:
    network = tiny(**changes).eval()
    text, mask = texts(words, empty, others)
    rows = empty + others
    latents = torch.randn(rows, 4, *grid)
    if empty == others:  # as guidance asks
        latents = latents[:others].repeat(2, 1, 1, 1)
    times = torch.full((rows,), 321.0)
    assert draws_on_a_cpu(network.transformer_blocks, latents)
    before = latents.clone()
    found = network.denoise(latents, times, network.prepare(text, mask))
    with blocks_themselves(monkeypatch):
        wanted = network.denoise(latents, times, network.prepare(text, mask))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert torch.equal(latents, before), "what was given is not changed"
    again = network.denoise(latents, times, network.prepare(text, mask))
    assert torch.equal(again, found)


@torch.inference_mode()
def test_a_text_prepared_for_drawing_serves_the_blocks_too(tiny, monkeypatch) -> None:
    network, (text, mask) = tiny(qk_norm=True), texts(5, 1)
    latents, times = torch.randn(2, 4, 4, 4), torch.full((2,), 10.0)
    prepared = network.prepare(text, mask)
    found = network.denoise(latents, times, prepared)
    with blocks_themselves(monkeypatch):
        assert torch.allclose(network.denoise(latents, times, prepared), found, atol=1e-5)
        plain = network.prepare(text, mask)
    assert torch.allclose(network.denoise(latents, times, plain), found, atol=1e-5)
    chosen = prepared.select(torch.tensor([0, 1]))
    assert torch.allclose(network.denoise(latents, times, chosen), found, atol=1e-5)


@torch.inference_mode()
def test_pictures_at_different_times_are_not_taken_together(tiny) -> None:
    network, (text, mask) = tiny(), texts(5, 0, 2)
    latents, times, prepared = (
        torch.randn(2, 4, 4, 4),
        torch.tensor([10.0, 900.0]),
        network.prepare(text, mask),
    )
    together = network.denoise(latents, times, prepared)
    for row in range(2):
        alone = network.prepare(text[row : row + 1], mask[row : row + 1])
        one = network.denoise(latents[row : row + 1], times[row : row + 1], alone)
        assert torch.allclose(one[0], together[row], atol=1e-5)


ADAPTED = ("to_q", "to_k", "to_v", "0", "conv_inverted", "conv_point")


@pytest.mark.parametrize(("scale", "empty"), [(0.7, 1), (0.7, 0), (0.0, 1)])
@torch.inference_mode()
def test_adapters_are_drawn_in_the_same_passes(tiny, scale: float, empty: int, monkeypatch) -> None:
    network, plain = tiny(attention_bias=True).eval(), tiny(attention_bias=True).eval()
    generator = torch.Generator().manual_seed(3)
    for name in ("first", "second"):
        blank = fresh(network, 2, generator, targets=ADAPTED)
        adapter = {
            path: LowRank(one.down, 0.3 * torch.randn(one.up.shape, generator=generator), 4.0)
            for path, one in blank.items()
        }
        attach(network, adapter, name=name, scale=scale)
    assert {path.rpartition(".")[2] for path in adapter} == set(ADAPTED)
    text, mask = texts(7, empty)
    latents, times = torch.randn(1, 4, 5, 3).repeat(1 + empty, 1, 1, 1), torch.full((1 + empty,), 321.0)
    assert draws_on_a_cpu(network.transformer_blocks, latents)
    found = network.denoise(latents, times, network.prepare(text, mask))
    with blocks_themselves(monkeypatch):
        wanted = network.denoise(latents, times, network.prepare(text, mask))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    without = plain.denoise(latents, times, plain.prepare(text, mask))
    assert torch.equal(found, without) == (scale == 0)


class Doubled(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def test_what_is_attached_or_looks_on_is_asked(tiny) -> None:
    like = torch.zeros(1)
    with torch.inference_mode():
        assert draws_on_a_cpu(tiny().transformer_blocks, like)
        assert not draws_on_a_cpu(tiny().transformer_blocks, like.bfloat16())
    assert not draws_on_a_cpu(tiny().transformer_blocks, like), "gradients may be wanted"

    def attach(blocks: nn.ModuleList) -> None:
        blocks[1].attn1.to_q = Doubled(8, 8)

    def hook(blocks: nn.ModuleList) -> None:
        blocks[0].attn2.to_out[0].register_forward_pre_hook(lambda *_: None)

    def replace_forward(blocks: nn.ModuleList) -> None:
        blocks[0].ff.forward = lambda tokens, grid: tokens

    def compiled(blocks: nn.ModuleList) -> None:
        blocks[0].compile()

    with torch.inference_mode():
        for change in (attach, hook, replace_forward, compiled):
            blocks = tiny().transformer_blocks
            change(blocks)
            assert not draws_on_a_cpu(blocks, like), change.__name__
