import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewer.core.errors import FileError
from fewer.core.files import (
    copy_folder,
    decode_image,
    inside,
    output_files,
    output_folder,
    read_arrays,
    read_image,
    read_json,
    refuse_pickle,
    safe_name,
    write_bytes,
    write_json,
)
from fewer.core.tensors import tensor_header


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (5, 123)])
def test_every_common_mode_becomes_upright_rgb(mode: str, size: tuple[int, int]) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    picture = decode_image(encoded(Image.new(mode, size), kind))
    assert (picture.mode, picture.size) == ("RGB", size)


def test_sixteen_bits_keep_their_brightness_and_alpha_lies_on_white() -> None:
    grey = Image.fromarray(np.full((3, 3), 32768, np.uint16))
    assert abs(decode_image(encoded(grey)).getpixel((1, 1))[0] - 128) <= 1
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied_and_the_tags_end_here() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    exif[0x010E] = "patient 12345"
    picture = decode_image(encoded(Image.new("RGB", (10, 4)), "JPEG", exif=exif))
    assert picture.size == (4, 10)
    assert not picture.getexif() and "exif" not in picture.info


NOISE = np.random.default_rng(0).integers(0, 256, (18, 24, 3), dtype=np.uint8)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_pixels_are_limited_before_decoding() -> None:
    with pytest.raises(FileError, match="9000×9000"):
        decode_image(bomb(9000, 9000))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_whatever_their_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (4, 4)), kind))
    with pytest.raises(FileError, match="PNG, JPEG, WEBP"):
        read_image(path)


def test_a_header_of_billions_of_pixels_is_refused_by_name() -> None:
    raw = bytearray(encoded(Image.new("RGB", (4, 4)), "PNG"))
    raw[16:24] = struct.pack(">II", 90_000, 90_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    with pytest.raises(FileError, match="pixels"):
        decode_image(bytes(raw))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_images_end_in_a_file_error_or_a_picture(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    raw = bytearray(encoded(Image.fromarray(NOISE), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        assert decode_image(bytes(raw[:cut]), max_pixels=100_000).mode == "RGB"
    except FileError as error:
        assert str(error)


def test_arrays_come_back_and_pickled_objects_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez_compressed(path, images=images, columns=np.asfortranarray(images))
    arrays = read_arrays(path)
    assert np.array_equal(arrays["images"], images) and np.array_equal(arrays["columns"], images)
    np.savez(path, bad=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileError, match="objects"):
        read_arrays(path)


def test_array_bombs_are_refused_by_their_ratio_and_their_declared_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, zeros=np.zeros(20_000_000, np.uint8))
    with pytest.raises(FileError, match="unpacks to"):
        read_arrays(path)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**40)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("huge.npy", stream.getvalue())
    with pytest.raises(FileError, match="declares"):
        read_arrays(path)


@pytest.mark.parametrize(
    "raw", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", b"not a zip", b"PK\x05\x06" + b"\0" * 18]
)
def test_things_that_are_no_archive(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(raw)
    try:
        assert read_arrays(path) == {}
    except FileError as error:
        assert "a.npz" in str(error)


def test_a_pickle_is_told_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "innocent.safetensors"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileError, match="--trust-pickle"):
        refuse_pickle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(FileError, match="--trust-pickle"):
        refuse_pickle(path)


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.npz"
    os.mkfifo(path)
    for read in (read_arrays, read_json, read_image, tensor_header):
        with pytest.raises(FileError, match="is not a plain file"):
            read(path)


def test_a_folder_is_copied_without_what_its_links_lead_to_elsewhere(tmp_path: Path) -> None:
    hub = tmp_path / "models--a--b"
    model, blob = hub / "snapshots" / "1" / "vae", hub / "blobs" / "abc"
    for folder in (model / "sub", blob.parent):
        folder.mkdir(parents=True)
    blob.write_text("weights")
    (model / "weights").symlink_to(blob)
    (model / "again").symlink_to("weights")
    (model / "cache").write_text("")
    copy_folder(model, tmp_path / "copy", lambda _, names: {"cache"} & set(names))
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["again", "sub", "weights"]
    assert (tmp_path / "copy" / "again").read_text() == "weights" and not (
        tmp_path / "copy" / "again"
    ).is_symlink()
    (tmp_path / "secret").write_text("key")
    for target in (tmp_path / "secret", tmp_path, model, model / "sub" / "bad"):
        (model / "sub" / "bad").unlink(missing_ok=True)
        (model / "sub" / "bad").symlink_to(target)
        with pytest.raises((FileError, OSError)):
            copy_folder(model, tmp_path / "other")
        assert not (tmp_path / "other" / "sub" / "bad").exists()


@pytest.mark.parametrize("raw", [b"[1]", b"{", b"\xff\xfe", b'{"a":' * 100_000, b'{"a": %s}' % (b"9" * 5000)])
def test_json_that_is_no_object(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(FileError, match=r"a\.json"):
        read_json(path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "a\x00b", "x" * 300, ".", "link/x"])
def test_names_never_lead_out_of_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(FileError):
        inside(tmp_path / "folder", name)
    assert inside(tmp_path / "folder", "sub/a.png").is_relative_to(tmp_path / "folder")


@given(st.text(max_size=400))
def test_safe_names_are_safe(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= 80 and "/" not in name and name != ".." and not name.startswith((".", "-"))
    assert name.isascii() and name.split(".")[0].lower() not in ("con", "nul", "com1")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": "é"})
    assert read_json(path) == {"a": "é"}
    with pytest.raises(FileError, match="cannot write"):
        write_bytes(path / "below-a-file", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x10580])
def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_not_taken_for_one(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 80)
    refuse_pickle(path)
    path.write_bytes(b"\x80\x04\x95" + b"{" * 80)
    with pytest.raises(FileError, match="pickle"):
        refuse_pickle(path)


def test_a_folder_for_results_is_made_or_refused_at_once(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/below", "n" * 300):
        with pytest.raises(FileError, match="choose another --output"):
            output_folder(tmp_path / name)


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    output_files([tmp_path / "new" / "one.png", tmp_path / "old.png"])
    assert (tmp_path / "new").is_dir() and (tmp_path / "old.png").read_bytes() == b"old"
    (tmp_path / "folder.png").mkdir()
    wrong = {"folder.png": "it is a folder", f"{300 * 'n'}.png": "too long", "old.png/one.png": "exists"}
    for name, said in wrong.items():
        with pytest.raises(FileError, match=said) as caught:
            output_files([tmp_path / name])
        assert len(str(caught.value)) < 200
