"""The only door for files that somebody else made: every limit is checked before memory is taken.

Images are limited in pixels before decoding, arrays in declared and real bytes, JSON in bytes and depth,
and names that users give never leave the folder they belong to. Tensors have their own file, `tensors.py`.
"""

import io
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as numpy_format
from PIL import Image, ImageOps, UnidentifiedImageError

from fewer.core.errors import FileError

MAX_PIXELS = 16_800_000
MAX_IMAGE_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 4 * 2**30
MAX_ZIP_RATIO = 100
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")

_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The whole file. Raises `FileError` if it is missing, no plain file, or larger than `max_bytes`."""
    path = plain_file(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise FileError(f"{path.name!r} has {size:,} bytes; at most {max_bytes:,} are read")
    with path.open("rb") as stream:
        return stream.read(max_bytes + 1)


def plain_file(path: Path) -> Path:
    """The path of a file that can be read to its end. Raises `FileError` for a folder, a pipe or nothing."""
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path.name!r} is not there; check the path", missing=True)
    if not path.is_file():
        raise FileError(f"{path.name!r} is not a plain file")
    return path


def refuse_pickle(path: Path) -> None:
    """Raises `FileError` for a pickle or a PyTorch zip archive, told by content and not by name."""
    with Path(path).open("rb") as stream:
        start = stream.read(64)
    torch_zip = False
    if start[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            torch_zip = any(name.endswith(".pkl") for name in archive.namelist())
    # a safetensors file starts with its header's length, whose low bytes may look like a pickle's first ones
    tensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100 * 2**20
    if (start[:2] in _PICKLE_STARTS and not tensors) or torch_zip:
        raise FileError(
            f"{Path(path).name!r} is a pickle, which can run code when opened; "
            "turn it into safetensors with: fewer convert FILE --trust-pickle --output DIR"
        )


def read_json(path: Path, max_bytes: int = 16 * 2**20) -> dict:
    """A JSON object. Raises `FileError` for anything else, naming the file."""
    value = parse_json(read_bytes(path, max_bytes), repr(Path(path).name))
    if not isinstance(value, dict):
        raise FileError(f"{Path(path).name!r} holds a {type(value).__name__}, not a JSON object")
    return value


def parse_json(text: str | bytes, what: str) -> object:
    """The value that JSON text (UTF-8) stands for.

    Raises `FileError` naming `what` for any that cannot be read: nested too deep, or a number of more digits
    than Python makes one of, are not what the parser calls a decoding error.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is not valid JSON: {error}") from error


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image from a PNG, JPEG or WebP file. Raises `FileError`."""
    return decode_image(read_bytes(path, MAX_IMAGE_BYTES), max_pixels, Path(path).name)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "image") -> Image.Image:
    """As `read_image`, from bytes. The pixel limit holds before decoding; alpha is put on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                raise FileError(
                    f"{name!r} is {width}×{height} pixels; at most {max_pixels:,} in all are read"
                )
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:  # a header of billions of pixels, refused while it is read
        raise FileError(f"{name!r} says it has too many pixels; at most {max_pixels:,} are read") from error
    except UnidentifiedImageError as error:
        raise FileError(f"{name!r} is no {', '.join(IMAGE_FORMATS)} image") from error
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError, IndexError, OverflowError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{name!r} cannot be decoded: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    facts = {}
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, dtype=np.float64)
        facts["peak"] = float(values.max(initial=0))  # in the file's own numbers, before they are scaled
        scale = 255.0 / 65535.0 if facts["peak"] > 255 else 1.0
        picture = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        picture = Image.alpha_composite(white, rgba)
    clean = picture.convert("RGB")
    clean.info.clear()  # EXIF, GPS and text chunks end here
    clean.info.update(facts)
    return clean


