"""Labels as people write them, by number or by name, and how they say that one is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fewer.core.errors import DataError

UNLABELLED = -1
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")
"""What programs write for a missing value (in any case); it would pass for the name of a class."""


def refuse_missing(name: str, where: str, unlabelled: str = "leave the label empty") -> None:
    """Raises `DataError` when the name of a class is none."""
    if name.lower() in MISSING:
        raise DataError(
            f"{where}: the label {name!r} is what programs write for a missing value; {unlabelled} where the "
            "class is not known, or give the class another name"
        )


def number_labels(
    given: Mapping[str, np.ndarray], names: Sequence[str] | None, source: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels of each split as numbers of classes (int64, -1 where not known), and the classes' names.

    `given` are numbers (-1: not known) or names ("": not known), (n,) or (n, 1). Without `names` the classes
    are the values that occur, in order: 0.0 is the class "0", as 0 is. With `names` numbers are taken as they
    are, and names looked up. Raises `DataError` naming the split of the fault.
    """
    columns = {split: _column(array, f"{source}: {split}_labels") for split, array in given.items()}
    written = any(column.dtype.kind == "U" for column in columns.values())
    if not written and names is not None:
        return {split: column.astype(np.int64) for split, column in columns.items()}, tuple(names)
    if written:
        columns = {split: _as_text(column) for split, column in columns.items()}
    nobody = "" if written else UNLABELLED
    values = np.unique(np.concatenate([*columns.values()])) if columns else np.zeros(0, np.int64)
    known = [value for value in values.tolist() if value != nobody]
    for value in known if written else ():
        refuse_missing(value, source)
    if names is not None and (odd := sorted(set(known) - set(names))):
        raise DataError(f"{source}: label {odd[0]!r} is none of class_names: {', '.join(names[:10])}")
    order = tuple(str(value) for value in known) if names is None else tuple(names)
    places = {name: number for number, name in enumerate(order)}
    numbers = np.array(
        [UNLABELLED if value == nobody else places[str(value)] for value in values.tolist()], dtype=np.int64
    )
    return {split: numbers[np.searchsorted(values, column)] for split, column in columns.items()}, order


def text_of(values: np.ndarray, what: str) -> np.ndarray:
    """Bytes or text as text without blanks around it. Raises `DataError`."""
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{what} is no UTF-8 text ({error.reason})") from error
    return np.char.strip(values.astype(str))


def _column(array: np.ndarray, what: str) -> np.ndarray:
    """One label a picture: text, booleans or int64."""
    if array.ndim > 1 and array.shape[1:] != (1,):
        raise DataError(f"{what} is multi-label (as ChestMNIST); one class a picture is needed")
    array = array.reshape(-1)
    kind = array.dtype.kind
    if kind not in "buifSU":
        raise DataError(f"{what} is of type {str(array.dtype)[:40]}; whole numbers or names are needed")
    if kind in "SU":
        return text_of(array, what)
    if kind == "f" and not (np.isfinite(array).all() and np.array_equal(array, array.round())):
        raise DataError(f"{what} holds NaN, infinity or fractions; whole numbers are needed")
    if kind in "uf" and array.size and np.abs(array).max() >= 2**63:
        raise DataError(f"{what} holds {array[np.abs(array).argmax()]}, which is too large")
    return array if kind == "b" else array.astype(np.int64)


def _as_text(column: np.ndarray) -> np.ndarray:
    return np.array(["" if str(value) == str(UNLABELLED) else str(value) for value in column.tolist()], str)
