"""How a result is shown to people: what stands on a line, and what gets lines of its own."""

from collections.abc import Mapping


def parts_of(value: object) -> list[tuple[str, object]]:
    """The rows of a table within the table: several mappings, by name or by number."""
    named = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value, 1)
        if isinstance(value, list)
        else ()
    )
    rows = [(str(name), part) for name, part in named]
    return rows if all(isinstance(part, Mapping) for _, part in rows) else []


def readable(value: object) -> str:
    """The value on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(readable(item) for item in value)
    if isinstance(value, Mapping):
        return "  ".join(f"{key}={readable(item)}" for key, item in value.items())
    return str(value)
