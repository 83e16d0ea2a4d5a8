"""`fewer train autoencoder`: a model that loads, resumed runs that agree, two processes that equal one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.cli import main
from fewer.core.tensors import read_tensors
from fewer.generate.autoencoder import DCAutoencoder
from tests.fresh import run_as_torchrun
from tests.generate.autoencoder.conftest import tiny_config

WEIGHTS = "diffusion_pytorch_model.safetensors"
QUICK = ["--steps", "2", "--adapt-steps", "1", "--refine-steps", "1", "--crop", "24", "--batch", "2"]
QUICK += ["--adapt-batch", "2", "--adapt-crop", "32", "--latent-samples", "16", "--device", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 60)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A tiny model to fine-tune: presets are too large for a test."""
    DCAutoencoder(tiny_config("no_latent_shortcuts")).save(tmp_path / "start")
    return tmp_path / "start"


def command(data: Path, start: Path, output: Path, *options: str) -> list[str]:
    places = ["--data", str(data), "--model", str(start), "--output", str(output)]
    return ["train", "autoencoder", *places, *QUICK, "--json", *options]


def test_trains_saves_and_reports(
    data: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, start, tmp_path / "out")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["phases"].keys() == {"1", "2", "3"} and result["held_out_pictures"] >= 1
    assert {"psnr", "ssim", "sharpness", "frechet", "frechet_features", "latent_std"} <= result.keys()
    model = DCAutoencoder.load(tmp_path / "out")
    assert model.config.latents_std is not None and len(model.config.latents_std) == 4
    assert model.encode(torch.rand(1, 3, 24, 24)).shape == (1, 4, 6, 6)

    assert main(command(data, start, tmp_path / "out", "--resume")) == 0  # nothing left to do
    again = json.loads(capsys.readouterr().out)
    assert again["psnr"] == pytest.approx(result["psnr"])
    assert main(command(data, start, tmp_path / "out")) == 2
    assert "'out' holds checkpoints of an earlier run" in capsys.readouterr().err
    DCAutoencoder(tiny_config("no_latent_shortcuts", latent_channels=2)).save(tmp_path / "other")
    assert main(command(data, tmp_path / "other", tmp_path / "out", "--resume")) == 2
    assert "of another shape" in capsys.readouterr().err
    assert main(command(data, start, tmp_path / "out", "--resume", "--optimizer", "muon")) == 2
    assert "started with AdamW, not Muon" in capsys.readouterr().err
    assert main(command(data, start, tmp_path / "out", "--resume", "--adapt-depth", "0")) == 2
    assert "started with depth 1, not 0" in capsys.readouterr().err
    assert main(command(data, start, tmp_path / "out", "--resume", "--batch", "3")) == 2
    assert "started with batch 2, not 3" in capsys.readouterr().err
    Image.new("RGB", (90, 60)).save(data / "7.png")
    assert main(command(data, start, tmp_path / "out", "--resume")) == 2
    assert "started with pictures" in capsys.readouterr().err


def test_refining_alone_moves_no_latent(
    data: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a diffusion model was trained on stays what it was: encoder, and the scale that was measured."""
    config = tiny_config("no_latent_shortcuts", latents_mean=(0.5,) * 4, latents_std=(2.0,) * 4)
    DCAutoencoder(config).save(start)
    options = ("--steps", "0", "--adapt-steps", "0")
    assert main(command(data, start, tmp_path / "out", *options)) == 0
    image = torch.rand(1, 3, 24, 24) * 2 - 1
    before, after = (DCAutoencoder.load(folder) for folder in (start, tmp_path / "out"))
    assert torch.equal(before.encode(image), after.encode(image))
    latents = before.encode(image)
    assert not torch.equal(before.decode(latents), after.decode(latents))


def _train(words: list[str]) -> None:
    assert main(words) == 0


def test_two_processes_end_where_one_does(data: Path, start: Path, tmp_path: Path) -> None:
    options = ("--refine-steps", "0", "--ema", "0")
    run_as_torchrun(2, _train, command(data, start, tmp_path / "two", *options))
    assert main(command(data, start, tmp_path / "one", *options)) == 0
    one, two = (read_tensors(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    # The first steps of AdamW are signs of gradients, which rounding may flip where they are near zero.
    close = [torch.isclose(one[name], two[name], atol=1e-5).float().mean() for name in one]
    assert min(close) > 0.9


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--dtype", "fp16"), 2, "fp16 overflows"),
        (("--steps", "0", "--adapt-steps", "0", "--refine-steps", "0"), 2, "at least one phase"),
        (("--crop", "26"), 2, "multiples of 4"),
        (("--structured",), 2, "new model"),
        (("--lpips", "nowhere.safetensors"), 4, "nowhere.safetensors"),
        (("--rate", "-1"), 2, "rate"),
        (("--data", "nowhere"), 4, "no folder"),
    ],
)
def test_refusals(
    options: tuple[str, ...], code: int, words: str, data: Path, start: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(command(data, start, tmp_path / "out", *options)) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / WEIGHTS).exists()
