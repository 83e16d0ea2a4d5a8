import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.serve.command import ServeRequest, gate_of, read_keys


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
