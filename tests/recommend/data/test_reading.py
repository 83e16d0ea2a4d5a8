import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from fewer.core.errors import ConfigError, DataError, FewerError, FileError
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.reading import Columns, column_names, read_interactions, table_columns

ROWS = [("u1", "apple", 30.0), ("u2", "pear", 10.0), ("u1", "pear", 20.0), ("u2", "fig, dried", 15.0)]


def histories(made: Interactions) -> dict[str, list[str]]:
    return {
        name: [made.item_ids[i - 1] for i in made.history(user)] for user, name in enumerate(made.user_ids)
    }


WANTED = {"u1": ["pear", "apple"], "u2": ["pear", "fig, dried"]}


def write(folder: Path, kind: str) -> Path:
    path = folder / f"log.{kind}"
    users, items, times = (list(column) for column in zip(*ROWS, strict=True))
    if kind == "parquet":
        parquet.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
        return path
    texts = {
        "csv": "user_id,item_id,rating,timestamp\n" + "".join(f'{u},"{i}",5,{t}\n' for u, i, t in ROWS),
        "tsv": "user\titem\ttime\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in ROWS),
        "inter": "user_id:token\titem_id:token\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in ROWS),
        "jsonl": "".join(f'{{"user": "{u}", "item": "{i}", "ts": {t}}}\n' for u, i, t in ROWS),
    }
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(texts[kind.removesuffix(".gz")].encode()))
    else:
        path.write_text(texts[kind])
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "inter", "jsonl", "parquet", "csv.gz"])
def test_every_format_gives_the_same_histories(tmp_path: Path, kind: str) -> None:
    assert histories(read_interactions(write(tmp_path, kind))) == WANTED


@pytest.mark.parametrize("text", ["7 1\n7 2\n8 3\n", "7 1 2\n8 3\n"])
def test_text_of_sasrec_and_of_s3rec(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text)
    assert histories(read_interactions(path)) == {"7": ["1", "2"], "8": ["3"]}


def test_dates_are_times_and_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("who,what,when\na,late,2024-05-02\na,early,2024-05-01\n")
    made = read_interactions(path, Columns(user="who", item="what", time="when"))
    assert histories(made) == {"a": ["early", "late"]}
    assert made.times is not None and made.times[1] - made.times[0] == 86400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user,item,time\na,b,1\na,c,soon\n", r"log.csv, line 3, column 'time': 'soon'"),
        ("user,item,time\na,b,1\na,c,nan\n", r"log.csv, line 3, column 'time'"),
        ("user,item,time\na,b,1\na,c,\n", r"log.csv, line 3, column 'time'"),
        ("user,item\na,b\n,c\n", r"log.csv, line 3, column 'user': empty"),
        ("user,item\na,b\nc,  \n", r"log.csv, line 3, column 'item': empty"),
        ('user,item\na,"b\nc,d\n', r"log.csv, line 2, column 'item': an id of several lines"),
        ("user,item,item\na,b,c\n", r"log.csv, line 1: column 'item' occurs 2 times"),
        ("user,item,time\na,b,2024-05-01T00:00:00Z\na,c,2024-05-01T00:00:00\n", r"line 2, column 'time'"),
        ("person,item\na,b\n", r"log.csv, line 1: no user column"),
        ("user,thing\na,b\n", r"log.csv, line 1: no item column"),
        ("user,item\na,b,c\n", r"cannot be read as csv"),
        ("", r"cannot be read as csv|no user column"),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=said):
        read_interactions(path)


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, content in (
        ("log.xlsx", b"PK"),
        ("log.parquet", b"no"),
        ("log.csv", b"\xff\xfe\x00user"),
        ("a.txt", b"1\n"),
        ("typeless.inter", b"user_id\titem_id\n1\t2\n"),
        ("mistyped.inter", b"user_id:token\titem_id:tokn\n1\t2\n"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FewerError):
            read_interactions(path)
    with pytest.raises(FileError, match="line 1, column 2: 'item_id:tokn' is not field:type"):
        read_interactions(path)
    with pytest.raises(FileError) as missing:
        read_interactions(tmp_path / "nothing.csv")
    assert missing.value.exit_code == 4
    (tmp_path / "header.csv").write_text("user,item\n")
    with pytest.raises(DataError, match="no interactions"):
        read_interactions(tmp_path / "header.csv")


def test_one_column_cannot_have_two_roles() -> None:
    with pytest.raises(ConfigError, match="a column of its own"):
        column_names("a", "a", None)
    assert column_names("a", "b", None) == Columns(user="a", item="b")


def test_item_tables_keep_their_item_column(tmp_path: Path) -> None:
    path = tmp_path / "x.item"
    path.write_text("item_id:token\tclass:token_seq\n1\tdrama war\n")
    columns, item = table_columns(path)
    assert item == "item_id:token" and columns["class:token_seq"] == ["drama war"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-05-01T00:00:01Z\n2024-05-01T00:00:00Z", 1.0),
        ("2024-05-01 02:00:00+02:00\n2024-04-30 23:59:00+00:00", 60.0),
        ("2024-05-01T00:00:00.25\n2024-05-01", 0.25),
        (" 7 \n5", 2.0),
        ("9999-01-02\n9999-01-01", 86400.0),
    ],
)
def test_times_of_every_usual_spelling_are_understood(tmp_path: Path, text: str, seconds: float) -> None:
    late, early = text.split("\n")
    (tmp_path / "log.csv").write_text(f"user,item,time\na,late,{late}\na,early,{early}\n")
    made = read_interactions(tmp_path / "log.csv")
    assert histories(made) == {"a": ["early", "late"]}
    assert made.times is not None and made.times[1] - made.times[0] == pytest.approx(seconds)


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_other_separators_are_told_by_the_header(tmp_path: Path, sign: str) -> None:
    (tmp_path / "log.csv").write_text(f"user{sign}item\nu1{sign} pear \nu1{sign}fig, dried\n")
    assert histories(read_interactions(tmp_path / "log.csv")) == {"u1": ["pear", "fig, dried"]}


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([1577934245123456789, 2], pa.timestamp("ns")), 1577934245.123456),
        (pa.array([1, 2], pa.timestamp("s", tz="Europe/Berlin")), 2.0),
        (pa.array([1, 2], pa.date32()), 172800.0),
    ],
)
def test_times_of_a_table_may_be_of_any_precision(tmp_path: Path, column: pa.Array, wanted: float) -> None:
    parquet.write_table(pa.table({"user": [1, 1], "item": [1, 2], "time": column}), tmp_path / "log.parquet")
    times = read_interactions(tmp_path / "log.parquet").times
    assert times is not None and times[-1] == pytest.approx(wanted, abs=1e-6)


