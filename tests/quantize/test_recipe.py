import pytest
import torch

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.quantize.recipe import FAST, Recipe


def test_defaults_are_the_published_ones_and_fast_is_cheaper() -> None:
    assert Recipe().grid == 20 and Recipe().refine_rounds == 100 and Recipe().rows == 4096
    assert FAST.grid == 10 and FAST.refine_rounds < 100 and FAST.rows < 4096


def test_scales_are_sixteen_bit_and_storage_follows_the_weight() -> None:
    assert Recipe().scale_dtype(torch.float32) == torch.bfloat16 == Recipe().scale_dtype(torch.bfloat16)
    assert Recipe().scale_dtype(torch.float16) == torch.float16
    assert Recipe().storage_dtype(torch.float32) == torch.float32
    assert Recipe(branch_dtype="bf16").storage_dtype(torch.float32) == torch.bfloat16


@pytest.mark.parametrize(
    "bad", [{"grid": 1}, {"refine_rounds": 0}, {"rows": 0}, {"svd": "fast"}, {"color": "red"}]
)
def test_impossible_choices_are_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        validate(Recipe, bad)
