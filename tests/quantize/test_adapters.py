import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.engine.shell import shell_tree
from fewer.generate.lora import write_lora
from fewer.generate.lora_file import LowRank
from fewer.quantize import Recipe, quantize
from fewer.quantize.adapters import adapters_of, attach, detach, set_strength
from fewer.quantize.checkpoint import checkpoint_of
from fewer.quantize.svdquant import split_layers

Tiny = tuple[nn.Module, torch.Tensor]
LAYERS = ("blocks.0.q_proj", "blocks.1.down", "head")  # two quantized, one in 16 bits


@pytest.fixture
def quantized(tiny: Tiny) -> Tiny:
    model, inputs = tiny
    quantize(model, "h8", 4, recipe=Recipe(refine_rounds=1))
    return model, inputs


def lora(
    model: nn.Module, rank: int = 3, alpha: float | None = 6.0, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in LAYERS:
        out, dim = model.get_submodule(name).weight.shape
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, dim, generator=generator) / 8
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / 8
        if alpha is not None:
            tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
    return tensors


def explicit(model: nn.Module, tensors: dict[str, torch.Tensor], scale: float) -> nn.Module:
    """The same model with W + scale B A written into the weights that stayed, and hooks on the quantized
    ones.
    """
    other = copy.deepcopy(model)
    for name in LAYERS:
        delta = (
            scale
            * tensors[f"transformer.{name}.lora_B.weight"]
            @ tensors[f"transformer.{name}.lora_A.weight"]
        )

        def add(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor, delta=delta) -> torch.Tensor:
            return output + inputs[0] @ delta.mT

        other.get_submodule(name).register_forward_hook(add)
    return other


def test_attached_ranks_equal_the_explicit_weight_change(quantized: Tiny) -> None:
    model, inputs = quantized
    tensors = lora(model)
    expected = explicit(model, tensors, 0.7 * 6.0 / 3)(inputs)
    assert attach(model, tensors, "style", 0.7) == 3
    assert (model(inputs) - expected).norm() <= 1e-5 * expected.norm()


def test_several_add_up_strength_is_live_and_removal_restores_every_byte(quantized: Tiny) -> None:
    model, inputs = quantized
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(inputs)
    first, second = lora(model, seed=1), lora(model, rank=5, alpha=None, seed=2)
    expected = explicit(explicit(model, first, 2.0), second, -0.5)(inputs)
    attach(model, first, "first")
    attach(model, second, "second", 3.0)
    set_strength(model, "second", -0.5)
    assert adapters_of(model) == ["first", "second"]
    assert (model(inputs) - expected).norm() <= 1e-5 * expected.norm()
    set_strength(model, "second", 0.0)
    set_strength(model, "first", 0.0)
    assert torch.allclose(model(inputs), plain, atol=1e-6)
    detach(model, "first")
    detach(model, "second")
    after = model.state_dict()
    assert set(after) == set(before) and adapters_of(model) == []
    assert all(torch.equal(after[name].view(torch.uint8), before[name].view(torch.uint8)) for name in before)
    assert torch.equal(model(inputs), plain)


def test_kohya_and_diffusers_names_and_files_are_understood(quantized: Tiny, tmp_path: Path) -> None:
    model, inputs = quantized
    tensors, kohya, old = lora(model), {}, {}
    for name in LAYERS:
        flat = "lora_unet_" + name.replace(".", "_")
        for ours, theirs, older in (("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")):
            kohya[f"{flat}.{theirs}.weight"] = tensors[f"transformer.{name}.{ours}.weight"]
            old[f"unet.{name}.{older}.weight"] = tensors[f"transformer.{name}.{ours}.weight"]
        kohya[f"{flat}.alpha"] = torch.tensor(6.0)
        old[f"unet.{name}.alpha"] = torch.tensor(6.0)
    results = []
    for index, form in enumerate((tensors, kohya, old)):
        write_tensors(tmp_path / f"{index}.safetensors", form)
        attach(model, tmp_path / f"{index}.safetensors")
        results.append(model(inputs))
        detach(model, "default")
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_split_layer_takes_its_columns() -> None:
    model = nn.ModuleDict({"proj_out": nn.Linear(12, 5)})
    down, up, inputs = torch.randn(2, 12), torch.randn(5, 2), torch.randn(3, 12)
    expected = model["proj_out"](inputs) + inputs @ (up @ down).mT
    split_layers(model, (("proj_out", (4, 8)),))
    attach(model, {"proj_out.lora_A.weight": down, "proj_out.lora_B.weight": up})
    assert torch.allclose(model["proj_out"](inputs), expected, atol=1e-5)


