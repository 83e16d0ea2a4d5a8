from pathlib import Path

import numpy as np
import pytest

from fewer.core.errors import FileError
from fewer.stitch.frames.source import every, open_frames

pydicom = pytest.importorskip("pydicom")


def write_dicom(path: Path, frames: np.ndarray, syntax: str = "", **tags: object) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
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
    for name, value in tags.items():
        setattr(data, name, value)
    data["PixelData"].is_undefined_length = bool(syntax)
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


def test_each_frame_may_have_its_own_time(tmp_path: Path) -> None:
    frames = np.zeros((4, 6, 8, 3), np.uint8)
    write_dicom(tmp_path / "a.dcm", frames, FrameTime=None, FrameTimeVector=[0, 50, 100, 25])
    assert [frame.seconds for frame in open_frames(tmp_path / "a.dcm")] == [0.0, 0.05, 0.15, 0.175]
    write_dicom(tmp_path / "b.dcm", frames, FrameTime=None, CineRate=10)
    assert list(open_frames(tmp_path / "b.dcm"))[3].seconds == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("photometric", "stored"), [("MONOCHROME2", 12), ("MONOCHROME1", 12), ("MONOCHROME2", 10)]
)
def test_grey_of_ten_or_twelve_bits_keeps_its_brightness(
    tmp_path: Path, photometric: str, stored: int
) -> None:
    true = np.random.default_rng(0).integers(0, 256, (2, 6, 8), np.uint8)
    top = 2**stored - 1
    deep = np.round(true * (top / 255)).astype(np.uint16)
    deep = top - deep if photometric == "MONOCHROME1" else deep
    write_dicom(
        tmp_path / "a.dcm", deep, SamplesPerPixel=1, PhotometricInterpretation=photometric, BitsAllocated=16,
        BitsStored=stored, HighBit=stored - 1,
    )  # fmt: skip
    for frame, wanted in zip(open_frames(tmp_path / "a.dcm"), true, strict=True):
        assert np.abs(frame.picture.astype(int) - wanted[..., None]).max() <= 1


def test_a_palette_is_applied(tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 256, (2, 6, 8), np.uint8)
    table = np.random.default_rng(1).integers(0, 256, (3, 256), np.uint16)
    names, tags = ("Red", "Green", "Blue"), {}
    for name, column in zip(names, table, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (column << 8).astype("<u2").tobytes()
    path = tmp_path / "a.dcm"
    write_dicom(path, indices, SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR", **tags)
    for frame, wanted in zip(open_frames(path), indices, strict=True):
        true = table[:, wanted].transpose(1, 2, 0)[..., ::-1]
        assert np.abs(frame.picture.astype(int) - true).max() <= 1


def test_a_video_inside_is_read_as_one(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import MPEG4HP41

    clip = Path("data/endoscopy/laparoscopy_circle_640x360_25fps.mp4")
    data = clip.read_bytes() + b"\0" * (clip.stat().st_size % 2)
    halves = [data[:50_000], data[50_000:]]
    write_dicom(
        tmp_path / "a.dcm", np.zeros((1, 6, 8, 3), np.uint8), MPEG4HP41, PixelData=encapsulate(halves)
    )
    inside, plain = iter(open_frames(tmp_path / "a.dcm")), iter(open_frames(clip))
    for _ in range(3):
        mine, theirs = next(inside), next(plain)
        assert mine.seconds == theirs.seconds
        assert (mine.picture == theirs.picture).all()


def test_a_stride_decodes_only_what_it_picks(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (7, 8, 9, 3), np.uint8)
    write_dicom(tmp_path / "a.dcm", frames)
    source = open_frames(tmp_path / "a.dcm")
    whole = list(source)
    for frame in (few := list(every(source, 3))):
        assert (frame.picture == whole[frame.index].picture).all()
        assert frame.seconds == whole[frame.index].seconds
    assert [frame.index for frame in few] == [0, 3, 6]
    assert source.warnings == []
