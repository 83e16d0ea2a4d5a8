"""A model's folder in four bits: everything else copied, opened as dense weights, whole or not there."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.core.files import write_json
from fewer.core.progress import SilentProgress
from fewer.core.tensors import tensor_header
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.lora import fresh, read_lora, write_lora
from fewer.generate.lora_file import LowRank
from fewer.generate.model_folder import ModelSettings, Parts, read_settings
from fewer.generate.pipeline import TextToImage
from fewer.generate.scenes.package import write_model
from fewer.generate.text import PromptEncoder, TextEmbedding
from fewer.generate.transformer import SanaTransformer
from fewer.quantize import package_folder
from fewer.quantize.command import QuantizeRequest, quantize_command
from fewer.quantize.models import OpenModel
from tests.quantize.small_pipeline import ADAPTER, AUTOENCODER

SETTINGS = ModelSettings(
    text_layers=1, text_length=8, chi=False, default_size=(32, 32), shift=1.5, guidance=2.0
)


class Reader(PromptEncoder):
    """A text encoder that makes the same tokens of the same words."""

    channels = 16  # pyright: ignore

    def __init__(self) -> None:
        pass

    def encode(self, prompts: list[str], *, instruct: bool = True) -> TextEmbedding:
        seeds = [sum(map(ord, prompt)) for prompt in prompts]
        rows = [torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        mask = torch.arange(8)[None] < torch.tensor([[1 + len(p.split())] for p in prompts])
        return TextEmbedding(torch.stack(rows) * mask[:, :, None], mask)


@pytest.fixture
def model(sana_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    transformer = SanaTransformer.load(sana_folder, torch.float32)
    autoencoder = DCAutoencoder(AUTOENCODER)
    folder = tmp_path / "model"
    write_model(folder, transformer, autoencoder, SETTINGS)
    transformer.save(folder / "transformer")  # dense
    generator = torch.Generator().manual_seed(1)
    made = fresh(transformer, 64, generator)
    adapter = {
        name: LowRank(p.down, 0.1 * torch.randn(p.up.shape, generator=generator), 64.0)
        for name, p in made.items()
    }
    write_lora(folder / ADAPTER, adapter)
    write_json(folder / "extra.json", {"kept": True})

    def opened(name: str, dtype: torch.dtype, device: torch.device) -> OpenModel:
        network = SanaTransformer.load(Path(name), dtype, device)
        pipeline = TextToImage(Parts(network, autoencoder, Reader(), SETTINGS))
        return OpenModel(network, {}, Path(name), pipeline)

    monkeypatch.setattr(package_folder, "open_model", opened)
    monkeypatch.setattr(package_folder, "TEXTS", 5)
    return folder


def test_a_folder_is_packaged_whole_and_opens_dense(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red fox\n\ntwo green owls\n")
    request = QuantizeRequest(
        model=str(model),
        output=tmp_path / "small",
        package=True,
        bits=5.0,
        calibration=tmp_path / "prompts.txt",
    )
    result = quantize_command(request, SilentProgress())
    assert result["calibration_prompts"] == 2 and result["bits_a_parameter"] <= 5.6  # and its header
    dense, near = SanaTransformer.load(model), SanaTransformer.load(tmp_path / "small", torch.float32)
    latents, text = torch.randn(1, 4, 8, 8), Reader().encode(["a red fox"])
    expected, found = (
        network.float()(latents, torch.tensor([500.0]), text.tokens, text.mask) for network in (dense, near)
    )
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()
    before, after = read_lora(model / ADAPTER), read_lora(tmp_path / "small" / ADAPTER)
    assert before.keys() == after.keys()
    assert (tmp_path / "small" / ADAPTER).stat().st_size < 0.5 * (model / ADAPTER).stat().st_size
    assert read_settings(tmp_path / "small") == SETTINGS
    assert (tmp_path / "small" / "extra.json").read_bytes() == (model / "extra.json").read_bytes()
    names = {p.relative_to(model) for p in model.rglob("*")}
    assert names == {p.relative_to(tmp_path / "small") for p in (tmp_path / "small").rglob("*")}
    assert not list(tmp_path.glob("*.unfinished"))
    header, _ = tensor_header(tmp_path / "small" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert any(name.endswith(".deflated") for name in header)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"format": "h8"}, "--format says nothing"),
        ({"rank": 8}, "--rank says nothing"),
        ({"gptq": True}, "--gptq"),
        ({"dry_run": True}, "--dry-run"),
    ],
)
def test_options_that_mean_nothing_are_refused(changed: dict, text: str, tmp_path: Path) -> None:
    request = QuantizeRequest(model="default", output=tmp_path / "out", package=True, **changed)
    with pytest.raises(ConfigError, match=text):
        quantize_command(request, SilentProgress())


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        package_folder.package_model("default", tmp_path)


def test_other_models_are_refused(sana_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Sana's layout"):
        package_folder.package_model(sana_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
