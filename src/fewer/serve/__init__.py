"""One address for pictures: OpenAI's images API, ComfyUI's headless subset, a queue and a web page."""

import importlib
from typing import Any

_PUBLIC = {
    "ServeRequest": "fewer.serve.command",
    "build_app": "fewer.serve.app",
    "JobStore": "fewer.serve.job_store",
    "Job": "fewer.serve.job_store",
}

__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fewer.serve' has no attribute {name!r}")
