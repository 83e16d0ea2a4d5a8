import json
from pathlib import Path

import pytest

from fewer.bench import NAMES, BenchRequest, bench_command
from fewer.core.config import validate
from fewer.core.errors import ConfigError, FewerError
from fewer.core.progress import SilentProgress

ROOT = Path(__file__).parents[1]
ENGINE = """
import json, sys
words = sys.argv[1:]
open(words[words.index("--output") + 1], "w").write(json.dumps({"words": words[:-2], "median_ms": 3.0}))
"""
OLDER = """
import pathlib
results = pathlib.Path(__file__).parent / "results"
results.mkdir(exist_ok=True)
(results / "older.json").write_text('{"score": 0.5}')
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("engine_linear", ENGINE), ("older", OLDER), ("broken", "raise SystemExit(3)")):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def run(folder: Path, **options: object) -> dict[str, object]:
    request = validate(BenchRequest, {"folder": folder, **options})
    return bench_command(request, SilentProgress())


def test_an_engine_script_gets_its_options_and_its_figures_arrive(folder: Path) -> None:
    target = folder / "figures" / "out.json"
    target.parent.mkdir()
    result = run(folder, name="linear", tiny=True, device="cpu", only="h8", works="4096", output=target)
    expected = {"words": ["--tiny", "--device", "cpu", "--only", "h8", "--works", "4096"], "median_ms": 3.0}
    assert result["figures"] == expected and json.loads(target.read_text()) == expected


def test_another_script_is_known_by_what_it_writes(folder: Path) -> None:
    assert run(folder, name="older")["figures"] == {"older": {"score": 0.5}}
    with pytest.raises(ConfigError, match="takes no --tiny"):
        run(folder, name="older", tiny=True)


def test_device_and_seed_reach_scripts_that_declare_them(folder: Path) -> None:
    script = """
import json, pathlib, sys
# it declares "--seed" and "--device"
to = pathlib.Path(__file__).parent / "results"
to.mkdir(exist_ok=True)
(to / "seeded.json").write_text(json.dumps({"words": sys.argv[1:]}))
"""
    (folder / "seeded.py").write_text(script)
    run(folder, name="seeded", device="cpu", seed=7)
    written = json.loads((folder / "results" / "seeded.json").read_text())
    assert written == {"words": ["--device", "cpu", "--seed", "7"]}
    for option, flag in ({"seed": 7}, "--seed"), ({"dtype": "bf16"}, "--dtype"), ({"tiny": True}, "--tiny"):
        with pytest.raises(ConfigError, match=f"older.py takes no {flag}"):
            run(folder, name="older", **option)


def test_what_is_not_there_or_fails_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no benchmark is called 'nothing'; there are"):
        run(folder, name="nothing")
    with pytest.raises(ConfigError, match="no benchmark is called 'record'") as caught:
        bench_command(BenchRequest(name="record"), SilentProgress())
    assert "quantize_layers" in str(caught.value) and "stopwatch" not in str(caught.value)
    with pytest.raises(FewerError, match=r"broken.py ended with code 3"):
        run(folder, name="broken")
    for name in ("../linear", "/etc/passwd", "a b", ""):
        with pytest.raises(ConfigError, match="name"):
            run(folder, name=name)


def test_the_engines_short_names_lead_to_scripts() -> None:
    engine = [script for script in NAMES.values() if script.startswith("engine_")]
    assert len(engine) == 4
    assert all((ROOT / "benchmarks" / f"{script}.py").is_file() for script in engine)