def read_arrays(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file. Object arrays, bombs and damaged archives raise `FileError`."""
    path = plain_file(path)
    refuse_pickle(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            declared = sum(member.file_size for member in members)
            packed = max(1, sum(member.compress_size for member in members))
            if declared > max_bytes or (declared > 2**20 and declared / packed > MAX_ZIP_RATIO):
                raise FileError(f"{path.name!r} unpacks to {declared:,} bytes from {packed:,}; refused")
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path.name!r} is no readable .npz archive: {error}") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        version = numpy_format.read_magic(stream)
        read_header = (
            numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise FileError(f"array {member.filename!r} holds Python objects, which only a pickle can store")
        count = 1
        for side in shape:
            count *= int(side)
        wanted = count * dtype.itemsize
        if wanted > member.file_size:
            raise FileError(
                f"array {member.filename!r} declares {wanted:,} bytes, holds {member.file_size:,}"
            )
        data = stream.read(wanted)
    if len(data) != wanted:
        raise FileError(f"array {member.filename!r} is cut short")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C").copy()


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, if that stays inside the folder when links are followed; else `FileError`."""
    root = Path(folder).resolve()
    if "\x00" in name or len(name) > 255:
        raise FileError(f"file name {name[:40]!r} is not allowed")
    candidate = (root / name).resolve()
    if Path(name).is_absolute() or not candidate.is_relative_to(root) or candidate == root:
        raise FileError(f"{name!r} leads out of its folder; only names inside are allowed")
    return candidate


def copy_folder(
    source: Path, target: Path, leave: Callable[[str, list[str]], Iterable[str]] | None = None
) -> None:
    """Copies the folder into `target`, links as what they lead to; `leave` is `shutil.copytree`'s `ignore`.

    Raises `FileError` for a link that leads out of the folder, or round in it: a model that somebody made may
    not carry files of this machine into what is made from it. A hub's snapshot is all links to its blobs.
    """
    source = Path(source)
    roots = [source.resolve()]
    roots += [folder.parent / "blobs" for folder in roots[0].parents if folder.name == "snapshots"]

    def checked(place: str, names: list[str]) -> set[str]:
        left = set(leave(place, names)) if leave else set[str]()
        for name in set(names) - left:
            real = Path(os.path.realpath(Path(place, name)))
            if not any(map(real.is_relative_to, roots)) or Path(place).resolve().is_relative_to(real):
                raise FileError(f"{name!r} in {source.name!r} is a link out of its folder, or round in it")
        return left

    shutil.copytree(source, target, ignore=checked, dirs_exist_ok=True)


def safe_name(text: str, fallback: str = "untitled") -> str:
    """A file name made of letters, digits, dot, dash and underscore, at most 80 characters."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80].rstrip("-._")
    reserved = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}
    return fallback if not name or name.split(".")[0].lower() in reserved else name


def write_bytes(path: Path, data: bytes) -> None:
    """Writes the whole file or nothing: temporary file beside it, fsync, rename, fsync of the folder."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private; a result is an ordinary file
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except OSError as error:
        raise FileError(f"cannot write {path.name!r}: {error.strerror}; choose another --output") from error


def output_folder(path: Path) -> Path:
    """The folder, made if it is not there. Raises `FileError`, so that no work is done in vain."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise FileError(
            f"cannot write into {path.name[:80]!r}: {error.strerror}; choose another --output"
        ) from error


def output_files(paths: Iterable[Path]) -> None:
    """Before the work: can files of these names be written? Their folders are made. Raises `FileError`."""
    for path in map(Path, paths):
        try:
            output_folder(path.parent)
            path.lstat()  # refuses names that are too long
        except FileNotFoundError:
            continue
        except OSError as error:
            said = error.strerror
            raise FileError(f"cannot write {path.name[:80]!r}: {said}; choose another --output") from error
        if path.is_dir():
            raise FileError(f"cannot write {path.name[:80]!r}: it is a folder; choose another --output")


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut. Windows opens no folders, and needs no such help."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Readable JSON, written whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
