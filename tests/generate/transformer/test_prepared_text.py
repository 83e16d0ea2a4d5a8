"""Dropping masked text: nothing that counts is lost."""

import torch

from fewer.generate.transformer.prepared_text import drop_masked, whole_if_empty


def test_counting_tokens_move_to_the_front_in_order():
    text = torch.arange(10.0).reshape(2, 5, 1)
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]])
    kept, remaining = drop_masked(text, mask)
    assert kept[0, :, 0].tolist() == [1.0, 3.0, 4.0]
    assert kept[1, :2, 0].tolist() == [5.0, 9.0]
    assert remaining.tolist() == [[True, True, True], [True, True, False]]


def test_no_mask_remains_where_all_count():
    kept, remaining = drop_masked(torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]))
    assert kept.shape == (2, 2, 3)
    assert remaining is None


def test_an_empty_mask_keeps_everything():
    assert whole_if_empty(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).tolist() == [[True, True], [False, True]]
    kept, remaining = drop_masked(torch.randn(1, 4, 3), torch.zeros(1, 4))
    assert kept.shape == (1, 4, 3) and remaining is None
