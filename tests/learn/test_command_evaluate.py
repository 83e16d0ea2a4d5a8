from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.learn.command_evaluate import choose_split, kind_of
from fewer.learn.data import ImageSplits, make_labelled_images

SOME = make_labelled_images(torch.zeros(2, 4, 4, dtype=torch.uint8), [0, 1])
NONE = make_labelled_images(torch.zeros(2, 4, 4, dtype=torch.uint8), [-1, -1], ["a", "b"])


def test_what_the_path_holds_decides(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "x.pt").write_bytes(b"")
    assert kind_of(tmp_path) == "classifier"
    assert kind_of(tmp_path / "x.safetensors") == "distilled"
    with pytest.raises(ConfigError, match="safetensors"):
        kind_of(tmp_path / "x.pt")
    with pytest.raises(FileError):
        kind_of(tmp_path / "none")


def test_split_is_test_then_validation_then_train() -> None:
    assert choose_split(ImageSplits(NONE, SOME, None), "auto") is not None
    assert len(choose_split(ImageSplits(SOME, None, NONE), "auto")) == 2
    with pytest.raises(DataError, match="no labelled pictures in test"):
        choose_split(ImageSplits(SOME, None, None, "set"), "test")
