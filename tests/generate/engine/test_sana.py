from collections.abc import Callable

import pytest
import torch
from torch import nn

from fewer.generate.engine.attach import accelerate
from fewer.generate.engine.sana import FusedSana, FusedSanaBlock
from fewer.generate.lora import attach, detach, fresh, set_scale
from fewer.generate.transformer import SanaTransformer

Build = Callable[..., SanaTransformer]


def inputs(batch: int = 2, height: int = 3, width: int = 5, length: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, length)
    mask[-1, length // 2 :] = 0
    return (
        torch.randn(batch, 4, height, width, generator=generator),
        torch.rand(batch, generator=generator) * 1000,
        torch.randn(batch, length, 12, generator=generator),
        mask,
    )


SHAPES = [
    {},
    {"qk_norm": True},
    {"attention_bias": True},
    {"interpolation_scale": 1.0},
    {"patch_size": 2, "sample_size": 4},
    {"heads": 3, "head_dim": 16},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("graphed", [False, True])
@torch.no_grad()
def test_the_velocity_is_the_plain_models(tiny: Build, changes: dict, graphed: bool) -> None:
    plain = tiny(**changes)
    latents, times, text, mask = inputs(height=2, width=4)
    expected = plain(latents, times, text, mask)
    fast = accelerate(plain, graphs=graphed)
    assert isinstance(fast, FusedSana)
    assert (fast(latents, times, text, mask) - expected).abs().max() < 1e-5
    assert len(fast.graphs) == int(graphed)


@torch.no_grad()
def test_the_guidance_value_of_sprint_arrives(tiny: Build) -> None:
    plain = tiny(guidance_embeds=True, qk_norm=True)
    latents, times, text, mask = inputs()
    fast = accelerate(plain, graphs=True)
    for strength in (1.0, 4.5):
        guidance = torch.full_like(times, strength)
        expected = plain(latents, times / 1000, text, mask, guidance)
        assert (fast(latents, times / 1000, text, mask, guidance) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_every_shape_and_every_text_has_its_own_result(tiny: Build) -> None:
    """Buffers are reused between steps, pictures and shapes; none may leak into another."""
    plain = tiny()
    fast = accelerate(plain, graphs=True)
    cases = [inputs(1, 1, 1, 1), inputs(2, 3, 5, 7), inputs(1, 5, 3, 7)]
    texts = [fast.prepare(text * scale, mask) for _, _, text, mask in cases for scale in (1.0, 2.0)]
    for _ in range(2):
        for number, text in enumerate(texts):
            latents, times, _, _ = cases[number // 2]
            expected = plain.denoise(latents, times, text)
            assert (fast.denoise(latents, times, text) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_results_of_earlier_steps_stay_as_they_were(tiny: Build) -> None:
    fast = accelerate(tiny(), graphs=True)
    latents, times, text, mask = inputs()
    prepared = fast.prepare(text, mask)
    first = fast.denoise(latents, times, prepared)
    kept = first.clone()
    fast.denoise(latents + 1, times, prepared)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_sixteen_bits_stay_near_the_wide_result(tiny: Build, dtype: torch.dtype) -> None:
    plain = tiny()
    latents, times, text, mask = inputs()
    expected = plain(latents, times, text, mask)
    fast = accelerate(plain.to(dtype))
    result = fast(latents.to(dtype), times, text.to(dtype), mask).float()
    assert (result - expected).norm() < 3e-2 * expected.norm()


@torch.no_grad()
def test_adapters_work_through_the_engine_and_come_off_again(tiny: Build) -> None:
    plain, fast = tiny(), accelerate(tiny(), graphs=True)
    latents, times, text, mask = inputs()
    before = fast(latents, times, text, mask)
    adapter = fresh(plain, 2, torch.Generator().manual_seed(0), targets=("to_q", "conv_point"))
    for low_rank in adapter.values():
        low_rank.up.normal_(generator=torch.Generator().manual_seed(3))
    for model in (plain, fast):
        attach(model, adapter, name="style", scale=1.0)
    for scale in (1.0, 0.3):
        set_scale(plain, "style", scale)
        set_scale(fast, "style", scale)
        expected = plain(latents, times, text, mask)
        assert (expected - before).abs().max() > 1e-3
        assert (fast(latents, times, text, mask) - expected).abs().max() < 1e-5
    detach(fast)
    assert (fast(latents, times, text, mask) - before).abs().max() < 1e-6


def test_training_takes_the_plain_forward(tiny: Build) -> None:
    plain, fast = tiny(), accelerate(tiny())
    latents, times, text, mask = inputs()
    for model in (plain, fast):
        model(latents, times, text, mask).square().sum().backward()
    for (name, wanted), (_, found) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert found.grad is not None and torch.equal(wanted.grad, found.grad), name


@torch.no_grad()
def test_an_unknown_kind_of_layer_runs_as_it_is(tiny: Build) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    plain, fast = tiny(), accelerate(tiny())
    for model in (plain, fast):
        model.transformer_blocks[0].attn2.to_q.__class__ = Doubled
    block = fast.transformer_blocks[0]
    assert isinstance(block, FusedSanaBlock) and block.plan(torch.float32) is None
    arguments = inputs()
    assert (fast(*arguments) - plain(*arguments)).abs().max() < 1e-5


def test_weights_are_shared_and_saved_under_their_names(tiny: Build) -> None:
    plain = tiny()
    fast = accelerate(plain)
    assert {name: p.data_ptr() for name, p in plain.named_parameters()} == {
        name: p.data_ptr() for name, p in fast.named_parameters()
    }
    attention = fast.transformer_blocks[0].attn1
    assert attention.to_q.weight.untyped_storage().data_ptr() == (
        attention.to_v.weight.untyped_storage().data_ptr()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_on_a_gpu_the_same_latents_give_the_same_bytes(tiny: Build) -> None:
    latents, times, text, mask = (tensor.cuda() for tensor in inputs())
    results = []
    for _ in range(2):
        fast = accelerate(tiny().to("cuda", torch.bfloat16))
        prepared = fast.prepare(text.bfloat16(), mask)
        results += [fast.denoise(latents.bfloat16(), times, prepared) for _ in range(2)]
        assert len(fast.graphs) == 1
    assert all(torch.equal(results[0], other) for other in results[1:])
