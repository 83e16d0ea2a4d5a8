import pytest
import torch

from fewer.parallel import convolution
from fewer.parallel.bands import cut
from fewer.parallel.convolution import ParallelConv2d
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session
from fewer.parallel.simulated import run_simulated


def on_bands(
    conv: torch.nn.Conv2d, image: torch.Tensor, devices: int, axis: int, unit: int = 1
) -> torch.Tensor:
    def rank_main(group: Group) -> torch.Tensor:
        session = Session(group, ParallelPlan(devices=devices, mode="sync"))
        bands = cut(image.shape[axis], devices, unit)
        session.begin_step(1.0, bands, axis)
        own = image.narrow(axis, bands.start(group.rank), bands.lengths[group.rank])
        return ParallelConv2d(conv, session, "conv")(own)

    return torch.cat(run_simulated(devices, rank_main), dim=axis)


@pytest.mark.parametrize(
    "at_once", [0, 2**22]
)  # borders anew, or the band copied beside its neighbours' rows
@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (5, 4)])
def test_bands_together_are_the_whole_convolution(
    at_once: int, devices: int, axis: int, kernel: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "MOST_AT_ONCE", at_once)
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 8, kernel, padding=kernel // 2, groups=groups)
    image = torch.randn(2, 4, 11, 9)
    assert torch.allclose(on_bands(conv, image, devices, axis), conv(image), atol=1e-5)


@pytest.mark.parametrize("devices", [2, 3])
def test_strided_convolutions_keep_their_phase(devices: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    image = torch.randn(1, 3, 14, 6)
    assert torch.allclose(on_bands(conv, image, devices, 2, unit=2), conv(image), atol=1e-5)
