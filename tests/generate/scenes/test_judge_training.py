"""A judge trained where the renderer is knows rendered truth."""

import torch

from fewer.generate.scenes.judge_training import cut_windows, train_judge
from fewer.generate.scenes.judges import cut_objects, judge_pictures
from fewer.generate.scenes.pool import to_tensor
from fewer.generate.scenes.table import draw_table


def test_it_learns_truth(renderer, vocabulary) -> None:
    table = draw_table(vocabulary, 60, "train", 0)
    judge = train_judge(renderer, table, steps=60, batch=16, width=4, learning_rate=1e-2)
    scenes = draw_table(vocabulary, 40, "train", 1).scenes()
    verdict = judge_pictures(judge, to_tensor(renderer.pictures(scenes)), scenes)
    assert verdict.identity > 0.9 and verdict.style > 0.6


def test_windows_are_what_is_cut_from_whole_pictures(renderer, vocabulary) -> None:
    scenes = [scene for scene in draw_table(vocabulary, 30, "train", 2).scenes() if scene.size == "large"]
    placed = renderer.place(scenes)
    same = (placed.size[:, 0] == placed.size[0, 0]).nonzero()[:, 0]
    windows = cut_windows(renderer, placed.rows(same), torch.zeros(len(same), dtype=torch.long))
    whole, _ = cut_objects(to_tensor(renderer.pictures(scenes)), scenes)
    assert (windows - whole[same]).abs().mean() < 0.05
