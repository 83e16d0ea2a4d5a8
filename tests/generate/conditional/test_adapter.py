"""An adapter changes nothing but itself, and belongs to one base."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import tensor_header, write_tensors
from fewer.generate.conditional.adapter import (
    AtCondition,
    adapter,
    adapter_parameters,
    base_digest,
    load_adapter,
    save_adapter,
)
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.transformer import SanaTransformer
from tests.generate.conditional.conftest import randomise, tiny_sana

INPUTS = (torch.randn(2, 3, 4, 4), torch.tensor([10.0, 900.0]), torch.randn(2, 5, 6))
STYLES = torch.tensor([1, 0])


def trained() -> object:
    model = adapter(tiny_sana(), ["flat", "glossy"], ConditionPlan(rank=2), width=6)
    assert torch.equal(model(*INPUTS, condition=STYLES), tiny_sana()(*INPUTS))
    optimizer = torch.optim.SGD(adapter_parameters(model), lr=0.1)
    for _ in range(2):  # the generators' first layers move from the second step on
        optimizer.zero_grad()
        model(*INPUTS, condition=STYLES).square().mean().backward()
        optimizer.step()
    return model


def test_training_leaves_the_base_alone_and_merging_gives_a_sana() -> None:
    model = trained()
    assert base_digest(model.static_twin()) == base_digest(tiny_sana())
    changed = model(*INPUTS, condition=STYLES)
    assert not torch.equal(changed, tiny_sana()(*INPUTS))
    plain = model.merge(model.embed(torch.tensor([1])))
    assert isinstance(plain, SanaTransformer)
    assert torch.allclose(plain(*(part[:1] for part in INPUTS)), changed[:1], atol=1e-5)
    assert plain.state_dict().keys() == tiny_sana().state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_base_of_another_dtype_keeps_it_and_its_adapter_trains_in_fp32(dtype: torch.dtype) -> None:
    base = tiny_sana().to(dtype)
    inputs = (INPUTS[0].to(dtype), INPUTS[1], INPUTS[2].to(dtype))
    before = base(*inputs)
    model = adapter(base, ["flat", "glossy"], ConditionPlan(rank=2), width=6)
    assert (model(*inputs, condition=STYLES) - before).abs().max() <= 4 * torch.finfo(dtype).eps
    randomise(model.can)
    changed = model(*inputs, condition=STYLES)
    assert changed.dtype == dtype and not torch.equal(changed, before)
    changed.square().mean().backward()
    gradients = [p.grad for p in adapter_parameters(model)]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    plain = model.merge(model.embed(torch.tensor([1])))
    difference = (plain(*(part[:1] for part in inputs)) - changed[:1]).abs().max()
    assert difference <= 30 * torch.finfo(dtype).eps * changed.abs().max() + 1e-7


def test_set_to_a_name_it_is_called_like_the_base() -> None:
    model = trained()
    glossy = model(*INPUTS, condition=torch.tensor([1, 1]))
    assert torch.equal(AtCondition(model, "glossy")(*INPUTS), glossy)
    with pytest.raises(ConfigError, match="'matt' is not known; allowed: flat, glossy"):
        AtCondition(model, "matt")


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = trained()
    randomise(model.can)
    save_adapter(model, tmp_path / "style.safetensors")
    tensors, facts = tensor_header(tmp_path / "style.safetensors")
    assert facts["format"] == "fewer-can" and facts["rank"] == "2"
    assert all(name.startswith("can.") or ".can." in name for name in tensors)
    assert "can.attn_out.a.weight" in tensors and "transformer_blocks.1.ff.can.b.bias" in tensors
    again = load_adapter(tiny_sana(), tmp_path / "style.safetensors")
    assert torch.equal(again(*INPUTS, condition=STYLES), model(*INPUTS, condition=STYLES))
    assert again.source.names == ("flat", "glossy")


def test_refusals(tmp_path: Path) -> None:
    model = trained()
    save_adapter(model, tmp_path / "style.safetensors")
    other = tiny_sana()
    randomise(other, scale=1e-3)
    with pytest.raises(FileError, match="another base"):
        load_adapter(other, tmp_path / "style.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(FileError, match="no adapter"):
        load_adapter(tiny_sana(), tmp_path / "other.safetensors")
    facts = tensor_header(tmp_path / "style.safetensors")[1]
    write_tensors(tmp_path / "cut.safetensors", {"can.condition.table": torch.zeros(2, 6)}, facts)
    base = tiny_sana()
    with pytest.raises(FileError, match="does not fit its own plan"):
        load_adapter(base, tmp_path / "cut.safetensors")
    assert base.state_dict().keys() == tiny_sana().state_dict().keys()  # no layer was wrapped
    write_tensors(
        tmp_path / "vast.safetensors", {"can.condition.table": torch.zeros(2, 6)}, facts | {"rank": "4096"}
    )
    with pytest.raises(FileError, match="does not fit its own plan"):
        load_adapter(base, tmp_path / "vast.safetensors")
    write_tensors(tmp_path / "odd.safetensors", {"x": torch.zeros(1)}, facts | {"rank": "-3"})
    with pytest.raises((FileError, ConfigError), match="rank"):
        load_adapter(tiny_sana(), tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match="out of range"):
        model(*INPUTS, condition=torch.tensor([2, 0]))
    with pytest.raises(ConfigError, match="condition= is missing"):
        model(*INPUTS)
    with pytest.raises(ConfigError, match="at least one name"):
        adapter(tiny_sana(), [], ConditionPlan())
    with pytest.raises(ConfigError, match="'flat' is named twice"):
        adapter(tiny_sana(), ["glossy", "flat", "flat"], ConditionPlan())
