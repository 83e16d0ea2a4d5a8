import re
import time

import pytest


def wait_for(client, job: str, *states: str, seconds: float = 20.0) -> dict:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        facts = client.get(f"/jobs/{job}").json()
        if facts["state"] in states:
            return facts
        time.sleep(0.02)
    raise AssertionError(f"{job} is {facts['state']}")


def add(client, prompt: str, **more: object) -> str:
    return client.post("/jobs", json={"prompt": prompt, **more}).json()["id"]


def test_a_job_goes_through_and_its_files_can_be_fetched(serve) -> None:
    client = serve()
    facts = wait_for(client, add(client, "a cat", n=2), "done")
    assert facts["steps"] == 3 and len(facts["images"]) == 2 and facts["position"] is None
    assert client.get(facts["images"][1]["url"]).content[:4] == b"\x89PNG"


def test_events_tell_every_step(serve) -> None:
    client = serve(seconds=0.05)
    job = add(client, "a cat", steps=4)
    with client.stream("GET", f"/jobs/{job}/events") as answer:
        text = "".join(answer.iter_text())
    assert text.rstrip().splitlines()[-2] == "event: done"
    assert text.count("event: step") >= 1


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_before_its_next_step(serve, tmp_path) -> None:
    client = serve(seconds=0.3)
    running, waiting = add(client, "long", steps=100), add(client, "never")
    wait_for(client, running, "running")
    for job in (waiting, running):
        assert client.delete(f"/jobs/{job}").json()["cancelled"]
    assert wait_for(client, waiting, "cancelled")["step"] == 0
    assert wait_for(client, running, "cancelled", seconds=5.0)["step"] < 10
    assert not client.delete(f"/jobs/{running}").json()["cancelled"]
    wait_for(client, add(client, "next", steps=1), "done")
    assert (tmp_path / "log").read_text() == "next\n"


def test_an_ended_job_can_be_forgotten_with_its_pictures(serve, tmp_path) -> None:
    client = serve(seconds=0.1)
    done, running = add(client, "private", steps=1), add(client, "runs", steps=100)
    wait_for(client, done, "done")
    wait_for(client, running, "running")
    assert client.delete(f"/jobs/{done}", params={"forget": True}).json()["forgotten"]
    assert client.get(f"/jobs/{done}").status_code == 404 and not (tmp_path / "results" / done).exists()
    told = client.delete(f"/jobs/{running}", params={"forget": True}).json()
    assert told["cancelled"] and not told["forgotten"]


def test_history_is_searched_and_read_page_by_page(serve) -> None:
    client = serve(start=False)
    names = ["a cat", "Ein ÄPFEL-Baum", "a dog", "100%_cat"]
    first, second, third, fourth = (add(client, name) for name in names)

    def found(**asked: object) -> list[str]:
        return [job["id"] for job in client.get("/jobs", params=asked).json()["jobs"]]

    assert found() == [fourth, third, second, first]
    assert found(search="CAT") == [fourth, first] and found(search="äpfel") == [second]
    assert found(search="%_") == [fourth] and found(search="' or 1=1 --") == []
    assert found(limit=2) == [fourth, third] and found(before=third) == [second, first]
    assert found(before=fourth, search="cat") == [first]


def test_reordering(serve) -> None:
    client = serve(start=False)
    jobs = [add(client, str(n)) for n in range(3)]
    assert client.post(f"/jobs/{jobs[2]}/move", json={"position": 0}).json()["position"] == 0
    assert client.get(f"/jobs/{jobs[0]}").json()["position"] == 1
    assert client.post(f"/jobs/{jobs[2]}/move", json={"position": -1}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/jobs/x", f"/jobs/{'0' * 32}", "/files/x/y", f"/files/{'0' * 32}/..%2fjobs.sqlite"]
)
def test_what_is_not_there_or_not_yours_is_not_found(serve, path: str) -> None:
    assert serve(start=False).get(path).status_code == 404


def test_names_of_files_that_are_not_ours_are_refused(serve) -> None:
    client = serve()
    job = add(client, "a")
    wait_for(client, job, "done")
    for name in ("0.png.bak", "..", "jobs.sqlite", "9.png"):
        assert client.get(f"/files/{job}/{name}").status_code in (404, 405)


def test_a_worker_that_dies_is_replaced_and_its_job_tried_again(serve) -> None:
    client = serve()
    assert wait_for(client, add(client, "die once"), "done")["state"] == "done"
    assert "fewer_worker_restarts_total 1" in client.get("/metrics").text


def test_a_job_that_always_kills_its_worker_fails_and_others_are_unharmed(serve) -> None:
    client = serve()
    bad, good = add(client, "die"), add(client, "good")
    assert wait_for(client, bad, "failed", seconds=60.0)["code"] == "worker_died"
    wait_for(client, good, "done", seconds=30.0)


def test_health_counts(serve) -> None:
    client = serve(start=False)
    add(client, "a")
    assert client.get("/health").json() == {"status": "ok", "queued": 1, "running": 0, "idle_workers": 0}


def test_a_result_that_cannot_be_saved_fails_alone(serve, tmp_path) -> None:
    client = serve(seconds=0.05)
    (tmp_path / "results").rmdir()
    (tmp_path / "results").write_text("no folder any more")
    assert wait_for(client, add(client, "a"), "failed")["code"] == "storage"
    (tmp_path / "results").unlink()
    (tmp_path / "results").mkdir()
    wait_for(client, add(client, "b"), "done")


