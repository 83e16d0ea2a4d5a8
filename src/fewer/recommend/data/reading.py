"""Reading interaction files: CSV, TSV, Parquet, JSON lines, RecBole's `.inter`, SASRec and S3-Rec text.

Tables are streamed batch by batch through pyarrow; only integer codes and one copy of every distinct id
stay in memory, so that a file larger than memory can be read. An error names file, line and column.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewer.core.errors import ConfigError, FileError
from fewer.recommend.data.interactions import Interactions

if TYPE_CHECKING:
    import pyarrow

USER_NAMES = ("user", "user_id", "userid", "uid", "customer_id", "session_id", "visitorid")
ITEM_NAMES = ("item", "item_id", "itemid", "iid", "product_id", "movie_id", "movieid", "asin", "track_id")
TIME_NAMES = ("time", "timestamp", "ts", "date", "datetime", "unixreviewtime", "created_at")
ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")
MAX_ROWS = 500_000_000
MAX_TEXT_LINE = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the three columns; None means: find it by its usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None


def read_interactions(
    path: Path | str, columns: Columns | None = None, *, deduplicate: bool = False
) -> Interactions:
    """Reads a file of interactions; the ending decides the format.

    `.csv .tsv .inter .parquet .jsonl` are tables with a header, `.txt` is one `user item` (SASRec) or
    `user item item ...` (S3-Rec) a line in time order; `.gz` may follow. Raises `FileError` for a missing
    file, an unknown ending, a missing column or a bad value (with its line), `DataError` for no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"interactions {str(path)!r}: no such file", missing=True)
    collector = _Collector()
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind == "txt":
        for users, items in _text_batches(path):
            collector.add(users, items, None)
    elif kind in ("csv", "tsv", "inter", "parquet", "jsonl"):
        for line, batch in _table_batches(path, kind):
            _add_table(collector, path, line, batch, columns or Columns())
    else:
        raise FileError(
            f"{path.name}: unknown kind of file; allowed: .csv .tsv .inter .parquet .jsonl .txt, .gz"
        )
    return collector.finish(deduplicate)


class _Collector:
    """Turns batches of ids into codes as they come."""

    def __init__(self) -> None:
        self.user_numbers: dict[str, int] = {}
        self.item_numbers: dict[str, int] = {}
        self.users: list[np.ndarray] = []
        self.items: list[np.ndarray] = []
        self.times: list[np.ndarray] = []
        self.rows = 0

    def add(self, users: list[str], items: list[str], times: np.ndarray | None) -> None:
        user_numbers, item_numbers = self.user_numbers, self.item_numbers
        self.users.append(
            np.fromiter((user_numbers.setdefault(u, len(user_numbers)) for u in users), np.int32, len(users))
        )
        self.items.append(
            np.fromiter(
                (item_numbers.setdefault(i, len(item_numbers)) + 1 for i in items), np.int32, len(items)
            )
        )
        if times is not None:
            self.times.append(times)
        self.rows += len(users)
        if self.rows > MAX_ROWS:
            raise FileError(f"more than {MAX_ROWS} interactions; split the file or sample users first")

    def finish(self, deduplicate: bool) -> Interactions:
        nothing = np.zeros(0, dtype=np.int32)
        return Interactions.from_codes(
            np.concatenate([nothing, *self.users]),
            list(self.user_numbers),
            np.concatenate([nothing, *self.items]),
            list(self.item_numbers),
            np.concatenate(self.times) if self.times else None,
            deduplicate=deduplicate,
        )


def _table_batches(path: Path, kind: str) -> "Iterator[tuple[int, pyarrow.RecordBatch]]":
    """(line number of the first row, batch), with every CSV column as text so that we can name bad cells."""
    import pyarrow as pa

    try:
        line = 1 if kind in ("parquet", "jsonl") else 2
        for batch in _open_batches(path, kind):
            yield line, batch
            line += batch.num_rows
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0][:200]
        raise FileError(f"{path.name}: cannot be read as {kind}: {reason}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _open_batches(path: Path, kind: str) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow as pa

    if kind == "parquet":
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1 << 17)
        return
    with pa.input_stream(str(path), compression="detect") as stream:
        if kind == "jsonl":
            from pyarrow import json

            yield from json.open_json(stream)
            return
        from pyarrow import csv

        separator = "," if kind == "csv" else "\t"
        with pa.input_stream(str(path), compression="detect") as head:
            first = head.read(1 << 16).split(b"\n", 1)[0].decode().strip("\r\ufeff")
        names = [name.strip().strip('"') for name in first.split(separator)]
        if kind == "inter":
            _check_atomic_header(path, names)
        yield from csv.open_csv(
            stream,
            parse_options=csv.ParseOptions(delimiter=separator, quote_char='"' if kind == "csv" else False),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
            ),
        )


def _check_atomic_header(path: Path, names: list[str]) -> None:
    """RecBole's atomic files call every column `field:type`. Raises `FileError`."""
    for column, name in enumerate(names, start=1):
        kind = name.partition(":")[2]
        if kind not in ATOMIC_TYPES:
            raise FileError(
                f"{path.name}, line 1, column {column}: {name!r} is not field:type; "
                f"allowed types: {', '.join(ATOMIC_TYPES)}"
            )


