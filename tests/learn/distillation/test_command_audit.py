import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.cli import main
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.loop import distill
from tests.learn.distillation.conftest import make_pictures, tiny_plan
from tests.learn.distillation.test_audit import short


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    train, test = make_pictures(count=60), make_pictures(count=40, seed=1)
    np.savez(
        tmp_path / "d.npz",
        train_images=train.images[..., 0].numpy(), train_labels=train.labels.numpy(),
        test_images=test.images[..., 0].numpy(), test_labels=test.labels.numpy(),
        class_names=np.array(train.class_names),
    )  # fmt: skip
    for name in ("random", "dm"):
        short(distill(train, plan=tiny_plan(name, start="real" if name == "random" else "noise"))).save(
            tmp_path / f"{name}.distilled.safetensors"
        )
    return {name: str(tmp_path / f"{name}.distilled.safetensors") for name in ("random", "dm")} | {
        "data": str(tmp_path / "d.npz"),
        "out": str(tmp_path / "report"),
        "new": str(tmp_path / "n.safetensors"),
    }  # fmt: skip


def test_copies_may_not_be_shared_unless_the_risk_is_accepted(files: dict, capsys) -> None:
    words = ["learn", "audit", files["random"], "--data", files["data"], "--networks", "1", "--for-sharing"]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "6 of 6 pictures" in said and "holds pixels of real pictures" in said
    assert main([*words, "--accept-risk", "--output", files["out"], "--update", files["new"]]) == 0
    page = (Path(files["out"]) / "audit.html").read_text()
    assert page.count("<img") == 12 and "<script" not in page
    assert json.loads((Path(files["out"]) / "audit.json").read_text())["flagged"] == 6
    assert DistilledSet.load(files["new"]).datasheet.privacy["audit"]["flagged"] == 6


def test_copies_of_a_folder_of_many_sizes_are_found_as_the_set_was_made(tmp_path: Path, capsys) -> None:
    pictures = make_pictures(count=66, size=24, channels=3)
    for number, (pixels, label) in enumerate(zip(pictures.images, pictures.labels.tolist(), strict=True)):
        folder = tmp_path / "set" / ("test" if number % 2 else "train") / pictures.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, : 24 - number % 9].numpy()).save(folder / f"{number}.png")
    data, made = ["--data", str(tmp_path / "set")], str(tmp_path / "r.distilled.safetensors")
    words = ["learn", "distill", *data, "--method", "random", "--images-per-class", "2", "--image-size", "8"]
    assert (
        main([*words, "--fit", "crop", "--width", "8", "--no-score", "--epochs", "5", "--output", made]) == 0
    )
    capsys.readouterr()
    assert main(["learn", "audit", made, *data, "--networks", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["flagged"] == summary["pictures"] == 6 and summary["closest_pixel_distance"] < 1e-3


@pytest.mark.parametrize("merged", [False, True])
def test_crops_of_real_pictures_may_not_be_shared_even_if_none_is_flagged(
    files: dict, tmp_path: Path, merged: bool, capsys
) -> None:
    made = DistilledSet.load(files["dm"])
    privacy = {"start": "real", "real_pixels": True, "dp": None}
    privacy = {"parts": [dict(made.datasheet.privacy), privacy]} if merged else privacy
    crops = replace(made, datasheet=replace(made.datasheet, privacy=privacy))
    crops.save(tmp_path / "crops.distilled.safetensors")
    words = ["learn", "audit", str(tmp_path / "crops.distilled.safetensors"), "--data", files["data"]]
    assert main([*words, "--networks", "1", "--for-sharing"]) == 3
    assert "holds pixels of real pictures (and 0 of" in capsys.readouterr().err


def test_a_clean_set_passes_and_shadows_can_be_asked(files: dict, capsys) -> None:
    words = [
        "learn",
        "audit",
        files["dm"],
        "--data",
        files["data"],
        "--networks",
        "1",
        "--for-sharing",
        "--json",
    ]
    assert main([*words, "--shadow-splits", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flagged"] == 0 and 0 <= found["membership_auc_by_shadows"] <= 1
