"""Targets mean the same layers in every network, whatever its authors call them."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.conditional.generators import KernelBank, WeightGenerator
from fewer.generate.conditional.targets import (
    TARGETS,
    ConditionPlan,
    build_generator,
    planned_layers,
    target_layers,
)
from tests.generate.conditional.conftest import SHAPES, tiny, tiny_sana

ALL = ConditionPlan(targets=("patch_embed", "dwconv", "attn_out", "head", "qkv"))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_target_is_found_once(shape: str) -> None:
    layers = planned_layers(tiny(shape), ALL)
    names = [name for group in layers.values() for name in group]
    assert (
        len(names) == len(set(names)) >= 3 + 3 + 3 + 2
    )  # three blocks: convolution, output and queries each
    assert len(layers["patch_embed"]) == len(layers["head"]) == 1
    assert [len(group) for key, group in layers.items() if key.startswith("dwconv")] == [1, 1, 1]
    assert len(layers["attn_out"]) == 3  # one generator serves all blocks


def test_sana_has_all_but_a_head_of_its_own_name() -> None:
    layers = planned_layers(tiny_sana(), ConditionPlan())
    assert len(layers["attn_out"]) == 2 and all("attn1" in name for name in layers["attn_out"])
    assert {key for key in layers if key.startswith("dwconv")} == {"dwconv_0", "dwconv_1"}


def test_generators_fit_the_layers_they_serve() -> None:
    base = tiny("u-vit")
    for kind, wanted in (("can", WeightGenerator), ("aks", KernelBank)):
        for names in planned_layers(base, ALL).values():
            layer = base.get_submodule(names[0])
            generator = build_generator(ConditionPlan(kind=kind, rank=2), layer, 16)
            assert isinstance(generator, wanted)
            assert generator(torch.zeros(2, 16)).shape == (2, *layer.weight.shape)


def test_unknown_and_missing_targets_are_told() -> None:
    with pytest.raises(ConfigError, match=f"'nose' is not known; allowed: {', '.join(TARGETS)}"):
        target_layers(tiny("dit tokens"), "nose")
    with pytest.raises(ConfigError, match="no layer for target 'head'"):
        target_layers(torch.nn.Linear(2, 2), "head")
    with pytest.raises(ConfigError, match="build it with depthwise=True"):
        target_layers(torch.nn.Linear(2, 2), "dwconv")
