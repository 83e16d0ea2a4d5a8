"""Every benchmark says how `make bench` runs it, in arguments that the script knows."""

import argparse
import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
# Helpers of other scripts that happen to be programs too.
NOT_BENCHMARKS = {"serve_stand_in"}
MARK = re.compile(
    r"^# bench: (?:(?:cpu|gpu), \d+ min:(?: (?P<arguments>\S.*))?|by hand: \S.*)$", re.MULTILINE
)
PROGRAMS = sorted(
    path for path in FOLDER.glob("*.py") if "__main__" in path.read_text() and path.stem not in NOT_BENCHMARKS
)


def options(source: str) -> tuple[set[str], set[str]]:
    """The flags that a script's parsers know, and those that it requires."""
    known, required = set[str](), set[str]()
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"):
            continue
        names = {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
        known |= names | {name.replace("--", "--no-") for name in names if "Boolean" in ast.unparse(node)}
        if any(word.arg == "required" and ast.unparse(word.value) == "True" for word in node.keywords):
            required |= names
    return known, required


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_make_bench_can_run_it(path: Path) -> None:
    source = path.read_text()
    marks = list(MARK.finditer(source))
    assert len(marks) == 1, f"{path.name} needs one line '# bench: cpu, 3 min: ARGUMENTS'"
    if "by hand" in marks[0][0]:
        return
    given = set(re.findall(r"--[a-z][a-z-]*", marks[0]["arguments"] or ""))
    known, required = options(source)
    # A script whose options another file reads (stopwatch.options) cannot be checked here.
    assert given <= known or not known
    assert required <= given, f"make bench must give {required - given}"


def test_a_filter_that_leaves_nothing_is_an_error_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    stopwatch = importlib.import_module("stopwatch")
    target = tmp_path / "figures.json"
    given = argparse.Namespace(works="8", only="nobody", tiny=True, device="cpu", output=target)
    for nothing in ({}, {"requests": 8}, {"8 px": {"contenders": {}, "floor_ms": 1.0}}):
        with pytest.raises(SystemExit) as stop:
            stopwatch.finish("x", nothing, given)
        assert stop.value.code == 2 and "'nobody'" in capsys.readouterr().err and not target.exists()
    stopwatch.finish("x", {"8 px": {"contenders": {"us": {"skipped": "needs a GPU"}}}}, given)
    assert json.loads(target.read_text())["tiny"]


def test_results_stay_small_and_say_the_same() -> None:
    spec = importlib.util.spec_from_file_location("record", FOLDER / "record.py")
    assert spec is not None and spec.loader is not None
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    facts = {
        "times": [i / 7 for i in range(100)],
        "rows": [{"name": f"é {i}", "bytes": 10**12 + i, "mean": 1e9 / 3, "none": None} for i in range(9)],
        "empty": [{}, []],
    }
    text = record.readable(facts)
    assert max(map(len, text.splitlines())) <= 111  # a comma may follow
    assert len(text) < len(json.dumps(facts, indent=1)) / 1.5
    found = json.loads(text)
    assert found["times"] == pytest.approx(facts["times"], rel=1e-5)
    assert [row["bytes"] for row in found["rows"]] == [10**12 + i for i in range(9)]
    assert found["rows"][8]["mean"] == pytest.approx(1e9 / 3, rel=1e-9) and found["empty"] == [{}, []]
