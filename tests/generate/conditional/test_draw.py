import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.conditional.draw import draw_class, to_pictures
from fewer.generate.sampling.guidance import combine
from fewer.generate.sampling.sampler import sample
from fewer.generate.sampling.schedule import flow_dpm_levels
from tests.generate.conditional.conftest import tiny, upgraded


@pytest.mark.parametrize("shape", ["dit tokens", "cat adaln"])
@torch.no_grad()
def test_merged_steps_equal_generated_weights(shape: str) -> None:
    model = upgraded(shape)
    fast = [step.latents for step in draw_class(model, 2, [4, 5], steps=3, guidance=2.0)][-1]
    noise = torch.stack([torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(s)) for s in (4, 5)])

    def velocity(latents: torch.Tensor, level: float) -> torch.Tensor:
        time = torch.full((2,), 1000 * level)
        positive, negative = (model(latents, time, torch.full((2,), label)) for label in (2, 5))
        return combine(negative, positive, 2.0)

    levels = flow_dpm_levels(3, 1.0).tolist()
    slow = [step.latents for step in sample(velocity, noise, 3, levels=levels, time="unit")][-1]
    assert (fast - slow).abs().max() < 1e-4 * slow.abs().max()


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    one = list(draw_class(tiny("cat tokens"), 1, [7], steps=2, guidance=1.0))[-1].latents
    two = list(draw_class(tiny("cat tokens"), 1, [3, 7], steps=2, guidance=1.0))[-1].latents
    assert torch.allclose(one[0], two[1], atol=1e-5)


@pytest.mark.parametrize("shape", ["u-vit", "cat adaln"])
def test_half_precision_stays_near(shape: str) -> None:
    exact = [*draw_class(upgraded(shape), 1, [7], steps=2, guidance=1.0)][-1].latents
    rough = [*draw_class(upgraded(shape).bfloat16(), 1, [7], steps=2, guidance=1.0)][-1].latents
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_unknown_classes_and_pictures() -> None:
    with pytest.raises(ConfigError, match="class 5 is out of range; allowed: 0 to 4"):
        next(draw_class(tiny("cat tokens"), 5, [0]))
    grey, colour = torch.zeros(1, 1, 4, 4), torch.ones(1, 3, 4, 4)
    assert to_pictures(grey)[0].mode == "L" and to_pictures(colour)[0].getpixel((1, 1)) == (255, 255, 255)
