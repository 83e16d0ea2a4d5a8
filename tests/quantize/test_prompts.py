from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError, DataError
from fewer.generate.scenes.presets import preset
from fewer.generate.transformer import SanaParams, SanaTransformer
from fewer.quantize.models import OpenModel
from fewer.quantize.prompts import CPU_WORK, FEWEST, GENERAL, MOST, STEPS, affordable, choose_prompts

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@dataclass
class Settings:
    chi: bool


@dataclass
class Pipeline:
    settings: Settings


def sana(**changes: object) -> SanaTransformer:
    params = {"heads": 2, "head_dim": 32, "depth": 1, "cross_heads": 2, "cross_head_dim": 32}
    with torch.device("meta"):
        return SanaTransformer(SanaParams(caption_channels=16, **params | changes))


def opened(chi: bool) -> OpenModel:
    return OpenModel(sana(sample_size=8), {}, None, Pipeline(Settings(chi)))


def test_a_file_wins_and_its_blank_lines_are_no_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n two \nthree\n")
    assert choose_prompts(opened(False), file, 2, CPU).lines == ("one", "two")
    assert choose_prompts(opened(False), file, None, CPU).source == "prompts.txt"
    with pytest.raises(ConfigError, match="no-calibrate"):
        choose_prompts(opened(False), file, None, CPU, calibrate=False)
    file.write_text("\n")
    with pytest.raises(DataError, match=r"prompts\.txt"):
        choose_prompts(opened(False), file, None, CPU)


def test_our_text_to_image_models_have_prompts_of_their_own() -> None:
    scenes, general = (choose_prompts(opened(chi), None, 5, CPU) for chi in (False, True))
    words = set((preset("emoji").concepts or {}).values())
    assert len(scenes.lines) == 5 and "scenes" in scenes.source
    assert all(any(word in line for word in words) for line in scenes.lines)
    assert scenes == choose_prompts(opened(False), None, 5, CPU)
    assert general.lines == tuple(GENERAL.read_text().splitlines()[:5])
    assert len(choose_prompts(opened(True), None, None, GPU).lines) == MOST
    assert choose_prompts(opened(True), None, None, CPU, calibrate=False).lines == ()


def test_other_models_have_none_and_classes_are_named() -> None:
    assert choose_prompts(OpenModel(nn.Linear(1, 1), {}, None), None, None, CPU).lines == ()
    assert choose_prompts(OpenModel(nn.Linear(1, 1), {}, None, object()), None, None, CPU).lines == ()
    classes = OpenModel(nn.Linear(1, 1), {}, None, class_names=("zero", "one"))
    assert choose_prompts(classes, None, None, CPU).source == "its 2 classes"


def test_the_number_on_a_cpu_follows_from_the_work_and_has_bounds() -> None:
    assert affordable(sana(sample_size=8)) == MOST
    assert affordable(sana(sample_size=32, heads=70, cross_heads=20, cross_head_dim=112, depth=20)) == FEWEST
    medium = sana(sample_size=16, heads=12, cross_heads=12, depth=12)
    weights = sum(p.numel() for p in medium.parameters())
    exact = CPU_WORK / (4 * weights * 16**2 * STEPS)  # two products a weight, token and half of guidance
    assert abs(affordable(medium) - exact) < 0.1 * exact + 1


def test_the_general_prompts_are_different_lines_of_plain_text() -> None:
    lines = GENERAL.read_text(encoding="ascii").splitlines()
    assert len(lines) == len(set(lines)) == MOST and all(10 < len(line) < 120 for line in lines)
