"""Judges are right on truth, and say so when a picture is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.generate.scenes.compose import SceneRenderer
from fewer.generate.scenes.judges import (
    CROP,
    SpriteJudge,
    cut_objects,
    judge_loss,
    judge_pictures,
)
from fewer.generate.scenes.pool import Vocabulary, draw_scenes, to_tensor
from fewer.generate.scenes.presets import preset
from fewer.generate.scenes.vocabulary import COLOURS
from tests.generate.scenes.conftest import made_up_sheet


@pytest.fixture(scope="module")
def judge() -> SpriteJudge:
    """Trained on truth for a second or two."""
    sheet = made_up_sheet()
    renderer, vocabulary = SceneRenderer(sheet, 64), Vocabulary(sheet.words(), sheet.styles)
    torch.manual_seed(0)
    judge = SpriteJudge(vocabulary.words, vocabulary.styles, width=4)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        scenes = draw_scenes(vocabulary, 12, "held-out" if step % 3 else "train", seed=step)
        loss = judge_loss(judge, to_tensor([renderer(scene) for scene in scenes]), scenes, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return judge


def test_truth_is_judged_right_and_shuffled_captions_at_chance(judge, renderer, vocabulary) -> None:
    scenes = draw_scenes(vocabulary, 40, "held-out", seed=9)
    verdict = judge_pictures(judge, to_tensor([renderer(scene) for scene in scenes]), scenes)
    assert verdict.colour == 1.0 and verdict.count > 0.95 and verdict.left_right == 1.0
    assert verdict.above_below == 1.0
    assert verdict.identity > 0.9 and verdict.order > 0.9
    assert verdict.shuffled == pytest.approx(verdict.chance, abs=0.1)
    assert verdict.identity_top5 == 1.0 and verdict.pictures == 40


def test_pictures_of_other_scenes_are_judged_wrong(judge, renderer, vocabulary) -> None:
    scenes = draw_scenes(vocabulary, 40, "train", seed=9)
    colours = list(COLOURS)
    wrong = [replace(s, colour=colours[(colours.index(s.colour) + 1) % 12]) for s in scenes]
    verdict = judge_pictures(judge, to_tensor([renderer(scene) for scene in wrong]), scenes)
    assert verdict.colour == 0.0
    blank = torch.zeros(40, 3, 64, 64)
    assert judge_pictures(judge, blank, scenes).count == 0.0


def test_there_is_one_cut_out_an_object(renderer, vocabulary) -> None:
    scenes = draw_scenes(vocabulary, 7, "train", 0)
    cutouts, owners = cut_objects(to_tensor([renderer(scene) for scene in scenes]), scenes)
    assert len(cutouts) == len(owners) == sum(len(scene.objects) for scene in scenes)


def test_a_judge_comes_back_from_its_file(judge, tmp_path) -> None:
    judge.eval().save(tmp_path / "judge.safetensors")
    again = SpriteJudge.load(tmp_path / "judge.safetensors", judge.words, judge.styles)
    pictures = torch.rand(8, 3, CROP, CROP, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        for found, expected in zip(again(pictures), judge(pictures), strict=True):
            # A byte a weight, so not the same bits.
            assert (found - expected).norm() < 0.05 * expected.norm()


def test_the_stored_judge_of_the_built_in_model_opens() -> None:
    chosen = preset("emoji")
    words = tuple((chosen.concepts or {}).values())
    stored = Path(__file__).parents[3] / "benchmarks" / "builtin_judge.safetensors"
    assert SpriteJudge.load(stored, words, tuple(chosen.styles)).concept.out_features == len(words)
