import torch

from tests.generate.conditional.conftest import tiny


@torch.no_grad()
def test_late_blocks_see_early_ones_and_the_condition_matters(batch: tuple) -> None:
    latents, times, labels = batch
    model = tiny("u-vit")
    before = model(latents, times, labels)
    assert before.shape == latents.shape
    assert not torch.allclose(model(latents, times, (labels + 1) % 5), before)
    assert not torch.allclose(model(latents, times + 50, labels), before)
    model.out_blocks[0].skip_linear.weight[:, 16:] = 0
    assert not torch.allclose(model(latents, times, labels), before)


def test_names_are_the_authors() -> None:
    names = tiny("u-vit").state_dict().keys()
    for name in (
        "patch_embed.proj.weight", "pos_embed", "time_embed.0.weight", "label_emb.weight",
        "in_blocks.0.attn.qkv.weight", "mid_block.mlp.fc1.bias", "out_blocks.0.skip_linear.weight",
        "norm.weight", "decoder_pred.weight", "final_layer.weight",
    ):  # fmt: skip
        assert name in names
    assert "in_blocks.0.attn.qkv.bias" not in names
