import torch
from torch import nn

from fewer.generate.transformer.block import SanaBlock
from fewer.generate.transformer.block_tensors import (
    COUNT,
    as_kinds,
    fits_whole,
    joint_rows,
    rounded,
    tensors_of,
)
from fewer.generate.transformer.params import SanaParams


def blocks(head_dim: int = 16) -> list[SanaBlock]:
    params = SanaParams(heads=2, head_dim=head_dim, depth=2, cross_heads=1, cross_head_dim=32)
    return [SanaBlock(params) for _ in range(2)]


def test_what_is_attached_or_too_long_does_not_fit() -> None:
    plain = blocks()
    assert fits_whole(plain, 256, 64)
    assert not fits_whole(plain, 257, 64) and not fits_whole(plain, 256, 65)
    assert not fits_whole(blocks(head_dim=24), 256, 64)
    plain[1].attn2.to_v = nn.Sequential(plain[1].attn2.to_v, nn.Dropout())
    assert not fits_whole(plain, 256, 64)


def test_every_parameter_but_the_table_and_the_texts_is_listed() -> None:
    block = blocks()[0]
    listed = {id(tensor) for tensor in tensors_of(block).listed() if tensor is not None}
    left = {name for name, parameter in block.named_parameters() if id(parameter) not in listed}
    assert left == {"scale_shift_table", *(f"attn2.to_{x}.{y}" for x in "kv" for y in ("weight", "bias"))}


def test_copies_are_rounded_and_three_lie_below_one_another() -> None:
    listed = [tensor for block in blocks() for tensor in tensors_of(block).listed()]
    made = rounded(listed, torch.bfloat16)
    back = [tensor for block in made for tensor in block.listed()]
    for copy, tensor in zip(back, listed, strict=True):
        assert (copy is None) == (tensor is None)
        assert tensor is None or torch.equal(copy, tensor.bfloat16())  # type: ignore[arg-type]
    wanted = torch.cat([tensor.bfloat16() for tensor in listed[COUNT : COUNT + 3]])  # type: ignore[union-attr]
    assert torch.equal(joint_rows(made[1].query), wanted)


def test_gradients_take_the_dtype_asked_for() -> None:
    given = [torch.ones(2, dtype=torch.bfloat16), None, torch.ones(3)]
    found = as_kinds(given, [torch.float32, None, torch.float32])
    assert found[0].dtype == torch.float32 and found[1] is None and found[2] is given[2]  # type: ignore[union-attr]
