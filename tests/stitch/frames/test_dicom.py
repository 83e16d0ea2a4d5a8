from pathlib import Path

import numpy as np
import pytest

from fewer.core.errors import FileError
from fewer.stitch.frames.source import open_frames

pydicom = pytest.importorskip("pydicom")


def write_dicom(path: Path, frames: np.ndarray) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName = "Secret^Name"
    data.NumberOfFrames, data.Rows, data.Columns = frames.shape[:3]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.FrameTime = 7, 0, "40"
    data.PixelData = frames.tobytes()
    data.save_as(str(path), enforce_file_format=True)


def test_frames_are_bgr_with_the_frame_time(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (3, 6, 8, 3), np.uint8)
    write_dicom(tmp_path / "a.dcm", rgb)
    frames = list(open_frames(tmp_path / "a.dcm"))
    assert len(frames) == 3
    for frame, true in zip(frames, rgb, strict=True):
        assert (frame.picture == true[..., ::-1]).all()
    assert frames[2].seconds == pytest.approx(0.08)


def test_the_file_is_known_by_its_content(tmp_path: Path) -> None:
    write_dicom(tmp_path / "noname", np.zeros((2, 6, 8, 3), np.uint8))
    assert open_frames(tmp_path / "noname").length == 2


def test_a_damaged_file_is_refused_without_patient_data(tmp_path: Path) -> None:
    path = tmp_path / "bad.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"Secret^Name" * 3)
    with pytest.raises(FileError, match=r"bad\.dcm") as caught:
        list(open_frames(path))
    assert "Secret" not in str(caught.value)
