"""Where finished pictures lie: a folder a job, names of our own making, each readable by its owner alone."""

import io
import re
import shutil
from pathlib import Path
from typing import Literal

from PIL import Image

from fewer.core.errors import FileError
from fewer.core.files import inside, read_bytes, write_bytes
from fewer.serve.engine import ImageEvent
from fewer.serve.job_store import Job

Format = Literal["png", "jpeg", "webp"]
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class Results:
    """The folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, job: Job, event: ImageEvent) -> dict:
        """Saves a picture in the format its job asks for; gives its facts."""
        kind: Format = job.request.get("output_format", "png")
        data = encode(event.png, kind, job.request.get("output_compression"))
        name = f"{event.image}.{kind}"
        write_bytes(self.folder / job.id / name, data)
        facts = {
            "file": name,
            "seed": event.seed,
            "width": event.width,
            "height": event.height,
            "bytes": len(data),
        }
        return facts if event.read is None else facts | {"revised_prompt": event.read}

    def read(self, job: str, name: str) -> bytes:
        """A picture's bytes. Raises `FileError` for names that are not ours."""
        if not re.fullmatch(r"[0-9a-f]{32}", job) or not re.fullmatch(r"\d{1,4}\.(png|jpeg|webp)", name):
            raise FileError("there is no such picture", missing=True)
        return read_bytes(inside(self.folder, f"{job}/{name}"), 2**28)

    def file(self, job: Job, name: str) -> Path:
        """A file of a job that drew nothing. Raises `FileError` for any that its result does not list."""
        path = (
            inside(self.folder, f"{job.id}/{name}") if name in (job.result or {}).get("files", []) else None
        )
        if path is None or not path.is_file():
            raise FileError("there is no such file", missing=True)
        return path

    def drop(self, job: str) -> None:
        """Deletes a job's pictures."""
        if re.fullmatch(r"[0-9a-f]{32}", job):
            shutil.rmtree(self.folder / job, ignore_errors=True)


def encode(png: bytes, kind: Format, compression: int | None) -> bytes:
    """PNG as it is (with its metadata), or JPEG or WebP of quality 100 - compression (90 if not given)."""
    if kind == "png":
        return png
    with Image.open(io.BytesIO(png)) as picture:
        stream = io.BytesIO()
        quality = 90 if compression is None else max(1, 100 - compression)
        picture.convert("RGB").save(stream, kind.upper(), quality=quality)
        return stream.getvalue()
