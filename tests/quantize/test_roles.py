import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.quantize.roles import Rule, eligible, plan_layers

diffusers = pytest.importorskip("diffusers")


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def sana() -> nn.Module:
    return diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=32, cross_attention_dim=64, caption_channels=32,
        sample_size=8,
    )  # fmt: skip


def pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=64, caption_channels=32, sample_size=8,
    )  # fmt: skip


def sdxl() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
    )  # fmt: skip


def test_flux_roles_are_the_published_ones() -> None:
    plan = plan_layers(flux())
    joint, single = "transformer_blocks.0", "single_transformer_blocks.0"
    groups = {group.key: group for group in plan.groups}
    assert groups[f"{joint}.qkv"].parts == (tuple(f"{joint}.attn.to_{x}" for x in "qkv"),)
    assert groups[f"{joint}.out"].parts == ((f"{joint}.attn.to_out.0",), (f"{joint}.attn.to_add_out",))
    assert set(groups[f"{single}.in"].parts) == {
        (f"{single}.proj_mlp",), tuple(f"{single}.attn.to_{x}" for x in "qkv"),
    }  # fmt: skip
    assert groups[f"{single}.in"].block == single and groups[f"{joint}.qkv"].block == f"{joint}.attn"
    assert plan.splits == ((f"{single}.proj_out", (64, 256)),)
    unsigned = {choice.name for choice in plan.choices if choice.unsigned}
    assert unsigned == {f"{joint}.ff.net.2", f"{joint}.ff_context.net.2", f"{single}.proj_out.mlp"}
    assert set(plan.names("w4a16")) == {
        f"{joint}.norm1.linear", f"{joint}.norm1_context.linear", f"{single}.norm.linear",
    }  # fmt: skip
    assert {"x_embedder", "context_embedder", "proj_out", "norm_out.linear"} <= set(plan.names("keep"))


def test_sana_quantizes_its_pointwise_convolutions_and_keeps_cross_attention_keys() -> None:
    plan = plan_layers(sana())
    block = "transformer_blocks.0"
    assert set(plan.names("svdquant")) == {
        *(f"{block}.attn1.to_{x}" for x in "qkv"), f"{block}.attn1.to_out.0", f"{block}.attn2.to_q",
        f"{block}.attn2.to_out.0", f"{block}.ff.conv_inverted", f"{block}.ff.conv_point",
    }  # fmt: skip
    assert {f"{block}.attn2.to_k", f"{block}.attn2.to_v", "proj_out", "time_embed.linear"} <= set(
        plan.names("keep")
    )


@pytest.mark.parametrize(("make", "gelu"), [(pixart, True), (sdxl, False)])
def test_pixart_and_sdxl_keep_cross_attention_keys_and_shift_only_after_gelu(
    make: object, gelu: bool
) -> None:
    plan = plan_layers(make())
    quantized = plan.names("svdquant")
    assert len(quantized) % 8 == 0 and not any("attn2.to_k" in n or "attn2.to_v" in n for n in quantized)
    assert any(choice.unsigned for choice in plan.choices) is gelu


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Linear(64, 64), nn.Linear(64, 100)
        block = {
            "q_proj": nn.Linear(64, 64), "k_proj": nn.Linear(64, 64), "v_proj": nn.Linear(64, 64),
            "cross_k_proj": nn.Linear(64, 64), "gate_proj": nn.Linear(64, 128), "up_proj": nn.Linear(64, 128),
            "down_proj": nn.Linear(128, 64), "adaln": nn.Linear(64, 384), "small": nn.Linear(64, 8),
            "depthwise": nn.Conv2d(64, 64, 1, groups=64), "pointwise": nn.Conv2d(64, 64, 1),
        }  # fmt: skip
        self.layers = nn.ModuleList([nn.ModuleDict(block)])
        self.tail = nn.Linear(64, 64)


def test_an_unknown_model_falls_under_the_documented_rule() -> None:
    plan = plan_layers(Unknown())
    assert {group.parts for group in plan.groups} == {
        (("layers.0.q_proj", "layers.0.k_proj", "layers.0.v_proj"),), (("layers.0.cross_k_proj",),),
        (("layers.0.gate_proj", "layers.0.up_proj"),), (("layers.0.down_proj",),), (("layers.0.pointwise",),),
    }  # fmt: skip
    assert plan.names("w4a16") == ["layers.0.adaln"]
    reasons = {choice.name: choice.reason for choice in plan.choices if choice.method == "keep"}
    assert set(reasons) == {"embed_tokens", "lm_head", "layers.0.small", "tail"}
    assert "repeated" in reasons["tail"] and "64 channels" in reasons["layers.0.small"]


