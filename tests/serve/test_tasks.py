from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewer.core.errors import CapacityError, FewerError, FileError
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network
from fewer.serve.engine import OutcomeEvent, StepEvent
from fewer.serve.tasks import run_task, without_paths
from fewer.stitch.command import StitchRequest


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    plan = NetworkPlan(name="small-cnn", channels=3, classes=2, height=8, width=8)
    folder = tmp_path / "model"
    TrainedClassifier(build_network(plan).eval(), plan, ("ill", "well"), torch.zeros(3), torch.ones(3)).save(
        folder
    )
    return str(folder)


def task(tmp_path: Path, name: str, options: dict) -> Iterator:
    return run_task({"task": name, "options": options, "job": "a" * 32}, str(tmp_path / "results"), "cpu")


def test_pictures_are_classified_and_no_path_gets_out(tmp_path: Path, classifier: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    events = list(task(tmp_path, "classify", {"files": [str(tmp_path / "one.png")], "model": classifier}))
    outcome = events[-1]
    assert isinstance(outcome, OutcomeEvent)
    assert outcome.facts["predictions"][0]["class"] in ("ill", "well")
    assert outcome.facts["predictions"][0]["picture"] == "one.png"
    assert outcome.files == ("probabilities.csv",) and outcome.facts["output"] == "probabilities.csv"
    assert str(tmp_path) not in repr(outcome)


def test_a_video_is_stitched_where_the_server_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StitchRequest] = []
    monkeypatch.setattr("fewer.stitch.command.stitch_command", lambda request, _: seen.append(request) or {})
    list(task(tmp_path, "stitch", {"file": str(tmp_path / "a.mp4"), "stride": 3}))
    assert (seen[0].device, seen[0].stride) == ("cpu", 3)


def test_a_picture_goes_through_the_autoencoder_and_back(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "one.png")
    events = list(task(tmp_path, "reconstruct", {"file": str(tmp_path / "one.png"), "model": "default"}))
    steps = [(event.step, event.steps) for event in events if isinstance(event, StepEvent)]
    assert sum(step == total > 1 for step, total in steps) == 2  # encoded, decoded
    assert events[-1].files == ("reconstruction.png",)
    assert events[-1].facts["psnr"] > 10
    assert Image.open(tmp_path / "results" / ("a" * 32) / "reconstruction.png").size == (64, 64)


def test_what_the_room_says_is_raised_and_a_second_attempt_starts_clean(tmp_path: Path) -> None:
    left = tmp_path / "results" / ("a" * 32) / "left-over.txt"
    left.parent.mkdir(parents=True)
    left.write_text("from a killed attempt")
    with pytest.raises(FewerError, match=r"none\.png"):
        list(task(tmp_path, "reconstruct", {"file": str(tmp_path / "none.png"), "model": "default"}))
    assert not left.exists()
    with pytest.raises(FileError, match="keeps no results"):
        list(run_task({"task": "stitch", "options": {}, "job": "b" * 32}, None, "cpu"))


def test_closing_stops_the_room_at_its_next_report(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(40):
        Image.effect_noise((96, 96), 60 + number).convert("RGB").save(frames / f"{number:03}.png")
    events = task(tmp_path, "stitch", {"file": str(frames)})
    assert isinstance(next(events), StepEvent)
    events.close()  # returns only when the room's thread has ended
    assert not (tmp_path / "results" / ("a" * 32) / "report.json").exists()


def test_a_picture_that_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one.png")
    monkeypatch.setattr("fewer.generate.autoencoder.capacity.available_memory", lambda _: 1000)
    with pytest.raises(CapacityError, match="smaller size"):
        list(task(tmp_path, "reconstruct", {"file": str(tmp_path / "one.png"), "model": "default"}))


def test_paths_become_names() -> None:
    facts = {"output": "/srv/results/j/map.png", "rows": [Path("/srv/models/lungs"), "plain", 3]}
    assert without_paths(facts, Path("/srv/results/j")) == {
        "output": "map.png",
        "rows": ["lungs", "plain", 3],
    }
