"""A style file changes the weights by as much as it is asked, and fits one base."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.generate.conditional.adapter import adapter, save_adapter
from fewer.generate.conditional.style import wear_style
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.transformer import SanaTransformer
from tests.generate.conditional.conftest import randomise, tiny_sana

INPUTS = (torch.randn(1, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 6))


def saved(folder: Path, names: list[str]) -> tuple[Path, torch.Tensor]:
    """A file, and what its first style computes."""
    model = adapter(tiny_sana(), names, ConditionPlan(rank=2), width=6)
    randomise(model.can)
    save_adapter(model, folder / "ink.safetensors")
    return folder / "ink.safetensors", model(*INPUTS, condition=torch.tensor([0]))


def test_whole_half_and_no_strength(tmp_path: Path) -> None:
    path, wanted = saved(tmp_path, ["ink"])
    styled = wear_style(tiny_sana(), str(path))
    assert isinstance(styled, SanaTransformer)
    assert torch.allclose(styled(*INPUTS), wanted, atol=1e-5)
    off = wear_style(tiny_sana(), f"{path}:0")
    assert torch.equal(off(*INPUTS), tiny_sana()(*INPUTS))
    half, plain, whole = (net.state_dict() for net in (wear_style(tiny_sana(), f"{path}:0.5"), off, styled))
    for name, weight in half.items():
        assert torch.allclose(weight, (plain[name] + whole[name]) / 2, atol=1e-6), name


def test_refusals(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, ["ink", "chalk"])
    with pytest.raises(ConfigError, match="several styles"):
        wear_style(tiny_sana(), str(path))
    path, _ = saved(tmp_path, ["ink"])
    with pytest.raises(ConfigError, match="no strength"):
        wear_style(tiny_sana(), f"{path}:much")
    other = tiny_sana()
    randomise(other, scale=1e-3)
    with pytest.raises(FileError, match="another base"):
        wear_style(other, str(path))
