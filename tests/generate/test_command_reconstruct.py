"""`fewer reconstruct`: the file it writes, the figures it prints, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewer.cli import main
from fewer.core.errors import FileError
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.command_reconstruct import autoencoder_folder
from tests.generate.autoencoder.conftest import perturb, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = DCAutoencoder(tiny_config("no_latent_shortcuts", latent_prefixes=(2, 4)))
    perturb(model)
    model.save(tmp_path / "model" / "vae")
    noise = np.random.default_rng(0).integers(0, 256, (13, 18, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.png")
    return tmp_path


def reconstruct(folder: Path, *options: str, model: str = "model") -> tuple[int, Path]:
    out = folder / "out.png"
    words = ["reconstruct", str(folder / "in.png"), "--output", str(out), "--model", str(folder / model)]
    return main([*words, "--device", "cpu", "--json", *options]), out


def test_writes_a_picture_of_the_same_size_and_its_figures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = reconstruct(folder)
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert Image.open(out).size == (18, 13)
    assert result["latents"] == [4, 4, 5] and result["output"] == str(out)
    assert result["psnr"] < 20 and -1 <= result["ssim"] <= 1 and result["seconds"] > 0
    whole = np.asarray(Image.open(out)).astype(int)
    model = DCAutoencoder.load(folder / "model" / "vae")
    image = torch.from_numpy(np.array(Image.open(folder / "in.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    expected = model.decode(model.encode(image, pad=True), size=(13, 18))[0].clamp(-1, 1)
    assert np.abs(((expected.permute(1, 2, 0).numpy() + 1) * 127.5).round() - whole).max() <= 1


@pytest.mark.parametrize(
    ("options", "same"),
    [(("--tile", "8"), True), (("--tile", "0"), True), (("--tile", "8", "--tiling", "blended"), False),
     (("--channels", "2"), False)],
)  # fmt: skip
def test_exact_tiles_change_nothing(folder: Path, options: tuple[str, ...], same: bool) -> None:
    _, out = reconstruct(folder)
    whole = np.asarray(Image.open(out)).astype(int)
    code, out = reconstruct(folder, *options)
    assert code == 0
    difference = np.abs(np.asarray(Image.open(out)).astype(int) - whole).max()
    assert (difference <= 1) == same


@pytest.mark.parametrize(
    ("options", "model", "code", "words"),
    [
        (("--channels", "3"), "model", 2, "with 3 channels; this autoencoder takes 2 or 4"),
        (("--channels", "500"), "model", 2, "with 500 channels"),
        ((), "nowhere", 4, "nowhere"),
        (("--tile", "-1"), "model", 2, "tile"),
        (("--tile", "0", "--tiling", "blended"), "model", 2, "--tile 0 never tiles"),
        (("--crop", "8"), "model", 2, "are for the report about a folder"),
        (("--crops", "3"), "model", 2, "are for the report about a folder"),
        (("--output", "out.jpg"), "model", 2, "'out.jpg' must be a .png file"),
    ],
)
def test_refusals(
    folder: Path, options: tuple, model: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reconstruct(folder, *options, model=model)[0] == code
    assert words in capsys.readouterr().err
    assert not (folder / "out.png").exists()


def test_what_cannot_fit_is_refused_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewer.generate.autoencoder.capacity.available_memory", lambda _: 1000)
    monkeypatch.setattr(DCAutoencoder, "encode", lambda *_, **__: pytest.fail("worked"))
    assert reconstruct(folder)[0] == 5
    assert "even in tiles of 128" in capsys.readouterr().err
    monkeypatch.setattr("fewer.core.device.available_memory", lambda _: 1000)
    assert reconstruct(folder, "--tile", "8")[0] == 5
    assert "try a smaller picture" in capsys.readouterr().err
    assert reconstruct(folder, "--tiling", "blended")[0] == 5
    assert "try a smaller picture" in capsys.readouterr().err


def test_large_pictures_are_cut_though_memory_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((96, 96), 90).convert("RGB").save(folder / "in.png")
    seen = []
    whole = DCAutoencoder.decode
    monkeypatch.setattr(
        DCAutoencoder,
        "decode",
        lambda self, x, **words: seen.append(words["tile"]) or whole(self, x, **words),
    )
    assert reconstruct(folder)[0] == 0
    monkeypatch.setattr("fewer.generate.command_reconstruct.COMFORTABLE", 1)
    monkeypatch.setattr("fewer.generate.autoencoder.capacity.TILES", (16, 8))
    assert reconstruct(folder)[0] == 0
    assert seen[0] is None and seen[1] in (8, 16)


def test_channels_that_no_file_has_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DCAutoencoder(tiny_config("no_latent_shortcuts", in_channels=4)).save(folder / "rgba")
    assert reconstruct(folder, model="rgba")[0] == 2
    assert "takes 4 channels; files are read as grey (1) or RGB (3)" in capsys.readouterr().err


def test_folders_of_models_and_of_autoencoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vae").mkdir()
    assert autoencoder_folder(str(tmp_path)) == tmp_path / "vae"
    assert autoencoder_folder(str(tmp_path / "vae")) == tmp_path / "vae"
    monkeypatch.setattr("fewer.generate.model_folder.DEFAULT_MODEL", tmp_path / "none")
    with pytest.raises(FileError, match="no built-in model") as caught:
        autoencoder_folder("default")
    assert caught.value.exit_code == 4


def test_a_folder_gives_a_report(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pictures").mkdir()
    (folder / "in.png").rename(folder / "pictures" / "in.png")
    words = [
        "reconstruct",
        str(folder / "pictures"),
        "--model",
        str(folder / "model"),
        "--device",
        "cpu",
        "--json",
    ]
    options = ["--output", str(folder / "report.json"), "--crop", "16", "--crops", "4"]
    assert main([*words, *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 4 and figures["crop"] == 16 and figures["pictures"] == 1
    assert figures["frechet"] > 0 and figures["frechet_features"] and len(figures["spectrum"]) >= 3
    written = json.loads((folder / "report.json").read_text())
    assert written == figures
    for wrong in (["--output", str(folder / "x.png")], [*options, "--crop", "15"], [*options, "--tile", "0"]):
        assert main([*words, *wrong]) == 2
    assert "15 is no multiple of 4" in capsys.readouterr().err
    monkeypatch.setattr("fewer.core.device.available_memory", lambda _: 10_000)
    assert main([*words, *options]) == 5
    assert "try fewer --crops" in capsys.readouterr().err