def test_own_rules_replace_the_models() -> None:
    plan = plan_layers(Unknown(), (Rule(r"tail"), Rule(r".*adaln", "w4a16")))
    assert plan.names("svdquant") == ["tail"] and plan.names("w4a16") == ["layers.0.adaln"]


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer of Sequential"):
        plan_layers(nn.Sequential(nn.Linear(3, 3)))


def test_only_plain_layers_are_eligible() -> None:
    attention = nn.MultiheadAttention(64, 2)
    assert eligible(nn.Linear(2, 2)) and eligible(nn.Conv2d(2, 2, 1))
    assert (
        not eligible(attention.out_proj)
        and not eligible(nn.Conv2d(2, 2, 3))
        and not eligible(torch.nn.ReLU())
    )
    assert not eligible(nn.Conv2d(2, 2, 1, stride=2))


def test_our_autoencoder_quantizes_the_pointwise_convolutions_of_its_attention_blocks() -> None:
    from fewer.generate.autoencoder import DCAutoencoder
    from fewer.generate.autoencoder.config import DCAutoencoderConfig

    config = DCAutoencoderConfig(
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        latent_channels=4,
        attention_head_dim=16,
    )
    names = plan_layers(DCAutoencoder(config)).names("svdquant")
    assert len(names) == 4 and all("conv_inverted" in name or "conv_point" in name for name in names)


@pytest.mark.parametrize("architecture", ["dit", "u-vit", "cat"])
@pytest.mark.parametrize("aware", [False, True])
def test_class_conditional_transformers_have_roles_and_layers_with_generated_weights_stay(
    architecture: str, aware: bool
) -> None:
    from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
    from fewer.generate.conditional.build import build

    adaln = architecture != "u-vit"
    params = ClassConditionalParams(
        architecture=architecture, size=4, width=64, depth=3, heads=2, adaln=adaln, tokens=not adaln
    )
    plan = plan_layers(build(params, ConditionPlan() if aware else None, seed=0))
    chosen = plan.names("svdquant")
    assert len([name for name in chosen if ".attn." in name]) >= 3 and not any("can." in n for n in chosen)
    assert not any(name.endswith("static") for name in chosen)
    assert len(plan.names("w4a16")) == (3 if adaln else 0)
    assert {choice.name.rpartition(".")[2] for choice in plan.choices if choice.unsigned} <= {"fc2"}
    assert all(group.block.endswith(".attn") for group in plan.groups if "qkv" in group.key)
    edges = ("embed", "final_layer", "decoder_pred")
    assert not any(edge in name for edge in edges for name in [*chosen, *plan.names("w4a16")])


def test_torchs_own_attention_is_told_to_stay() -> None:
    layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
    plan = plan_layers(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    kept = {choice.name: choice.reason for choice in plan.choices if choice.method == "keep"}
    assert set(kept) == {"layers.0.self_attn", "layers.1.self_attn"}
    assert all("MultiheadAttention" in reason for reason in kept.values())
    assert set(plan.names("svdquant")) == {f"layers.{k}.linear{n}" for k in range(2) for n in (1, 2)}


def test_rules_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        plan_layers(Unknown(), (Rule("(["),))
    rule = Rule("tail")
    object.__setattr__(rule, "method", "int4")
    with pytest.raises(ConfigError, match="'int4' is not known"):
        plan_layers(Unknown(), (rule,))


def test_experts_in_one_parameter_are_told_to_stay() -> None:
    model = Unknown()
    model.experts = nn.Module()
    model.experts.gate_up_proj = nn.Parameter(torch.zeros(3, 128, 64))
    model.experts.bias = nn.Parameter(torch.zeros(3, 8, 64))
    plan = plan_layers(model)
    assert plan.choice("experts.gate_up_proj").reason.startswith("3 matrices")
    assert "experts.bias" not in {choice.name for choice in plan.choices}
