from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.measure import LayerReport
from fewer.quantize.store import LayerStore


def group() -> tuple[dict[str, QuantizedLayer], list[LayerReport]]:
    codes, scales = encode_weight(torch.randn(5, 64), FORMATS["nvfp4"])
    layer = QuantizedLayer(format="nvfp4", shape=(5, 64), codes=codes, scales=scales)
    return {"a.q": layer}, [LayerReport("a.q", (5, 64), "nvfp4", 0.1, 0.2, losses=[2.0, 1.0])]


def test_a_group_comes_back_as_it_was_added(tmp_path: Path) -> None:
    layers, reports = group()
    with LayerStore(tmp_path, "settings") as store:
        assert "a" not in store
        store.add("a", layers, reports)
    with LayerStore(tmp_path, "settings") as store:
        assert "a" in store
        again, again_reports = store.read("a")
    assert torch.equal(again["a.q"].weight(), layers["a.q"].weight()) and again_reports == reports


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    LayerStore(tmp_path, "rank 32")
    with pytest.raises(FileError, match="other settings"):
        LayerStore(tmp_path, "rank 64")


def test_a_temporary_store_leaves_nothing_behind() -> None:
    with LayerStore(None, "x") as store:
        folder = store.folder
        store.add("a", *group())
        assert folder.exists()
    assert not folder.exists()


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-9], lambda raw: raw[:-1] + b"?"])
def test_a_damaged_group_is_not_there_and_can_be_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    with LayerStore(tmp_path, "settings") as store:
        store.add("a", *group())
        (file,) = tmp_path.glob("*.safetensors")
        file.write_bytes(damage(file.read_bytes()))
        assert "a" not in store
        store.add("a", *group())
        assert "a" in store
