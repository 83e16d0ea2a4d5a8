"""The autoencoder as users call it: scaling, padding, prefixes, shortcuts end to end, bad input."""

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.autoencoder.blocks import ChannelRMSNorm, down_shortcut, up_shortcut
from fewer.generate.autoencoder.dc_ae import pad_to_multiple

from .conftest import perturb, tiny_config


def _model(**changes: object) -> DCAutoencoder:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts", **changes)).eval()
    perturb(model)
    return model


def test_scaling_factor_and_channel_statistics() -> None:
    image = torch.rand(2, 3, 8, 12)
    raw = _model().encoder(image)
    assert torch.allclose(_model(scaling_factor=0.25).encode(image), raw * 0.25)
    mean, spread = (0.5, -1.0, 0.0, 2.0), (1.0, 2.0, 3.0, 4.0)
    model = _model(latents_mean=mean, latents_std=spread, scaling_factor=7.0)
    expected = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(spread)[:, None, None]
    assert torch.allclose(model.encode(image), expected, atol=1e-6)
    assert torch.allclose(model.decode(expected), _model().decode(raw), atol=1e-4)


def test_shortcuts_alone_carry_the_picture() -> None:
    """Main branches zeroed: encode is the chain of averages, decode the chain of repeats, by hand."""
    model = DCAutoencoder(
        tiny_config("no_latent_shortcuts", decoder_layers_per_block=(1, 1, 1), encoder_out_shortcut=True,
                    decoder_in_shortcut=True, latent_channels=8)
    ).eval()  # fmt: skip
    for name, parameter in model.named_parameters():
        if (
            parameter.ndim > 1 and name not in ("encoder.conv_in.weight", "decoder.conv_out.weight")
        ) or name.endswith("bias"):
            nn.init.zeros_(parameter)
    cells = torch.rand(1, 3, 2, 3)
    image = cells.repeat_interleave(4, 2).repeat_interleave(4, 3)
    first = model.encoder.conv_in(image)
    latents = down_shortcut(down_shortcut(first, 16), 32).unflatten(1, (8, 4)).mean(2)
    assert torch.allclose(model.encode(image), latents)
    back = up_shortcut(up_shortcut(latents.repeat_interleave(4, 1), 16), 8)
    norm = ChannelRMSNorm(8)
    expected = model.decoder.conv_out(nn.functional.silu(norm(back)))
    assert torch.allclose(model.decode(latents), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (13, 4)])
def test_padding_reflects_and_is_cropped_exactly(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    padded = pad_to_multiple(image, 4)
    assert padded.shape[2] % 4 == padded.shape[3] % 4 == 0
    assert torch.equal(padded[..., : size[0], : size[1]], image)
    model = _model()
    assert model.decode(model.encode(image, pad=True), size=size).shape == image.shape
    if min(size) >= 5:
        extra = padded.shape[3] - size[1], padded.shape[2] - size[0]
        assert torch.equal(padded, nn.functional.pad(image, (0, extra[0], 0, extra[1]), mode="reflect"))


def test_prefix_decodes_as_if_the_rest_were_zero() -> None:
    model = _model(latent_prefixes=(2, 4), latents_mean=(0.5,) * 4, latents_std=(2.0,) * 4)
    latents = torch.randn(1, 4, 3, 2)
    raw = model.unscale(latents)
    raw[:, 2:] = 0
    assert torch.allclose(model.decode(latents[:, :2]), model.decoder(raw), atol=1e-6)
    with pytest.raises(ConfigError, match=r"3 channels.*2 or 4"):
        model.decode(latents[:, :3])


def test_empty_batch() -> None:
    model = _model()
    assert model.encode(torch.zeros(0, 3, 8, 12)).shape == (0, 4, 2, 3)
    assert model.decode(torch.zeros(0, 4, 2, 3)).shape == (0, 3, 8, 12)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 3, 9, 8), "multiples of 4.*nearest size is 8 x 8.*pad=True"),
        (torch.zeros(1, 3, 1, 11), "nearest size is 12 x 4"),
        (torch.zeros(1, 1, 8, 8), "image has 1 channels.*takes 3"),
        (torch.full((1, 3, 8, 8), float("nan")), "image holds NaN"),
        (torch.full((1, 3, 8, 8), float("inf")), "image holds NaN or infinite"),
        (torch.zeros(1, 3, 0, 8), "no pixels"),
    ],
)
def test_bad_images_are_named(image: torch.Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _model().encode(image, check_finite=True)


def test_bad_latents_and_integer_images_are_named() -> None:
    model = _model()
    with pytest.raises(ConfigError, match="latents has 5 channels"):
        model.decode(torch.zeros(1, 5, 2, 2))
    # The shape checker of the tests would stop an integer tensor first, so ask the check itself.
    from fewer.generate.autoencoder.dc_ae import check_input

    with pytest.raises(ConfigError, match=r"image has dtype torch\.uint8"):
        check_input("image", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {3}, False)
    with pytest.raises(ConfigError, match="image has shape"):
        check_input("image", torch.zeros(3, 8, 8), {3}, False)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    image = torch.rand(1, 3, 8, 8)
    gradients = []
    for checkpointing in (False, True):
        model = _model()
        model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = checkpointing
        model(image).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_themselves(dtype: torch.dtype) -> None:
    model = DCAutoencoder(tiny_config("multi_head_multi_scale")).eval().to(dtype)
    image = torch.rand(1, 3, 8, 12).to(dtype)
    latents = model.encode(image)
    assert latents.dtype == dtype and model.decode(latents).dtype == dtype


def test_numbers_of_another_format_and_impossible_crops_are_refused() -> None:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts")).eval()
    image = torch.zeros(1, model.config.in_channels, 8, 8)
    with pytest.raises(ConfigError, match=r"image is torch\.float64 on cpu, .*torch\.float32 on cpu"):
        model.encode(image.double())
    latents = model.encode(image)
    with pytest.raises(ConfigError, match=r"latents is torch\.float16"):
        model.decode(latents.half())
    for size in ((0, 8), (8, -1), (9, 8)):
        with pytest.raises(ConfigError, match=r"decode to 8 x 8"):
            model.decode(latents, size=size)
