import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from fewer.kernels.h8 import accumulate_int8, reference_int8_linear
from fewer.kernels.triton.hopper import has_hopper, hopper_product
from fewer.kernels.triton.hopper_product import GROUPED, queries_at_the_end, rounds

HERE = Path(__file__).parent
GPU = torch.cuda.is_available() and has_hopper(torch.device("cuda"))


@cache
def compiled() -> dict[str, int]:
    """Bytes of every kernel's machine code, compiled in one process that takes seconds to start."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = [sys.executable, str(HERE / "compile_for_hopper.py")]
    run = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_it_compiles_with_the_triton_that_is_installed() -> None:
    assert compiled()["product"] > 10_000


@pytest.mark.parametrize("processors", [1, 5, 132])
def test_every_tile_is_multiplied_once_and_the_last_round_is_half_a_round_where_that_helps(
    processors: int,
) -> None:
    for tiles in range(1, 5 * processors + 2):
        programs, whole, halved = rounds(tiles, processors)
        # As the kernel counts: whole tiles a program at a time, then one half of a tile each.
        found = [tile for start in range(programs) for tile in range(start, whole, programs)]
        halves = [(whole + half // 2, half % 2) for half in range(2 * (tiles - whole)) if halved]
        assert sorted(found) == list(range(whole))
        assert halves == [(tile, side) for tile in range(whole, tiles) for side in (0, 1)]
        assert programs <= processors and len(halves) <= programs
        assert not halved or whole % programs == 0  # the groups' turns are counted in whole rounds
        took = -(-whole // programs) + 0.5 * halved
        assert took <= -(-tiles // processors)
        if 0 < 2 * (tiles % processors) <= processors:
            assert took == tiles // processors + 0.5


@pytest.mark.parametrize(("row_blocks", "key_blocks", "query_blocks"), [(16, 18, 9), (1, 1, 1), (13, 35, 18)])
def test_the_last_tiles_are_queries(row_blocks: int, key_blocks: int, query_blocks: int) -> None:
    columns, order = key_blocks + query_blocks, []
    for tile in range(row_blocks * columns):  # as the kernel's `_place`
        first = tile // (GROUPED * columns) * GROUPED
        order.append(tile % (GROUPED * columns) // min(row_blocks - first, GROUPED))
    last = queries_at_the_end(row_blocks, query_blocks)
    assert last > 0 and all(column >= key_blocks for column in order[-last:])


@pytest.mark.skipif(not GPU, reason="needs a Hopper GPU")
@pytest.mark.parametrize(
    ("rows", "dim", "outputs", "rank"),
    [
        (1, 64, 8, 16), (200, 192, 264, 32), (300, 1152, 520, 64), (1100, 320, 2056, 32),
        (2048, 128, 3456, 32), (2000, 128, 6720, 16),
    ],
)  # fmt: skip
def test_it_agrees_with_the_reference_and_sums_are_exact(
    rows: int, dim: int, outputs: int, rank: int, draw
) -> None:
    codes = torch.randint(-127, 128, (rows, dim), dtype=torch.int8).cuda()
    weight = torch.randint(-126, 127, (outputs, dim), dtype=torch.int8).cuda()
    size, step, bias = draw(rows).abs() / 500, draw(outputs).abs() / 50, draw(outputs)
    low, up = draw(rows, rank, dtype=torch.bfloat16), draw(outputs, rank, dtype=torch.bfloat16)
    for activation in ("none", "silu", "gelu"):
        found = hopper_product(codes, weight, (size, step), bias, low, up, activation)
        wanted = reference_int8_linear(
            codes, size, weight, step, bias, low, up, activation, None, None, torch.float32
        )
        assert (found.float() - wanted).norm() < 5e-3 * wanted.norm()
    ones = torch.ones_like(size), torch.ones_like(step)
    sums = hopper_product(codes, weight, ones)
    # bf16 cannot hold the sums, but equal sums round to equal numbers.
    assert torch.equal(sums, accumulate_int8(codes, weight).float().bfloat16())


@pytest.mark.skipif(not GPU, reason="needs a Hopper GPU")
def test_sixteen_bits(draw) -> None:
    rows, weight = draw(200, 192, dtype=torch.bfloat16), draw(264, 192, dtype=torch.bfloat16, scale=0.1)
    bias = draw(264, dtype=torch.bfloat16)
    found = hopper_product(rows, weight, bias=bias, activation="silu")
    wanted = torch.nn.functional.silu(rows.float() @ weight.float().T + bias.float())
    assert (found.float() - wanted).norm() < 5e-3 * wanted.norm()
