from dataclasses import replace

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.core.modules import parameter_count
from fewer.generate.conditional.build import build_static
from fewer.generate.conditional.params import PRESETS, ClassConditionalParams, named, with_conditioning


@pytest.mark.parametrize(
    ("name", "millions"), [("dit-s-2", 33), ("dit-xl-2", 675), ("u-vit-l-2", 287), ("u-vit-h-2", 501)]
)
def test_published_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        count = parameter_count(build_static(named(name)))
    assert abs(count / 1e6 - millions) < 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_conditioned_in_every_way(name: str) -> None:
    for kind in ("tokens", "adaln", "can", "aks", "adaln+can"):
        params = with_conditioning(named(name), kind).check()
        assert params.adaln != params.tokens


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 33}, "does not divide"),
        ({"heads": 5}, "5 heads"),
        ({"architecture": "u-vit", "depth": 4}, "odd depth"),
        ({"tokens": False}, "nothing tells"),
        ({"size": 65536}, "1,073,741,824 tokens"),
        ({"ffn_ratio": 0.001}, "no hidden channel"),
    ],
)
def test_contradictions(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(ClassConditionalParams(), **change).check()
    with pytest.raises(ConfigError, match="known: cat-nano"):
        named("cat-giant")
