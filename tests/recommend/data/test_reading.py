import gzip
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
