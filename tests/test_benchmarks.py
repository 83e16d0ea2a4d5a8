"""Every benchmark says how `make bench` runs it, in arguments that the script knows."""

import ast
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
