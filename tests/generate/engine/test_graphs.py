import pytest
import torch

from fewer.generate.engine.graphs import StepGraphs


class Counted:
    """x · c + shift, counting its calls; `shift` stands for weights."""

    def __init__(self) -> None:
        self.calls, self.shift = 0, 0.0

    def __call__(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * c + self.shift


def test_inputs_and_constants_reach_the_function() -> None:
    graphs = StepGraphs(Counted())
    x, c = torch.randn(5), torch.randn(5)
    assert torch.equal(graphs([x], [c], c, "v1"), x * c)
    assert torch.equal(graphs([2 * x], [c], c, "v1"), 2 * x * c)


def test_constants_are_copied_only_for_another_source() -> None:
    graphs = StepGraphs(Counted())
    x, c, source = torch.ones(3), torch.ones(3), object()
    graphs([x], [c], source, "v1")
    c.add_(1)
    assert graphs([x], [c], source, "v1").tolist() == [1, 1, 1]
    assert graphs([x], [c], object(), "v1").tolist() == [2, 2, 2]


def test_shapes_dtypes_and_versions_are_kept_apart() -> None:
    graphs = StepGraphs(Counted())
    for size in (1, 5, 123):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(size, dtype=dtype)
            assert graphs([x], [x], x, "v1").shape == (size,)
    assert len(graphs) == graphs.limit
    graphs([x], [x], x, "v2")
    assert len(graphs) == 1, "graphs of weights that are gone must go too"
    graphs.forget()
    assert len(graphs) == 0


def test_the_shape_used_last_survives() -> None:
    graphs = StepGraphs(Counted(), limit=2)
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    for x in (a, b, a, c):
        graphs([x], [x], x, "v1")
    forms = {key[1][0] for key in graphs._captured}
    assert forms == {(1,), (3,)}


def test_works_across_inference_mode() -> None:
    """Buffers made inside inference mode must be writable outside it, and the reverse."""
    graphs = StepGraphs(Counted())
    x = torch.ones(4)
    with torch.inference_mode():
        graphs([x * 1], [x * 1], x, "v1")
    assert graphs([x * 3], [x], object(), "v1").tolist() == [3] * 4
    with torch.inference_mode():
        assert graphs([x * 5], [x], x, "v1").tolist() == [5] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_and_does_not_call() -> None:
    function = Counted()
    graphs = StepGraphs(function)
    x = torch.randn(7, device="cuda")
    graphs([x], [x], x, "v1")
    calls = function.calls
    assert torch.equal(graphs([3 * x], [x], x, "v1"), 3 * x * x)
    assert function.calls == calls and graphs.warm_up_seconds > 0
