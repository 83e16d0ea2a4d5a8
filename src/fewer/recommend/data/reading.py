"""Reading interaction files: CSV, TSV, Parquet, JSON lines, RecBole's `.inter`, SASRec and S3-Rec text.

Tables are streamed batch by batch through pyarrow; only integer codes and one copy of every distinct id
stay in memory, so that a file larger than memory can be read. An error names file, line and column.
"""

import gzip
import os
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
LARGEST_EXACT = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}  # floats of so many bits skip whole numbers beyond it


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
    _require_file(path, "interactions")
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


def _require_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise FileError(f"{what} {str(path)!r}: a folder; one file is needed")
    if not path.is_file():
        raise FileError(f"{what} {str(path)!r}: no such file", missing=True)


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
    except (pa.ArrowException, OSError) as error:  # a broken .gz is an OSError
        if isinstance(error, FileError):
            raise
        reason = str(error).splitlines()[0][:200]
        raise FileError(f"{path.name}: cannot be read as {kind}: {reason}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _open_batches(path: Path, kind: str) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow as pa

    if kind == "parquet":
        import pyarrow.parquet as parquet

        with pa.OSFile(os.fsencode(path)) as source, parquet.ParquetFile(source) as file:
            yield from file.iter_batches(batch_size=1 << 17)
        return
    with _stream(path) as stream:
        if kind == "jsonl":
            from pyarrow import json

            yield from json.open_json(stream)
            return
        from pyarrow import csv

        with _stream(path) as head:
            first = head.read(1 << 16).split(b"\n", 1)[0].decode().strip("\r\ufeff")
        separator = _separator(first) if kind == "csv" else "\t"
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


def _stream(path: Path) -> "pyarrow.NativeFile":
    """The file's text; as bytes a name may be of any encoding."""
    import pyarrow as pa

    packing = "gzip" if path.name.endswith(".gz") else None
    return pa.input_stream(pa.OSFile(os.fsencode(path)), compression=packing)


def _separator(header: str) -> str:
    """Some programs write `.csv` with another sign than the comma; then the header has no comma."""
    return next((sign for sign in ",;\t|" if sign in header), ",")


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
    names = _distinct(path, batch.schema.names)
    user = _find(path, names, columns.user, USER_NAMES, "user")
    item = _find(path, names, columns.item, ITEM_NAMES, "item")
    time = _find(path, names, columns.time, TIME_NAMES, "time", required=columns.time is not None)
    assert user is not None and item is not None
    ids = [_as_ids(path, line, name, batch.column(name)) for name in (user, item)]
    times = None if time is None else _as_times(path, line, time, batch.column(time))
    collector.add(*ids, times)


def _distinct(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise FileError(f"{path.name}, line 1: column {double!r} occurs {names.count(double)} times")
    return names


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


def _as_ids(path: Path, line: int, name: str, column: "pyarrow.Array") -> list[str]:
    """Ids as text without blanks around them. A cell that is no id is named by its line."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if pa.types.is_floating(column.type):
        column = _whole_again(path, line, name, column)
    try:
        texts = compute.utf8_trim_whitespace(column.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FileError(
            f"{path.name}, column {name!r}: {column.type} is no id; text or numbers are"
        ) from error
    empty = compute.or_kleene(texts.is_null(), compute.equal(texts, "")).fill_null(True)
    for bad, why in (
        (empty, "empty; an id is needed"),
        (compute.match_substring(texts, "\n"), "an id of several lines; is a quote not closed?"),
    ):
        if bad.true_count:
            row = int(np.flatnonzero(bad.to_numpy(zero_copy_only=False))[0])
            raise FileError(f"{path.name}, line {line + row}, column {name!r}: {why}")
    return texts.to_pylist()


def _whole_again(path: Path, line: int, name: str, column: "pyarrow.Array") -> "pyarrow.Array":
    """A table that had gaps holds whole numbers as floats: 1e9 is 1000000000, and what is no number is empty.

    Raises `FileError` where floats have lost digits, so that different ids would be one.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
    large = np.flatnonzero(np.abs(numbers) >= LARGEST_EXACT[column.type.bit_width])
    if len(large):
        raise FileError(
            f"{path.name}, line {line + int(large[0])}, column {name!r}: {numbers[large[0]]:.17g} "
            f"as an id has lost digits ({column.type} keeps too few); write ids as text or as 64-bit integers"
        )
    whole = numbers == np.trunc(numbers)
    texts = compute.if_else(np.isnan(numbers), None, column.cast(pa.string()))
    digits = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
    return compute.if_else(whole, digits, texts)


def _as_times(path: Path, line: int, name: str, column: "pyarrow.Array") -> np.ndarray:
    """Numbers, dates, or text holding either, as float seconds. A bad cell is named by its line."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        if pa.types.is_temporal(column.type):
            times = _seconds(column)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            times = _parse_times(path, line, name, column)
        else:
            # nanoseconds since 1970 need more digits than a float has: the nearest will do
            times = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FileError(
            f"{path.name}, column {name!r}: {column.type} is no time; numbers, dates, or text of either are"
        ) from error
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        shown = column[int(bad[0])].as_py()
        raise FileError(
            f"{path.name}, line {line + int(bad[0])}, column {name!r}: {shown!r} is not a finite time"
        )
    return times


def _seconds(dates: "pyarrow.Array") -> np.ndarray:
    """Since 1970, to the microsecond (what is finer is cut off)."""
    import pyarrow as pa

    whole = dates.cast(pa.timestamp("us", tz=getattr(dates.type, "tz", None)), safe=False).cast(pa.int64())
    return whole.to_numpy(zero_copy_only=False).astype(np.float64) / 1e6


def _parse_times(path: Path, line: int, name: str, column: "pyarrow.Array") -> np.ndarray:
    """Text: numbers, or ISO dates, all of them with a zone (`Z`, `+02:00`) or all without."""
    import pyarrow as pa
    import pyarrow.compute as compute

    column = compute.utf8_trim_whitespace(column)
    for target in (pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", tz="UTC"), pa.timestamp("us")):
        try:
            times = column.cast(target)
        except pa.ArrowInvalid:
            continue
        return times.to_numpy(zero_copy_only=False) if target == pa.float64() else _seconds(times)
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
    _require_file(path, "table")
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("csv", "tsv", "item", "parquet", "jsonl"):
        raise FileError(f"{path.name}: unknown kind of file; allowed: .csv .tsv .item .parquet .jsonl")
    columns: dict[str, list[object]] = {}
    item = ""
    for line, batch in _table_batches(path, "tsv" if kind == "item" else kind):
        names = _distinct(path, batch.schema.names)
        item = _find(path, names, None, ITEM_NAMES, "item") or ""
        for name in names:
            cells = batch.column(name)
            read = _as_ids(path, line, name, cells) if name == item else cells.to_pylist()
            columns.setdefault(name, []).extend(read)
    if not item:
        raise FileError(f"{path.name}: no rows; a header and one row an item are needed")
    return columns, item


def column_names(user: str | None, item: str | None, time: str | None) -> Columns:
    """Checked column names: two roles may not share a column. Raises `ConfigError`."""
    named = [name for name in (user, item, time) if name]
    if len(set(named)) != len(named):
        raise ConfigError(f"columns {', '.join(map(repr, named))}: each role needs a column of its own")
    return Columns(user=user, item=item, time=time)
