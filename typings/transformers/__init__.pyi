"""What the checker of types knows of transformers: nothing. It would read 3,000 modules for nine names."""

from typing import Any

def __getattr__(name: str) -> Any: ...
