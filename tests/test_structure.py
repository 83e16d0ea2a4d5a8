"""The house rules that a machine can check: who imports whom, no pickles, file sizes, mirrored tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fewer"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = {"generate", "quantize", "parallel", "learn", "recommend", "stitch"}
# The one file that may open pickles, in a separate process, when the user says --trust-pickle.
PICKLE_DOORS = {SOURCE / "core" / "pickle_door.py"}


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
            if node.module == "fewer":
                names = [f"fewer.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("fewer.")}
    return rooms


def allowed(room: str) -> set[str]:
    if room in ("cli", "compose", "serve", "__main__"):
        return ROOMS | {"kernels", "core", "serve", "cli", "compose"}
    if room in ("parallel", "quantize"):
        return {room, "kernels", "core", "generate"}
    if room in ROOMS:
        return {room, "kernels", "core"}
    return {"kernels", "core"} if room == "kernels" else {"core"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_only_what_the_plan_allows(path: Path) -> None:
    room = room_of(path)
    assert imported_rooms(path) <= allowed(room) | ({"core"} if room == "core" else set())


def test_no_import_uses_dots() -> None:
    relative = [
        f"{path.name}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def forbidden_calls(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(
            a.name.split(".")[0] in ("pickle", "cPickle", "dill", "marshal", "shelve") for a in node.names
        ):
            found.append(f"line {node.lineno}: import of a pickle module")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "pickle",
            "dill",
            "shelve",
        ):
            found.append(f"line {node.lineno}: import from a pickle module")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "torch.load", "yaml.load", "os.system"):
            found.append(f"line {node.lineno}: {name}")
        for keyword in node.keywords:
            risky = keyword.arg in ("allow_pickle", "trust_remote_code", "shell")
            if risky and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                found.append(f"line {node.lineno}: {keyword.arg}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_can_run_code_from_a_file(path: Path) -> None:
    assert path in PICKLE_DOORS or forbidden_calls(ast.parse(path.read_text())) == []


def test_the_check_for_forbidden_calls_can_fail() -> None:
    bad = "import pickle\nimport torch\ntorch.load('x')\nnp.load(f, allow_pickle=True)\neval('1')"
    assert len(forbidden_calls(ast.parse(bad))) == 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short_enough_to_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("utils", "misc", "common", "helpers", "base", "types")


def test_every_source_file_has_a_test_at_the_mirrored_path() -> None:
    missing = []
    for path in FILES:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        relative = path.relative_to(SOURCE)
        mirrored = ROOT / "tests" / relative.parent / f"test_{relative.name.lstrip('_')}"
        if not mirrored.exists():
            missing.append(str(relative))
    assert missing == []


def test_nothing_is_printed_outside_the_two_places() -> None:
    allowed_files = {SOURCE / "cli.py", SOURCE / "core" / "progress.py"}
    printing = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        if path not in allowed_files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_importing_fewer_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, time; began = time.process_time(); import fewer; took = time.process_time() - began; "
        "import fewer.cli; assert not {'torch', 'numpy'} & set(sys.modules); assert took < 0.3, took"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src")
    assert run.returncode == 0, run.stderr
