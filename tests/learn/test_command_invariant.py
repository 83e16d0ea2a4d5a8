import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.cli import main
from fewer.core.errors import ConfigError
from fewer.learn.command_invariant import InvariantRequest, plans_of, read_domains


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, domain in enumerate(("art", "photo", "sketch")):
        for label, name in enumerate(("dog", "house")):
            folder = tmp_path / "set" / domain / name
            folder.mkdir(parents=True)
            generator = np.random.default_rng(10 * number + label)
            for picture in range(10):
                pixels = generator.integers(0, 60, (8, 8, 3), dtype=np.uint8) + 20 * number
                pixels[1 + 4 * label : 3 + 4 * label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{picture}.png")
    return tmp_path / "set"


def words(data: Path, output: Path, *more: str) -> list[str]:
    given = [
        "learn",
        "invariant",
        "--data",
        str(data),
        "--output",
        str(output),
        "--steps",
        "4",
        "--batch",
        "4",
    ]
    return [*given, "--network", "small-cnn", "--device", "cpu", "--json", *more]


def test_all_targets_with_a_control_then_resume(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "art" / "dog" / "again.png").write_bytes((data / "photo" / "dog" / "3.png").read_bytes())
    given = words(data, tmp_path / "out", "--target", "all", "--controls", "rigl")
    assert main(given) == 0
    told = capsys.readouterr()
    assert "note: 1 pictures of domain 'photo' are also in another domain" in told.err
    answer = json.loads(told.out)
    assert set(answer["table"]) == {"erm + evil", "erm + rigl", "erm"}
    assert set(answer["table"]["erm"]) == {"art", "photo", "sketch", "average"}
    assert set(answer["points_over_baseline"]) == {"erm + evil", "erm + rigl"}
    assert answer["points_over_baseline"]["erm + evil"]["pairs"] == 3
    assert abs(answer["density"] - 0.6) < 0.01 or answer["density"] == 1.0
    for folder in answer["models"]["erm + evil"]["art"]:
        assert (Path(folder) / "model" / "model.safetensors").exists()
    for name in ("results.json", "table.tex", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert main(given) == 2
    assert "'out' holds 9 runs; add --resume" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["table"] == answer["table"]
    assert main([*given, "--resume", "--rate", "0.5"]) == 2
    assert "was run with rate" in capsys.readouterr().err
    assert main([*given, "--resume", "--selection", "oracle"]) == 2
    assert "was run with selection = training-domain, not oracle" in capsys.readouterr().err


def test_exit_codes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(words(tmp_path / "none", output, "--target", "photo")) == 4
    (tmp_path / "file").write_text("x")
    assert main(words(data, tmp_path / "file", "--target", "photo")) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert main(words(data, output, "--target", "cartoon")) == 2
    assert "allowed: art, photo, sketch" in capsys.readouterr().err
    assert main(words(data, output, "--target", "photo", "--density", "1.5")) == 2
    assert "at most 1" in capsys.readouterr().err
    for picture in (data / "art").rglob("*.png"):
        picture.unlink()
    (data / "art" / "dog").rmdir()
    (data / "art" / "house").rmdir()
    (data / "art").rmdir()
    assert main(words(data, output, "--target", "photo")) == 3
    assert "source domains are: sketch" in capsys.readouterr().err


def test_plans_take_options_and_settings() -> None:
    request = InvariantRequest(
        data=Path("x"),
        target="a",
        output=Path("y"),
        mode="extended",
        controls=("rigl", "magnitude"),
        settings={"alpha": 0.3, "delta": 50},
    )
    plans = plans_of(request)
    assert list(plans) == ["erm + evil (extended)", "erm + rigl", "erm + magnitude", "erm"]
    assert plans["erm + rigl"].alpha == 0.3
    assert plans["erm"].dtype == "auto"
    assert plans_of(replace(request, dtype="bf16"))["erm"].dtype == "bf16"
    for settings, message in (
        ({"magic": 1}, "magic"),
        ({"steps": 1}, "repeats steps"),
        ({"delta": 3, "accumulation": 3}, "delta from 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            plans_of(InvariantRequest(data=Path("x"), target="a", output=Path("y"), settings=settings))


def test_digits_become_domains(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", train_images=images, train_labels=np.arange(60) % 10)
    request = InvariantRequest(
        data=tmp_path / "digits.npz", target="all", output=tmp_path, make="colored-mnist"
    )
    assert read_domains(request).names == ("+90%", "+80%", "-90%")
