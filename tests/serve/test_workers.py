"""The whole server killed and started again, and a server whose clients go away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

SERVER = """
import sys
from pathlib import Path
import uvicorn
from fewer.serve.app import build_app
from fewer.serve.job_store import JobStore
from fewer.serve.results import Results
from fewer.serve.workers import Workers

def main():
    folder, port, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    store, results = JobStore(folder / "jobs.sqlite"), Results(folder / "results")
    options = {"seconds": seconds, "log": str(folder / "log")}
    workers = Workers(store, results, "tests.serve.engines:quick", options, 2)
    uvicorn.run(build_app(store, results, workers), port=port, log_level="error")

if __name__ == "__main__":
    main()
"""


def start(folder: Path, port: int, seconds: float) -> subprocess.Popen:
    script = folder / "server.py"
    script.write_text(SERVER)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(port), str(seconds)], env=environment
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").json()["idle_workers"] >= 0:
                return process
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.timeout(180)
def test_killed_and_restarted_every_job_ends_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(tmp_path, port, 0.2)
    jobs = [
        httpx.post(f"{url}/jobs", json={"prompt": f"job-{n}", "steps": 2}).json()["id"] for n in range(12)
    ]
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/health").json()["running"] < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(tmp_path, port, 0.0)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            states = [httpx.get(f"{url}/jobs/{job}").json()["state"] for job in jobs]
            if set(states) == {"done"}:
                break
            time.sleep(0.2)
        assert set(states) == {"done"}
        listed = httpx.get(f"{url}/jobs").json()["jobs"]
        assert sorted(job["id"] for job in listed) == sorted(jobs)
    finally:
        process.terminate()
        assert process.wait(40) in (0, -signal.SIGTERM)


@pytest.mark.timeout(120)
def test_a_client_that_goes_away_stops_its_job(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(tmp_path, port, 0.2)
    try:
        for stream in (False, True):
            body = {"prompt": "gone", "steps": 200, "stream": stream}
            if stream:
                with httpx.stream("POST", f"{url}/v1/images/generations", json=body, timeout=30.0) as answer:
                    next(answer.iter_bytes())  # something came; then the client leaves
            else:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{url}/v1/images/generations", json=body, timeout=2.0)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                newest = httpx.get(f"{url}/jobs").json()["jobs"][0]
                if newest["state"] == "cancelled":
                    break
                time.sleep(0.1)
            assert newest["state"] == "cancelled" and newest["step"] < 100
    finally:
        process.kill()
        process.wait()