def _add_table(
    collector: _Collector, path: Path, line: int, batch: "pyarrow.RecordBatch", columns: Columns
) -> None:
    """One batch of a table into the collector; RecBole's `name:type` headers are understood."""
    names = batch.schema.names
    user = _find(path, names, columns.user, USER_NAMES, "user")
    item = _find(path, names, columns.item, ITEM_NAMES, "item")
    time = _find(path, names, columns.time, TIME_NAMES, "time", required=columns.time is not None)
    assert user is not None and item is not None
    cells = {name: batch.column(name) for name in (user, item)}
    for name, column in cells.items():
        if column.null_count:
            row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
            raise FileError(f"{path.name}, line {line + row}, column {name!r}: empty; an id is needed")
    times = None if time is None else _as_times(path, line, time, batch.column(time))
    collector.add(_as_text(cells[user]), _as_text(cells[item]), times)


def _find(
    path: Path, names: list[str], asked: str | None, usual: tuple[str, ...], what: str, required: bool = True
) -> str | None:
    """The column's full name. `user_id:token` counts as `user_id`."""
    plain = {name.split(":", 1)[0].strip().strip("\ufeff").lower(): name for name in reversed(names)}
    for name in (asked.lower(),) if asked else usual:
        if name in plain:
            return plain[name]
    if not required:
        return None
    wanted = repr(asked) if asked else f"one of {', '.join(usual[:4])}"
    raise FileError(
        f"{path.name}, line 1: no {what} column ({wanted}); the header has "
        f"{', '.join(map(repr, names[:12]))}; name it with --{what}-column"
    )


def _as_text(column: "pyarrow.Array") -> list[str]:
    import pyarrow as pa

    return column.cast(pa.string()).to_pylist()


def _as_times(path: Path, line: int, name: str, column: "pyarrow.Array") -> np.ndarray:
    """Numbers, dates, or text holding either, as float seconds. A bad cell is named by its line."""
    import pyarrow as pa

    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
        times = column.to_numpy(zero_copy_only=False).astype(np.float64) / 1e6
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        times = _parse_times(path, line, name, column)
    else:
        times = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        shown = column[int(bad[0])].as_py()
        raise FileError(
            f"{path.name}, line {line + int(bad[0])}, column {name!r}: {shown!r} is not a finite time"
        )
    return times


def _parse_times(path: Path, line: int, name: str, column: "pyarrow.Array") -> np.ndarray:
    import pyarrow as pa

    for target in (pa.float64(), pa.timestamp("us")):
        try:
            times = column.cast(target)
        except pa.ArrowInvalid:
            continue
        if target == pa.float64():
            return times.to_numpy(zero_copy_only=False)
        return times.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64) / 1e6
    for row, cell in enumerate(column.to_pylist()):
        try:
            float(cell or "nan")
        except ValueError:
            raise FileError(
                f"{path.name}, line {line + row}, column {name!r}: {cell!r} is not a time; "
                "allowed: seconds as a number, or ISO dates in every row"
            ) from None
    raise FileError(f"{path.name}, column {name!r}: times are neither all numbers nor all ISO dates")


def _text_batches(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """`user item` or `user item item ...` a line."""
    opener = gzip.open if path.name.endswith(".gz") else open
    users: list[str] = []
    items: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, text in enumerate(iter(lambda: lines.readline(MAX_TEXT_LINE), ""), start=1):
                words = text.split()
                if len(words) == 1:
                    raise FileError(
                        f"{path.name}, line {number}: 'user item' expected, got {text.strip()[:60]!r}"
                    )
                users.extend(words[:1] * (len(words) - 1))
                items.extend(words[1:])
                if len(users) >= 1 << 17:
                    yield users, items
                    users, items = [], []
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FileError(f"{path.name}: cannot be read as text: {error}") from error
    yield users, items


def table_columns(path: Path) -> tuple[dict[str, list[object]], str]:
    """All columns of a small table (item features) and the name of its item column. Raises `FileError`."""
    if not path.is_file():
        raise FileError(f"table {str(path)!r}: no such file", missing=True)
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("csv", "tsv", "item", "parquet", "jsonl"):
        raise FileError(f"{path.name}: unknown kind of file; allowed: .csv .tsv .item .parquet .jsonl")
    columns: dict[str, list[object]] = {}
    for _, batch in _table_batches(path, "tsv" if kind == "item" else kind):
        for name in batch.schema.names:
            columns.setdefault(name, []).extend(batch.column(name).to_pylist())
    item = _find(path, list(columns), None, ITEM_NAMES, "item")
    assert item is not None
    return columns, item


def column_names(user: str | None, item: str | None, time: str | None) -> Columns:
    """Checked column names: two roles may not share a column. Raises `ConfigError`."""
    named = [name for name in (user, item, time) if name]
    if len(set(named)) != len(named):
        raise ConfigError(f"columns {', '.join(map(repr, named))}: each role needs a column of its own")
    return Columns(user=user, item=item, time=time)
