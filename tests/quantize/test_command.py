import copy
import json
from pathlib import Path

import pytest
import torch

from fewer.cli import main
from fewer.core.errors import ConfigError
from fewer.core.modules import set_module
from fewer.core.progress import SilentProgress
from fewer.core.tensors import read_tensors
from fewer.quantize import Recipe, command, quantize
from fewer.quantize.checkpoint import checkpoint_of, save_quantized
from fewer.quantize.command import QuantizeRequest, quantize_command
from fewer.quantize.linear import QuantizedLinear
from fewer.quantize.load import load_model
from fewer.quantize.models import open_model


def test_a_dry_run_lists_layers_and_writes_nothing(
    sana_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(sana_folder), "--dry-run", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {"svdquant", "keep"} == {line["method"] for line in layers}
    assert [path.name for path in sana_folder.parent.iterdir()] == ["sana"]


@pytest.mark.parametrize("form", ["int4", "h8"])
def test_a_folder_is_quantized_whole_with_a_report_and_loads(
    sana_folder: Path, sana_inputs: tuple[torch.Tensor, ...], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    output = sana_folder.parent / "four"
    words = ["quantize", str(sana_folder), "--output", str(output), "--format", form, "--rank", "4"]
    assert main([*words, "--preset", "fast", "--dtype", "fp32", "--report", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layers_quantized"] == 8 and result["bytes_after"] > 0 and result["worst_layer"]
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "model.safetensors",
        "report.html",
    ]
    assert sorted(path.name for path in sana_folder.parent.iterdir()) == ["four", "sana"]
    exact = open_model(str(sana_folder), torch.float32, torch.device("cpu")).module
    with torch.no_grad():
        expected, found = exact(*sana_inputs), load_model(output)(*sana_inputs)
    assert (found - expected).norm() < 0.2 * expected.norm()
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    denied = [*words[:3], str(output / "config.json" / "four"), *words[4:]]
    assert main(denied) == 2 and "choose another --output" in capsys.readouterr().err


def test_an_interrupted_run_resumes_and_gives_the_same_file(
    sana_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(SilentProgress):
        left = 3

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.left -= steps
            if self.left < 0:
                raise KeyboardInterrupt

    def request(name: str, **changes: object) -> QuantizeRequest:
        return QuantizeRequest(
            model=str(sana_folder), output=sana_folder.parent / name, rank=4, preset="fast", **changes
        )

    quantize_command(request("whole"), SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        quantize_command(request("cut"), Stop())
    assert not (sana_folder.parent / "cut").exists()
    solved = []
    real = command.quantize
    monkeypatch.setattr(
        command,
        "quantize",
        lambda *a, **o: solved.append(len(list(o["store"].glob("*.safe*")))) or real(*a, **o),
    )
    quantize_command(request("cut", resume=True), SilentProgress())
    assert solved[0] > 0
    first, second = (
        (sana_folder.parent / name / "model.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert first == second


def test_a_missing_output_and_a_bad_rank_are_said(
    sana_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--output"):
        quantize_command(QuantizeRequest(model=str(sana_folder)), SilentProgress())
    output = sana_folder.parent / "x"
    assert main(["quantize", str(sana_folder), "--output", str(output), "--rank", "500"]) == 2
    assert "transformer_blocks.0" in capsys.readouterr().err and not output.exists()


def test_a_class_conditional_model_calibrates_on_its_own_classes_and_the_report_shows_them(
    class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = class_folder.parent / "four"
    words = ["quantize", str(class_folder), "--output", str(output), "--format", "int4", "--rank", "4"]
    words += ["--preset", "fast", "--dtype", "fp32", "--report", "--prompts", "4", "--json"]
    assert main([*words, "--report-prompts", "two"]) == 2 and "zero, one" in capsys.readouterr().err
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["mean_error"] > 0
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "zero" in page and "one" in page
    exact = open_model(str(class_folder), torch.float32, torch.device("cpu")).module
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([10.0, 500.0]), torch.tensor([0, 1])
    with torch.no_grad():
        expected, found = exact(*inputs), load_model(output)(*inputs)
    assert 0 < (found - expected).norm() < 0.3 * expected.norm()


def test_gpt2_is_quantized_as_the_same_network_of_plain_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=90, n_positions=32, n_embd=64, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    words = torch.randint(90, (4, 32))
    opened = open_model(str(tmp_path / "gpt2"), torch.float32, torch.device("cpu"))
    exact, model, plain = opened.module, copy.deepcopy(opened.module), copy.deepcopy(opened.module)
    for name, layer in exact.named_modules():
        if type(layer).__name__ == "Conv1D":
            linear = torch.nn.Linear(*layer.weight.shape)
            linear.weight.data, linear.bias.data = layer.weight.data.T.contiguous(), layer.bias.data
            set_module(plain, name, linear)
    recipe = Recipe(grid=2, refine_rounds=1)
    for each in (model, plain):
        quantize(each, "int4", 8, lambda each=each: each(words), recipe=recipe)
    layers = {name: child for name, child in model.named_modules() if isinstance(child, QuantizedLinear)}
    assert len(layers) == 4
    assert layers["transformer.h.0.attn.c_attn"].layer.shape == (192, 64)
    save_quantized(checkpoint_of(model, opened.config), tmp_path / "four")
    again = load_model(tmp_path / "four")
    assert again.lm_head.weight.data_ptr() == again.transformer.wte.weight.data_ptr()  # tied, stored once
    assert "lm_head.weight" not in read_tensors(tmp_path / "four" / "model.safetensors")
    with torch.no_grad():
        found, expected = model(words).logits, exact(words).logits
        assert torch.equal(found, plain(words).logits)
        assert torch.equal(found, again(words).logits)
    assert (found - expected).norm() < 0.2 * expected.norm()
    words = ["quantize", str(tmp_path / "gpt2"), "--output", str(tmp_path / "verb"), "--no-calibrate"]
    assert main([*words, "--rank", "8", "--preset", "fast", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layers_quantized"] == 4
    assert list(result["kept_in_16_bits"].values()) == ["1: lm_head"]
    assert result["bytes_before"] == 2 * sum(parameter.numel() for parameter in exact.parameters())
    words = ["convert", str(tmp_path / "verb"), "--output", str(tmp_path / "lite"), "--to", "nunchaku-lite"]
    assert main(words) == 2 and "diffusion models" in capsys.readouterr().err
