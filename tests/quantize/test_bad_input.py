"""Bad input, one by one as the specification lists it, through the public doors: a named error, nothing half
done."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.cli import main
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.quantize import FAST, Recipe, Rule, load_model, plan_layers, quantize
from fewer.quantize.checkpoint import WEIGHTS, checkpoint_of, save_quantized
from fewer.quantize.formats import FORMATS
from fewer.quantize.linear import QuantizedLinear

Tiny = tuple[nn.Module, torch.Tensor]
ONCE = Recipe(refine_rounds=1, smooth=False)


def refused(model: nn.Module, folder: Path, error: type[Exception], text: str, **choices: object) -> None:
    """The call raises, the model is the very same, and no group lies in the store."""
    before = {name: (id(child), child) for name, child in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=text):
        quantize(model, store=folder, **({"format": "int4", "rank": 4} | choices))  # pyright: ignore
    assert {name: (id(child), child) for name, child in model.named_modules()} == before
    after = model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), weights[name].nan_to_num()) for name in weights)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("rank", [-1, 65])
def test_ranks_that_do_not_fit(tiny: Tiny, tmp_path: Path, rank: int) -> None:
    text = "negative" if rank < 0 else r"rank 65 of layer 'blocks\.0\.q_proj'"
    refused(tiny[0], tmp_path, ConfigError, text, rank=rank)
    assert not list(tmp_path.glob("*.safetensors"))


def test_gptq_without_anything_to_round_for(tiny: Tiny, tmp_path: Path) -> None:
    model, inputs = tiny
    recipe = Recipe(gptq=True)
    refused(model, tmp_path, ConfigError, "give a calibration", recipe=recipe)
    whole = {"recipe": recipe, "calibrate": lambda: model(inputs), "format": "w4a16"}
    refused(model, tmp_path, ConfigError, "int4, nvfp4 or h8", **whole)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tiny: Tiny, tmp_path: Path, value: float) -> None:
    tiny[0].blocks[1].down.weight.data[3, 5] = value
    refused(tiny[0], tmp_path, DataError, r"blocks\.1\.down.*NaN or Inf")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_calibration_that_is_no_numbers(tiny: Tiny, tmp_path: Path, value: float) -> None:
    model, inputs = tiny
    broken = inputs.clone()
    broken[1, 2, 3] = value
    refused(model, tmp_path, DataError, r"blocks\.0\.q_proj.*NaN", calibrate=lambda: model(broken))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("form", list(FORMATS))
def test_all_zero_weights_channels_and_inputs_work(tiny: Tiny, form: str) -> None:
    model, inputs = tiny
    model.blocks[0].up.weight.data.zero_()
    model.blocks[1].up.weight.data[:, 7] = 0
    quantize(model, form, 4, lambda: model(torch.zeros_like(inputs)), recipe=FAST)
    assert torch.isfinite(model(inputs)).all() and torch.isfinite(model(torch.zeros_like(inputs))).all()
    assert model.blocks[0].up.weight.abs().max() == 0


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("width", [1, 5, 123])
def test_widths_that_are_no_multiple_of_the_group_are_padded(
    form: str, width: int, relative: Callable[[torch.Tensor, torch.Tensor], float]
) -> None:
    model, inputs = nn.Sequential(nn.Linear(width, 9)), torch.randn(50, width)
    expected = model(inputs)
    quantize(model, form, 1, recipe=ONCE, plan=plan_layers(model, (Rule("0"),)))
    assert model(inputs).shape == expected.shape and relative(model(inputs), expected) < 0.35


def test_no_calibration_is_said_and_an_empty_prompt_file_is_refused(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, class_folder: Path
) -> None:
    for calibrate, text in ((None, "no calibration was given"), (lambda: None, "never ran the model")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = quantize(tiny[0], "int4", 4, calibrate, recipe=FAST)
        assert text in caplog.text
        assert all(child.smooth is None for child in model.modules() if isinstance(child, QuantizedLinear))
        tiny = (type(tiny[0])(), tiny[1])
    (tmp_path / "none.txt").write_text("\n  \n")
    words = ["quantize", str(class_folder), "--output", str(tmp_path / "out")]
    assert main([*words, "--calibration", str(tmp_path / "none.txt")]) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8"])
def test_files_with_missing_extra_mistyped_or_cut_tensors_name_the_layer(
    tiny: Tiny, tmp_path: Path, form: str
) -> None:
    model, inputs = tiny
    exact = type(model)()
    save_quantized(checkpoint_of(quantize(model, form, 4, recipe=ONCE)), tmp_path / "good")
    good = read_tensors(tmp_path / "good" / WEIGHTS)
    name = "blocks.0.up"
    codes, scale = good[f"{name}.codes"], good[f"{name}.group_scale"]
    bad: list[tuple[str, dict[str, torch.Tensor]]] = [
        (name, {key: tensor for key, tensor in good.items() if key != f"{name}.codes"}),
        ("head.bias", {key: tensor for key, tensor in good.items() if key != "head.bias"}),
        ("stranger", good | {"stranger": torch.zeros(3)}),
        (f"{name}.*uint8", good | {f"{name}.codes": codes.to(torch.int16)}),
        (f"{name}.*group_scale is torch.float64", good | {f"{name}.group_scale": scale.double()}),
        (f"{name}.*NaN", good | {f"{name}.low_up": torch.full_like(good[f"{name}.low_up"], torch.nan)}),
        (name, good | {f"{name}.codes": codes[:, :-1].contiguous()}),
        ("embed.weight.*int64", good | {"embed.weight": good["embed.weight"].long()}),
    ]
    if form == "h8":
        bad.append((f"{name}.*19", good | {f"{name}.group_scale": torch.full_like(scale, 19)}))
    config = (tmp_path / "good" / "config.json").read_bytes()
    before = {key: tensor.clone() for key, tensor in exact.state_dict().items()}
    for number, (text, tensors) in enumerate(bad):
        folder = tmp_path / f"bad{number}"
        write_tensors(folder / WEIGHTS, tensors)
        (folder / "config.json").write_bytes(config)
        with pytest.raises(FileError, match=text):
            load_model(folder, exact)
        assert all(torch.equal(exact.state_dict()[key], tensor) for key, tensor in before.items())
    whole = (tmp_path / "good" / WEIGHTS).read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "good" / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(FileError):
            load_model(tmp_path / "good", exact)
    assert torch.isfinite(exact(inputs)).all()


@pytest.mark.parametrize("form", list(FORMATS))
def test_no_rows_at_all_give_no_rows(form: str) -> None:
    model = nn.Sequential(nn.Linear(64, 9))
    quantize(model, form, 0 if form == "w4a16" else 4, recipe=ONCE, plan=plan_layers(model, (Rule("0"),)))
    assert model(torch.zeros(0, 64)).shape == (0, 9) and model(torch.zeros(2, 0, 64)).shape == (2, 0, 9)
