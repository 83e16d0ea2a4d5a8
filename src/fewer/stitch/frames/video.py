"""Video files through PyAV: exact time stamps, one frame in memory, damage reported by frame number."""

from collections.abc import Iterator
from pathlib import Path

from fewer.core.errors import FileError
from fewer.stitch.frames.source import MAX_PIXELS, Frame


class VideoFrames:
    """Decodes what can be decoded; a file cut short ends with a warning that names the last good frame."""

    def __init__(self, path: Path) -> None:
        av = _load_av(path)
        self._path, self.warnings = path, []
        try:
            with av.open(str(path)) as container:
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
        av = _load_av(self._path)
        self.warnings.clear()
        index = 0
        with av.open(str(self._path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 25)
            seconds = -1 / rate
            try:
                for decoded in container.decode(stream):
                    # a stream without usable stamps falls back to its rate
                    stamped = decoded.time is not None and float(decoded.time) > seconds
                    seconds = float(decoded.time) if stamped else seconds + 1 / rate
                    yield Frame(index, seconds, decoded.to_ndarray(format="bgr24"))
                    index += 1
            except (av.error.FFmpegError, OSError) as error:
                self.warnings.append(f"the video is damaged after frame {index - 1} ({_first_line(error)})")
        if index == 0:
            raise FileError(f"{self._path.name}: no frame of the video could be decoded")
        if self.length and index < self.length - 1:
            self.warnings.append(f"the video promises {self.length} frames but ends after frame {index - 1}")


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
