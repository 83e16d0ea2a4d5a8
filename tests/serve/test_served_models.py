import json
from pathlib import Path

import pytest

from fewer.core.errors import ConfigError, FileError
from fewer.serve.answers import ApiError
from fewer.serve.command import ServeRequest, served_by
from fewer.serve.served_models import Served, ServedModel, look_at

FILES = {
    "pictures": {"model_index.json": {}},
    "quantized": {"config.json": {"quantization_config": {}}, "pipeline.json": {"pipeline": "default"}},
    "classes": {"config.json": {"_class_name": "FewerClassConditional", "class_names": ["cat", "dog"]}},
    "autoencoder": {"config.json": {"_class_name": "AutoencoderDC"}},
    "classifier": {"config.json": {"kind": "fewer-classifier"}},
    "recommender": {"config.json": {"method": "automlp"}, "items.json": {}},
    "run": {"model/config.json": {"kind": "fewer-classifier"}},
    "nothing": {"config.json": {"a": 1}},
    "empty": {},
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for folder, files in FILES.items():
        (tmp_path / folder).mkdir()
        for name, value in files.items():
            (tmp_path / folder / name).parent.mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(json.dumps(value))
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "kind"),
    [(name, name) for name in ("pictures", "classes", "autoencoder", "classifier", "recommender")]
    + [("quantized", "pictures"), ("run", "classifier")],
)
def test_each_folder_says_what_it_is_for(folders: Path, folder: str, kind: str) -> None:
    found = look_at(str(folders / folder), "x")
    assert found.kind == kind and found.classes == (("cat", "dog") if kind == "classes" else ())


@pytest.mark.parametrize("folder", ["nothing", "empty", "absent"])
def test_what_cannot_be_served_is_refused_at_the_start(folders: Path, folder: str) -> None:
    with pytest.raises(FileError, match="'x'") as caught:
        look_at(str(folders / folder), "x")
    assert caught.value.exit_code == (4 if folder == "absent" else 2)


def test_a_model_does_its_own_kind_of_work_and_no_other() -> None:
    served = Served({"default": ServedModel(), "lungs": ServedModel("/x", "classifier")})
    assert served.drawing("default").kind == "pictures"
    with pytest.raises(ApiError) as wrong:
        served.drawing("lungs")
    assert wrong.value.status == 400 and "default" in str(wrong.value) and "/x" not in str(wrong.value)
    with pytest.raises(ApiError) as absent:
        served.known("none")
    assert absent.value.status == 404 and absent.value.body["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("text", ["cold", "warm:hot", "warm:nan", "warm:1:2", "warm:1e9", "../warm", ""])
def test_adapters_are_known_by_name_and_strength(text: str) -> None:
    served = Served(loras={"warm": "/secret/warm.safetensors"})
    assert served.known_lora("warm:0.5") == "warm:0.5" and served.known_lora("warm") == "warm"
    with pytest.raises(ApiError, match="warm") as caught:
        served.known_lora(text)
    assert "secret" not in str(caught.value)


def test_a_seed_makes_a_run_repeatable() -> None:
    seeds = [[served.seed() for _ in range(3)] for served in (served_by(ServeRequest(seed=7)) for _ in "ab")]
    assert seeds == [[7, 8, 9], [7, 8, 9]]
    chance = served_by(ServeRequest())
    assert len({chance.seed() for _ in range(20)}) > 1


def test_options_become_names(folders: Path) -> None:
    (folders / "warm.safetensors").write_bytes(b"")
    request = ServeRequest(
        models=(f"emoji={folders / 'classes'}",), loras=(f"warm={folders / 'warm.safetensors'}",)
    )
    served = served_by(request)
    assert served.options()["classes"] == ["emoji"] and list(served.loras) == ["warm"]
    for wrong in ({"models": ("emoji",)}, {"models": ("a b=x",)}, {"models": ("default=x",)}):
        with pytest.raises((ConfigError, FileError)):
            served_by(ServeRequest(**wrong))  # pyright: ignore
    with pytest.raises(FileError) as absent:
        served_by(ServeRequest(model=folders / "absent"))
    assert absent.value.exit_code == 4
    with pytest.raises(FileError):
        served_by(ServeRequest(loras=("warm=absent",)))
