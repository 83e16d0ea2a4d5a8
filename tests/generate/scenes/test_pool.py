"""Pools hold scenes of one split, encoded as the autoencoder encodes them."""

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import write_tensors
from fewer.generate.scenes.pool import (
    crops,
    draw_scenes,
    encode_pool,
    encode_scenes,
    load_pool,
    pool_captions,
    save_pool,
    scene_captions,
    to_tensor,
)
from fewer.generate.scenes.table import draw_table


def test_crops_touch_a_sprite_and_are_repeatable(renderer, vocabulary) -> None:
    placed = draw_table(vocabulary, 20, "train", 0).placed(renderer)
    found = crops(renderer, placed, 12, 32, torch.Generator().manual_seed(1))
    assert found.shape == (12, 3, 32, 32) and found.min() >= -1 and found.max() <= 1
    assert (found.flatten(2).std(dim=2).amax(dim=1) > 0.05).all()
    assert torch.equal(found, crops(renderer, placed, 12, 32, torch.Generator().manual_seed(1)))
    assert not torch.equal(found, crops(renderer, placed, 12, 32, torch.Generator().manual_seed(2)))


def test_latents_are_those_of_the_autoencoder(renderer, vocabulary, small_autoencoder) -> None:
    scenes = draw_scenes(vocabulary, 5, "train", 0)
    found = encode_scenes(renderer.place(scenes), renderer, small_autoencoder, batch=2)
    alone = small_autoencoder.encode(to_tensor([renderer(scenes[4])]))
    assert len(found) == 5 and torch.allclose(found[4], alone[0], atol=1e-5)


def test_each_scene_has_as_many_captions_as_asked(vocabulary) -> None:
    scenes = draw_scenes(vocabulary, 6, "train", 0)
    for count in (1, 3, 99):
        chosen = scene_captions(scenes, count, torch.Generator().manual_seed(0))
        assert all(1 <= len(own) <= count and len(dict(own)) == len(own) for own in chosen)


def test_a_pool_survives_its_file_and_reads_each_caption_once(
    renderer, vocabulary, small_autoencoder, letters, tmp_path
) -> None:
    table = draw_table(vocabulary, 9, "train", 0)
    pool = encode_pool(table, renderer, small_autoencoder, letters, 2, seed=3)
    assert pool.captions.shape == (9, 2) and pool.chances.sum(dim=1).allclose(torch.ones(9))
    assert len(pool.text) == int(pool.captions.max()) + 1 <= 19
    first = letters.encode([""], instruct=False)
    assert torch.equal(pool.text[0], first.tokens[0, : pool.text.shape[1]].bfloat16())
    drawn = pool_captions(table, 2, seed=3)
    assert drawn[0][0] == "" and len(set(drawn[0])) == len(drawn[0]) == len(pool.text)
    beforehand = encode_pool(table, renderer, small_autoencoder, letters, 2, 3, captions=drawn)
    assert torch.equal(beforehand.captions, pool.captions) and torch.equal(beforehand.text, pool.text)
    save_pool(tmp_path / "pool.safetensors", pool)
    again = load_pool(tmp_path / "pool.safetensors", torch.device("cpu"))
    assert all(torch.equal(again.columns()[name], part) for name, part in pool.columns().items())
    write_tensors(tmp_path / "other.safetensors", {"latents": torch.zeros(1)})
    with pytest.raises(FileError, match="no encoded pool"):
        load_pool(tmp_path / "other.safetensors", torch.device("cpu"))
