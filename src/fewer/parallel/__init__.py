"""One image on several devices: exact where the model allows it, displaced (DistriFusion) where it must be.

`parallelize(module, plan)` wraps a model from outside, without touching it or its tensor names.
"""

import importlib
from typing import Any

_PUBLIC = {
    "ParallelPlan": "fewer.parallel.plan",
    "choose_plan": "fewer.parallel.plan",
    "parallelize": "fewer.parallel.attach",
    "Group": "fewer.parallel.group",
    "GroupFailed": "fewer.parallel.group",
    "ProcessGroup": "fewer.parallel.process_group",
    "run_simulated": "fewer.parallel.simulated",
    "run_on_devices": "fewer.parallel.launch",
}

__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fewer.parallel' has no attribute {name!r}")
