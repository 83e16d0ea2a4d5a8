from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.quantize.models import OpenModel, open_model
from fewer.quantize.runs import calibration, class_calibration


def test_each_prompt_is_drawn_with_its_own_seed() -> None:
    drawn = []
    pipeline = lambda prompt, **options: drawn.append((prompt, options["seed"]))  # noqa: E731
    opened = OpenModel(nn.Linear(1, 1), {}, None, pipeline)
    assert calibration(opened, (), 5, 0) is None
    calibration(opened, ("one", "two"), 0, 10)()
    assert drawn == [("one", 10), ("two", 11)]
    opened.pipeline = None
    with pytest.raises(ConfigError, match="from Python"):
        calibration(opened, ("one",), 0, 0)


def test_classes_take_turns_and_no_pictures_means_no_calibration(class_folder: Path) -> None:
    opened = open_model(str(class_folder), torch.float32, torch.device("cpu"))
    assert calibration(opened, (), 0, 0) is None
    seen = []
    module = opened.module
    inner = module.embed
    module.embed = lambda time, labels: (seen.extend(set(labels.tolist())), inner(time, labels))[1]
    class_calibration(module, 2, 20, 0)()  # 8 of the first class, 8 of the second, 4 of the first again
    assert seen == [0, 2, 1, 2, 0, 2]  # class 2 is "no class", for guidance
