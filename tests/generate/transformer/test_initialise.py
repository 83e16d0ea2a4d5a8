"""Starting weights: repeatable, and as the recipe says."""

import torch

from fewer.generate.transformer import SanaParams, SanaTransformer, initialise

PARAMS = SanaParams(heads=8, head_dim=16, depth=1, cross_heads=2, cross_head_dim=64, caption_channels=96)


def test_same_seed_same_weights_whatever_came_before():
    first = initialise(SanaTransformer(PARAMS), torch.Generator().manual_seed(5))
    torch.randn(7)
    second = initialise(SanaTransformer(PARAMS), torch.Generator().manual_seed(5))
    assert all(torch.equal(second.state_dict()[k], v) for k, v in first.state_dict().items())


def test_spreads_follow_the_recipe():
    model = initialise(SanaTransformer(PARAMS), torch.Generator().manual_seed(0))
    block = model.transformer_blocks[0]
    assert abs(model.time_embed.linear.weight.std() - 0.02) < 0.001
    assert abs(block.attn1.to_q.weight.std() - (2 / 256) ** 0.5) < 0.002
    assert abs(block.ff.conv_inverted.weight.std() - (2 / (128 + 640)) ** 0.5) < 0.002
    assert torch.equal(model.caption_norm.weight, torch.full((128,), 0.01))
    assert not block.attn2.to_k.bias.any()


def test_zero_output_starts_from_no_velocity():
    latents, text = torch.randn(1, 32, 4, 4), torch.randn(1, 3, 96)
    for zero in (True, False):
        model = initialise(SanaTransformer(PARAMS), zero_output=zero)
        velocity = model(latents, torch.tensor([500.0]), text)
        assert bool(velocity.any()) != zero
