"""Multi-frame endoscopic DICOM. Only pixels and the times of frames are read; patient tags go nowhere."""

import warnings
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np

from fewer.core.errors import FileError
from fewer.stitch.frames.source import MAX_PIXELS, Frame, FrameSource, as_picture
from fewer.stitch.frames.video import VideoFrames


def open_dicom(path: Path) -> FrameSource:
    """Pictures one by one, or the video that a file of an MPEG or HEVC transfer syntax holds."""
    pydicom = _load_pydicom(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(str(path), stop_before_pixels=True)
            syntax = str(header.file_meta.TransferSyntaxUID)
            if syntax in _video_syntaxes():
                return VideoFrames(path, _stream(pydicom.dcmread(str(path))))
            return DicomFrames(path, header)
    except FileError:
        raise
    except (
        pydicom.errors.InvalidDicomError,
        AttributeError,
        ValueError,
        TypeError,
        EOFError,
        OSError,
    ) as error:
        raise FileError(f"{path.name}: cannot be read as a DICOM picture ({type(error).__name__})") from error


class DicomFrames:
    """Frames of one DICOM file, decoded one at a time."""

    def __init__(self, path: Path, header) -> None:
        self.length = int(header.get("NumberOfFrames", 1) or 1)
        width, height = int(header.Columns), int(header.Rows)
        if width * height > MAX_PIXELS:
            raise FileError(
                f"{path.name}: {width} x {height} pixels; at most {MAX_PIXELS} a frame are allowed"
            )
        self._path, self._times, self.warnings = path, _times(header, self.length), []
        self.files = (path,)
        self._inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
        self._bits = int(header.get("BitsStored", 8) or 8)
        self._palette = header if header.get("PhotometricInterpretation") == "PALETTE COLOR" else None

    def __iter__(self) -> Iterator[Frame]:
        return self.every(1)

    def every(self, stride: int) -> Iterator[Frame]:
        """Decodes each `stride`-th picture only, as far as the header tells how many there are."""
        from pydicom.pixels import iter_pixels

        self.warnings.clear()
        index = 0
        wanted = None if stride == 1 else list(range(0, self.length, stride))
        try:
            for array in iter_pixels(str(self._path), indices=wanted):
                yield Frame(index, self._seconds(index), self._picture(array))
                index += stride
        except (ValueError, RuntimeError, AttributeError, EOFError, OSError, NotImplementedError) as error:
            if index == 0:
                raise FileError(
                    f"{self._path.name}: its pixels cannot be decoded ({type(error).__name__})"
                ) from error
            self.warnings.append(f"the DICOM file is damaged after frame {index - stride}")

    def _picture(self, array: np.ndarray) -> np.ndarray:
        bits = self._bits
        if self._palette is not None:
            from pydicom.pixels import apply_color_lut

            array = apply_color_lut(array, self._palette)
            bits = 8 * array.dtype.itemsize
        if array.dtype != np.uint8:  # 10 or 12 bits lie at the low end of 16
            array = np.clip(array.astype(np.float32) * (255 / (2**bits - 1)), 0, 255).astype(np.uint8)
        picture = as_picture(255 - array if self._inverted else array)
        if array.ndim == 3 and array.shape[2] >= 3:
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        return np.ascontiguousarray(picture)

    def _seconds(self, index: int) -> float:
        known = len(self._times) - 1
        step = self._times[-1] / known  # pixels may hold more frames than the header tells of
        return self._times[index] if index <= known else self._times[-1] + (index - known) * step


def _times(header, length: int) -> list[float]:
    """Seconds of each frame and one more: from the steps of each frame, the step of all, or their rate."""
    steps = [float(step) for step in header.get("FrameTimeVector", None) or ()]
    if len(steps) == length and length > 1 and min(steps[1:]) > 0:
        times = [each / 1000 for each in accumulate([0.0, *steps[1:]])]
        return [*times, times[-1] + steps[-1] / 1000]
    step = float(header.get("FrameTime", 0) or 0) / 1000
    if step <= 0:
        rate = float(header.get("CineRate", 0) or header.get("RecommendedDisplayFrameRate", 0) or 25)
        step = 1 / rate if rate > 0 else 1 / 25
    return [index * step for index in range(max(length, 1) + 1)]


def _video_syntaxes() -> set[str]:
    from pydicom import uid

    names = [name for name in dir(uid) if name.startswith(("MPEG2", "MPEG4", "HEVC"))]
    return {str(getattr(uid, name)) for name in names}


def _stream(data) -> bytes:
    """The video inside a DICOM file: all its fragments, one after the other."""
    from pydicom.encaps import generate_fragments

    _, *fragments = generate_fragments(data.PixelData)  # the table of offsets comes first
    return b"".join(fragments)


def _load_pydicom(path: Path):
    try:
        import pydicom
        import pydicom.errors
    except ImportError as error:
        raise FileError(
            f"{path.name}: reading DICOM needs pydicom; install `fewer[stitch]`", missing=True
        ) from error
    return pydicom
