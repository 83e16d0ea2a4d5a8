"""Adapters: PEFT's own arithmetic and files, any strength, several at once, on and off without a trace."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.lora import (
    LowRank,
    attach,
    collect,
    detach,
    fresh,
    in_dtype,
    parse_lora,
    read_lora,
    set_scale,
    write_lora,
)


def run(model: nn.Module, *, by_the_blocks: bool = False) -> torch.Tensor:
    """Without gradients a CPU takes fewer passes through plain blocks than through those with an adapter."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 5, 12, generator=generator)
    with torch.set_grad_enabled(by_the_blocks):
        return model(latents, torch.tensor([500.0]), text).detach()


def filled(model: nn.Module, seed: int, **options: object) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    adapter = fresh(model, 3, generator, **options)
    return {
        path: LowRank(low.down, torch.randn(low.up.shape, generator=generator), low.alpha)
        for path, low in adapter.items()
    }


def test_equals_peft(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    ours, theirs = tiny(), tiny()
    adapter = filled(ours, 1, alpha=6.0, targets=("to_q", "to_k", "to_v", "linear_1", "conv_point"))
    path = write_lora(tmp_path / "lora.safetensors", adapter)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "linear_1", "conv_point"])
    peft = get_peft_model(theirs, config)
    for name, parameter in peft.named_parameters():
        layer = name.removeprefix("base_model.model.").split(".lora_")[0]
        if layer in adapter:
            low = adapter[layer]
            parameter.data = (low.down if "lora_A" in name else low.up).reshape(parameter.shape)
    expected = run(peft)
    assert (run(attach(ours, read_lora(path), name="one")) - expected).abs().max() < 1e-5
    saved = {key: value.contiguous() for key, value in get_peft_model_state_dict(peft).items()}
    write_tensors(tmp_path / "peft" / "adapter_model.safetensors", saved)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    again = attach(detach(ours), read_lora(tmp_path / "peft"), name="two")
    assert (run(again) - expected).abs().max() < 1e-5


def test_diffusers_reads_what_we_write(tiny, tmp_path):
    from diffusers import SanaTransformer2DModel

    ours = tiny()
    ours.save(tmp_path)
    path = write_lora(tmp_path / "lora.safetensors", filled(ours, 2, alpha=9.0))
    theirs = SanaTransformer2DModel.from_pretrained(tmp_path)
    theirs.load_lora_adapter(tmp_path, weight_name="lora.safetensors")
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 5, 12, generator=generator)
    with torch.no_grad():
        expected = theirs(latents, text, torch.tensor([500.0]), return_dict=False)[0]
    attach(ours, read_lora(path), name="one")
    assert (run(ours) - expected).abs().max() < 1e-5


def test_scales_add_up_and_zero_is_off(tiny):
    model = tiny()
    layer_name = "transformer_blocks.1.attn1.to_q"
    layer, inputs = model.get_submodule(layer_name), torch.randn(2, 5, 16)
    first, second = filled(model, 1), filled(model, 2)
    expected = layer(inputs) + 0.5 * inputs @ (first[layer_name].up @ first[layer_name].down).T
    expected = expected - 2.0 * inputs @ (second[layer_name].up @ second[layer_name].down).T
    attach(model, first, name="first", scale=0.5)
    attach(model, second, name="second", scale=-2.0)
    torch.testing.assert_close(model.get_submodule(layer_name)(inputs), expected, rtol=1e-4, atol=1e-4)
    set_scale(model, "first", 0.0)
    set_scale(model, "second", 0.0)
    assert torch.equal(run(model, by_the_blocks=True), run(tiny(), by_the_blocks=True))
    assert torch.equal(run(model), run(tiny()))


def test_detaching_gives_back_the_very_same_layers(tiny):
    model = tiny()
    before, plain = dict(model.named_modules()), run(model)
    attach(model, filled(model, 1), name="one")
    assert not torch.equal(run(model), plain)
    detach(model)
    assert dict(model.named_modules()) == before
    assert torch.equal(run(model), plain)


def test_a_fresh_adapter_changes_nothing_and_learns(tiny):
    model = tiny().requires_grad_(False)
    plain = run(model, by_the_blocks=True)
    attach(model, fresh(model, 4, torch.Generator().manual_seed(0)), name="new")
    assert torch.equal(run(model, by_the_blocks=True), plain)
    model(torch.randn(1, 4, 4, 4), torch.tensor([5.0]), torch.randn(1, 2, 12)).square().sum().backward()
    learning = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert learning and all("downs" in name or "ups" in name for name in learning)
    trained = collect(model, "new")
    assert len(trained) == 2 * 6
    assert all(low.strength == 1.0 for low in trained.values())


def test_files_without_alpha_have_strength_one(tiny, tmp_path):
    adapter = filled(tiny(), 1)
    tensors = {}
    for layer, low in adapter.items():
        tensors |= {
            f"transformer.{layer}.lora_A.weight": low.down,
            f"transformer.{layer}.lora_B.weight": low.up,
        }
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert {low.strength for low in read_lora(tmp_path / "a.safetensors").values()} == {1.0}
    layer = next(iter(adapter))
    write_tensors(tmp_path / "b.safetensors", tensors | {f"transformer.{layer}.alpha": torch.tensor(1.5)})
    assert read_lora(tmp_path / "b.safetensors")[layer].strength == 0.5


