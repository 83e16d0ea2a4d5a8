import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx
import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.serve.command import ServeRequest, address_of, gate_of, listening, read_keys


def test_others_are_not_let_in_without_keys_unless_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--api-key-file"):
        gate_of(ServeRequest(host="0.0.0.0"))
    assert gate_of(ServeRequest(host="0.0.0.0", insecure=True)).keys == ()
    keys = tmp_path / "keys"
    keys.write_text("a" * 20 + "\n" + "b" * 20 + "\n")
    assert gate_of(ServeRequest(host="0.0.0.0", api_key_file=keys)).keys == ("a" * 20, "b" * 20)


def test_loopback_needs_no_key_and_names_only_itself() -> None:
    gate = gate_of(ServeRequest(allowed_hosts=("studio.local",)))
    assert gate.keys == () and "studio.local" in gate.hosts and "evil.example" not in gate.hosts


@pytest.mark.parametrize("text", ["", "short", "ключключключключключ"])
def test_bad_key_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(FileError, match="keys"):
        read_keys(tmp_path / "keys")


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="port"):
        validate(ServeRequest, {"port": 70000})


def test_open_to_all_without_keys_no_site_can_rebind_its_name_to_us() -> None:
    gate = gate_of(ServeRequest(host="0.0.0.0", insecure=True))
    assert gate.lets_in("192.168.1.5:8000") and not gate.lets_in("evil.example:8000")
    assert gate_of(ServeRequest(host="::1")).lets_in("[::1]:8000")


def test_an_address_that_is_taken_or_absent_is_said_before_anything_is_loaded() -> None:
    first = listening("127.0.0.1", 0)
    port = first.getsockname()[1]
    assert address_of(first) == f"http://127.0.0.1:{port}", "the port that was found, not 0"
    for host, wanted in (("127.0.0.1", port), ("192.0.2.1", 0), ("no such name", 0)):
        with pytest.raises(ConfigError, match=r"cannot listen on .*--port"):
            listening(host, wanted)
    first.close()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "absent"], 4, "is not there"),
        (["--device", "cuda"], 2, "cuda"),
        (["--data", "/proc/nowhere"], 2, "--data"),
        (["--max-replicas", "3"], 2, "--engine ray"),
        (["--host", "0.0.0.0"], 2, "--api-key-file"),
    ],
)
def test_what_cannot_work_ends_in_one_line(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from fewer.cli import main

    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert main(["serve", "--port", "0", "--data", str(tmp_path), *words]) == code
    line = capsys.readouterr().err.strip().splitlines()
    assert len(line) == 1 and said in line[0]


@pytest.mark.timeout(120)
def test_the_verb_serves_and_sigterm_ends_it_with_zero(tmp_path: Path) -> None:
    from tests.serve.test_workers import free_port

    port = free_port()
    command = [sys.executable, "-m", "fewer", "serve", "--port", str(port), "--data", str(tmp_path)]
    path = str(Path(__file__).parents[2] / "src")
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 80
        while time.monotonic() < deadline:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                time.sleep(0.2)
        assert "<title>fewer</title>" in answer.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(35) == 0
    finally:
        process.kill()
        process.wait()


def test_the_container_file_copies_what_is_there_and_installs_what_is_needed() -> None:
    root = Path(__file__).parents[2]
    text = (root / "Containerfile").read_text()
    let_through = {line[1:] for line in (root / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = [
        word
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert copied and all((root / word).exists() for word in copied)
    assert set(copied) == let_through, "what is copied is not ignored"
    assert "apt-get install --yes --no-install-recommends g++" in text, "hnswlib comes as source"
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = re.findall(r'"\.\[([a-z,]+)\]"', text)[0].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    # transformers asks for accelerate when it reads the text encoder's file, and declares it nowhere.
    assert any(one.startswith("accelerate") for one in project["dependencies"])
