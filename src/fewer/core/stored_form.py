"""How the weights of a model's folder are stored, told by its configuration and the headers of its files."""

from collections import Counter
from math import prod
from pathlib import Path

from fewer.core.errors import FewerError
from fewer.core.files import read_json
from fewer.core.tensors import TensorInfo, tensor_header

_PARTS = ("transformer", "unet")
_DEFLATED, _SHAPE, _SCALE = ".deflated", ".shape", ".row_scale"  # of packaged weights


def stored_form(folder: Path) -> str:
    """ "bf16", "quantized: h8", "packaged: 4.1 bits a weight on disk, ordinary weights once opened", ...

    Of a pipeline it is the form of what draws. A file that cannot be read is "damaged".
    """
    part = next((folder / name for name in _PARTS if (folder / name).is_dir()), folder)
    files = sorted(part.glob("*.safetensors"))
    try:
        config = read_json(part / "config.json") if (part / "config.json").is_file() else {}
        header = {name: info for file in files for name, info in tensor_header(file)[0].items()}
    except (FewerError, OSError):
        return "damaged"
    if isinstance(settings := config.get("quantization_config"), dict):
        return f"quantized: {_formats(settings)}"
    if any(name.endswith(_SCALE) for name in header):
        bits = 8 * sum(file.stat().st_size for file in files) / max(1, _numbers(header))
        return f"packaged: {bits:.1f} bits a weight on disk, ordinary weights once opened"
    counts: Counter[str] = Counter()
    for info in header.values():
        counts[str(info.dtype).lower()] += prod(info.shape)
    return counts.most_common(1)[0][0] if counts else "no weights"


def _formats(settings: dict[str, object]) -> str:
    layers = settings.get("layers")
    facts = layers.values() if isinstance(layers, dict) else ()
    found = {str(one.get("format")) for one in facts if isinstance(one, dict)}
    return ", ".join(sorted(found)) or str(settings.get("quant_method"))


def _numbers(header: dict[str, TensorInfo]) -> int:
    """How many weights a packaged file stands for: `w.shape` of a deflated one has its sides after a 0."""
    return sum(
        prod(info.shape[1:] if name.endswith(_SHAPE) else info.shape)
        for name, info in header.items()
        if not name.endswith((_DEFLATED, _SCALE))
    )