def test_what_does_not_fit_is_listed_and_changes_nothing(tiny):
    model = tiny()
    before = dict(model.named_modules())
    low = LowRank(torch.zeros(2, 16), torch.zeros(16, 2), 2.0)
    wrong = {
        "nowhere": low,
        "transformer_blocks.0.attn1.to_q": LowRank(torch.zeros(2, 5), torch.zeros(16, 2), 2.0),
        "transformer_blocks.0.ff.conv_depth": low,
        "transformer_blocks.0.attn1.to_k": low,
    }
    with pytest.raises(FileError) as caught:
        attach(model, wrong, name="wrong")
    for part in ("no layer nowhere", "attn1.to_q is (16, 16)", "conv_depth is Conv2d"):
        assert part in str(caught.value)
    assert "to_k" not in str(caught.value)
    assert dict(model.named_modules()) == before
    attach(model, filled(model, 0), name="one")
    with pytest.raises(ConfigError, match="already"):
        attach(model, filled(model, 0), name="one")
    with pytest.raises(ConfigError, match="letters"):
        attach(model, filled(model, 0), name="a.b")
    with pytest.raises(ConfigError, match="no adapter"):
        set_scale(model, "two", 1.0)
    with pytest.raises(ConfigError, match="rank"):
        fresh(model, 0, torch.Generator())
    with pytest.raises(ConfigError, match="to_x"):
        fresh(model, 2, torch.Generator(), targets=("to_x",))


@pytest.mark.parametrize(
    "tensors",
    [
        {"transformer.a.weight": torch.zeros(2, 4)},
        {"transformer.a.lora_A.weight": torch.zeros(2, 4)},
        {
            "transformer.a.lora_A.weight": torch.zeros(2, 4, 3, 3),
            "transformer.a.lora_B.weight": torch.zeros(4, 2),
        },
        {},
    ],
)
def test_other_files_are_refused(tmp_path, tensors):
    write_tensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(FileError, match="no adapter of linear layers"):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("dir/b:-2", "dir/b", -2.0),
        ("odd:dir/a.safetensors", "odd:dir/a.safetensors", 1.0),
    ],
)
def test_strength_behind_the_name(text, file, scale):
    path, value = parse_lora(text)
    assert (str(path), value) == (file, scale)


@pytest.mark.parametrize("text", ["a:much", "a:nan", "a:inf", "a:"])
def test_strengths_that_are_no_numbers(text):
    with pytest.raises(ConfigError, match="strength"):
        parse_lora(text)


def test_another_number_format_changes_the_factors_alone(tiny):
    adapter = fresh(tiny(), 2, torch.Generator().manual_seed(0))
    half = in_dtype(adapter, torch.bfloat16)
    assert half.keys() == adapter.keys()
    for layer, one in half.items():
        assert one.down.dtype == one.up.dtype == torch.bfloat16
        assert one.alpha == adapter[layer].alpha
        torch.testing.assert_close(one.down.float(), adapter[layer].down, rtol=2**-8, atol=0)


def test_a_byte_a_weight_is_nearly_the_same_adapter(tmp_path):
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(16, 300, generator=draw), torch.randn(500, 16, generator=draw)
    adapter = {"transformer_blocks.0.attn1.to_q": LowRank(down, up, 8.0)}
    full = write_lora(tmp_path / "full.safetensors", adapter)
    small = write_lora(tmp_path / "small.safetensors", adapter, small=True)
    assert small.stat().st_size < 0.4 * full.stat().st_size
    found = read_lora(small)["transformer_blocks.0.attn1.to_q"]
    wanted = up @ down
    assert found.strength == 0.5 and found.down.dtype == torch.bfloat16
    assert (found.up.float() @ found.down.float() - wanted).norm() < 0.015 * wanted.norm()


@pytest.mark.parametrize(
    "told", ["[1,2", "[" * 100_000, '{"lora_alpha": 1' + "0" * 400 + "}", '{"lora_alpha": 1e999}']
)
def test_odd_metadata_is_refused_or_left_out(told: str, tmp_path: Path) -> None:
    tensors = {"a.lora_A.weight": torch.ones(2, 8), "a.lora_B.weight": torch.ones(8, 2)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": told})
    if told.startswith("["):
        with pytest.raises(FileError, match="metadata is not valid JSON"):
            read_lora(tmp_path / "a.safetensors")
    else:
        assert read_lora(tmp_path / "a.safetensors")["a"].strength == 1.0


def test_factors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = {"a.lora_A.weight": torch.full((2, 8), float("nan")), "a.lora_B.weight": torch.ones(8, 2)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(FileError, match="'a' have NaN or Inf"):
        read_lora(tmp_path / "a.safetensors")
