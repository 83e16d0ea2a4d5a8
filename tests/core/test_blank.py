import subprocess
import sys

import torch
from torch import nn

from fewer.core.blank import without_values


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(3, 5), nn.Conv2d(5, 2, 3), nn.Embedding(7, 3), nn.RMSNorm(4))
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(3)])
        self.table = nn.Parameter(torch.randn(6, 4) / 2.0)
        self.wide = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("order", torch.arange(4).flip(0), persistent=False)


def test_shapes_and_names_are_those_of_the_network_and_nothing_has_memory() -> None:
    with without_values():
        blank = Network()
    plain = Network()
    assert all(parameter.is_meta for parameter in blank.parameters())
    assert {name: (p.shape, p.dtype) for name, p in blank.named_parameters()} == {
        name: (p.shape, p.dtype) for name, p in plain.named_parameters()
    }
    assert blank.order.tolist() == [3, 2, 1, 0], "what is computed and not kept in files is there"


def test_filled_it_is_the_network() -> None:
    plain = Network()
    with without_values():
        blank = Network()
    blank.load_state_dict(plain.state_dict(), assign=True)
    images = torch.randn(1, 5, 4, 4)
    assert torch.equal(blank.inside[1](images), plain.inside[1](images))


def test_sizes_beyond_any_memory_cost_none() -> None:
    with without_values():
        layer = nn.Linear(2**24, 2**24)
    assert layer.weight.numel() == 2**48


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch; from torch import nn; from fewer.core.blank import without_values\n"
        "with without_values(): nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 3, 3), nn.RMSNorm(3))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
