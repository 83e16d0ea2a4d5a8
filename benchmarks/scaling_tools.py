"""What scaling's items share: equal random weights on every rank, calls as graphs, time and error."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def build(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model of random weights, made on its device: equal on every rank."""
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = 0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.normal_(0, scale, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter += 1  # a norm's
    for buffer in model.buffers():
        buffer.zero_()
    return model


def in_graph(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as one CUDA graph; on a CPU the call itself."""
    if device.type == "cpu":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        graph.kept = call()  # type: ignore[attr-defined]
    return graph.replay


def wall_ms(call: Callable[[], object], device: torch.device | None = None) -> float:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
