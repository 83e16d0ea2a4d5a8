import csv
import json
from pathlib import Path

import pytest

from fewer import cli
from fewer.recommend.command_serving import _words
from fewer.recommend.recommender import Recommender


@pytest.fixture
def model(trained: Recommender, tmp_path: Path) -> str:
    return str(trained.save(tmp_path / "model"))


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    code = cli.main(["recommend", *words, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_suggest_answers_one_history_and_says_what_it_skipped(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, said = run(["suggest", "--model", model, "--history", "3, 4,nobody", "--k", "4"], capsys)
    assert code == 0 and len(result["items"]) == 4 and result["unknown"] == 1 and "1 unknown items" in said
    code, result, said = run(["suggest", "--model", model, "--history", "nobody"], capsys)
    assert code == 0 and result["fallback"] and "popularity list (fallback)" in said


def test_suggest_answers_a_file_of_histories(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "h.txt").write_text("3,4\n\n7\n")
    code, result, _ = run(
        ["suggest", "--model", model, "--histories", str(tmp_path / "h.txt"), "--k", "2"], capsys
    )
    assert code == 0 and [s["fallback"] for s in result["suggestions"]] == [False, True, False]


def test_export_and_its_index_serve(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = Recommender.load(model).item_ids
    code, result, _ = run(["export", "--model", model, "--output", model, "--index"], capsys)
    assert code == 0 and result["largest_difference"] < 1e-4
    assert json.loads((tmp_path / "model" / "items.json").read_text())["items"] == ids
    words = ["suggest", "--model", model, "--history", "3,4"]
    _, plain, _ = run(words, capsys)
    _, indexed, _ = run([*words, "--index", result["index"]], capsys)
    assert plain["items"] == indexed["items"]


def test_items_without_interactions_are_added_from_a_table(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = tmp_path / "new.csv", str(tmp_path / "grown")
    table.write_text("item,colour\nfresh,red\n3,blue\n")
    words = ["update", "--model", model, "--output", output]
    code, result, _ = run([*words, "--new-items", str(table)], capsys)
    assert code == 0 and (result["new_items"], result["new_interactions"]) == (1, 0)
    assert Recommender.load(output).suggest([["fresh"]])[0].unknown == 0
    code, _, said = run(words, capsys)
    assert code == 2 and "--new-items" in said


def test_evaluate_prints_the_protocol_and_the_baselines(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "user,item\n"
        + "".join(f"u{u},{1 + (u + s) % 12}\n" for u in range(9) for s in range(4))
        + "u1,alien\n"
    )
    words = ["evaluate", "--model", model, "--data", str(log), "--k", "10"]
    code, result, said = run(words, capsys)
    assert code == 0 and result["protocol"] == "full ranking" and result["users"] == 9
    assert (
        set(result["baselines"]) == {"popularity", "last-item", "markov"}
        and "1 interactions with items" in said
    )
    code, result, said = run([*words, "--sampled", "5"], capsys)
    assert code == 0 and "sampled" in result["protocol"] and "wrongly" in said
    log.write_text("user,item\na,alien\na,alien\na,alien\n")
    assert run(words, capsys)[0] == 3


def test_suggestions_for_many_go_to_a_file(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = tmp_path / "histories.txt"
    histories.write_text("1,2\n\n3,alien\n" + "4\n" * 20)
    words = ["suggest", "--model", model, "--histories", str(histories), "--k", "2", "--output"]
    for name in ("best.csv", "best.jsonl"):
        code, result, said = run([*words, str(tmp_path / name)], capsys)
        assert code == 0 and (result["histories"], result["fallbacks"], result["unknown"]) == (23, 1, 1)
        assert "1 histories with no known item" in said and "history 2" not in said
    rows = list(csv.DictReader((tmp_path / "best.csv").open()))
    lines = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert len(rows) == 46 and [row["fallback"] for row in rows[:4]] == ["false", "false", "true", "true"]
    assert [row["item"] for row in rows[:2]] == lines[0]["items"] and rows[-1]["history"] == "23"


def test_only_line_ends_separate_histories(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes("\ufeff3,4\r\na\u2028b,4\n".encode())
    code, result, _ = run(["suggest", "--model", model, "--histories", str(path)], capsys)
    assert code == 0 and [one["unknown"] for one in result["suggestions"]] == [0, 1]
    path.write_text('"' + "3," * 70_000)
    code, _, said = run(["suggest", "--model", model, "--histories", str(path)], capsys)
    assert code == 2 and "is a quote not closed?" in said


def test_an_id_with_a_comma_stands_in_quotes() -> None:
    assert _words('3, "fig, dried" ,,7') == ["3", "fig, dried", "7"]
    assert _words('3 , a"b,') == ["3", 'a"b'] and _words("") == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["suggest"], 2),
        (["suggest", "--history", "1", "--output", "x.csv"], 2),
        (["suggest", "--histories", "x", "--output", "x.txt"], 2),
        (["suggest", "--history", "1", "--histories", "x"], 2),
        (["suggest", "--history", "1", "--k", "0"], 2),
        (["evaluate", "x.csv", "--sampled", "1000000000"], 2),
        (["suggest", "--histories", "/nowhere"], 4),
        (["suggest", "--history", "1", "--index", "/nowhere"], 4),
    ],
)
def test_wrong_input_has_its_exit_code(
    model: str, words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([words[0], "--model", model, *words[1:]], capsys)[0] == code
