"""How a request becomes a job, and who may give it up."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from fewer.serve.context import MAX_JOB_BYTES
from fewer.serve.job_store import DISCONNECTED

from .test_queue_api import add, wait_for

URL = "/v1/images/generations"


def test_a_request_too_large_to_be_kept_is_refused(serve) -> None:
    client = serve(start=False)
    node = {"class_type": "VAELoader", "inputs": {"vae_name": "x" * MAX_JOB_BYTES}}
    from .test_comfy_api import graph

    assert client.post("/prompt", json={"prompt": graph() | {"99": node}}).status_code == 413
    assert client.get("/jobs").json()["jobs"] == []


@pytest.mark.timeout(60)
def test_a_job_two_clients_wait_for_outlives_one_of_them_and_a_lost_one_comes_back(listen) -> None:
    url = listen(seconds=0.2)
    body, key = {"prompt": "shared", "steps": 12}, {"idempotency-key": "k"}

    async def both() -> tuple[object, httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            lost = asyncio.create_task(http.post(URL, json=body, headers=key, timeout=1.0))
            kept = asyncio.create_task(http.post(URL, json=body, headers=key))
            return await asyncio.gather(lost, kept, return_exceptions=True)  # pyright: ignore

    lost, kept = asyncio.run(both())
    assert isinstance(lost, httpx.ReadTimeout)
    assert isinstance(kept, httpx.Response) and kept.status_code == 200, (
        "one client's leaving is not another's"
    )

    with httpx.Client(base_url=url, timeout=30) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post(URL, json=body | {"steps": 40}, headers={"idempotency-key": "alone"}, timeout=1.0)
        job = http.get("/jobs").json()["jobs"][0]["id"]
        assert wait_for(http, job, "cancelled")["code"] == DISCONNECTED
        again = http.post("/jobs", json=body | {"steps": 40}, headers={"idempotency-key": "alone"}).json()
        assert again["id"] == job and again["state"] in ("queued", "running"), "its client has come back"
        http.delete(f"/jobs/{job}")
        assert wait_for(http, job, "cancelled")["code"] is None
        once = http.post("/jobs", json=body | {"steps": 40}, headers={"idempotency-key": "alone"}).json()
        assert once["state"] == "cancelled", "what somebody has cancelled stays so"


def test_a_server_that_stops_sends_its_clients_home_and_keeps_their_jobs(serve, tmp_path: Path) -> None:
    client = serve(seconds=0.1)
    running, waiting = add(client, "runs", steps=8), add(client, "waits")
    wait_for(client, running, "running")
    with client.stream("GET", f"/jobs/{waiting}/events") as answer:
        client.app.state.context.workers.begin_stop()
        text = "".join(answer.iter_text())
    assert "event: stopping" in text
    assert client.post("/jobs", json={"prompt": "late"}).status_code == 503
    assert client.get("/health").status_code == 503
    assert wait_for(client, running, "done")
    assert client.get(f"/jobs/{waiting}").json()["state"] == "queued"
    assert json.loads(client.post(URL, json={"prompt": "late"}).text)["error"]["code"] == "stopping"
