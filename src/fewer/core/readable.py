"""How a result is shown: as lines, and lines within lines, to people; as JSON to machines."""

import json
import math
from collections.abc import Mapping
from typing import TypeGuard


def json_line(value: object, encoding: str = "utf-8") -> str:
    """The value as one line of JSON that `encoding` can write. JSON knows no NaN: those figures are null."""
    plain = _plain(value)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(plain, allow_nan=False)
    return text


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "tolist"):  # NumPy's and torch's numbers and arrays
        return _plain(value.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    return str(value)


def parts_of(value: object) -> list[tuple[str, object]]:
    """The rows of a table within the table: several mappings, by name or by number, or those of a matrix,
    with columns that stand below each other."""
    if _is_matrix(value):
        texts = [[readable(cell) for cell in row] for row in value]
        wide = max(len(text) for row in texts for text in row)
        return [
            (str(number), " ".join(text.rjust(wide) for text in row)) for number, row in enumerate(texts, 1)
        ]
    named = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value, 1)
        if isinstance(value, list)
        else ()
    )
    rows = [(str(name), part) for name, part in named]
    return rows if all(isinstance(part, Mapping) for _, part in rows) else []


def _is_matrix(value: object) -> TypeGuard[list[list[int | float]]]:
    rows = value if isinstance(value, list) and len(value) > 1 else []
    return bool(rows) and all(
        isinstance(row, list)
        and row
        and len(row) == len(rows[0])
        and all(isinstance(x, int | float) for x in row)
        for row in rows
    )


def readable(value: object) -> str:
    """The value on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(readable(item) for item in value)
    if isinstance(value, Mapping):
        return "  ".join(f"{key}={readable(item)}" for key, item in value.items())
    return str(value)
