import pytest
import torch

from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig
from fewer.generate.engine.attach import accelerate
from fewer.generate.engine.autoencoder import FusedDecoder

BASE = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (4, 8, 8),
    "decoder_block_out_channels": (4, 8, 8),
    "encoder_layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 2),
    "encoder_qkv_multiscales": ((), (), (3,)),
    "decoder_qkv_multiscales": ((), (), (3, 5)),
}
KINDS = [
    {},
    {"upsample_block_type": "interpolate", "downsample_block_type": "conv"},
    {"decoder_norm_types": "batch_norm", "decoder_act_fns": "relu"},
    {"encoder_layers_per_block": (0, 1, 1), "decoder_layers_per_block": (0, 1, 1)},
]


def build(changes: dict) -> DCAutoencoder:
    torch.manual_seed(0)
    model = DCAutoencoder(DCAutoencoderConfig(**(BASE | changes))).eval()
    for parameter in model.parameters():  # norm weights of 1 would hide a swapped one
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
@torch.no_grad()
def test_pictures_and_latents_are_the_plain_models(changes: dict, size: tuple[int, int]) -> None:
    plain = build(changes)
    latents = torch.randn(2, 4, *size)
    expected, state = plain.decode(latents, tile=None), {k: v.clone() for k, v in plain.state_dict().items()}
    encoded = plain.encode(expected, tile=None)
    fast = accelerate(plain)
    assert isinstance(fast.decoder, FusedDecoder)
    assert (fast.decode(latents, tile=None) - expected).norm() < 1e-5 * expected.norm()
    assert (fast.encode(expected, tile=None) - encoded).norm() < 1e-5 * encoded.norm()
    assert all(torch.equal(state[name], tensor) for name, tensor in fast.state_dict().items())


@torch.no_grad()
def test_tiles_give_the_same_picture() -> None:
    fast, latents = accelerate(build({})), torch.randn(1, 4, 9, 7)
    whole = fast.decode(latents, tile=None)
    assert (fast.decode(latents, tile=8) - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("lines", [4, 16])
@torch.no_grad()
def test_strips_give_the_same_picture(changes: dict, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, latents = accelerate(build(changes)), torch.randn(2, 4, 9, 3)
    whole = fast.decode(latents, tile=None)
    monkeypatch.setattr("fewer.generate.engine.autoencoder.LEAST_LATENTS_IN_STRIPS", 1)
    monkeypatch.setattr("fewer.generate.engine.autoencoder.STRIP", lines)
    monkeypatch.setattr("fewer.generate.autoencoder.tiling.WHOLE_FROM", 1)
    assert (fast.decode(latents, tile=None) - whole).norm() < 1e-5 * whole.norm()


@torch.no_grad()
def test_new_weights_are_seen() -> None:
    fast, latents = accelerate(build(KINDS[1])), torch.randn(1, 4, 3, 3)
    before = fast.decode(latents, tile=None)
    fast.decoder.up_blocks[0][0].conv.weight.mul_(2)
    assert (fast.decode(latents, tile=None) - before).abs().max() > 1e-3


def test_training_takes_the_plain_forward() -> None:
    plain, fast = build({}), accelerate(build({}))
    image = torch.randn(1, 3, 8, 8)
    for model in (plain, fast):
        model(image).square().sum().backward()
    for (name, wanted), (_, found) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert torch.allclose(wanted.grad, found.grad, rtol=1e-3, atol=1e-4 * wanted.grad.abs().max()), name
