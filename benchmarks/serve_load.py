"""Load and faults on `fewer serve`: what is lost, what is doubled, how soon it answers, what it costs.

A stand-in engine takes the model's place (a fixed time a step, a small PNG), so every figure is about the
server and its queue alone.

    python benchmarks/serve_load.py [--clients 200] [--requests 10] [--only queue,server,...]
"""
# bench: cpu, 5 min:

import argparse
import asyncio
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
from record import RESULTS, record
from serve_stand_in import StandIn, free_port

ROOT = Path(__file__).parents[1]


class Server:
    """`fewer serve`'s application on a port, in a process of its own that can be killed."""

    def __init__(
        self, folder: Path, seconds: float, limit: int = 32, workers: int = 2, together: int = 0
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = [folder, self.port, seconds, limit, workers, together]
        command = [sys.executable, str(ROOT / "benchmarks" / "serve_stand_in.py"), *map(str, words)]
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT)
        self._wait(workers)

    def _wait(self, workers: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):  # it does not listen yet
                if self.health()["idle_workers"] + self.health()["running"] >= workers:
                    return
            time.sleep(0.1)
        raise RuntimeError("the server did not start")

    def health(self) -> dict:
        return httpx.get(f"{self.url}/health").json()

    def jobs(self) -> list[dict]:
        return httpx.get(f"{self.url}/jobs?limit=500").json()["jobs"]

    def add(self, prompt: str, steps: int = 2) -> httpx.Response:
        return httpx.post(f"{self.url}/jobs", json={"prompt": prompt, "steps": steps})

    def until_all_ended(self, seconds: float = 120) -> Counter:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            states = Counter(job["state"] for job in self.jobs())
            if not states["queued"] and not states["running"]:
                break
            time.sleep(0.1)
        return states

    def memory(self) -> int:
        """Resident bytes of the server and its workers."""
        here = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in [here, *here.children(recursive=True)])

    def workers(self) -> list[psutil.Process]:
        """Processes that draw (spawned ones; multiprocessing's resource tracker draws nothing)."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def drawn(folder: Path) -> Counter:
    """How often each prompt was drawn to its end, as the engine itself wrote down."""
    log = folder / "log"
    return Counter(log.read_text().split()) if log.exists() else Counter()


async def _client(http: httpx.AsyncClient, number: int, requests: int, waits: list[float]) -> Counter:
    answers: Counter = Counter()
    for request in range(requests):
        body = {"prompt": f"c{number}r{request}", "steps": 1, "seed": number}
        began = time.perf_counter()
        once = {
            "Idempotency-Key": body["prompt"]
        }  # a connection that breaks is tried again without a second job
        while True:
            try:
                answer = await http.post("/v1/images/generations", json=body, headers=once)
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1
                continue
            answers[str(answer.status_code)] += 1
            if answer.status_code != 429:
                break
            await asyncio.sleep(min(2.0, float(answer.headers["retry-after"])) * (0.5 + number % 10 / 10))
        waits.append(time.perf_counter() - began)
    return answers


def probe(url: str) -> None:
    """Asks /health 20 times a second until standard input ends, in a process that does nothing else."""
    times = []
    with httpx.Client(base_url=url, timeout=60) as http:
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            began = time.perf_counter()
            http.get("/health").raise_for_status()
            times.append(time.perf_counter() - began)
    print(json.dumps(times))


def load(clients: int, requests: int) -> dict[str, object]:
    """Many clients at once; a refused one comes back after Retry-After."""

    async def run(url: str) -> tuple[Counter, list[float]]:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        waits: list[float] = []
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
            counts = await asyncio.gather(*(_client(http, n, requests, waits) for n in range(clients)))
        return sum(counts, Counter()), waits

    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), 0.0)
        asyncio.run(run_warm(server.url))
        before = server.memory()
        began = time.perf_counter()
        prober = subprocess.Popen(
            [sys.executable, __file__, "--probe", server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        os.nice(
            5
        )  # the clients should not take the server's processor; elsewhere they would be other machines
        answers, waits = asyncio.run(run(server.url))
        health = json.loads(prober.communicate(b"end")[0])
        seconds = time.perf_counter() - began
        after = server.memory()
        counts = drawn(server.folder)
        counts.pop("warm", None)
        server.stop()
    wanted = {f"c{client}r{request}" for client in range(clients) for request in range(requests)}
    return {
        "clients": clients, "requests_each": requests, "seconds": round(seconds, 2),
        "answers": dict(sorted(answers.items())),
        "lost": len(wanted - set(counts)), "doubled": sum(count > 1 for count in counts.values()),
        "health_ms": _spread(health), "wait_ms": _spread(waits),
        "memory_before_mb": round(before / 2**20, 1), "memory_after_mb": round(after / 2**20, 1),
        "memory_growth_mb": round((after - before) / 2**20, 1),
    }  # fmt: skip


async def run_warm(url: str) -> None:
    """What a server allocates once, before memory is measured."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for _ in range(20):
            await http.post("/v1/images/generations", json={"prompt": "warm", "steps": 1})


