"""Video files through PyAV: exact time stamps, one frame in memory, damage reported by frame number."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewer.core.errors import FileError
from fewer.stitch.frames.source import MAX_PIXELS, Frame

if TYPE_CHECKING:
    import av

_SLACK = 2.5  # frames by which a file may be shorter than it says


class VideoFrames:
    """Decodes what can be decoded; a file cut short ends with a warning that names the last good frame."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        """`data` is the video itself, if `path` only holds it."""
        av = _load_av(path)
        self._path, self._data, self.warnings = path, data, []
        self.files = (path,)
        try:
            with av.open(self._opened()) as container:
                if not container.streams.video:
                    raise FileError(f"{path.name}: holds no video stream; give an mp4, avi, mov or mkv video")
                stream = container.streams.video[0]
                self.length = int(stream.frames or 0)
                width, height = stream.codec_context.width, stream.codec_context.height
        except (av.error.FFmpegError, OSError) as error:
            raise FileError(f"{path.name}: cannot be read as a video ({_first_line(error)})") from error
        if width * height > MAX_PIXELS:
            raise FileError(
                f"{path.name}: {width} x {height} pixels; at most {MAX_PIXELS} a frame are allowed"
            )

    def __iter__(self) -> Iterator[Frame]:
        return self.every(1)

    def every(self, stride: int) -> Iterator[Frame]:
        """Each `stride`-th frame. The others become no picture, and where every frame of the stream stands
        for itself (Motion JPEG) they are not decoded either.
        """
        av = _load_av(self._path)
        self.warnings.clear()
        index = 0
        with av.open(self._opened()) as container:
            stream = container.streams.video[0]
            promised = _seconds_promised(container)
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 25)
            seconds = -1 / rate
            try:
                for time, decoded in _decoded(container, stream, stride):
                    # a stream without usable stamps falls back to its rate
                    seconds = time if time is not None and time > seconds else seconds + 1 / rate
                    if decoded is not None and index % stride == 0:
                        picture = decoded.to_ndarray(format="bgr24")
                        yield Frame(index, seconds, upright(picture, decoded.rotation))
                    index += 1
            except (av.error.FFmpegError, OSError) as error:
                self.warnings.append(f"the video is damaged after frame {index - 1} ({_first_line(error)})")
        if index == 0:
            raise FileError(f"{self._path.name}: no frame of the video could be decoded")
        if self.length and index < self.length - 1:
            self.warnings.append(f"the video promises {self.length} frames but ends after frame {index - 1}")
        elif not self.length and promised - (seconds + 1 / rate) > _SLACK / rate:
            self.warnings.append(
                f"the video promises {promised:.2f} seconds but ends after frame {index - 1} at {seconds:.2f}"
            )

    def _opened(self) -> str | io.BytesIO:
        return str(self._path) if self._data is None else io.BytesIO(self._data)


def _decoded(container, stream, stride: int) -> Iterator[tuple[float | None, "av.VideoFrame | None"]]:
    """Time and picture of each frame; no picture of one that could be left alone."""
    alone = stride > 1 and stream.codec_context.codec.intra_only
    count = 0
    for packet in container.demux(stream):
        if alone and packet.size and count % stride:
            count += 1
            yield None if packet.pts is None else float(packet.pts * packet.time_base), None
            continue
        for decoded in packet.decode():
            count += 1
            yield None if decoded.time is None else float(decoded.time), decoded


def upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """The picture as players show it: turned counter-clockwise by the degrees that the file asks for."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _seconds_promised(container) -> float:
    """Length that the file's head tells of; 0 where it does not, or where a sound track may be the longer."""
    if len(container.streams) > 1 or not container.duration:
        return 0.0
    return (container.duration + max(container.start_time or 0, 0)) / 1e6


def _load_av(path: Path):
    try:
        import av
    except ImportError as error:
        raise FileError(
            f"{path.name}: reading videos needs PyAV; install `fewer[stitch]` or give a folder of pictures",
            missing=True,
        ) from error
    # FFmpeg stays quiet; PyAV's own handler (set_level) can deadlock with decoding threads
    av.logging.set_libav_level(av.logging.PANIC)
    return av


def _first_line(error: Exception) -> str:
    # PyAV puts the whole path into its messages; the reason is enough
    return str(getattr(error, "strerror", None) or type(error).__name__).splitlines()[0]
