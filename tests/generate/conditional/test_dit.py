"""DiT: the same function as diffusers' model, under its names too."""

import pytest
import torch

from fewer.core.tensors import write_tensors
from fewer.generate.conditional.condition import ModelCondition, condition_aware
from fewer.generate.conditional.formats import load_public
from fewer.generate.conditional.targets import ConditionPlan
from tests.generate.conditional.conftest import SHAPES, tiny


@torch.no_grad()
def test_equals_diffusers(tmp_path, batch: tuple) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=3,
        sample_size=6, patch_size=2, num_embeds_ada_norm=5,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.2
        )
    for block in theirs.transformer_blocks:  # copies of one embedder, as in converted checkpoints
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # diffusers' frequencies are not the authors'
    write_tensors(tmp_path / "dit.safetensors", theirs.state_dict())
    shape = {"ffn_ratio": 4.0}
    from dataclasses import replace

    latents, times, labels = batch
    wanted = theirs(latents, times, labels).sample
    for depthwise in (False, True):
        params = replace(SHAPES["dit adaln"], depthwise=depthwise, **shape)
        ours = load_public(params, tmp_path / "dit.safetensors")
        assert (ours(latents, times, labels) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    before = ours(latents, times, labels)
    can = condition_aware(ours, ConditionPlan(rank=2), ModelCondition(), 16)
    assert torch.equal(can(latents, times, labels), before)  # an upgraded checkpoint


@torch.no_grad()
def test_time_and_class_matter_per_sample(batch: tuple) -> None:
    latents, times, labels = batch
    for shape in ("dit tokens", "dit adaln"):
        model = tiny(shape)
        before = model(latents, times, labels)
        assert before.shape == latents.shape
        later = model(latents, times + torch.tensor([0, 100.0, 0, 0, 0, 0, 0]), labels)
        assert torch.equal(later[[0, 2, 3, 4, 5, 6]], before[[0, 2, 3, 4, 5, 6]])
        assert not torch.equal(later[1], before[1])
