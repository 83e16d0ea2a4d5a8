"""Tensor names: ours are those of diffusers; the native checkpoints of Sana's authors differ and fuse some.

Both directions are exact: renaming, splitting and joining rows move no number.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fewer.core.errors import FileError

_DROPPED = re.compile(r"y_embedder\.y_embedding|pos_embed|logvar_linear\..*")
"""Training leftovers of native files: the text that stood for "no text", fixed positions, a loss weight."""

_STEM = {
    "x_embedder.proj": "patch_embed.proj",
    "t_block.1": "time_embed.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "attention_y_norm": "caption_norm",
    "final_layer.linear": "proj_out",
}
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.proj": "attn2.to_out.0",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
_FUSED = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}
_TABLE = "scale_shift_table"


def is_native(names: Mapping[str, object] | set[str]) -> bool:
    """Whether these are names of a native checkpoint."""
    return any(name.startswith(("x_embedder.", "blocks.")) for name in names)


def from_native(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Native tensors under our names. Raises `FileError` listing every name that is not known."""
    guided = any(name.startswith("cfg_embedder.") for name in tensors)
    result: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if _DROPPED.fullmatch(name):
            continue
        targets = _ours(name, guided)
        if not targets or tensor.shape[0] % len(targets):
            unknown.append(name)
            continue
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            result[target] = part.contiguous()
    if unknown:
        raise FileError(f"tensors that no Sana has: {', '.join(sorted(unknown))}")
    return result


def _ours(name: str, guided: bool) -> tuple[str, ...]:
    """Where a native tensor goes: one name, several for a fused one, none if it is unknown."""
    if name == f"final_layer.{_TABLE}":
        return (_TABLE,)
    if block := re.fullmatch(rf"blocks\.(\d+)\.{_TABLE}", name):
        return (f"transformer_blocks.{block[1]}.{_TABLE}",)
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return ()
    if stem in _STEM:
        return (f"{_STEM[stem]}.{kind}",)
    if embedder := re.fullmatch(r"(t|cfg)_embedder\.mlp\.([02])", stem):
        return (f"{_embedder(embedder[1], guided)}.linear_{int(embedder[2]) // 2 + 1}.{kind}",)
    if not (block := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)):
        return ()
    parts = _FUSED.get(block[2]) or ((_BLOCK[block[2]],) if block[2] in _BLOCK else ())
    return tuple(f"transformer_blocks.{block[1]}.{part}.{kind}" for part in parts)


def _embedder(kind: str, guided: bool) -> str:
    if kind == "cfg":
        return "time_embed.guidance_embedder"
    return "time_embed.timestep_embedder" if guided else "time_embed.emb.timestep_embedder"


def to_native(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under native names, queries, keys and values joined. The inverse of `from_native`."""
    guided = any(name.startswith("time_embed.guidance_embedder.") for name in tensors)
    theirs = {ours: native for native, ours in _BLOCK.items()}
    stems = {ours: native for native, ours in _STEM.items()}
    stems |= {
        f"{_embedder(kind, guided)}.linear_{place // 2 + 1}": f"{kind}_embedder.mlp.{place}"
        for kind in (("t", "cfg") if guided else ("t",))
        for place in (0, 2)
    }
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        prefix, inner = (f"blocks.{block[1]}.", block[2]) if block else ("", name)
        stem, _, kind = inner.rpartition(".")
        if inner == _TABLE:
            result[f"{prefix}{_TABLE}" if block else f"final_layer.{_TABLE}"] = tensor
        elif fused := next((native for native, parts in _FUSED.items() if block and stem in parts), None):
            stemless = name.removesuffix(f"{stem}.{kind}")
            parts = [f"{stemless}{part}.{kind}" for part in _FUSED[fused]]
            result[f"{prefix}{fused}.{kind}"] = torch.cat([tensors[part] for part in parts])
        else:
            result[f"{prefix}{(theirs if block else stems)[stem]}.{kind}"] = tensor
    return result