def full_queue() -> dict[str, object]:
    """The 33rd waiting job, 30 times over."""
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), 30.0)
        accepted = sum(server.add(f"j{n}", 200).status_code == 202 for n in range(2))
        while server.health()["running"] < 2:
            time.sleep(0.05)
        accepted += sum(server.add(f"q{n}").status_code == 202 for n in range(32))
        times, statuses = [], Counter()
        with httpx.Client(base_url=server.url) as http:
            for _ in range(30):
                began = time.perf_counter()
                answer = http.post("/v1/images/generations", json={"prompt": "one too many"})
                times.append(time.perf_counter() - began)
                statuses[answer.status_code] += 1
        server.process.kill()
        server.process.wait()
    return {"accepted": accepted, "answers": dict(statuses), "refusal_ms": _spread(times)}


def server_killed() -> dict[str, object]:
    """kill -9 with 2 running and 20 waiting jobs, then a new server on the same folder."""
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), 20.0)
        for number in range(22):
            assert server.add(f"k{number}").status_code == 202
        while server.health()["running"] < 2:
            time.sleep(0.02)
        at_kill = server.health()
        server.stop(signal.SIGKILL)
        began = time.perf_counter()
        server = Server(Path(name), 0.01)
        states = server.until_all_ended()
        seconds = time.perf_counter() - began
        jobs, counts = server.jobs(), drawn(server.folder)
        server.stop()
    return {
        "running_at_kill": at_kill["running"], "queued_at_kill": at_kill["queued"], "states": dict(states),
        "jobs_in_history": len(jobs), "drawn_to_the_end_once": sum(count == 1 for count in counts.values()),
        "doubled": sum(count > 1 for count in counts.values()),
        "seconds_from_restart_to_last_end": round(seconds, 2),
    }  # fmt: skip


def worker_killed() -> dict[str, object]:
    """kill -9 of a drawing worker: how soon its job is drawn again, by a new one, beside the other."""
    backs, states = [], Counter()
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), 0.5)
        for attempt in range(5):
            server.add(f"w{attempt}a", 8)
            server.add(f"w{attempt}b", 8)
            while server.health()["running"] < 2:
                time.sleep(0.02)
            began = time.perf_counter()
            server.workers()[0].kill()
            time.sleep(0.05)
            while _able(server.health()) < 2 and time.perf_counter() - began < 60:
                time.sleep(0.02)
            backs.append(time.perf_counter() - began)
            states = server.until_all_ended()
        counts = drawn(server.folder)
        server.stop()
    return {"kills": 5, "back_seconds": [round(back, 2) for back in backs], "states": dict(states),
            "doubled": sum(count > 1 for count in counts.values())}  # fmt: skip


def _able(health: dict) -> int:
    return health["running"] + health["idle_workers"]


