import numpy as np
import pytest
import torch

from fewer.stitch.device.canvas import DeviceCanvas, Frames, fits_on
from fewer.stitch.device.pictures import upload
from fewer.stitch.mosaic.canvas import Canvas, Provenance
from fewer.stitch.mosaic.exposure import Exposure
from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.options import BlendOptions
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

CPU = torch.device("cpu")
FORM = Geometry("cylinder", Lens("equidistant", 60.0), (79.5, 79.5), 74.0, 2.2)
FLAT = Geometry("linear", Lens("equidistant", 60.0), (79.5, 79.5), 74.0, 2.2)


def case(geometry: Geometry = FORM, count: int = 4) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Poses, textured pictures and what is clear in them."""
    random = np.random.default_rng(0)
    poses = np.concatenate([random.normal(0, 0.04, (count, 4)), np.zeros((count, 2))], axis=1)
    if geometry.mode != "cylinder":
        poses[:, 2:4] = 0
    poses[:, 4], poses[:, 5] = 0.1 * np.arange(count), -0.07 * np.arange(count)
    small = random.integers(0, 256, (count, 20, 20, 3), np.uint8)
    pictures = [np.kron(each, np.ones((8, 8, 1), np.uint8)) for each in small]
    rows, columns = np.indices((160, 160))
    field = np.hypot(rows - 79.5, columns - 79.5) < 70
    clear = [field & ~((rows // 30 + number) % 4 == 0) for number in range(count)]
    return poses, pictures, clear


def painted(
    layout: Layout, light: Exposure | None, pictures: list, clear: list, groups: list[slice]
) -> tuple[np.ndarray, Provenance]:
    canvas = DeviceCanvas(layout, light, CPU)
    places = list(range(len(pictures)))
    for part in groups:
        masks = torch.from_numpy(np.stack(clear[part]))
        indices = [10 * place for place in places[part]]
        canvas.lay(Frames(indices, places[part], upload(pictures[part], CPU), masks))
    return canvas.finish()


@pytest.mark.parametrize(
    ("blend", "bands", "geometry"), [("multiband", 3, FORM), ("feather", 1, FORM), ("last", 1, FLAT)]
)
def test_the_map_is_that_of_opencv(blend: str, bands: int, geometry: Geometry) -> None:
    poses, pictures, clear = case(geometry)
    random = np.random.default_rng(1)
    light = Exposure(
        np.linspace(1.0, 2.5, 48), random.normal(4, 0.1, (48, 3)), random.normal(0, 0.05, (len(poses), 3))
    )
    layout = Layout(geometry, poses, 240, BlendOptions(blend=blend, bands=bands))
    theirs = Canvas(layout)
    for place, (picture, mask) in enumerate(zip(pictures, clear, strict=True)):
        theirs.add(theirs.prepare(place, 10 * place, picture, mask, light))
    image, provenance = theirs.finish()
    mine, source = painted(layout, light, pictures, clear, [slice(0, 3), slice(3, 4)])
    off = np.abs(mine.astype(int) - image)
    assert off.mean() < 0.05
    assert np.quantile(off, 0.999) <= 1
    same = source.frame == provenance.frame
    assert same.mean() > 0.999
    assert np.abs(source.x - provenance.x)[same].max() < 0.01
    assert np.abs(source.y - provenance.y)[same].max() < 0.01


def test_groups_do_not_matter() -> None:
    poses, pictures, clear = case()
    layout = Layout(FORM, poses, 240, BlendOptions())
    one = painted(layout, None, pictures, clear, [slice(0, 4)])
    two = painted(layout, None, pictures, clear, [slice(0, 1), slice(1, 4)])
    assert np.abs(one[0].astype(int) - two[0]).max() <= 1
    assert (one[1].frame == two[1].frame).all()


def test_wide_or_long_maps_stay_with_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    poses = case()[0]
    layout = Layout(FORM, poses, 240, BlendOptions())
    monkeypatch.setattr("fewer.stitch.device.canvas.available_memory", lambda device: 4 * 2**30)
    assert fits_on(CPU, [layout])
    assert not fits_on(CPU, [layout, Layout(FORM, poses, 5000, BlendOptions())])
    monkeypatch.setattr("fewer.stitch.device.canvas.available_memory", lambda device: 2**30)
    assert not fits_on(CPU, [layout])
    assert 1 <= DeviceCanvas(layout, None, CPU).together <= 16
