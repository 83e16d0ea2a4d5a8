"""A finished picture, and what is written into its PNG so that it can be drawn again."""

import io
import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import MAX_PIXELS, parse_json, read_bytes, write_bytes
from fewer.generate.request import GenerateRequest

CHUNK = "fewer"
"""Name of our PNG text chunk; the other one, `parameters`, is the one that other tools read."""
MAX_CHUNK_BYTES = 65_536
_MAX_PNG_BYTES = 256 * 2**20
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture and the request that draws exactly this one."""

    image: Image.Image
    request: GenerateRequest
    """For this picture alone, with every default filled in."""
    dtype: str = "fp32"
    """Number format of the network: the same request in another format is another picture."""
    drawn: tuple[int, int] | None = None
    """(height, width) in which the large edition drew it; None without that edition."""
    read: str | None = None
    """The sentence that was drawn, where it is not the prompt word for word."""

    @property
    def seed(self) -> int:
        """This picture's seed."""
        return self.request.seed

    def png(self, *, metadata: bool = True) -> bytes:
        """The PNG file; `metadata=False` writes pixels alone."""
        stream = io.BytesIO()
        self.image.save(stream, "PNG", pnginfo=self._chunks() if metadata else None)
        return stream.getvalue()

    def save(self, path: str | Path, *, metadata: bool = True) -> Path:
        """Writes the PNG, whole or not at all. Raises `ConfigError` for another suffix."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ConfigError(f"pictures are written as .png, not {path.suffix or 'without a suffix'!r}")
        write_bytes(path, self.png(metadata=metadata))
        return path

    def _chunks(self) -> PngInfo:
        shared = _without_paths(self.request)
        chunks = PngInfo()
        chunks.add_text("parameters", parameters(shared, self.image.size, self.drawn))
        content = {"format": _FORMAT, "dtype": self.dtype, "request": _differences(shared)}
        if self.drawn is not None:
            content["large_edition"] = {"height": self.drawn[0], "width": self.drawn[1]}
        if self.read is not None:
            content["read"] = self.read
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        if len(text) <= MAX_CHUNK_BYTES:
            chunks.add_text(CHUNK, text)
        return chunks


def parameters(request: GenerateRequest, size: tuple[int, int], drawn: tuple[int, int] | None = None) -> str:
    """The request as other tools write it: prompt, negative prompt, then a line of settings."""
    sampler = "Flow DPM" if request.sampler == "flow-dpm" else "Flow Euler"
    settings = {
        "Steps": request.steps,
        "Sampler": sampler,
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": request.model,
    }
    if request.edition == "few-steps":
        del settings["CFG scale"]
        settings["Edition"] = "few-steps"
    if drawn is not None:
        settings["Drawn by the large edition"] = f"{drawn[1]}x{drawn[0]}"
    lines = [request.prompt[0]]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def read_request(path: str | Path) -> tuple[GenerateRequest, str]:
    """The request and number format inside a PNG that we wrote.

    Raises `FileError` if the file is no PNG or carries no request of ours, `ConfigError` if that is invalid.
    """
    path = Path(path)
    data = read_bytes(path, _MAX_PNG_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.width * picture.height > 16 * MAX_PIXELS:
                raise FileError(
                    f"{path.name!r} has {picture.width}x{picture.height} pixels, too many to be ours"
                )
            text = picture.info.get(CHUNK)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, FileError):
            raise
        why = (
            "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        )  # it names an object in memory
        raise FileError(f"{path.name!r} is no readable PNG{why}") from error
    if not isinstance(text, str):
        raise FileError(
            f"{path.name!r} carries no request of ours; it was made elsewhere or with --no-metadata"
        )
    what = f"the request inside {path.name!r}"
    content = parse_json(text, what) if len(text) <= MAX_CHUNK_BYTES else None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileError(f"the request inside {path.name!r} cannot be read; it may be from a newer version")
    dtype = content.get("dtype")
    if dtype not in ("fp32", "bf16", "fp16"):
        raise FileError(f"the request inside {path.name!r} names an unknown number format")
    stored = content.get("request")
    if isinstance(stored, dict):  # before prompts were read, every one was drawn as it was written
        stored = {"as_written": True} | stored
    return validate(GenerateRequest, stored), dtype


def repeat(request: GenerateRequest, stored: GenerateRequest) -> GenerateRequest:
    """The stored request with everything that `request` sets differently from its defaults.

    A field that was set to its default value counts as not set.
    """
    changed = {}
    for field in fields(GenerateRequest):
        value = getattr(request, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default:
            changed[field.name] = value
    if "prompt" in changed:
        changed["as_written"] = request.as_written
    if "size" in changed:
        changed |= {"width": None, "height": None}
    return replace(stored, **changed)


def _without_paths(request: GenerateRequest) -> GenerateRequest:
    """Folders say something about the person who drew it; only the last name goes into the picture."""
    names = tuple(Path(item).name for item in request.lora)
    style = Path(request.style).name if request.style else ""
    return replace(request, model=Path(request.model).name or "default", lora=names, style=style)


def _differences(request: GenerateRequest) -> dict[str, object]:
    plain = asdict(GenerateRequest())
    told: dict[str, object] = {"as_written": request.as_written}
    return {name: value for name, value in asdict(request).items() if value != plain[name]} | told
