"""The transformer equals diffusers' on the same random weights, in every published variant."""

from dataclasses import replace

import pytest
import torch
from diffusers import SanaTransformer2DModel

from fewer.core.errors import ConfigError
from fewer.core.modules import parameter_count
from fewer.generate.transformer import PUBLISHED, SanaTransformer

TINY = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
}
VARIANTS = {
    "plain": {},
    "qk_norm": {"qk_norm": "rms_norm_across_heads"},
    "positions_2k": {"interpolation_scale": 1.0},
    "positions_4k": {"interpolation_scale": 2.0},
    "sprint": {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True},
    "patch_2": {"patch_size": 2, "interpolation_scale": 1.0},
    "biased": {"attention_bias": True, "out_channels": 8, "mlp_ratio": 1.7},
}
TOTALS = {
    "sana-0.6b-1024": (591_747_872, 548),
    "sana-1.6b-1024": (1_604_462_752, 396),
    "sana-1.5-1.6b-1024": (1_604_641_952, 476),
    "sana-1.5-4.8b-1024": (4_721_825_952, 1396),
    "sprint-0.6b-1024": (593_501_216, 664),
    "sprint-1.6b-1024": (1_610_237_472, 480),
}


def oracle(**changes: object) -> SanaTransformer2DModel:
    torch.manual_seed(0)
    model = SanaTransformer2DModel(**(TINY | changes)).eval()
    for parameter in model.parameters():  # larger than the usual start, so that a mistake shows
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (2, 14)])
def test_equals_diffusers_in_every_variant(tmp_path, variant, size):
    theirs = oracle(**VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    ours = SanaTransformer.load(tmp_path)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, *size, generator=generator)
    text = torch.randn(2, 7, 24, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0, 1]])
    timestep = torch.tensor([999.0, 136.0])
    guided = "guidance_embeds" in VARIANTS[variant]
    guidance = torch.tensor([4.5, 1.0]) if guided else None
    with torch.no_grad():
        expected = theirs(
            latents,
            text,
            timestep,
            guidance=None if guidance is None else 0.1 * guidance,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        result = ours(latents, timestep, text, mask, guidance)
        once = ours.denoise(latents, timestep, ours.prepare(text, mask), guidance)
    assert (result - expected).abs().max() <= 2e-5
    assert (once - expected).abs().max() <= 2e-5
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("name", TOTALS)
def test_published_shapes_have_the_published_sizes(name):
    with torch.device("meta"):
        model = SanaTransformer(PUBLISHED[name])
    assert (parameter_count(model), len(model.state_dict())) == TOTALS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_equal_diffusers(name):
    from fewer.generate.transformer.formats import write_params

    config = {k: v for k, v in write_params(PUBLISHED[name]).items() if not k.startswith("_")}
    with torch.device("meta"):
        theirs = SanaTransformer2DModel(**config).state_dict()
        ours = SanaTransformer(PUBLISHED[name]).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_batch_position_and_padding_do_not_matter(tiny):
    model = tiny().eval()
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(3, 4, 5, 3, generator=generator), torch.randn(3, 6, 12, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    times = torch.tensor([900.0, 500.0, 1.0])
    with torch.no_grad():
        together = model(latents, times, text, mask)
        for row in range(3):
            kept = int(mask[row].sum())
            alone = model(latents[row : row + 1], times[row : row + 1], text[row : row + 1, :kept])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_prepared_text_can_be_repeated(tiny):
    model = tiny().eval()
    latents, text = torch.randn(1, 4, 4, 4).expand(3, -1, -1, -1), torch.randn(2, 6, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    prepared = model.prepare(text, mask)
    assert prepared.batch == 2
    assert prepared.blocks[0].keys.shape[2] == 3, "keys that no prompt needs are gone"
    rows = prepared.select(torch.tensor([1, 0, 1]))
    with torch.no_grad():
        result = model.denoise(latents, torch.full((3,), 500.0), rows)
    torch.testing.assert_close(result[0], result[2])
    assert not torch.allclose(result[0], result[1])


def test_an_empty_mask_counts_as_a_full_one(tiny):
    model, text = tiny().eval(), torch.randn(1, 5, 12)
    latents, time = torch.randn(1, 4, 4, 4), torch.tensor([10])
    with torch.no_grad():
        empty = model(latents, time, text, torch.zeros(1, 5))
        torch.testing.assert_close(empty, model(latents, time, text))


def test_recomputing_blocks_changes_no_gradient(tiny):
    model = tiny(qk_norm=True, interpolation_scale=1.0)
    latents, text = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 12)
    gradients = []
    for recompute in (False, True):
        model.recompute_blocks = recompute
        model.zero_grad()
        model(latents, torch.tensor([3.0, 700.0]), text, torch.ones(2, 5)).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(tiny, dtype):
    model = tiny(qk_norm=True).eval()
    latents, text, time = torch.randn(1, 4, 5, 5), torch.randn(1, 5, 12), torch.tensor([300.0])
    with torch.no_grad():
        exact = model(latents, time, text)
        half = model.to(dtype)(latents.to(dtype), time, text.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).norm() / exact.norm() < 0.05


def test_wrong_input_is_named(tiny):
    model, latents, text, time = tiny(), torch.randn(1, 4, 4, 4), torch.randn(1, 5, 12), torch.ones(1)
    with pytest.raises(ConfigError, match=r"24 channels.*12"):
        model(latents, time, torch.randn(1, 5, 24))
    with pytest.raises(ConfigError, match="mask"):
        model(latents, time, text, torch.ones(1, 6))
    with pytest.raises(ConfigError, match="5 channels"):
        model(torch.randn(1, 5, 4, 4), time, text)
    with pytest.raises(ConfigError, match="guidance"):
        model(latents, time, text, guidance=torch.ones(1))
    with pytest.raises(ConfigError, match="guidance"):
        tiny(guidance_embeds=True)(latents, time, text)
    with pytest.raises(ConfigError, match="patches"):
        tiny(patch_size=2)(torch.randn(1, 4, 5, 4), time, text)


def test_the_kernels_made_for_training_change_neither_result_nor_gradients() -> None:
    params = replace(PUBLISHED["sana-1.5-1.6b-1024"], heads=2, depth=2, cross_heads=2, cross_head_dim=8)
    params = replace(params, in_channels=4, out_channels=4, caption_channels=12, sample_size=4)
    torch.manual_seed(0)
    model = SanaTransformer(params)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    inputs = (torch.randn(2, 4, 4, 5), torch.tensor([10.0, 900.0]), torch.randn(2, 3, 12), mask)
    found = []
    for fused, own in ((False, False), (True, False), (True, True)):
        result = model.fuse_attention(fused, own=own)(*inputs)
        found.append((result, *torch.autograd.grad(result.square().mean(), list(model.parameters()))))
    assert model.transformer_blocks[0].attn2.fused and model.transformer_blocks[0].ff.own_middle
    for plain, *forms in zip(*found, strict=True):
        for quick in forms:
            assert torch.allclose(plain, quick, atol=1e-5 * max(1.0, float(plain.detach().abs().max())))


def test_an_empty_prompt_is_not_asked_and_the_picture_is_the_same(tiny) -> None:
    network = tiny(qk_norm=True)
    text, mask = torch.randn(3, 5, 12), torch.ones(3, 5)
    mask[:2, 1:] = 0  # two texts of one token, then a longer one
    latents, times = torch.randn(3, 4, 4, 4), torch.full((3,), 500.0)
    prepared = network.prepare(text, mask)
    assert [block.alone for block in prepared.blocks] == [2, 2]
    quick = network.denoise(latents, times, prepared)
    assert torch.allclose(quick, network(latents, times, text, mask), atol=1e-5)
    lone = network.prepare(text[:2], mask[:2])
    assert torch.allclose(network.denoise(latents[:2], times[:2], lone), quick[:2], atol=1e-5)