def out_of_memory() -> dict[str, object]:
    """100 failures in a row, then a good picture."""
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), 0.0, workers=1)
        with httpx.Client(base_url=server.url, timeout=60) as http:

            def ask(prompt: str) -> int:
                return http.post("/v1/images/generations", json={"prompt": prompt}).status_code

            for _ in range(10):
                ask("out of memory")
            before = server.memory()
            statuses = Counter(ask("out of memory") for _ in range(100))
            after, good = server.memory(), ask("small")
        restarts = httpx.get(f"{server.url}/metrics").text.splitlines()[-1]
        server.stop()
    return {"failures": dict(statuses), "then": good, "memory_growth_mb": round((after - before) / 2**20, 2),
            "restarts": restarts}  # fmt: skip


def overhead(pictures: int = 60) -> dict[str, object]:
    """One picture through the server and the same engine called directly, taken in turn."""
    direct, served = [], []
    request = {"generate": {"prompt": ["one"], "steps": 20, "seed": 0}}
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), 0.002, workers=1)
        engine = StandIn({"seconds": 0.002, "log": str(Path(name) / "direct")})
        with httpx.Client(base_url=server.url, timeout=60) as http:
            for _ in range(pictures):
                began = time.perf_counter()
                list(engine.run(request))
                direct.append(time.perf_counter() - began)
                began = time.perf_counter()
                http.post("/v1/images/generations", json={"prompt": "one", "steps": 20}).raise_for_status()
                served.append(time.perf_counter() - began)
        server.stop()
    extra = statistics.median(served) - statistics.median(direct)
    return {
        "library_ms": _spread(direct),
        "server_ms": _spread(served),
        "overhead_ms": round(extra * 1000, 2),
    }


def batches(bursts: int = 20) -> dict[str, object]:
    """Eight requests at once, again and again, to an engine that draws alike ones side by side, and to one
    that does not. The engine sleeps as long as Sana 0.6B at 256 px takes on one H100: what the server makes
    of such a GPU, its own time included."""

    async def run(url: str) -> float:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            began = time.perf_counter()
            for burst in range(bursts):
                bodies = [{"prompt": f"b{burst}r{number}"} for number in range(8)]
                asked = [http.post("/v1/images/generations", json=body) for body in bodies]
                for answer in await asyncio.gather(*asked):
                    answer.raise_for_status()
            return (time.perf_counter() - began) / bursts

    seconds: dict[int, float] = {}
    for together in (1, 8):
        with tempfile.TemporaryDirectory() as name:
            server = Server(Path(name), 0.0, workers=1, together=together)
            asyncio.run(run_warm(server.url))
            seconds[together] = asyncio.run(run(server.url))
            server.stop()
    return {
        "engine": "sleeps 34.0 + 6.04 n ms for n pictures: Sana 0.6B, 256 px, one H100 (engine_batching)",
        "bursts_of_eight": bursts, "one_by_one_ms": round(seconds[1] * 1000, 1),
        "together_ms": round(seconds[8] * 1000, 1), "times_faster": round(seconds[1] / seconds[8], 2),
    }  # fmt: skip


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(value * 1000 for value in seconds)
    at = {"p50": 0.5, "p99": 0.99}
    facts = {name: round(ordered[min(len(ordered) - 1, int(len(ordered) * q))], 2) for name, q in at.items()}
    return facts | {"max": round(ordered[-1], 2), "count": len(ordered)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--only", default="queue,server,worker,memory,overhead,batches,load")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.probe:
        probe(wanted.probe)
        return
    parts = {
        "queue": full_queue, "server": server_killed, "worker": worker_killed, "memory": out_of_memory,
        "overhead": overhead, "batches": batches, "load": lambda: load(wanted.clients, wanted.requests),
    }  # fmt: skip
    path = RESULTS / "serve_load.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    figures: dict[str, object] = {name: before[name] for name in parts if name in before}
    figures["engine"] = "stand-in: the figures are about the server, not a model"
    for name in wanted.only.split(","):
        figures[name] = {**parts[name](), "load_average": round(os.getloadavg()[0], 1)}
        print(name, figures[name], flush=True)
        record("serve_load", figures)


if __name__ == "__main__":
    main()
