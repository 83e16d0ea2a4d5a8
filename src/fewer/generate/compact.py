"""Small weights: what a model folder that travels inside a Python package is stored as.

A matrix or convolution becomes whole numbers and one scale for each of its rows (output channels). There are
two forms of them. A byte each, from -127 to 127, is a quarter of fp32's bytes at an error of about a
hundredth of a row's largest value (`compact`). Coarser whole numbers are mostly small ones: their bytes are
written in Huffman codes (RFC 1951, the form that every zlib reads), four bits a weight or what their writer
chose (`deflated`; `fewer quantize --package` decides how coarse each row may be). Everything smaller stays
as it is, in bf16. On opening it is expanded at once: this saves bytes on disk, not in memory.

A deflated weight `w` is three tensors: `w.deflated`, the bytes; `w.row_scale`; and `w.shape`, which holds
nothing: its sides after the first, 0, are the weight's, so that a file's header alone tells all shapes.
"""

import zlib
from collections.abc import Mapping
from math import prod

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from fewer.core.errors import FileError

SCALE, DEFLATED, SHAPE = ".row_scale", ".deflated", ".shape"
_FEWEST = 4096
_WINDOW = -15  # of zlib: a bare stream of RFC 1951; Huffman codes alone look at no window


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large weights as int8 beside their scales, everything else in bf16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_large(tensor):
            stored[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(dim=1).clamp(min=1e-12) / 127
        codes = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        stored[name], stored[name + SCALE] = codes.view(tensor.shape), scale
    return stored


def is_large(tensor: Tensor) -> bool:
    """Whether a weight is worth whole numbers: a matrix or convolution of 4,096 numbers or more."""
    return tensor.ndim >= 2 and tensor.numel() >= _FEWEST and tensor.is_floating_point()


def deflated(
    name: str, codes: Int8[Tensor, "rows columns"], scale: Float[Tensor, "rows"], shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """The tensors of weight `name`, whose rows are `codes * scale`; `shape` is the weight's own."""
    packer = zlib.compressobj(9, zlib.DEFLATED, _WINDOW, 9, zlib.Z_HUFFMAN_ONLY)
    stream = packer.compress(codes.cpu().contiguous().numpy().tobytes()) + packer.flush()
    return {
        name + DEFLATED: torch.frombuffer(bytearray(stream), dtype=torch.uint8),
        name + SCALE: scale.cpu(),
        name + SHAPE: torch.empty(0, *shape, dtype=torch.uint8),
    }


def expand(stored: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Inverse of `compact` and `deflated`, in `dtype` (bf16 by default). Plain tensors come back as they are.

    Raises `FileError` for whole numbers and scales that do not fit together, naming the weight.
    """
    shapes = weight_shapes({name: tuple(tensor.shape) for name, tensor in stored.items()}, "the file")
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        scale = stored.get(name + SCALE)
        if scale is None:
            tensors[name] = stored[name]
            continue
        codes = _inflated(stored, name, shape) if name + DEFLATED in stored else stored[name]
        if codes.dtype != torch.int8 or not scale.is_floating_point() or not torch.isfinite(scale).all():
            raise FileError(f"{name} has scales that are no finite numbers, or no bytes to go with them")
        wide = codes.flatten(1).float().mul_(scale.float()[:, None])
        tensors[name] = wide.view(shape).to(dtype or torch.bfloat16)
    return tensors


def _inflated(stored: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Int8[Tensor, "*shape"]:
    stream, count = stored[name + DEFLATED], prod(shape)
    if stream.dtype != torch.uint8:
        raise FileError(f"{name + DEFLATED} is {stream.dtype}, must be bytes")
    if count > 8 * len(stream):  # a Huffman code has one bit at least: no small file claims much memory
        raise FileError(f"{name + DEFLATED} has {len(stream)} bytes, too few for {count} weights")
    unpacker = zlib.decompressobj(_WINDOW)
    try:
        found = unpacker.decompress(stream.cpu().numpy().tobytes(), count + 1)
    except zlib.error as error:
        raise FileError(f"{name + DEFLATED} is damaged: {error}") from error
    if len(found) != count or not unpacker.eof or unpacker.unused_data:
        raise FileError(
            f"{name + DEFLATED} does not hold {count} weights; the file is damaged, copy it again"
        )
    return torch.frombuffer(bytearray(found), dtype=torch.int8).view(shape).to(stream.device)


def weight_shapes(stored: Mapping[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a file, by their names and in its order; the parts of small ones left out.

    Raises `FileError` for parts that fit nothing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in stored.items():
        owner, dot, part = name.rpartition(".")
        if dot + part not in (SCALE, DEFLATED, SHAPE):
            shapes[name] = shape
        elif dot + part == SHAPE and owner + DEFLATED in stored:
            if shape[:1] != (0,) or len(shape) < 3 or owner in stored or owner + SCALE not in stored:
                raise FileError(f"{where!r}: {name} is {list(shape)}, or {owner} is there twice or in part")
            shapes[owner] = shape[1:]
    for name, shape in stored.items():
        owner, dot, part = name.rpartition(".")
        if dot + part == DEFLATED and (len(shape) != 1 or owner not in shapes or owner + SHAPE not in stored):
            raise FileError(f"{where!r}: {name} is {list(shape)} and belongs to no weight with a shape")
        if dot + part == SHAPE and owner + DEFLATED not in stored:
            raise FileError(f"{where!r}: {name} belongs to no deflated weight")
        if dot + part == SCALE and (len(shapes.get(owner, ())) < 2 or shape != shapes[owner][:1]):
            raise FileError(
                f"{where!r}: {name} has {list(shape)} scales for rows of {list(shapes.get(owner, ()))}"
            )
    return shapes
