"""Encoded sets: captions are drawn by weight, dropped at the asked rate, and encoded once."""

import pytest
import torch

from fewer.core.errors import DataError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.training.encoded import assemble, encode_captions, load_encoded, save_encoded


def test_captions_come_in_their_weights_and_drop_at_the_asked_rate(encoded) -> None:
    data = encoded([(2, 2)])
    _, text, mask = data.batch([0] * 4000, 0.2, torch.Generator().manual_seed(0))
    lengths = mask.sum(dim=1)
    # Rows 0, 1 and 2 of the fixture hold 1, 2 and 3 tokens: nothing, the first and the second caption.
    shares = [float((lengths == length).float().mean()) for length in (1, 2, 3)]
    assert shares == pytest.approx([0.2, 0.8 * 0.25, 0.8 * 0.75], abs=0.03)
    assert text.shape == (4000, 3, 12) and text.dtype == torch.float32


def test_nothing_is_dropped_at_rate_zero(encoded) -> None:
    data = encoded([(2, 2)] * 3)
    _, _, mask = data.batch([0, 1, 2], 0.0, torch.Generator().manual_seed(0))
    assert (mask.sum(dim=1) > 1).all() or data.captions[2][0] == 5


def test_features_are_those_of_each_caption_alone(letters) -> None:
    texts = ["", "a cat", "a very long caption", "dog"]
    table = encode_captions(letters, texts, batch=3)
    for row, text in enumerate(texts):
        alone = letters.encode([text])
        length = int(alone.mask.sum())
        assert int(table.mask[row].sum()) == length == 1 + len(text)
        assert torch.allclose(
            table.tokens[row, :length].float(), alone.tokens[0, :length], atol=0.03, rtol=0.01
        )


def test_equal_captions_of_two_pictures_are_encoded_once(letters) -> None:
    latents = [torch.zeros(4, 2, 2), torch.ones(4, 2, 2)]
    data = assemble(latents, [[("cat", 30.0), ("a cat", 28.0)], [("cat", 30.0)]], letters)
    assert data.text.tokens.shape[0] == 3  # and the empty one
    assert data.captions[0][0] == data.captions[1][0]
    assert data.weights[0][0] > data.weights[0][1]


def test_no_captions_and_uneven_lists_are_refused(letters) -> None:
    with pytest.raises(DataError):
        encode_captions(letters, [])
    with pytest.raises(DataError, match="1 pictures and 2"):
        assemble([torch.zeros(4, 2, 2)], [[("a", 30.0)], [("b", 30.0)]], letters)


def test_a_set_survives_its_file(encoded, tmp_path) -> None:
    data = encoded([(2, 3), (4, 4), (2, 3)])
    save_encoded(tmp_path / "set.safetensors", data)
    again = load_encoded(tmp_path / "set.safetensors")
    assert again.captions == data.captions and again.shapes == data.shapes and again.empty == data.empty
    assert torch.equal(again.text.tokens, data.text.tokens)
    for one, other in zip(again.latents, data.latents, strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))
    write_tensors(tmp_path / "other.safetensors", {"latents": torch.zeros(2)})
    with pytest.raises(FileError, match="no encoded"):
        load_encoded(tmp_path / "other.safetensors")
