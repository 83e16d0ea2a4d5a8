import json
from dataclasses import replace
from pathlib import Path

from fewer.cli import main
from fewer.core.progress import SilentProgress
from fewer.learn.distillation.evaluate_file import evaluate_file
from fewer.learn.distillation.loop import distill
from tests.learn.distillation.conftest import make_pictures, tiny_plan
from tests.learn.distillation.test_audit import short
from tests.learn.distillation.test_command_indicator import data


def test_the_shared_verb_takes_a_distilled_file(tmp_path: Path, capsys) -> None:
    train = make_pictures()
    made = short(distill(replace(train, class_names=("0", "1", "2")), plan=tiny_plan("random")), epochs=30)
    made.save(tmp_path / "a.distilled.safetensors")
    words = ["learn", "evaluate", str(tmp_path / "a.distilled.safetensors"), "--data", data(tmp_path, "s", 1)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] in (5, 10, 15, 20) and found["count"] == 30 and found["balanced_accuracy"] > 0.5
    assert main([*words, "--image-size", "1"]) == 2


def test_as_many_networks_as_the_figure_is_of(tmp_path: Path) -> None:
    made = short(distill(make_pictures(), plan=tiny_plan("random")), epochs=2)
    for claimed, trained in ((2, 2), (10**9, None), ("many", None)):
        sheet = replace(made.datasheet, metrics={"distilled": {"runs": claimed}})
        replace(made, datasheet=sheet).save(tmp_path / "a.distilled.safetensors")
        found = evaluate_file(
            tmp_path / "a.distilled.safetensors",
            make_pictures(seed=1),
            seed=1,
            device="cpu",
            progress=SilentProgress(),
        )
        assert found["runs"] == trained if trained else 5 <= found["runs"] <= 20
