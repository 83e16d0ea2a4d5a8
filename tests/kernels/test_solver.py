import pytest
import torch

from fewer.kernels.solver import guided_step


@pytest.mark.parametrize("guided", [False, True])
def test_guidance_guess_and_sum(guided: bool, draw) -> None:
    state, network = draw(2, 3, 4, 5, 1), draw(6 if guided else 3, 4, 5, 1)
    velocity, facts = draw(*network.shape), torch.tensor([0.7, 0.5, 0.3, -0.2, 4.5]).to(state)
    before = state.clone()
    guided_step(state, network, velocity, facts)
    v = torch.lerp(velocity[:3], velocity[3:], 4.5) if guided else velocity
    clean = before[0] - 0.7 * v
    assert torch.allclose(state[1], clean, atol=1e-5)
    assert torch.allclose(state[0], 0.5 * before[0] + 0.3 * clean - 0.2 * before[1], atol=1e-5)
    assert torch.equal(network[-3:], state[0]) and torch.equal(network[:3], state[0])


def test_operator_is_registered_properly(draw) -> None:
    facts = draw(5)
    torch.library.opcheck(torch.ops.fewer.guided_step, (draw(2, 1, 4), draw(2, 4), draw(2, 4), facts))
