import threading
from pathlib import Path

import pytest

from fewer.serve.job_store import MAX_ATTEMPTS, JobStore, QueueFull


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite", limit=5)


def add(store: JobStore, count: int = 1, **options: str) -> list[str]:
    return [store.add("me", "image", {"n": n}, **options).id for n in range(count)]


def test_jobs_run_in_order_and_end_once(store: JobStore) -> None:
    first, second = add(store, 2)
    assert [store.position(job) for job in (first, second)] == [0, 1]
    taken = store.take()
    assert taken is not None and (taken.id, taken.state, taken.attempts) == (first, "running", 1)
    assert store.finish(first, "done", result={"images": []})
    assert not store.finish(first, "failed")
    ended = store.get(first)
    assert ended is not None and ended.state == "done" and ended.result == {"images": []}


def test_the_queue_has_an_end(store: JobStore) -> None:
    add(store, 5)
    with pytest.raises(QueueFull, match="5 jobs are waiting, 5 are allowed"):
        add(store)
    store.take()
    assert len(add(store)) == 1


def test_one_key_one_job(store: JobStore) -> None:
    assert add(store, idempotency="a") == add(store, idempotency="a") != add(store, idempotency="b")
    assert store.add("other", "image", {}, "a").id not in add(store, idempotency="a")


def test_owners_do_not_see_each_other(store: JobStore) -> None:
    (job,) = add(store)
    assert store.get(job, "me") is not None and store.get(job, "other") is None
    assert store.jobs("other") == [] and [row.id for row in store.jobs("me")] == [job]


def test_waiting_jobs_can_be_moved(store: JobStore) -> None:
    jobs = add(store, 4)
    assert store.move(jobs[3], 0) and store.move(jobs[0], 2)
    assert [job.id for job in store.jobs(state="queued")] == [jobs[3], jobs[1], jobs[0], jobs[2]]
    store.take()
    assert not store.move(jobs[3], 1)


def test_a_dead_server_s_jobs_wait_again_but_not_for_ever(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = add(store)
    monkeypatch.setattr("fewer.serve.job_store.LEASE_SECONDS", -1.0)
    for _ in range(MAX_ATTEMPTS - 1):
        assert store.take() is not None
        assert store.recover() == 1
    assert store.take() is not None
    assert store.recover() == 0
    ended = store.get(job)
    assert ended is not None and (ended.state, ended.code) == ("failed", "worker_died")


def test_a_renewed_lease_is_respected(store: JobStore) -> None:
    (job,) = add(store)
    store.take()
    store.renew(job)
    assert store.recover() == 0


def test_two_servers_on_one_file_never_take_the_same_job(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path / "jobs.sqlite", 1000) for _ in range(2)]
    wanted = {stores[0].add("me", "image", {}).id for _ in range(60)}
    taken: list[str] = []

    def run(store: JobStore) -> None:
        while (job := store.take()) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(taken) == 60 and set(taken) == wanted


def test_history_survives_a_restart_and_is_forgotten_in_time(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    job = store.add("me", "image", {"a": 1}).id
    store.finish(job, "cancelled")
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    assert again.jobs()[0].request == {"a": 1}
    assert again.forget(3600) == [] and again.forget(-1) == [job] and again.jobs() == []


def test_a_job_that_another_server_has_cancelled_cannot_be_renewed(store: JobStore) -> None:
    (job,) = add(store)
    store.take()
    assert store.renew(job)
    store.finish(job, "cancelled")
    assert not store.renew(job)


def test_nobody_overtakes_a_stranger(store: JobStore) -> None:
    order = ["ann", "ben", "ann", "ben", "ben"]
    jobs = [store.add(owner, "image", {"number": number}).id for number, owner in enumerate(order)]

    def waiting() -> list[int]:
        return [job.request["number"] for job in store.jobs(state="queued")]

    assert store.move(jobs[4], 0)  # to the first of ben's places, which is not the first of all
    assert waiting() == [0, 4, 2, 1, 3]
    assert store.move(jobs[0], 99)
    assert waiting() == [2, 4, 0, 1, 3]
