"""`fewer train class-conditional` and `fewer generate --class-name`: from labelled pictures to new ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.cli import main
from fewer.generate.autoencoder import DCAutoencoder
from tests.generate.autoencoder.conftest import tiny_config

QUICK = ["--size", "8", "--width", "32", "--depth", "1", "--steps", "3", "--batch", "4", "--rank", "2"]
QUICK += ["--grey", "--device", "cpu", "--json"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    names = np.array(["zero", "one"])
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=np.arange(20) % 2, class_names=names)
    return tmp_path / "d.npz"


def train(data: Path, output: Path, *options: str) -> int:
    return main(
        ["train", "class-conditional", "--data", str(data), "--output", str(output), *QUICK, *options]
    )


@pytest.mark.parametrize("kind", ["tokens", "can", "aks", "adaln+can"])
def test_trains_and_draws(kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data, tmp_path / "m", "--conditioning", kind) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["classes"] == 2 and result["steps"] == 3 and result["held_out_flow_error"] > 0
    assert (result["generation_macs"] > 0) == (kind != "tokens")
    words = ["generate", "--model", str(tmp_path / "m"), "--class-name", "zero", "--count", "2"]
    words += ["--steps", "2", "--device", "cpu", "--json"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    drawn = json.loads(capsys.readouterr().out)["pictures"]
    assert [Image.open(one["path"]).size for one in drawn] == [(8, 8), (8, 8)]
    first = [Path(one["path"]).read_bytes() for one in drawn]
    assert first[0] != first[1]
    assert main([*words, "--output", str(tmp_path / "again")]) == 0
    again = json.loads(capsys.readouterr().out)["pictures"]
    assert [Path(one["path"]).read_bytes() for one in again] == first


def test_latents_of_an_autoencoder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DCAutoencoder(tiny_config("batch_norm_attention")).save(tmp_path / "ae")  # one channel, 4 pixels a latent
    options = ["--autoencoder", str(tmp_path / "ae"), "--patch", "1"]
    assert train(data, tmp_path / "m", *options) == 0
    capsys.readouterr()
    words = ["generate", "--model", str(tmp_path / "m"), "--class-name", "one", "--steps", "2"]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path / "one.png")]) == 0
    picture = Image.open(tmp_path / "one.png")
    assert (picture.size, picture.mode) == ((8, 8), "L")
    other = DCAutoencoder(tiny_config("batch_norm_attention"))
    other.save(tmp_path / "other")
    options[1] = str(tmp_path / "other")
    assert train(data, tmp_path / "m", *options, "--resume") == 2
    assert "started with autoencoder" in capsys.readouterr().err
    assert train(data, tmp_path / "n", *options, "--no-grey") == 2
    assert "check --grey" in capsys.readouterr().err


def test_resumes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data, tmp_path / "m") == 0
    first = json.loads(capsys.readouterr().out)
    assert train(data, tmp_path / "m", "--resume") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["held_out_flow_error"] == pytest.approx(first["held_out_flow_error"])
    assert train(data, tmp_path / "m", "--resume", "--batch", "5") == 2
    assert "started with batch 4, not 5" in capsys.readouterr().err
    assert train(data, tmp_path / "m", "--resume", "--conditioning", "aks") == 2
    assert "started with conditioning can, not aks" in capsys.readouterr().err
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    names = np.array(["zero", "one"])
    np.savez(tmp_path / "o.npz", train_images=images, train_labels=np.arange(20) % 2, class_names=names)
    assert train(tmp_path / "o.npz", tmp_path / "m", "--resume") == 2
    assert "started with pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--dtype", "fp16"), 2, "fp16 is not offered"),
        (("--patch", "3"), 2, "does not divide"),
        (("--rank", "-1"), 2, "rank"),
        (("--preset", "u-vit-s-2", "--depth", "2"), 2, "odd depth"),
        (("--data", "nowhere"), 4, "not there"),
    ],
)
def test_refusals(
    options: tuple[str, ...], code: int, words: str, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train(data, tmp_path / "m", *options) == code
    assert words in capsys.readouterr().err
