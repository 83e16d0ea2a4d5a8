"""A worker that leads two ranks (processes with gloo)."""

import pytest

from fewer.core.errors import CapacityError, ConfigError
from fewer.serve.group_engine import GroupEngine, own_gpus
from fewer.serve.worker import _CODES

from .test_queue_api import add, wait_for


def test_a_group_draws_is_cancelled_refuses_dies_and_goes_on(serve, tmp_path) -> None:
    client = serve(engine="tests.serve.group_engines:grouped", group=2, seconds=0.05)
    facts = wait_for(client, add(client, "first", steps=4), "done", seconds=60.0)  # processes start
    assert len(facts["images"]) == 1 and facts["step"] == 4
    # Cancelled before its next step, and the same ranks go on.
    long = add(client, "long", steps=100)
    wait_for(client, long, "running")
    client.delete(f"/jobs/{long}")
    assert wait_for(client, long, "cancelled")["images"] == []
    # One rank has no room: all refuse.
    assert wait_for(client, add(client, "too big", steps=2), "failed")["code"] == "capacity"
    # A rank dies: this job fails by name, the next one has another group.
    dead = wait_for(client, add(client, "die", steps=3), "failed")
    assert dead["code"] == "group_failed" and "rank 1" in dead["error"]
    last = wait_for(client, add(client, "last", steps=2), "done", seconds=60.0)
    assert len(last["images"]) == 1
    drawn = (tmp_path / "log").read_text().split()
    assert sorted(drawn) == ["first"] * 2 + ["last"] * 2  # by both ranks


def test_ranks_know_the_same_models_and_adapters_as_a_worker_alone(tmp_path) -> None:
    from fewer.generate.conditional.formats import save_folder
    from fewer.parallel.group import Group
    from fewer.parallel.simulated import run_simulated
    from fewer.serve.engine import ImageEvent, LocalEngine
    from fewer.serve.group_engine import band_engine
    from tests.generate.conditional.conftest import upgraded

    save_folder(upgraded("cat tokens"), tmp_path / "letters", ("a", "b", "c", "d", "e"))
    options = {"models": {"letters": str(tmp_path / "letters")}, "classes": ["letters"], "device": "cpu"}
    wanted = {"generate": {"prompt": ["b"], "model": "letters", "seed": 3, "steps": 2}}

    def pictures(engine: LocalEngine) -> list[bytes]:
        return [event.png for event in engine.run(wanted) if isinstance(event, ImageEvent)]

    def rank_main(group: Group) -> list[bytes]:
        engine = band_engine(options, group)
        with pytest.raises(ConfigError, match="no longer served"):
            engine.admit([{"generate": wanted["generate"] | {"lora": ["gone"]}}])
        return pictures(engine)

    alone = pictures(LocalEngine(options))
    assert len(alone) == 1 and run_simulated(2, rank_main) == [alone, alone]


def test_workers_share_the_machines_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert own_gpus(2, 0) == ["4", "5"] and own_gpus(2, 1) == ["6", "7"]


def test_errors_have_codes_that_become_a_status() -> None:
    assert _CODES["GroupFailed"] == "group_failed" and _CODES[CapacityError.__name__] == "capacity"
    assert GroupEngine({"group": 2, "device": "cpu"}).together == 1
