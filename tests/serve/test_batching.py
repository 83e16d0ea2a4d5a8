"""Waiting requests that are alike share a batch; nobody suffers from a neighbour."""

from fewer.serve import gathering
from fewer.serve.engine import batch_key

from .test_queue_api import add, wait_for


def test_only_pictures_alike_in_everything_but_words_and_seed_have_one_key() -> None:
    def key(**changes: object) -> tuple | None:
        base = {"prompt": ["a"], "negative": "", "seed": 1, "count": 1, "model": "default", "steps": 20}
        return batch_key({"generate": base | changes})

    assert key() == key(prompt=["b"], seed=7, negative="c", count=3)
    assert key() != key(steps=4) and key() != key(model="other") and key() != key(width=64)
    assert batch_key({"task": "stitch"}) is None


def test_what_waits_together_is_drawn_together(serve, tmp_path) -> None:
    client = serve(seconds=0.1, engine="batching")
    first = add(client, "first", steps=5)
    wait_for(client, first, "running")
    waiting = [add(client, f"w{number}", steps=2) for number in range(5)]
    other = add(client, "other", steps=3)
    for job in (first, *waiting, other):
        facts = wait_for(client, job, "done")
        assert len(facts["images"]) == 1
    lines = (tmp_path / "log").read_text().split()
    assert lines == ["first", "w0+w1+w2+w3", "w4", "other"]


def test_a_spoiled_batch_is_drawn_one_by_one(serve) -> None:
    client = serve(seconds=0.05, engine="batching")
    wait_for(client, add(client, "first", steps=9), "running")
    good, bad, also = (add(client, prompt, steps=2) for prompt in ("good", "bad", "also"))
    assert wait_for(client, bad, "failed")["code"] == "capacity"
    for job in (good, also):
        assert len(wait_for(client, job, "done")["images"]) == 1


def test_cancelling_one_of_a_batch_leaves_the_others(serve) -> None:
    client = serve(seconds=0.2, engine="batching")
    first = add(client, "first", steps=3)
    wait_for(client, first, "running")
    one, two = add(client, "one", steps=6), add(client, "two", steps=6)
    wait_for(client, two, "running")
    client.delete(f"/jobs/{one}")
    assert wait_for(client, one, "cancelled")["images"] == []
    assert len(wait_for(client, two, "done")["images"]) == 1


def test_jobs_that_come_after_a_batch_meet_in_one_and_a_lone_one_is_drawn_all_the_same(
    serve, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 1.0)
    client = serve(seconds=0.1, engine="batching")
    wait_for(client, first := add(client, "first", steps=5), "running")
    both = [add(client, prompt) for prompt in ("one", "two")]
    for job in (first, *both):
        wait_for(client, job, "done")
    burst = [add(client, prompt) for prompt in "abcd"]  # the worker is idle when the first of them comes
    for job in burst:
        wait_for(client, job, "done")
    wait_for(client, add(client, "alone"), "done")
    assert (tmp_path / "log").read_text().split() == ["first", "one+two", "a+b+c+d", "alone"]
