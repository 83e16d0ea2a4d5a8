"""DC-AE's way up: the main branch plus the shortcut that duplicates channels into space, channels last."""

import torch
from jaxtyping import Float
from torch import Tensor


def upsample_add(
    features: Float[Tensor, "batch height width channels"],
    main: Float[Tensor, "batch main_height main_width main_channels"],
    shuffled: bool,
) -> Float[Tensor, "batch two_height two_width out_channels"]:
    """main + pixel_shuffle(repeat(features)) (DC-AE §3.2), the repeated tensor never made.

    `shuffled=True`: `main` is (batch, height, width, 4·out) and is pixel-shuffled here;
    `shuffled=False`: `main` is already (batch, 2·height, 2·width, out).
    """
    return torch.ops.fewer.upsample_add(features, main, shuffled)


@torch.library.custom_op("fewer::upsample_add", mutates_args=(), device_types="cpu")
def _upsample_add(features: Tensor, main: Tensor, shuffled: bool) -> Tensor:
    return reference_upsample_add(features, main, shuffled)


def reference_upsample_add(features: Tensor, main: Tensor, shuffled: bool) -> Tensor:
    """Plain torch: the oracle."""
    wide = torch.promote_types(features.dtype, torch.float32)
    shuffle = torch.nn.functional.pixel_shuffle
    source = main.to(wide).permute(0, 3, 1, 2)
    source = shuffle(source, 2) if shuffled else source
    repeats = 4 * source.shape[1] // features.shape[3]
    shortcut = shuffle(features.to(wide).permute(0, 3, 1, 2).repeat_interleave(repeats, dim=1), 2)
    return (source + shortcut).permute(0, 2, 3, 1).to(features.dtype).contiguous()


@_upsample_add.register_fake
def _(features: Tensor, main: Tensor, shuffled: bool) -> Tensor:
    batch, height, width, _ = features.shape
    return features.new_empty((batch, 2 * height, 2 * width, main.shape[3] // (4 if shuffled else 1)))


@_upsample_add.register_kernel("cuda")
def _(features: Tensor, main: Tensor, shuffled: bool) -> Tensor:
    from fewer.kernels.triton.resample import launch_upsample_add

    return launch_upsample_add(features, main, shuffled)
