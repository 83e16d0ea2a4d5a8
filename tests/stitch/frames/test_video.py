from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fewer.core.errors import FileError
from fewer.stitch.frames import video
from fewer.stitch.frames.source import every, open_frames

CLIP = Path("data/endoscopy/laparoscopy_circle_640x360_25fps.mp4")


def test_frames_come_with_their_time() -> None:
    source = open_frames(CLIP)
    frames = [frame for frame, _ in zip(source, range(6), strict=False)]
    assert source.length == 100
    assert frames[0].picture.shape == (360, 640, 3)
    assert [frame.index for frame in frames] == list(range(6))
    assert np.allclose([frame.seconds for frame in frames], np.arange(6) / 25, atol=1e-6)


def test_a_truncated_video_gives_what_decodes_and_a_warning(tmp_path: Path) -> None:
    import av

    # matroska keeps its index along the way, so a cut file still opens (an mp4 without its end does not)
    whole = tmp_path / "whole.mkv"
    with av.open(str(whole), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        random = np.random.default_rng(0)
        for _ in range(40):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = open_frames(cut)
    count = sum(1 for _ in source)
    assert 5 < count < 40
    assert any(f"ends after frame {count - 1}" in warning for warning in source.warnings)
    list(open_frames(whole))
    assert open_frames(whole).warnings == []


def test_a_cut_mp4_warns_with_the_frame_number(tmp_path: Path) -> None:
    data = bytearray(CLIP.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    spoiled = tmp_path / "spoiled.mp4"
    spoiled.write_bytes(data)
    source = open_frames(spoiled)
    count = sum(1 for _ in source)
    assert 0 < count <= 100
    assert count == 100 or any("after frame" in warning for warning in source.warnings)


@pytest.mark.parametrize("content", [b"", b"nothing that decodes", bytes(5000)])
def test_what_is_no_video_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"broken\.mp4") as caught:
        open_frames(path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("matrix", "corner"), [((0, 1, -1, 0), (0, -1)), ((0, -1, 1, 0), (-1, 0)), ((-1, 0, 0, -1), (-1, -1))]
)
def test_a_turned_video_is_read_upright(tmp_path: Path, matrix: tuple, corner: tuple) -> None:
    """`matrix` is that of the track (ISO 14496-12): (x, y) is shown at (a x + c y, b x + d y)."""
    import av

    path = tmp_path / "turned.mp4"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:20, :20] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = ((value << 16).to_bytes(4, "big", signed=True) for value in matrix)
    data[place : place + 20] = a + b + bytes(4) + c + d
    path.write_bytes(data)
    shown = next(iter(open_frames(path))).picture
    assert shown.shape == ((64, 48, 3) if matrix[0] == 0 else (48, 64, 3))
    bright = shown[..., 0] > 128
    assert bright[corner]
    assert 0.05 < bright.mean() < 0.25


@pytest.mark.parametrize(("codec", "layout", "decoded"), [("mjpeg", "yuvj420p", 4), ("mpeg4", "yuv420p", 10)])
def test_a_stride_gives_the_same_frames_and_leaves_alone_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, layout: str, decoded: int
) -> None:
    import av

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for number in range(10):
            picture = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    whole, source, seen = list(open_frames(path)), open_frames(path), []
    plain = video._decoded

    def counted(*arguments: object) -> Iterator:
        for time, frame in plain(*arguments):
            seen.append(frame is not None)
            yield time, frame

    monkeypatch.setattr(video, "_decoded", counted)
    few = list(every(source, 3))
    assert [frame.index for frame in few] == [0, 3, 6, 9]
    assert sum(seen) == decoded
    assert source.warnings == []
    for frame in few:
        assert (frame.picture == whole[frame.index].picture).all()
        assert np.isclose(frame.seconds, whole[frame.index].seconds)
