"""Multi-frame endoscopic DICOM. Only pixels and the frame time are read; patient tags go nowhere."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from fewer.core.errors import FileError
from fewer.stitch.frames.source import MAX_PIXELS, Frame, as_picture


class DicomFrames:
    """Frames of one DICOM file, decoded one at a time."""

    def __init__(self, path: Path) -> None:
        pydicom = _load_pydicom(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(str(path), stop_before_pixels=True)
                self.length = int(header.get("NumberOfFrames", 1) or 1)
                width, height = int(header.Columns), int(header.Rows)
                milliseconds = float(header.get("FrameTime", 0) or 0)
        except (
            pydicom.errors.InvalidDicomError,
            AttributeError,
            ValueError,
            TypeError,
            EOFError,
            OSError,
        ) as error:
            raise FileError(
                f"{path.name}: cannot be read as a DICOM picture ({type(error).__name__})"
            ) from error
        if width * height > MAX_PIXELS:
            raise FileError(
                f"{path.name}: {width} x {height} pixels; at most {MAX_PIXELS} a frame are allowed"
            )
        self._path, self._seconds, self.warnings = path, milliseconds / 1000 or 1 / 25, []

    def __iter__(self) -> Iterator[Frame]:
        from pydicom.pixels import iter_pixels

        self.warnings.clear()
        index = 0
        try:
            for array in iter_pixels(str(self._path)):
                picture = as_picture(array)
                if array.ndim == 3:
                    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
                yield Frame(index, index * self._seconds, np.ascontiguousarray(picture))
                index += 1
        except (ValueError, RuntimeError, AttributeError, EOFError, OSError, NotImplementedError) as error:
            if index == 0:
                raise FileError(
                    f"{self._path.name}: its pixels cannot be decoded ({type(error).__name__})"
                ) from error
            self.warnings.append(f"the DICOM file is damaged after frame {index - 1}")


def _load_pydicom(path: Path):
    try:
        import pydicom
        import pydicom.errors
    except ImportError as error:
        raise FileError(
            f"{path.name}: reading DICOM needs pydicom; install `fewer[stitch]`", missing=True
        ) from error
    return pydicom
