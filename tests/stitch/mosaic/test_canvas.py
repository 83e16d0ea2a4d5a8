import numpy as np
import pytest

from fewer.stitch.frames.field import find_field
from fewer.stitch.mosaic.canvas import Canvas
from fewer.stitch.mosaic.layout import Layout
from fewer.stitch.options import BlendOptions
from fewer.stitch.panorama import Panorama
from fewer.stitch.unfold.geometry import Geometry
from fewer.stitch.unfold.lens import Lens

FORM = Geometry("cylinder", Lens("equidistant", 95.0), (119.5, 119.5), 116.0, 2.2)


def painted(blend: str, values: list[int], bands: int = 3) -> tuple[np.ndarray, Canvas]:
    poses = np.zeros((len(values), 6))
    poses[:, 5] = -0.1 * np.arange(len(values))
    canvas = Canvas(Layout(FORM, poses, 300, BlendOptions(blend=blend, bands=bands)))
    rows, columns = np.indices((240, 240))
    clear = np.hypot(rows - 119.5, columns - 119.5) < 112
    for place, value in enumerate(values):
        picture = np.full((240, 240, 3), value, np.uint8)
        canvas.add(canvas.prepare(place, 10 * place, picture, clear, None))
    return canvas.finish()[0], canvas


@pytest.mark.parametrize(
    ("blend", "bands"), [("multiband", 1), ("multiband", 3), ("multiband", 5), ("feather", 1)]
)
def test_equal_pictures_give_that_picture(blend: str, bands: int) -> None:
    image, canvas = painted(blend, [90, 90, 90], bands)
    seen = canvas.frame >= 0
    assert np.abs(image[seen].astype(int) - 90).max() <= 1
    assert (image[~seen] == 0).all()


def test_last_puts_the_new_over_the_old() -> None:
    image, canvas = painted("last", [60, 120])
    assert set(np.unique(image[canvas.frame == 10])) <= {120}
    assert set(np.unique(image[canvas.frame == 0])) <= {60}


def test_blending_stays_between_its_sources_and_has_no_hard_seam() -> None:
    image, canvas = painted("multiband", [80, 120])
    values = image[canvas.frame >= 0]
    assert values.min() >= 70
    assert values.max() <= 130
    assert np.abs(np.diff(image[:, 150, 0].astype(int)[canvas.frame[:, 150] >= 0])).max() < 15


def test_provenance_names_a_frame_and_a_place_that_shows_the_pixel(
    small_map: Panorama, small_frames: list[np.ndarray]
) -> None:
    segment = small_map.segments[0]
    provenance = segment.provenance
    rows, columns = np.nonzero(provenance.frame >= 0)
    chosen = np.random.default_rng(0).choice(len(rows), 300, replace=False)
    row, column = rows[chosen], columns[chosen]
    places = {frame: place for place, frame in enumerate(segment.frames)}
    scale = segment.image.shape[1] / (2 * np.pi)
    for y, x in zip(row, column, strict=True):
        found = provenance.locate(int(x), int(y))
        assert found is not None
        frame, px, py = found
        pose = segment.poses[places[frame]]
        wall = segment.geometry.to_wall(np.array([[px, py]]), pose[:4])[0] + pose[4:]
        assert abs(np.angle(np.exp(1j * (wall[0] - x / scale)))) * scale < 0.1
        assert abs((wall[1] - segment.top) * scale - y) < 0.1
    unseen = np.argwhere(provenance.frame < 0)
    if len(unseen):
        assert provenance.locate(int(unseen[0][1]), int(unseen[0][0])) is None


def test_no_pixel_from_outside_the_field_reaches_the_map(small_map: Panorama, small_frames: list) -> None:
    field = find_field(small_frames)
    provenance = small_map.provenance
    seen = provenance.frame >= 0
    off = np.hypot(provenance.x[seen] - field.centre[0], provenance.y[seen] - field.centre[1])
    assert off.max() < field.radius - 2


def test_a_large_canvas_lives_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewer.stitch.mosaic.canvas.IN_MEMORY", 1000)
    image, canvas = painted("feather", [90, 90])
    assert isinstance(canvas._sum, np.memmap)
    assert np.abs(image[canvas.frame >= 0].astype(int) - 90).max() <= 1
