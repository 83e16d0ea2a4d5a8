"""Pools hold scenes of one split, encoded as the autoencoder encodes them."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.scenes.pool import (
    Vocabulary,
    crops,
    draw_scenes,
    encode_scenes,
    scene_captions,
    to_tensor,
)
from fewer.generate.scenes.split import split_of
from fewer.generate.scenes.vocabulary import SMALL_VOCABULARY


@pytest.mark.parametrize("split", ["train", "validation", "held-out"])
def test_scenes_are_of_the_asked_split_and_repeatable(split: str) -> None:
    vocabulary = Vocabulary(tuple(SMALL_VOCABULARY.values()), ("glossy", "flat"))
    scenes = draw_scenes(vocabulary, 5, split, seed=4)  # type: ignore[arg-type]
    assert {split_of(scene) for scene in scenes} == {split}
    assert scenes == draw_scenes(vocabulary, 5, split, seed=4)  # type: ignore[arg-type]
    assert scenes != draw_scenes(vocabulary, 5, split, seed=5)  # type: ignore[arg-type]


def test_a_vocabulary_without_held_out_scenes_says_so(monkeypatch) -> None:
    monkeypatch.setattr("fewer.generate.scenes.pool.split_of", lambda scene: "train")
    monkeypatch.setattr("fewer.generate.scenes.pool._ATTEMPTS", 20)
    with pytest.raises(ConfigError, match="hardly any held-out"):
        draw_scenes(Vocabulary(("cat",), ("flat",)), 1, "held-out", 0)


def test_crops_touch_a_sprite_and_are_repeatable(renderer, vocabulary) -> None:
    found = crops(renderer, vocabulary, 12, 32, torch.Generator().manual_seed(1))
    assert found.shape == (12, 3, 32, 32) and found.min() >= -1 and found.max() <= 1
    assert (found.flatten(2).std(dim=2).amax(dim=1) > 0.05).all()
    assert torch.equal(found, crops(renderer, vocabulary, 12, 32, torch.Generator().manual_seed(1)))


def test_latents_are_those_of_the_autoencoder(renderer, vocabulary, small_autoencoder) -> None:
    scenes = draw_scenes(vocabulary, 5, "train", 0)
    found = encode_scenes(scenes, renderer, small_autoencoder, batch=2)
    alone = small_autoencoder.encode(to_tensor([renderer(scenes[4])]))
    assert len(found) == 5 and torch.allclose(found[4], alone[0], atol=1e-5)


def test_each_scene_has_as_many_captions_as_asked(vocabulary) -> None:
    scenes = draw_scenes(vocabulary, 6, "train", 0)
    for count in (1, 3, 99):
        chosen = scene_captions(scenes, count, torch.Generator().manual_seed(0))
        assert all(1 <= len(own) <= count and len(dict(own)) == len(own) for own in chosen)