def test_a_queue_that_cannot_be_written_for_a_while_goes_on_afterwards(serve, monkeypatch) -> None:
    import sqlite3

    monkeypatch.setattr("fewer.serve.job_store.LEASE_SECONDS", 0.5)
    client = serve(seconds=0.1)
    store = client.app.state.context.store
    running = add(client, "runs", steps=5)
    wait_for(client, running, "running")
    # A file that may not grow is a full disk.
    store._db.execute("pragma query_only = on")
    answer = client.post("/jobs", json={"prompt": "refused"})
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "storage"
    assert client.delete(f"/jobs/{running}").status_code in (200, 507)
    time.sleep(1.0)
    assert client.get("/health").json()["status"] == "ok", "the supervisor lives"
    store._db.execute("pragma query_only = off")
    assert wait_for(client, running, "done", "cancelled")
    assert wait_for(client, add(client, "next"), "done")
    with pytest.raises(sqlite3.Error):
        store._db.execute("insert into nothing values (1)")


def test_a_cancelled_job_stays_cancelled_though_its_worker_dies_or_does_not_listen(
    serve, monkeypatch
) -> None:
    monkeypatch.setattr("fewer.serve.workers.DEAF_SECONDS", 0.5)
    client = serve(seconds=4.0)  # it hears nothing within a step
    job = add(client, "deaf", steps=3)
    wait_for(client, job, "running")
    time.sleep(0.3)
    began = time.monotonic()
    assert client.delete(f"/jobs/{job}").json()["cancelled"]
    assert wait_for(client, job, "cancelled")["state"] == "cancelled"
    assert time.monotonic() - began < 3.5, "its worker was replaced"
    assert "fewer_worker_restarts_total 1" in client.get("/metrics").text


def test_workers_that_never_start_are_told(serve) -> None:
    client = serve(engine="absent")
    context = client.app.state.context
    context.workers._stillborn = 3
    assert client.get("/health").status_code == 503
    assert client.get("/health").json()["status"] == "no_worker_starts"


def test_metrics_are_prometheus_s_text(serve) -> None:
    client = serve(start=False)
    add(client, "a")
    text = client.get("/metrics").text
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z_]+(\{[a-z]+=\"[a-z]+\"\})? [0-9.e+]+", line), line
    assert 'fewer_jobs{state="queued"} 1' in text and "# TYPE fewer_accepted_total counter" in text


def test_the_page_can_be_asked_for_by_head_alone(serve) -> None:
    assert serve(start=False).head("/").status_code == 200


def test_no_door_shows_or_moves_what_belongs_to_another_key(serve) -> None:
    from .test_comfy_api import graph

    keys = ("a" * 20, "b" * 20)
    client = serve(keys=keys, seconds=0.1)
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in keys)
    secret = graph(steps=200)
    secret["6"]["inputs"]["text"] = "a private matter"
    body = {"prompt": secret, "client_id": "me", "prompt_id": "mine"}
    assert client.post("/prompt", json=body, headers=mine).status_code == 200
    while (running := client.get("/jobs", headers=mine).json()["jobs"][0])["state"] != "running":
        time.sleep(0.05)
    waiting = client.post("/jobs", json={"prompt": "a private matter"}, headers=mine).json()["id"]
    sent = client.post("/uploads?suffix=.png", content=b"private", headers=mine).json()["id"]
    job = running["id"]

    for path in (f"/jobs/{job}", f"/jobs/{job}/events", f"/files/{job}/0.png", f"/view?filename={job}_0.png"):
        answer = client.get(path, headers=theirs)
        assert answer.status_code == 404 and "private" not in answer.text, path
    lists = [
        "/jobs",
        f"/jobs?before={waiting}",
        "/jobs?search=private",
        "/queue",
        "/history",
        "/history/mine",
    ]
    for path in (*lists, f"/history/{job}", "/api/queue", "/prompt", "/metrics", "/health"):
        answer = client.get(path, headers=theirs)
        assert answer.status_code == 200 and "private" not in answer.text and job not in answer.text, path
    assert client.delete(f"/jobs/{waiting}?forget=true", headers=theirs).status_code == 404
    assert client.post(f"/jobs/{waiting}/move", json={"position": 0}, headers=theirs).status_code == 404
    assert client.delete(f"/uploads/{sent}", headers=theirs).status_code == 404
    assert client.post("/jobs/reconstruct", json={"upload": sent}, headers=theirs).status_code == 404
    for path, change in (
        ("/queue", {"clear": True, "delete": [waiting]}),
        ("/interrupt", {"prompt_id": "mine"}),
    ):
        assert client.post(path, json=change, headers=theirs).status_code == 200
    with client.websocket_connect("/ws?clientId=me", headers=theirs | {"host": "127.0.0.1"}) as socket:
        assert socket.receive_json()["type"] == "status"
        own = client.post("/prompt", json=body, headers=theirs).json()
        assert own["prompt_id"] == "mine", "their own graph of the same name, not ours"
        states = {one["state"] for one in client.get("/jobs", headers=mine).json()["jobs"]}
        assert states == {"running", "queued"}, "nothing of ours was touched"
    assert len(client.get("/jobs", headers=theirs).json()["jobs"]) == 1
