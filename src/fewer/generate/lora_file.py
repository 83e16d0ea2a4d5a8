"""What a LoRA file says: pairs of low-rank factors by layer, in every naming that is in use.

PEFT writes `lora_A`/`lora_B`, diffusers before it `lora.down`/`lora.up` and `lora_linear_layer`, kohya's
trainer `lora_down`/`lora_up` with flattened layer names. A layer's weight changes by alpha / rank * up @ down
(arXiv 2106.09685); where a file gives no alpha it is the rank.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.errors import ConfigError, FileError

PREFIXES = ("base_model.model.", "transformer.", "unet.", "diffusion_model.", "model.")
"""What files put before a layer's name."""
_PAIRS = {  # suffix of a key -> which factor it holds
    "lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "lora.down": "down",
    "lora.up": "up",    "lora_linear_layer.down": "down", "lora_linear_layer.up": "up",
}  # fmt: skip
_FACTOR = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _PAIRS))})(\.default)?\.weight")
_OTHER_KINDS = re.compile(r"(lokr_|hada_|lora_mid|dora_scale|lora_magnitude_vector|oft_|\.diff$)")


@dataclass(frozen=True, slots=True)
class LowRank:
    """One layer's adapter. `alpha / rank` is its published strength."""

    down: Float[Tensor, "rank inputs"]
    up: Float[Tensor, "outputs rank"]
    alpha: float

    @property
    def strength(self) -> float:
        """Factor of `up @ down` at scale 1."""
        return self.alpha / self.down.shape[0]

    def product(self, rows: Float[Tensor, "*rows inputs"], scale: float) -> Float[Tensor, "*rows outputs"]:
        """What the adapter adds to the layer's output for `rows`, in their dtype."""
        down, up = self.down.to(rows.dtype), self.up.to(rows.dtype)
        return (rows @ down.T) @ up.T * (scale * self.strength)


def read_pairs(tensors: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, LowRank]:
    """The factors by layer, under the file's own layer names; 1x1 convolutions become matrices.

    `alpha` holds for layers that give none of their own. Raises `ConfigError` for other kinds of adapters
    (LoKr, LoHa, DoRA, ...), `FileError` for anything else that is no complete pair, each naming the tensor.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        if _OTHER_KINDS.search(key):
            raise ConfigError(f"{key!r} is not a plain LoRA (LoKr, LoHa, DoRA and others are not supported)")
        if key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha")] = _alpha(key, tensor)
            continue
        found = _FACTOR.fullmatch(key)
        if found is None or not _is_matrix(tensor):
            raise FileError(
                f"{key!r} is no LoRA tensor of a linear layer; expected floating-point matrices with names "
                f"ending in lora_A.weight and lora_B.weight"
            )
        factors.setdefault(found[1], {})[_PAIRS[found[2]]] = tensor.flatten(1)
    halves = sorted(layer for layer in factors.keys() | alphas.keys() if len(factors.get(layer, {})) < 2)
    if halves or not factors:
        raise FileError(
            f"the LoRA has only one of the two factors of layer {halves[0]!r}" if halves else "it is empty"
        )
    for layer, pair in factors.items():
        down, up = len(pair["down"]), pair["up"].shape[1]
        if down != up:
            raise FileError(f"the factors of layer {layer!r} do not fit: their ranks are {down} and {up}")
    return {
        layer: LowRank(pair["down"], pair["up"], alphas.get(layer, alpha or float(len(pair["down"]))))
        for layer, pair in factors.items()
    }


def _is_matrix(factor: Tensor) -> bool:
    """Numbers in rows and columns; a 1x1 convolution counts."""
    sides = tuple(factor.shape)
    return factor.is_floating_point() and len(sides) >= 2 and set(sides[2:]) <= {1} and 0 not in sides


def _alpha(key: str, tensor: Tensor) -> float:
    alpha = float(tensor) if tensor.numel() == 1 else math.nan
    if not math.isfinite(alpha):
        raise FileError(f"{key!r} must be one finite number")
    return alpha


def finite(low_rank: LowRank) -> bool:
    """Whether neither factor has NaN or Inf."""
    return all(bool(torch.isfinite(factor.float()).all()) for factor in (low_rank.up, low_rank.down))
