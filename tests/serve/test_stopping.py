"""Signals, to a whole server of its own process group: the first ends it in order, nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from fewer.serve.job_store import JobStore

from .test_queue_api import add, wait_for

SERVER = """
import sys
from pathlib import Path
from fewer.serve.app import build_app
from fewer.serve.command import address_of, listening
from fewer.serve.job_store import JobStore
from fewer.serve.results import Results
from fewer.serve.stopping import run_until_stopped
from fewer.serve.workers import Workers

def main():
    folder, grace = Path(sys.argv[1]), float(sys.argv[2])
    store, results = JobStore(folder / "jobs.sqlite"), Results(folder / "results")
    workers = Workers(store, results, "tests.serve.engines:quick", {"seconds": 0.1, "log": None})
    workers._grace = grace
    listener = listening("127.0.0.1", 0)
    app = build_app(store, results, workers)
    print(address_of(listener), flush=True)
    run_until_stopped(app, listener)

if __name__ == "__main__":
    main()
"""


def start(folder: Path, grace: float) -> tuple[subprocess.Popen, httpx.Client]:
    (folder / "server.py").write_text(SERVER)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(folder / "server.py"), str(folder), str(grace)],
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, httpx.Client(base_url=process.stdout.readline().strip(), timeout=60)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_though_clients_wait_and_no_job_is_lost_or_blamed(
    tmp_path: Path, number: int
) -> None:
    process, client = start(tmp_path, grace=0.5)
    running, waiting = add(client, "long", steps=200), add(client, "waits")
    wait_for(client, running, "running")
    children = psutil.Process(process.pid).children(recursive=True)
    with client.stream("GET", f"/jobs/{running}/events") as answer:
        began = time.monotonic()
        os.killpg(process.pid, number)  # Ctrl-C reaches everybody in the terminal
        assert "event: stopping" in "".join(answer.iter_text())
    output = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 20 and process.returncode in (0, -number, 1)
    assert not psutil.wait_procs(children, timeout=10)[1], "nobody is left behind"
    assert "worker_main" not in output and "SpawnProcess" not in output, "only the server hears the signal"
    store = JobStore(tmp_path / "jobs.sqlite")
    kept = [store.get(job) for job in (running, waiting)]
    assert [(job.state, job.attempts) for job in kept if job] == [("queued", 0), ("queued", 0)]
