from collections.abc import Callable

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.generate.engine import accelerate
from fewer.generate.transformer import SanaTransformer
from fewer.quantize import quantize


def test_other_modules_come_back_as_they_are(tiny: Callable[..., SanaTransformer]) -> None:
    other = nn.Linear(2, 2)
    assert accelerate(other) is other
    fast = accelerate(tiny())
    assert accelerate(fast) is fast


def test_bf16_converts(tiny: Callable[..., SanaTransformer]) -> None:
    assert accelerate(tiny(), "bf16").proj_out.weight.dtype == torch.bfloat16


def test_svdquant_needs_a_quantized_model(tiny: Callable[..., SanaTransformer]) -> None:
    with pytest.raises(ConfigError, match="quantize it"):
        accelerate(tiny(), "svdquant")


def test_without_quantized_layers_there_is_no_branch_to_fold(tiny: Callable[..., SanaTransformer]) -> None:
    with pytest.raises(ConfigError, match="no branch to fold"):
        accelerate(tiny(), fold_branch=True)


@pytest.mark.parametrize(
    ("keep_expanded", "fold"), [(None, False), (False, False), (True, False), (True, True)]
)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_quantized_model_gives_what_its_layers_give(
    tiny: Callable[..., SanaTransformer], keep_expanded: bool | None, fold: bool
) -> None:
    """Width 64 is the smallest that is quantized; odd tokens, one masked text."""
    plain = tiny(heads=4, head_dim=16, cross_heads=4, cross_head_dim=16, depth=1)
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, 3, 5, generator=generator), torch.randn(2, 7, 12, generator=generator)
    times = torch.tensor([10.0, 900.0])
    quantize(plain, "h8", rank=4, calibrate=lambda: plain(latents, times, text))
    expected = plain(latents, times, text)
    fast = accelerate(plain, "svdquant", keep_expanded=keep_expanded, fold_branch=fold)
    plan = fast.transformer_blocks[0].plan(torch.float32)
    assert plan is not None
    # By itself it keeps weights only where a GPU has room for them.
    assert (plan.joint.kept is not None) == bool(keep_expanded)
    result = fast(latents, times, text)
    assert (plan.joint.folded is not None) == fold
    # A last-bit difference before a rounding moves a code by one: 1/127 of a row's largest value. Folding
    # rounds every weight once more.
    assert (result - expected).norm() < (2e-2 if fold else 5e-3) * expected.norm()
