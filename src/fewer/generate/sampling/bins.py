"""Image sizes that the published models were trained on, and the way back to the size one asked for."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from fewer.core.errors import ConfigError

# fmt: off
_AT_1024: dict[float, tuple[int, int]] = {
    0.25: (512, 2048), 0.28: (512, 1856), 0.32: (576, 1792), 0.33: (576, 1728), 0.35: (576, 1664),
    0.4: (640, 1600), 0.42: (640, 1536), 0.48: (704, 1472), 0.5: (704, 1408), 0.52: (704, 1344),
    0.57: (768, 1344), 0.6: (768, 1280), 0.68: (832, 1216), 0.72: (832, 1152), 0.78: (896, 1152),
    0.82: (896, 1088), 0.88: (960, 1088), 0.94: (960, 1024), 1.0: (1024, 1024), 1.07: (1024, 960),
    1.13: (1088, 960), 1.21: (1088, 896), 1.29: (1152, 896), 1.38: (1152, 832), 1.46: (1216, 832),
    1.67: (1280, 768), 1.75: (1344, 768), 2.0: (1408, 704), 2.09: (1472, 704), 2.4: (1536, 640),
    2.5: (1600, 640), 3.0: (1728, 576), 4.0: (2048, 512),
}
_ONLY_AT_2048: dict[float, tuple[int, int]] = {
    0.26: (1024, 3968), 0.27: (1024, 3840), 2.89: (3328, 1152), 3.11: (3584, 1152), 3.62: (3712, 1024),
    3.75: (3840, 1024), 3.88: (3968, 1024),
}
# fmt: on


def bin_table(base: int) -> dict[float, tuple[int, int]]:
    """Aspect ratio (height / width) to (height, width) for models of `base` x `base` pixels.

    Raises `ConfigError` for a base without a table.
    """
    if base == 1024:
        return dict(_AT_1024)
    if base == 512:
        return {ratio: (h // 2, w // 2) for ratio, (h, w) in _AT_1024.items()}
    if base == 2048:
        doubled = {ratio: (2 * h, 2 * w) for ratio, (h, w) in _AT_1024.items()}
        return dict(sorted((doubled | _ONLY_AT_2048).items()))
    if base == 4096:
        return {ratio: (2 * h, 2 * w) for ratio, (h, w) in bin_table(2048).items()}
    raise ConfigError(
        f"no table of sizes for a model of {base} px; there are tables for 512, 1024, 2048, 4096: "
        "ask for the exact size without binning"
    )


def nearest_bin(height: int, width: int, base: int) -> tuple[int, int]:
    """The trained (height, width) whose aspect ratio is nearest to the one asked for."""
    table = bin_table(base)
    return table[min(table, key=lambda ratio: abs(ratio - height / width))]


def resize_to_cover(
    image: Float[Tensor, "batch 3 height width"], height: int, width: int
) -> Float[Tensor, "batch 3 {height} {width}"]:
    """Bilinear resize until the image covers the asked size, then a crop from the centre."""
    have_height, have_width = image.shape[-2:]
    if (have_height, have_width) == (height, width):
        return image
    ratio = max(height / have_height, width / have_width)
    size = (max(int(have_height * ratio), height), max(int(have_width * ratio), width))
    image = interpolate(image, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return image[..., top : top + height, left : left + width]
