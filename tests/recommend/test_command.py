import json
from pathlib import Path

import pytest

from fewer import cli
from fewer.core.alone import alone_in
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.options import LearningOptions

SMALL = ["--length", "6", "--dim", "8", "--layers", "1", "--batch-size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, planted: Interactions) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = zip(planted.user_codes, planted.items, strict=True)
    path.write_text("user,item\n" + "".join(f"u{u},{planted.item_ids[i - 1]}\n" for u, i in rows))
    return path


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    code = cli.main(["recommend", *words, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_train_writes_a_model_a_report_and_figures(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--data",
        str(log),
        "--output",
        str(tmp_path),
        "--candidates",
        "1",
        "2",
        "--epochs",
        "2",
        "--search-epochs",
        "2",
        "--verify-search",
        *SMALL,
    ]
    code, result, said = run(words, capsys)
    assert code == 0 and 0 <= result["ndcg_at_10"] <= 1 and result["protocol"] == "full ranking"
    assert set(result["baselines"]) == {"popularity", "last-item", "markov"}
    assert result["short_term_length"] in (1, 2) and "repeat an item" in said
    assert Path(result["report"]).read_text().count("<svg") == 2
    assert not list((tmp_path / "checkpoints").glob("*"))
    before = (tmp_path / "model.safetensors").read_bytes()
    for more in ([], ["--resume"]):
        code, _, said = run([*words, *more], capsys)
        assert code == 2 and "holds a finished run" in said
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_an_interrupted_training_is_resumed_and_not_overwritten(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewer.recommend.training import loop

    words = [
        "train",
        "--data",
        str(log),
        "--candidates",
        "1",
        "2",
        "--epochs",
        "3",
        "--search-epochs",
        "1",
        *SMALL,
    ]
    _, whole, _ = run([*words, "--output", str(tmp_path / "whole")], capsys)
    kept = loop._Run.save

    def interrupt(self: object, folder: Path) -> None:
        kept(self, folder)  # pyright: ignore
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "save", interrupt)
    code, _, said = run([*words, "--output", str(tmp_path / "cut")], capsys)
    assert code == 130 and "saved" in said
    monkeypatch.setattr(loop._Run, "save", kept)
    code, _, said = run([*words, "--output", str(tmp_path / "cut")], capsys)
    assert code == 2 and "--resume" in said
    code, _, said = run([*words, "--output", str(tmp_path / "cut"), "--resume", "--seed", "7"], capsys)
    assert code == 2 and "seed = 0, not 7" in said
    code, resumed, _ = run([*words, "--output", str(tmp_path / "cut"), "--resume"], capsys)
    assert code == 0 and resumed["ndcg_at_10"] == whole["ndcg_at_10"] and resumed["epochs"] == whole["epochs"]


@pytest.mark.parametrize("verb", ["train", "search"])
def test_two_runs_do_not_share_a_folder(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    words = [verb, "--data", str(log), "--output", str(tmp_path)]
    with alone_in(tmp_path):
        code, _, said = run(words, capsys)
    assert code == 2 and "another run is writing" in said and not list(tmp_path.iterdir())


def test_search_reports_the_path_and_the_grid(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "search",
        "--data",
        str(log),
        "--candidates",
        "1",
        "2",
        "99",
        "--epochs",
        "2",
        "--verify-search",
        "--grid-epochs",
        "1",
        *SMALL,
    ]
    code, result, said = run(words, capsys)
    assert code == 0 and set(result["probabilities"]) == {"1", "2"} and "[99] exceed" in said
    assert result["rank_in_grid"] in (1, 2) and len(result["grid"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "--data", "/nowhere.csv", "--output", "x"], 4, "no such file"),
        (["train", "LOG", "--output", "x", "--dropout", "1.5"], 2, "dropout"),
        (["train", "LOG", "--output", "x", "--penalty", "nan"], 2, "penalty"),
        (["train", "--output", "x"], 2, "no log was given"),
        (
            ["train", "--data", "LOG", "--output", "x", "--user-column", "item", "--item-column", "item"],
            2,
            "its own",
        ),
        (["train", "--data", "LOG", "--output", "x", "--split", "temporal"], 3, "timestamps"),
        (["train", "--data", "LOG", "--output", "x", "--user-minimum", "99"], 3, "no user has 99"),
        (["update", "--model", "/nowhere", "--data", "LOG", "--output", "x"], 4, "config.json"),
        (["update", "--model", "/nowhere", "--data", "/nowhere.csv", "--output", "x"], 4, "no such file"),
    ],
)
def test_wrong_input_has_its_exit_code(
    log: Path, tmp_path: Path, words: list[str], code: int, said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, error = run([str(log) if word == "LOG" else word for word in words], capsys)
    assert got == code and said in error.splitlines()[-1]


def test_data_options_filter(log: Path) -> None:
    assert LearningOptions(data=log, user_minimum=2, item_minimum=2).read().user_count == 80
