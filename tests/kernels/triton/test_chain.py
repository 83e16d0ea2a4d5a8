import pytest
import torch
import triton
import triton.language as tl

from fewer.kernels.triton.chain import chained, follow


@triton.jit
def _add_one(x, y, size, BLOCK: tl.constexpr, CHAIN: tl.constexpr):
    follow(CHAIN)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place, tl.load(x + place, mask=place < size, other=0.0) + 1.0, mask=place < size)


def test_on_a_cpu_nothing_is_chained() -> None:
    assert chained(torch.device("cpu")) == {"CHAIN": False}


@pytest.mark.parametrize("size", [1, 123, 100_000])
def test_each_kernel_sees_all_that_the_one_before_has_written(size: int, device: torch.device) -> None:
    size = size if device.type == "cuda" else min(size, 1_000)  # sixteen programs, one after the other
    first, second = torch.zeros(size, device=device), torch.full((size,), 99.0, device=device)
    for turn in range(20 if device.type == "cuda" else 2):
        source, to = (first, second) if turn % 2 == 0 else (second, first)
        _add_one[(triton.cdiv(size, 64),)](source, to, size, BLOCK=64, **chained(device))
        assert torch.equal(to, torch.full_like(to, turn + 1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_chain_is_captured_in_a_graph(device: torch.device) -> None:
    buffers = [torch.zeros(100_000, device=device) for _ in range(2)]
    keywords = chained(device)

    def run() -> None:
        for turn in range(20):
            pair = buffers[turn % 2], buffers[1 - turn % 2]
            _add_one[(triton.cdiv(100_000, 64),)](*pair, 100_000, BLOCK=64, **keywords)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    buffers[0].zero_()
    graph.replay()
    assert torch.equal(buffers[0], torch.full_like(buffers[0], 20.0))
