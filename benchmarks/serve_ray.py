"""Two replicas of `fewer serve` under Ray Serve; one is killed with -9 while clients ask. Needs fewer[ray].

Clients retry what fails with the same Idempotency-Key. A stand-in engine takes the model's place: the figures
are about the queue and Ray, not a model.

    python benchmarks/serve_ray.py
"""
# bench: by hand: needs fewer[ray]

import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import ray
from ray import serve
from record import record
from serve_stand_in import free_port, stand_in_app

from fewer.serve.command import ServeRequest
from fewer.serve.limits import Gate
from fewer.serve.ray_app import deployment

CLIENTS, REQUESTS = 8, 10


def build(request: ServeRequest, gate: Gate):  # gives a FastAPI
    """Runs in each replica."""
    return stand_in_app(request.data, 0.05, request.queue_limit, 1)


async def client(http: httpx.AsyncClient, number: int, answers: Counter, jobs: set[str]) -> None:
    """Asks until each of its requests has its picture."""
    for request in range(REQUESTS):
        key = f"c{number}r{request}"
        while True:
            try:
                answer = await http.post(
                    "/v1/images/generations",
                    json={"prompt": key, "steps": 5},
                    headers={"Idempotency-Key": key},
                )
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1
            else:
                answers[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    jobs.add(answer.headers["x-fewer-job"])
                    break
            await asyncio.sleep(0.5)


async def run(url: str) -> tuple[Counter, set[str], int, float]:
    """The load, and the kill after a third of it."""
    answers: Counter = Counter()
    jobs: set[str] = set()
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        tasks = [asyncio.create_task(client(http, number, answers, jobs)) for number in range(CLIENTS)]
        while len(jobs) < CLIENTS * REQUESTS // 3:
            await asyncio.sleep(0.05)
        replicas = [one for one in psutil.process_iter() if "ServeReplica" in _name(one)]
        os.kill(replicas[0].pid, signal.SIGKILL)
        began = time.perf_counter()
        await asyncio.gather(*tasks)
        return answers, jobs, len(replicas), time.perf_counter() - began


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        port = free_port()
        ray.init(include_dashboard=False, log_to_driver=False, num_cpus=2, object_store_memory=100 * 2**20)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        request = ServeRequest(data=Path(name), replicas=2)
        serve.run(deployment(serve, request, Gate(), build), name="fewer", route_prefix="/")
        try:
            answers, jobs, replicas, seconds = asyncio.run(run(f"http://127.0.0.1:{port}"))
            drawn = Counter((Path(name) / "log").read_text().split())
        finally:
            serve.shutdown()
            ray.shutdown()
    wanted = {f"c{number}r{request}" for number in range(CLIENTS) for request in range(REQUESTS)}
    figures = {
        "engine": "stand-in: the figures are about the server, not a model",
        "ray": ray.__version__, "replicas": replicas, "requests": len(wanted), "answered": len(jobs),
        "lost": len(wanted - set(drawn)), "drawn_again_after_the_kill": sum(n > 1 for n in drawn.values()),
        "answers": dict(answers), "seconds_from_kill_to_the_last_answer": round(seconds, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(figures)
    record("serve_ray", figures)


if __name__ == "__main__":
    main()
