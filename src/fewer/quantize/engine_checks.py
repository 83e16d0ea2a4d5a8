"""What a foreign file says of a layer, judged before anything is unpacked: it may be cut or hostile."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from fewer.core.errors import FileError

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_INTEGERS = {"qweight": (torch.int8, torch.uint8)}
_SCALES = {"int4": FLOATS, "nvfp4": (torch.float8_e4m3fn,)}
LARGEST = 2**31


def layer_facts(facts: object, name: str) -> tuple[str, int, int, int]:
    """(format, outputs, inputs, rank) of a layer in int4 or nvfp4. Raises `FileError` naming it."""
    facts = facts if isinstance(facts, Mapping) else {}
    shape, rank = facts.get("shape"), facts.get("rank", 0)
    sizes = [*shape, rank] if isinstance(shape, (list, tuple)) else []
    sound = len(sizes) == 3 and all(type(size) is int and 0 <= size < LARGEST for size in sizes)
    if str(facts.get("format")) not in _SCALES or not sound or 0 in sizes[:2]:
        raise FileError(f"layer {name!r} has no sound format, shape and rank: {str(facts)[:200]}")
    return str(facts["format"]), sizes[0], sizes[1], sizes[2]


def packed_shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """(outputs, inputs) by the qweight alone. Raises `FileError` if there is none or it is no matrix."""
    weight = tensors.get("qweight")
    if weight is None:
        raise FileError(f"layer {name!r} is listed as quantized, but has no qweight")
    if weight.ndim != 2 or 0 in weight.shape:
        raise FileError(f"layer {name!r} has a qweight of shape {tuple(weight.shape)}, not a matrix")
    return weight.shape[0], 2 * weight.shape[1]


def check_parts(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], optional: set[str], form: str,
    name: str,
) -> None:  # fmt: skip
    """Numbers of elements, number formats and finite values of a layer's tensors.

    Raises `FileError` naming the layer and the tensor.
    """
    for part, size in expected.items():
        if part in optional and part not in tensors:
            continue
        if part not in tensors or tensors[part].numel() != prod(size):
            found = tuple(tensors[part].shape) if part in tensors else "nothing"
            raise FileError(f"layer {name!r} should have {part} of {size}, the file has {found}")
    if unknown := set(tensors) - set(expected):
        raise FileError(f"layer {name!r} has unexpected tensors {sorted(unknown)[:5]}")
    for part, tensor in tensors.items():
        allowed = _SCALES[form] if part == "wscales" else _INTEGERS.get(part, FLOATS)
        if tensor.dtype not in allowed:
            raise FileError(
                f"layer {name!r} is {form}, but its {part} are {tensor.dtype}; "
                f"expected {' or '.join(str(dtype) for dtype in allowed)}"
            )
        check_finite(tensor, part, name)


def check_finite(tensor: Tensor, part: str, name: str) -> None:
    """Raises `FileError` for NaN or Inf."""
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise FileError(f"layer {name!r}: {part} has NaN or Inf; the file is damaged, copy it again")


def check_modulation(tensors: Mapping[str, Tensor], splits: int, name: str) -> None:
    """The same for a w4a16 layer, whose rows stand in `splits` chunks."""
    if missing := {"qweight", "wscales", "wzeros"} - set(tensors):
        raise FileError(f"layer {name!r} lacks {sorted(missing)}")
    quarter, width = packed_shape(tensors, name)
    out = 4 * quarter
    expected = {"wscales": (width // 64, out), "wzeros": (width // 64, out), "bias": (out,)}
    for part, size in expected.items():
        if part in tensors and (tuple(tensors[part].shape) != size or tensors[part].dtype not in FLOATS):
            found = f"{tuple(tensors[part].shape)} of {tensors[part].dtype}"
            raise FileError(f"layer {name!r} should have {part} of {size} in 16 bits, the file has {found}")
        if part in tensors:
            check_finite(tensors[part], part, name)
    if unknown := set(tensors) - {"qweight", *expected}:
        raise FileError(f"layer {name!r} has unexpected tensors {sorted(unknown)[:5]}")
    if tensors["qweight"].dtype != torch.int32 or width % 64 or out % splits:
        raise FileError(
            f"layer {name!r} has a qweight of {tensors['qweight'].dtype} for {out} x {width}; a w4a16 layer "
            f"keeps int32, multiples of 64 inputs and {splits} equal chunks of outputs"
        )
