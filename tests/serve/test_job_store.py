import sqlite3
import threading
import time
from pathlib import Path

import pytest

from fewer.core.errors import FileError
from fewer.serve.job_store import DISCONNECTED, MAX_ATTEMPTS, JobStore, KeyReused, QueueFull


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


def test_one_owner_cannot_fill_the_queue_alone_where_that_is_forbidden(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite", limit=5, limit_each=2)
    for owner in ("ann", "ann", "ben"):
        store.add(owner, "image", {})
    with pytest.raises(QueueFull, match="2 jobs of yours"):
        store.add("ann", "image", {})
    assert store.add("ben", "image", {}) and store.count("queued", "ann") == 2


def test_a_key_is_of_one_request_and_a_lost_client_s_job_waits_again(store: JobStore) -> None:
    first = store.add("me", "image", {"fingerprint": "a"}, "key")
    for other in (("image", {"fingerprint": "b"}), ("stitch", {"fingerprint": "a"})):
        with pytest.raises(KeyReused):
            store.add("me", *other, "key")
    store.take()
    store.finish(first.id, "cancelled", code=DISCONNECTED)
    again = store.add("me", "image", {"fingerprint": "a"}, "key")
    assert (again.id, again.state, again.attempts, again.code) == (first.id, "queued", 0, None)
    store.finish(first.id, "cancelled")
    assert store.add("me", "image", {"fingerprint": "a"}, "key").state == "cancelled"


def test_what_a_server_says_of_a_job_that_was_taken_over_does_not_count(store: JobStore) -> None:
    (job,) = add(store)
    assert store.take() and store.requeue(job) and store.take()
    assert not store.renew(job, 1) and store.renew(job, 2)
    assert not store.finish(job, "failed", attempt=1) and not store.requeue(job, attempt=1)
    assert store.finish(job, "done", attempt=2)


def test_a_stopped_server_does_not_blame_its_jobs(store: JobStore) -> None:
    (job,) = add(store)
    for _ in range(2 * MAX_ATTEMPTS):
        assert store.take() is not None
        assert store.requeue(job, blame=False)
    kept = store.get(job)
    assert kept is not None and (kept.state, kept.attempts) == ("queued", 0)


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_clocks_that_jump_take_no_job_from_a_server_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    clock = {"wall": 1e9 + 0.3, "steady": 0.0}
    monkeypatch.setattr("fewer.serve.job_store.time.time", lambda: clock["wall"])
    monkeypatch.setattr("fewer.serve.job_store.time.monotonic", lambda: clock["steady"])
    here, there = (JobStore(tmp_path / "jobs.sqlite") for _ in range(2))
    job, second = here.add("me", "image", {}).id, here.add("me", "image", {}).id
    assert there.recover() == 0 and here.take() is not None
    clock["wall"] += jump
    third = here.add("me", "image", {}).id
    assert [one.id for one in here.jobs(state="queued")] == [second, third], "nobody overtakes by the clock"
    for _ in range(30):  # the other one is alive
        assert there.recover() == 0
        clock["wall"] += 1.0
        clock["steady"] += 1.0
        assert here.renew(job, 1)
    assert there.recover() == 0
    clock["wall"] += 11.0
    clock["steady"] += 11.0  # and now it is not
    assert there.recover() == 1 and there.jobs(state="queued")[0].id == job


def test_a_server_that_starts_long_after_a_kill_waits_for_no_lease(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    (job,) = add(store)
    store.take()
    store._db.execute("update jobs set beat = ?", (time.time() - 3600,))
    assert JobStore(tmp_path / "jobs.sqlite").recover() == 1
    assert store.get(job).state == "queued"  # pyright: ignore


def test_files_that_are_no_queue_of_ours_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at " * 100)
    (tmp_path / "folder").mkdir()
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("create table jobs (id text, state text, rank real, owner text, idempotency text)")
    with sqlite3.connect(tmp_path / "newer") as newer:
        newer.execute("pragma user_version = 99")
    for name, said in (("text", "cannot be used"), ("folder", "cannot be used"), ("text/x", "cannot write")):
        with pytest.raises(FileError, match=said):
            JobStore(tmp_path / name)
    with pytest.raises(FileError, match="no queue of fewer"):
        JobStore(tmp_path / "other")
    with pytest.raises(FileError, match="newer version"):
        JobStore(tmp_path / "newer")


def test_a_queue_of_the_first_version_is_taken_over_as_it_is(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    (job,) = add(store)
    store._db.execute("pragma user_version = 0")  # the first version wrote none
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    assert again.get(job) is not None
    assert again._db.execute("pragma user_version").fetchone()[0] == 1
