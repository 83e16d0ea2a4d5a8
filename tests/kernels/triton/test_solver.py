import pytest
import torch

from fewer.kernels.solver import reference_guided_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 9, 31)])
@pytest.mark.parametrize("times", [1, 2])
def test_it_is_the_reference(dtype: torch.dtype, shape: tuple, times: int, draw) -> None:
    from fewer.kernels.triton.solver import launch_guided_step

    rows = (times * shape[0], *shape[1:])
    state, network, velocity, facts = (
        draw(2, *shape),
        draw(*rows, dtype=dtype),
        draw(*rows, dtype=dtype),
        draw(5),
    )
    wanted = state.clone(), network.clone()
    launch_guided_step(state, network, velocity, facts)
    reference_guided_step(*wanted, velocity, facts)
    assert torch.allclose(state, wanted[0], atol=1e-5)
    assert torch.allclose(network.float(), wanted[1].float(), atol=1e-5 if dtype == torch.float32 else 2e-2)
