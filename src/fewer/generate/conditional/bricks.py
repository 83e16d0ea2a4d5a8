"""What DiT and U-ViT are made of: attention, feed-forward with a depthwise convolution, embeddings."""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from fewer.core.errors import ConfigError


class SoftmaxAttention(nn.Module):
    """Self-attention of vision transformers; attribute names as in timm, DiT and U-ViT."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        query, key, value = rearrange(
            self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        attended = scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Two linear layers, with a depthwise 3x3 convolution on the token grid between them if asked.

    Tokens before the image (`extra` of them: class, time) bypass the convolution.
    """

    def __init__(self, width: int, ratio: float, depthwise: bool, approximate: str) -> None:
        super().__init__()
        hidden = int(ratio * width)
        self.approximate = approximate
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], extra: int = 0
    ) -> Float[Tensor, "batch tokens dim"]:
        hidden = self.fc1(tokens)
        if self.dwconv is not None:
            image = as_grid(hidden[:, extra:])
            hidden = torch.cat([hidden[:, :extra], as_tokens(self.dwconv(image))], 1)
        return self.fc2(gelu(hidden, approximate=self.approximate))


def make_identity(convolution: nn.Conv2d) -> None:
    """A convolution that changes nothing: a network that had none stays what it was."""
    nn.init.dirac_(convolution.weight, convolution.groups)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def as_grid(tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim side side"]:
    """Tokens of a square picture, row by row, as a picture."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=math.isqrt(tokens.shape[1]))


def as_tokens(image: Float[Tensor, "batch dim side side"]) -> Float[Tensor, "batch tokens dim"]:
    """The inverse of `as_grid`."""
    return rearrange(image, "b d h w -> b (h w) d")


class PatchProjection(nn.Module):
    """Pictures to tokens, row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"]
    ) -> Float[Tensor, "batch tokens dim"]:
        return as_tokens(self.proj(latents))


def unpatchify(
    patches: Float[Tensor, "batch tokens patch_dim"], patch: int
) -> Float[Tensor, "batch channels lat_h lat_w"]:
    """Tokens of patch values, channels fastest, to a square picture."""
    side = math.isqrt(patches.shape[1])
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch, q=patch)


class LabelTable(nn.Module):
    """One vector a class and one more for "no class", under DiT's name."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding_table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Int64[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Raises `ConfigError` for a label outside 0 .. classes (the last one is "no class")."""
        check_labels(labels, self.classes)
        return self.embedding_table(labels)


def check_labels(labels: Int64[Tensor, " batch"], classes: int) -> None:
    """Raises `ConfigError` for labels that name no class; `classes` itself means "no class".

    Not while training on a GPU, where the look-up in the table fails by itself.
    """
    # On a GPU looking at labels waits for all work before; training would stand still at every step for it.
    unseen = labels.is_cuda and (torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing())
    if labels.numel() and not torch.compiler.is_compiling() and not unseen:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > classes:
            raise ConfigError(
                f"class {high if high > classes else low} is out of range; "
                f"allowed: 0 to {classes - 1}, and {classes} for no class"
            )


def modulate(
    tokens: Float[Tensor, "batch tokens dim"],
    shift: Float[Tensor, "batch dim"],
    scale: Float[Tensor, "batch dim"],
) -> Float[Tensor, "batch tokens dim"]:
    """Scale and shift every token of a sample alike."""
    return tokens * (1 + scale[:, None]) + shift[:, None]