def test_a_pointwise_convolution_takes_a_lora_too() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1))
    down, up, image = torch.randn(2, 4, 1, 1), torch.randn(6, 2, 1, 1), torch.randn(1, 4, 3, 5)
    expected = model(image) + torch.nn.functional.conv2d(torch.nn.functional.conv2d(image, down), up)
    attach(model, {"0.lora_A.weight": down, "0.lora_B.weight": up})
    assert torch.allclose(model(image), expected, atol=1e-5)


def test_what_cannot_be_attached_is_named_and_changes_nothing(quantized: Tiny) -> None:
    model, inputs = quantized
    plain, good = model(inputs), lora(model)
    wide = torch.zeros(3, 7)
    bad: list[tuple[type[Exception], str, dict[str, torch.Tensor]]] = [
        (ConfigError, "LoKr", {"transformer.head.lokr_w1": wide}),
        (ConfigError, "LoHa", {"transformer.head.hada_w1_a": wide}),
        (
            ConfigError,
            "'other'.*does not have",
            {"other.lora_A.weight": wide, "other.lora_B.weight": wide.mT},
        ),
        (ConfigError, "'transformer.head'.*another model", good | {"transformer.head.lora_A.weight": wide}),
        (FileError, "no LoRA tensor", {"transformer.head.weight": wide}),
        (ConfigError, "NaN", good | {"transformer.head.lora_B.weight": torch.full((64, 3), float("nan"))}),
        (FileError, "only one", {"transformer.head.lora_A.weight": wide}),
    ]
    for kind, text, tensors in bad:
        with pytest.raises(kind, match=text):
            attach(model, tensors)
        assert adapters_of(model) == [] and torch.equal(model(inputs), plain)
    attach(model, good)
    with pytest.raises(ConfigError, match="attached already"):
        attach(model, good)
    with pytest.raises(ConfigError, match="'other'; attached are: default"):
        set_strength(model, "other", 1.0)


def test_names_must_be_identifiers_and_a_model_with_adapters_is_not_saved(quantized: Tiny) -> None:
    model, _ = quantized
    with pytest.raises(ConfigError, match="letters"):
        attach(model, lora(model), "my style")
    attach(model, lora(model), "style")
    with pytest.raises(ConfigError, match="detach"):
        checkpoint_of(model)
    detach(model, "style")
    assert "head.weight" in checkpoint_of(model).plain


def test_a_strength_set_in_a_model_that_shares_the_layers_stays_there(quantized: Tiny) -> None:
    model, inputs = quantized
    attach(model, lora(model), "style", 0.7)
    before, other = model(inputs), shell_tree(type(model), model)
    set_strength(other, "style", 0.0)
    assert torch.equal(model(inputs), before) and not torch.equal(other(inputs), before)


@pytest.mark.parametrize("small", [False, True])
def test_a_file_of_ours_acts_with_the_alpha_in_its_metadata(
    quantized: Tiny, tmp_path: Path, small: bool
) -> None:
    model, inputs = quantized
    tensors = lora(model, rank=3, alpha=None)
    adapter = {
        name: LowRank(
            tensors[f"transformer.{name}.lora_A.weight"], tensors[f"transformer.{name}.lora_B.weight"], 12.0
        )
        for name in LAYERS
    }
    attach(model, write_lora(tmp_path / "style.safetensors", adapter, small=small), "style")
    expected = explicit(quantized_copy(model), tensors, 12.0 / 3)(inputs)
    assert (model(inputs) - expected).norm() < (0.02 if small else 1e-5) * expected.norm()


def quantized_copy(model: nn.Module) -> nn.Module:
    """The same without its adapters."""
    other = copy.deepcopy(model)
    for name in adapters_of(other):
        detach(other, name)
    return other


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_is_a_number_and_a_layer_has_one_pair(tiny: Tiny, strength: float) -> None:
    model, inputs = tiny
    quantize(model, "h8", 4, recipe=Recipe(refine_rounds=1, smooth=False))
    pair = {"lora_A.weight": torch.randn(2, 64), "lora_B.weight": torch.randn(128, 2)}
    once = {f"blocks.0.up.{part}": tensor for part, tensor in pair.items()}
    with pytest.raises(ConfigError, match="finite number"):
        attach(model, once, strength=strength)
    twice = once | {f"transformer.blocks.0.up.{part}": tensor for part, tensor in pair.items()}
    with pytest.raises(ConfigError, match=r"two pairs for layer 'blocks\.0\.up'"):
        attach(model, twice)
    assert not adapters_of(model)
    attach(model, once)
    expected = model(inputs)
    with pytest.raises(ConfigError, match="finite number"):
        set_strength(model, "default", strength)
    assert torch.equal(model(inputs), expected)
    with pytest.raises(ConfigError, match="detach them before saving"):
        checkpoint_of(model)
