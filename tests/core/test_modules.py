import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.core.modules import find_modules, other_names, parameter_count, replace_modules, set_module


def network() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(shared, nn.ReLU(), shared), nn.LayerNorm(4))


def test_find_names_every_linear_once() -> None:
    names = [name for name, _ in find_modules(network(), lambda _, m: isinstance(m, nn.Linear))]
    assert names == ["0", "1.0"]


def test_replacing_by_an_equal_module_changes_nothing_and_keeps_sharing() -> None:
    net, images = network(), torch.randn(5, 4)
    before = net(images)

    def twin(_: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Linear):
            return None
        copy = nn.Linear(4, 4)
        copy.load_state_dict(module.state_dict())
        return copy

    names = replace_modules(net, twin)
    assert names == ["0", "1.0", "1.2"]
    assert torch.equal(net(images), before)
    assert net[1][0] is net[1][2]


def test_set_module_replaces_or_says_that_nothing_is_there() -> None:
    net = network()
    set_module(net, "1.1", nn.Tanh())
    assert isinstance(net[1][1], nn.Tanh)
    with pytest.raises(ConfigError, match="no submodule"):
        set_module(net, "1.9", nn.Tanh())


def test_shared_parameters_are_counted_once() -> None:
    assert parameter_count(network()) == 2 * 20 + 8


def test_modules_that_stand_in_several_places_are_told_with_all_their_names() -> None:
    shared = nn.Sequential(nn.Linear(2, 2))
    net = nn.ModuleDict({"a": shared, "b": nn.Linear(2, 2), "c": shared})
    assert other_names(net) == {"a": ("c",), "a.0": ("c.0",)}
