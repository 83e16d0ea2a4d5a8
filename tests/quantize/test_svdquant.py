import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.quantize import Recipe, quantize
from fewer.quantize.linear import QuantizedLinear
from fewer.quantize.roles import plan_layers
from fewer.quantize.svdquant import SplitLinear, describe, split_layers

QUICK = Recipe(grid=4, refine_rounds=3)
Relative = Callable[[torch.Tensor, torch.Tensor], float]
Tiny = tuple[nn.Module, torch.Tensor]


@pytest.mark.parametrize(("form", "bound"), [("int4", 0.12), ("nvfp4", 0.12), ("h8", 0.05), ("w4a16", 0.12)])
def test_a_whole_model_stays_close_and_only_its_blocks_change(
    tiny: Tiny, relative: Relative, form: str, bound: float
) -> None:
    model, inputs = tiny
    exact = model(inputs)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if "blocks" not in name}
    returned = quantize(model, form, 8, lambda: model(inputs), recipe=QUICK)
    assert returned is model and relative(model(inputs), exact) < bound
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 12
    assert len(model.quantization_reports) == 12


def test_calibration_helps_and_its_absence_is_said(
    tiny: Tiny, relative: Relative, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = tiny
    for block in model.blocks:  # an outlier channel at the input of the projections
        block.down.weight.data[3] *= 30
    exact, blind = model(inputs), copy.deepcopy(model)
    quantize(model, "int4", 8, lambda: model(inputs), recipe=QUICK)
    with caplog.at_level(logging.WARNING):
        quantize(blind, "int4", 8, recipe=QUICK)
    assert "no calibration" in caplog.text
    assert relative(model(inputs), exact) < relative(blind(inputs), exact)


def test_a_calibration_that_never_runs_the_model_is_said(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        quantize(tiny[0], "int4", 4, lambda: None, recipe=QUICK)
    assert "never ran the model" in caplog.text


def test_several_passes_give_the_same_layers_as_one(tiny: Tiny) -> None:
    model, inputs = tiny
    other = copy.deepcopy(model)
    calls = []
    quantize(model, "h8", 4, lambda: model(inputs), recipe=Recipe(grid=4, refine_rounds=2, rows=512))

    def calibrate() -> None:
        calls.append(0)
        for _ in range(1):
            other(inputs)

    wide = {"rows": 70000 // 70, "sample_mebibytes": 1}
    quantize(other, "h8", 4, calibrate, recipe=Recipe(grid=4, refine_rounds=2, **wide))
    assert len(calls) > 1
    first, second = model.state_dict(), other.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_error_names_the_layer_and_leaves_the_model_as_it_was(tiny: Tiny) -> None:
    model, inputs = tiny
    before = copy.deepcopy(model.state_dict())
    wrong: list[tuple[type[Exception], str, dict[str, object]]] = [
        (ConfigError, "rank 65 of layer 'blocks.0.q_proj'", {"rank": 65}),
        (ConfigError, "rank -1", {"rank": -1}),
        (ConfigError, "format 'int3'", {"format": "int3"}),
        (DataError, "GPTQ of layer 'blocks.0.q_proj'", {"rank": 4, "recipe": Recipe(grid=2, gptq=True)}),
        (DataError, "inputs of layer", {"rank": 4, "calibrate": lambda: model(inputs * float("nan"))}),
    ]
    for kind, text, changes in wrong:
        arguments = {"format": "int4", "rank": 4, "calibrate": lambda: model(inputs)} | changes
        with pytest.raises(kind, match=text):
            quantize(model, **arguments)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    model.blocks[1].up.weight.data[0, 0] = float("inf")
    with pytest.raises(DataError, match=r"blocks\.1\.up"):
        quantize(model, "int4", 4)


def test_an_interrupted_run_goes_on_where_it_stopped(tiny: Tiny, tmp_path: Path) -> None:
    model, inputs = tiny[0], torch.randn(10, 160, 16)
    whole = copy.deepcopy(model)
    recipe = Recipe(grid=2, refine_rounds=2, sample_mebibytes=4)  # no room for all rows of all layers
    quantize(whole, "int4", 4, lambda: whole(inputs), recipe=recipe)

    class Stop:
        left = 4

        def start(self, what: str, total: int) -> None: ...
        def stop(self) -> None: ...
        def say(self, text: str) -> None: ...
        def advance(self, steps: int = 1, **figures: float) -> None:
            self.left -= steps
            if self.left < 0:
                raise KeyboardInterrupt

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        quantize(model, "int4", 4, lambda: model(inputs), recipe=recipe, store=tmp_path, progress=Stop())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    stored = len(list(tmp_path.glob("*.safetensors")))
    assert 0 < stored < 8
    with pytest.raises(FileError, match="other settings"):
        quantize(model, "int4", 4, lambda: 0, recipe=recipe, store=tmp_path, calibrated_on="other prompts")
    quantize(model, "int4", 4, lambda: model(inputs), recipe=recipe, store=tmp_path)
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_split_layers_are_exact_and_keep_their_bias_once(relative: Relative) -> None:
    model = nn.Sequential(nn.Linear(12, 5))
    inputs = torch.randn(3, 12)
    exact = model(inputs)
    originals = split_layers(model, (("0", (4, 8)),))
    assert isinstance(model[0], SplitLinear) and isinstance(originals["0"], nn.Linear)
    assert relative(model(inputs), exact) < 1e-6


def test_flux_runs_after_quantization_with_its_output_projection_split(relative: Relative) -> None:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 16, 16), "encoder_hidden_states": torch.randn(1, 6, 32),
        "pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3),
    }  # fmt: skip
    run = lambda: model(**inputs, return_dict=False)[0]  # noqa: E731
    with torch.no_grad():
        exact = run()
        quantize(model, "int4", 8, run, recipe=QUICK)
        assert relative(run(), exact) < 0.1
    assert isinstance(model.single_transformer_blocks[0].proj_out, SplitLinear)


def test_the_dry_run_lists_every_layer_with_a_reason(tiny: Tiny) -> None:
    lines = [describe(choice) for choice in plan_layers(tiny[0]).choices]
    assert {line["method"] for line in lines} == {"svdquant", "keep"} and all(
        line["reason"] for line in lines
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8"])
def test_a_gpu_finds_layers_as_good_as_a_cpu(tiny: Tiny, form: str, relative: Relative) -> None:
    model, inputs = tiny
    there, moved = copy.deepcopy(model).cuda(), inputs.cuda()
    quantize(model, form, 8, lambda: model(inputs))
    quantize(there, form, 8, lambda: there(moved))
    for own, other in zip(model.quantization_reports, there.quantization_reports, strict=True):
        assert other.error == pytest.approx(own.error, rel=0.1), own.name
    assert relative(there(moved).cpu(), there.cpu()(inputs)) < 1e-2, "the same layers on both"


def test_torchs_own_encoder_layers_run_through_the_quantized_ones(relative: Relative) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
    inputs = torch.randn(2, 7, 64)
    with torch.no_grad():
        exact = model(inputs)
        quantize(model, "int4", 8, lambda: model(inputs), recipe=QUICK)
        found = model(inputs)
        model.layers[0].linear1.register_forward_hook(lambda *_: None)  # hooks, too, keep torch off its path
        assert torch.equal(found, model(inputs)) and relative(found, exact) < 0.15


@pytest.mark.parametrize("form", ["int4", "h8"])
def test_fp64_models_and_inputs_given_by_name(relative: Relative, form: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(100, 77).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(input=x)

    model, inputs = Named(), torch.randn(300, 100).double()
    exact = model(inputs)
    quantize(model, form, 8, lambda: model(inputs), recipe=QUICK)
    assert model(inputs).dtype == torch.float64 and relative(model(inputs), exact) < 0.15
    assert model.layer.bias.dtype == torch.float32


def test_a_recipe_out_of_range_is_refused_before_any_work(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="refine_rounds was 0"):
        quantize(tiny[0], "int4", 4, recipe=Recipe(refine_rounds=0))