def test_whole_numbers_that_became_floats_are_whole_again(tmp_path: Path) -> None:
    table = pa.table({"user": [1e9, 2.0], "item": [123456789.0, 1.0]})
    parquet.write_table(table, tmp_path / "log.parquet")
    assert histories(read_interactions(tmp_path / "log.parquet")) == {"1000000000": ["123456789"], "2": ["1"]}
    assert table_columns(tmp_path / "log.parquet")[0]["item"] == ["123456789", "1"]


@pytest.mark.parametrize(
    "column", [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"\xff"]), pa.array([1], pa.time32("s"))]
)
def test_a_column_that_holds_no_ids_or_times_is_named(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "log.parquet"
    if not pa.types.is_time(column.type):
        parquet.write_table(pa.table({"user": [1], "item": column}), path)
        with pytest.raises(FileError, match=r"log.parquet, column 'item'.*is no id"):
            read_interactions(path)
    parquet.write_table(pa.table({"user": [1], "item": [1], "time": column}), path)
    with pytest.raises(FileError, match=r"log.parquet, column 'time'.*is no time"):
        read_interactions(path)


def test_half_an_archive_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"user,item\n" + b"a,b\n" * 1000)[:-9])
    with pytest.raises(FileError, match=r"log.csv.gz: cannot be read"):
        read_interactions(tmp_path / "log.csv.gz")
    with pytest.raises(FileError, match="a folder") as caught:
        read_interactions(tmp_path)
    assert caught.value.exit_code == 2


def test_a_name_of_any_encoding_is_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xfcg.csv"))
    path.write_text("user,item\na,b\n")
    assert histories(read_interactions(path)) == {"a": ["b"]}


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_floats_that_lost_digits_are_no_ids(tmp_path: Path, kind: pa.DataType) -> None:
    """Two ids of 20 digits would be one."""
    path = tmp_path / "log.parquet"
    ids = pa.array([1.0, 2.5, float("nan"), 2.0**60], kind)
    parquet.write_table(pa.table({"user": ids[:2], "item": ["a", "b"]}), path)
    assert read_interactions(path).user_ids == ("1", "2.5")
    for rows, said in ((ids[:3], "line 3.*empty"), (ids[3:], "line 1.*lost digits")):
        parquet.write_table(pa.table({"user": rows, "item": ["a"] * len(rows)}), path)
        with pytest.raises(FileError, match=said):
            read_interactions(path)
    lines = tmp_path / "log.jsonl"
    lines.write_text('{"user": 18446744073709551615, "item": "a"}\n')
    with pytest.raises(FileError, match="ids as text"):
        read_interactions(lines)


@pytest.mark.parametrize(
    "times",
    [
        pa.array([1_700_000_000_000_002_001, 1_700_000_000_000_001_001]),
        pa.array([2**64 - 1, 1], pa.uint64()),
        pa.array(["2024-01-02", "2024-01-01"]).dictionary_encode(),
    ],
)
def test_nanoseconds_and_categories_are_times(tmp_path: Path, times: pa.Array) -> None:
    path = tmp_path / "log.parquet"
    parquet.write_table(pa.table({"user": ["u", "u"], "item": ["late", "early"], "time": times}), path)
    assert histories(read_interactions(path)) == {"u": ["early", "late"]}
