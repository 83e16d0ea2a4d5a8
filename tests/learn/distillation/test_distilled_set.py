from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.learn.data import load_images
from fewer.learn.distillation.distilled_set import DistilledSet
from fewer.learn.distillation.loop import distill
from tests.learn.distillation.conftest import make_pictures, tiny_plan


@pytest.fixture(scope="module")
def made() -> DistilledSet:
    return distill(make_pictures(count=60), plan=tiny_plan("datm"))


@pytest.mark.parametrize("precision", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("method", ["dm", "datm", "rded"])
def test_the_file_round_trip_is_bit_equal(method: str, precision: str, tmp_path: Path) -> None:
    made = distill(make_pictures(count=60), plan=tiny_plan(method, precision=precision))
    made.save(tmp_path / "a.distilled.safetensors")
    back = DistilledSet.load(tmp_path / "a.distilled.safetensors")
    assert back.datasheet == made.datasheet
    for name in ("images", "labels", "mean", "deviation", "soft_labels", "learned_rate"):
        one, other = getattr(made, name), getattr(back, name)
        assert (one is None and other is None) or torch.equal(one, other)
    assert torch.equal(back.normalised(), made.normalised())
    assert back.targets().shape[0] == back.normalised().shape[0]


def test_pixels_cost_little(tmp_path: Path) -> None:
    data = make_pictures(count=60)
    pixels, exact = (
        distill(data, plan=tiny_plan("random", precision=precision)) for precision in ("uint8", "float32")
    )
    assert (pixels.normalised() - exact.normalised()).abs().max() < 1e-5  # real pictures are pixels already


def test_exports_are_read_by_the_ordinary_loaders(made: DistilledSet, tmp_path: Path) -> None:
    made.to_npz(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as arrays:
        assert arrays["train_images"].shape == (6, 8, 8) and arrays["train_images"].dtype == np.uint8
        assert arrays["train_labels"].shape == (6, 1)
    back = load_images(tmp_path / "set.npz").train
    assert back.class_names == made.datasheet.class_names
    assert torch.equal(back.images, made.as_images().images) and torch.equal(back.labels, made.labels)
    made.to_folder(tmp_path / "pictures")
    pictures = load_images(tmp_path / "pictures").train
    assert len(pictures) == 6 and torch.equal(pictures.images, back.images)
    assert pictures.class_names == made.datasheet.class_names  # a model of them is judged on the real set


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("Ödem", "grade 1 (mild)", "covid-19"), None),
        (("../up", "b", "c"), ["000-up", "001-b", "002-c"]),
        (("a", "A", "c"), ["000-a", "001-A", "002-c"]),  # one folder on some systems
        (("con", "b", "unlabelled"), ["000-untitled", "001-b", "002-unlabelled"]),
    ],
)
def test_folders_have_the_classes_names_where_they_may(
    made: DistilledSet, tmp_path: Path, names: tuple[str, ...], folders: list[str] | None
) -> None:
    named = replace(made, datasheet=replace(made.datasheet, class_names=names))
    written = named.to_folder(tmp_path / "pictures")
    assert list(dict.fromkeys(name.split("/")[1] for name in written)) == (folders or list(names))
    assert all((tmp_path / "pictures" / name).is_file() for name in written)


def test_nothing_private_is_in_the_file(made: DistilledSet, tmp_path: Path) -> None:
    path = tmp_path / "secret-folder-of-me.distilled.safetensors"
    made.save(path)
    raw = path.read_bytes()
    assert b"secret-folder" not in raw and str(tmp_path).encode() not in raw
    infos, _ = tensor_header(path)
    assert all(info.shape[0] <= 6 or not info.shape for info in infos.values())


def test_the_source_is_fingerprinted(made: DistilledSet) -> None:
    assert made.datasheet.sources[0].sha256 == make_pictures(count=60).fingerprint()
    assert make_pictures(seed=1).fingerprint() != make_pictures(seed=2).fingerprint()
    assert made.datasheet.sources[0].pictures_per_class == (20, 20, 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 9])}, "labels must"),
        ({"labels": torch.tensor([0, 0, 1])}, "implies"),
        ({"images": torch.zeros(6, 1, 8, 9, dtype=torch.uint8)}, "images has shape"),
        ({"images": torch.zeros(6, 1, 8, 8)}, "datasheet says"),
        ({"norm_std": torch.zeros(1)}, "positive"),
        ({"norm_mean": torch.tensor([torch.nan])}, "NaN"),
        ({"real_patients": torch.zeros(9)}, "does not belong"),
        ({"soft_labels": torch.zeros(5, 3)}, "soft_labels has shape"),
        ({"norm_mean": None}, "missing"),
        ({"norm_std": torch.ones(1, dtype=torch.int64)}, "norm_std are torch.int64; allowed: float16"),
        ({"soft_labels": torch.ones(6, 3, dtype=torch.int64)}, "soft_labels are torch.int64"),
        ({"soft_labels": torch.full((6, 3), 0.5)}, "row 0 of soft_labels is no list of probabilities"),
        ({"soft_labels": torch.tensor([[2.0, -1.0, 0.0]] * 6)}, "row 0 of soft_labels"),
        ({"learned_lr": torch.zeros(1)}, "learned_lr must be positive"),
    ],
)
def test_an_inconsistent_file_is_refused(
    made: DistilledSet, tmp_path: Path, change: dict, words: str
) -> None:
    path = tmp_path / "a.distilled.safetensors"
    made.save(path)
    _, metadata = tensor_header(path)
    tensors = {name: value for name, value in {**read_tensors(path), **change}.items() if value is not None}
    write_tensors(path, tensors, metadata)
    with pytest.raises(FileError, match=words):
        DistilledSet.load(path)


def test_two_classes_of_one_name_are_refused(made: DistilledSet, tmp_path: Path) -> None:
    sheet = replace(made.datasheet, class_names=("lung", "lung", "heart"))
    replace(made, datasheet=sheet).save(tmp_path / "a.distilled.safetensors")
    with pytest.raises(FileError, match="two classes have the same name"):
        DistilledSet.load(tmp_path / "a.distilled.safetensors")


@pytest.mark.parametrize("dtype", [torch.int16, torch.bool, torch.float8_e4m3fn])
def test_normalised_pictures_are_floats(made: DistilledSet, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "a.distilled.safetensors"
    sheet = replace(made.datasheet, value_range="normalized")
    replace(made, images=made.images.float(), datasheet=sheet).save(path)
    _, metadata = tensor_header(path)
    tensors = read_tensors(path)
    write_tensors(path, {**tensors, "images": tensors["images"].to(dtype)}, metadata)
    with pytest.raises(FileError, match="images are torch"):
        DistilledSet.load(path)


def test_foreign_damaged_and_pickled_files_are_refused(made: DistilledSet, tmp_path: Path) -> None:
    path = tmp_path / "a.distilled.safetensors"
    with pytest.raises(FileError) as missing:
        DistilledSet.load(path)
    assert missing.value.exit_code == 4
    write_tensors(path, {"images": torch.zeros(3)})
    with pytest.raises(FileError, match="no datasheet"):
        DistilledSet.load(path)
    made.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(FileError):
        DistilledSet.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileError, match="checksum"):
        DistilledSet.load(path)
    torch.save({"data": [torch.zeros(3)]}, path)
    with pytest.raises(FileError, match="pickle"):
        DistilledSet.load(path)


def test_the_learned_rate_is_the_recipes(made: DistilledSet) -> None:
    assert made.recipe().learning_rate == pytest.approx(float(made.learned_rate))
    assert replace(made, learned_rate=None).recipe() == made.datasheet.recipe
