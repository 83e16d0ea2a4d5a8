from dataclasses import replace

import pytest
import torch

from fewer.recommend import mixers
from fewer.recommend.mixers import FeatureMixer, MixerShape, MixerStack

SHAPE = MixerShape(length=9, dim=8, layers=2, hidden_sequence=5, hidden_channel=7, dropout=0.0)


def rows(batch: int, length: int, streams: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, streams, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("streams", [1, 3])
def test_padding_changes_nothing_whatever_the_unused_weights_are(readout: str, streams: int) -> None:
    torch.manual_seed(0)
    stack = MixerStack(replace(SHAPE, readout=readout, streams=streams)).eval()
    x = rows(4, 5, streams)
    short = stack(x, torch.ones(4, 5))
    padded = torch.cat([torch.zeros(4, 4, streams, 8), x], dim=1)
    mask = torch.cat([torch.zeros(4, 4), torch.ones(4, 5)], dim=1)
    torch.testing.assert_close(stack(padded, mask), short, atol=1e-5, rtol=0)
    with torch.no_grad():  # the columns that only padding would use
        for layer in stack.layers:
            layer.sequence.widen.weight[:, :4] = 1e3
            layer.sequence.narrow.weight[:4] = 1e3
    torch.testing.assert_close(stack(padded, mask), short, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_a_batch_in_parts_gives_the_same_rows(mask_padding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, x, mask = MixerStack(replace(SHAPE, mask_padding=mask_padding)), rows(7, 9), torch.ones(7, 9)
    mask[2:4, :5] = 0
    x = x * mask[:, :, None, None]
    whole = stack.eval()(x, mask)
    monkeypatch.setattr(mixers, "CHUNK_HISTORIES", 3)
    torch.testing.assert_close(stack.train()(x, mask), whole)


def test_without_the_mask_the_length_leaks() -> None:
    torch.manual_seed(0)
    stack = MixerStack(replace(SHAPE, mask_padding=False)).eval()
    for layer in stack.layers:
        torch.nn.init.normal_(layer.sequence.norm.bias)
    x, mask = rows(2, 5), torch.ones(2, 5)
    assert stack(x, mask).shape == (2, 8)
    changed = stack(torch.cat([torch.zeros(2, 4, 1, 8), x], 1), torch.cat([torch.zeros(2, 4), mask], 1))
    torch.testing.assert_close(changed, stack(x, mask))  # padded to full length by the stack itself
    with torch.no_grad():
        stack.layers[0].sequence.widen.weight[:, :4] += 1
    assert (stack(x, mask) - changed).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_computing_only_the_last_row_is_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    stack = MixerStack(SHAPE).eval().to(dtype)
    x, mask = rows(3, 9).to(dtype), torch.ones(3, 9, dtype=dtype)
    full = x[:, :, 0]
    for layer in stack.layers:
        full = layer(full, mask[..., None])
    torch.testing.assert_close(stack(x, mask), full[:, -1])


def test_gradients_are_right() -> None:
    torch.manual_seed(2)
    stack = MixerStack(replace(SHAPE, layers=1, length=4, streams=2)).double()
    mask = torch.tensor([[0.0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.float64)
    x = rows(2, 4, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: stack(values, mask), (x,))


def test_shared_layers_have_one_set_of_weights_and_features_mix() -> None:
    count = [
        sum(p.numel() for p in MixerStack(replace(SHAPE, share_layers=s, layers=3)).parameters())
        for s in (False, True)
    ]
    assert count[0] == 3 * count[1]
    mixer = FeatureMixer(replace(SHAPE, streams=2)).eval()
    x = torch.randn(2, 4, 8)  # one history of two streams
    out = mixer(x, torch.ones(2, 4, 1))
    changed = mixer(torch.cat([x[:1], x[1:] + 1 + torch.randn(1, 4, 8)]), torch.ones(2, 4, 1))
    assert (out[0] - changed[0]).abs().max() > 1e-6  # the item's stream hears the feature's


def test_width_does_not_grow_with_length() -> None:
    sizes = [
        sum(p.numel() for p in MixerStack(replace(SHAPE, length=n)).parameters()) for n in (100, 200, 400)
    ]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])  # linear
