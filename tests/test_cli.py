"""The contract of every verb: exit codes, one JSON object, flags win over TOML."""

import errno
import importlib
import io
import json
import os
import resource
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

from fewer import __main__, cli


def test_json_is_exactly_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    captured = capsys.readouterr()
    assert "python" in json.loads(captured.out)
    assert cli.main(["info"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "python" in captured.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nonsense"], 2, "allowed: "),
        (["recommend", "sugest"], 2, "perhaps you meant 'recommend suggest'"),
        (["info", "--nonsense", "3"], 2, "--nonsense"),
        (["info", "--config"], 2, "path of a TOML"),
        (["info", "--config", "/nowhere.toml"], 4, "not there"),
    ],
)
def test_wrong_input_is_one_helpful_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_room_tells_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["learn", "--help"]) == 0
    said = capsys.readouterr().out
    assert "learn distill" in said and "generate" not in said


def test_an_option_that_is_not_known_is_named_beside_settings(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["learn", "invariant", "--data", "x", "--output", "y", "--target", "z", "--bogus", "1"]
    assert cli.main(words) == 2
    assert "--bogus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "package", "advice"),
    [
        (["stitch", "frames", "--output", "map"], "cv2", "pip install 'fewer[stitch]'"),
        (["info"], "torch", "pip install torch"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    words: list[str],
    package: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also one that is imported only when the work begins."""
    monkeypatch.setitem(sys.modules, package, None)
    for importer in ("fewer.stitch.panorama", "fewer.stitch.frames.source"):  # earlier tests may have them
        monkeypatch.delitem(sys.modules, importer, raising=False)
    assert cli.main(words) == 4
    assert (
        capsys.readouterr().err.strip().endswith(f"needs the package {package!r}; install it with: {advice}")
    )


def test_toml_sets_and_flags_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
        (tmp_path / name / "model").rename(tmp_path / name / f"model-{name}")
    config = tmp_path / "settings.toml"
    config.write_text(f'models = "{tmp_path / "one"}"\n')
    assert cli.main(["info", "--json", "--config", str(config)]) == 0
    assert "model-one" in json.loads(capsys.readouterr().out)["models"]
    assert cli.main(["info", "--json", "--config", str(config), "--models", str(tmp_path / "two")]) == 0
    assert "model-two" in json.loads(capsys.readouterr().out)["models"]
    config.write_text("modelz = 3\n")
    assert cli.main(["info", "--config", str(config)]) == 2
    assert "modelz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/model.bin"), 2, "'model.bin': No space left"),
        (PermissionError(errno.EACCES, "Permission denied"), 2, "Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), 4, "'b': No such file"),
        (MemoryError(), 5, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses_is_one_line_too(
    raised: BaseException, code: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(request: object, progress: object) -> None:
        raise raised

    monkeypatch.setattr("fewer.core.info.info_command", refuse)
    assert cli.main(["info"]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_ctrl_c_is_one_line_from_the_first_import_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "fewer.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "fewer.cli")
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    assert __main__.main() == 130
    assert capsys.readouterr().err == "fewer: interrupted\n"
    assert 'fewer = "fewer.__main__:main"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for stream, code in ((os.fdopen(writing, "w"), 0), (open("/dev/full", "w"), 2), (None, 0)):  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main([]) == code
        assert cli._print_result({"a": 1}, True) == 0  # nothing is tried again
        if stream is not None:
            stream.close()
    assert "No space left" in capsys.readouterr().err


def test_a_complaint_that_nobody_can_read_changes_neither_exit_code_nor_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["nonsense"]) == 2 and cli._print_result({"a": 1}, False) == 0
    assert capsys.readouterr().out == ""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:  # what stays in the buffer is not tried again at the end
        words = [sys.executable, "-m", "fewer", "nonsense"]
        run = subprocess.run(words, stdout=subprocess.PIPE, stderr=full, env=buffered, check=False)
    assert (run.returncode, run.stdout) == (2, b"")


def test_any_terminal_can_show_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli._print_result({"output": "数/ü \udcfc", "loss": float("nan")}, True) == 0
    assert json.loads(raw.getvalue()) == {"output": "数/ü \udcfc", "loss": None}
    text = io.StringIO()  # knows no encoding
    monkeypatch.setattr(sys, "stdout", text)
    assert cli._print_result({"a": "ü"}, True) == 0 and text.getvalue() == '{"a": "ü"}\n'


def test_help_is_shown_by_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli._write_out("ü") == 0 and raw.getvalue().endswith(b"\\xfc\n")


def test_every_verb_leads_to_a_request_and_a_function() -> None:
    import importlib

    for name, verb in cli.VERBS.items():
        module = importlib.import_module(verb.module)
        assert callable(getattr(module, verb.function)), name
        assert hasattr(getattr(module, verb.request), "__dataclass_fields__"), name


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_takes_seed_device_and_dtype(name: str) -> None:
    verb = cli.VERBS[name]
    request = getattr(importlib.import_module(verb.module), verb.request)
    assert {"seed", "device", "dtype"} <= set(request.__dataclass_fields__)


def test_help_and_version_are_quick() -> None:
    for words in (["--version"], []):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            [sys.executable, "-m", "fewer", *words], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time, since tests share the cores; the bar is 0.3 s on a quiet machine.
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert run.stdout.startswith("fewer")
        assert took < 0.6


def test_a_table_within_the_table_has_a_row_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_result(
        {"k": 1, "models": {"a": {"x": 1.5}, "b": {"x": 2}}, "list": [{"y": 3}], "none": []}, False
    )
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["a", "x=1.5"] in lines and ["b", "x=2"] in lines and ["1", "y=3"] in lines and ["none"] in lines
