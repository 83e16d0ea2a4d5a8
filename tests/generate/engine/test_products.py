import pytest
import torch
from torch import nn

from fewer.generate.engine.products import is_dense, join_weights, layer_key, make_product
from fewer.generate.lora import AdaptedLayer
from fewer.generate.lora_file import LowRank
from fewer.kernels.norms import modulated_norm
from fewer.kernels.scratch import WeightScratch


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 123])
@torch.no_grad()
def test_a_product_is_norm_layer_activation_gate_and_sum(tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, batch = nn.Conv2d(6, 9, 1, bias=bias), 2
    product = make_product([layer], WeightScratch(), torch.float32)
    assert product is not None
    rows, shift, scale = torch.randn(batch * tokens, 6), torch.randn(batch, 6), torch.randn(batch, 6)
    gate, update = torch.randn(batch, 6), torch.randn(batch * tokens, 6)
    wanted = rows.view(batch, tokens, 6) + gate[:, None] * update.view(batch, tokens, 6)
    plain = nn.functional.linear(modulated_norm(wanted, shift, scale), layer.weight.flatten(1), layer.bias)
    found, total = product(rows, update=update, gate=gate, shift=shift, scale=scale, silu=True)
    assert (found - nn.functional.silu(plain).flatten(0, 1)).abs().max() < 1e-5
    assert (total - wanted.flatten(0, 1)).abs().max() < 1e-6
    alone, same = product(rows)
    assert (alone - nn.functional.linear(rows, layer.weight.flatten(1), layer.bias)).abs().max() == 0
    assert same is rows
    normed, _ = product(rows, shift=shift, scale=scale)
    expected = nn.functional.linear(
        modulated_norm(rows.view(batch, tokens, 6), shift, scale), layer.weight.flatten(1), layer.bias
    )
    assert (normed - expected.flatten(0, 1)).abs().max() < 1e-5


@torch.no_grad()
def test_layers_joined_give_what_they_gave_alone_and_share_memory() -> None:
    layers = [nn.Linear(4, 3), nn.Linear(4, 5, bias=False), nn.Linear(4, 1)]
    rows = torch.randn(7, 4)
    alone = torch.cat([layer(rows) for layer in layers], dim=1)
    product = make_product(layers, WeightScratch(), torch.float32)
    assert product is not None and (product(rows)[0] - alone).abs().max() < 1e-6
    assert torch.equal(torch.cat([layer(rows) for layer in layers], dim=1), alone)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
    assert torch.equal(join_weights(layers), torch.cat([layer.weight for layer in layers]))


def test_only_plain_layers_are_dense() -> None:
    assert is_dense(nn.Linear(2, 2)) and is_dense(nn.Conv2d(2, 2, 1))
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    others = [nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 1, stride=2), hooked]
    assert not any(map(is_dense, [*others, nn.Identity()]))
    assert make_product([hooked], WeightScratch(), torch.float32) is None


def test_the_key_of_a_layer_changes_with_its_weight() -> None:
    layer = nn.Linear(2, 2)
    before = layer_key(layer)
    assert layer_key(layer) == before
    layer.weight.data = layer.weight.data.clone()
    assert layer_key(layer) != before


def test_the_key_of_a_layer_never_returns_when_one_adapter_follows_another() -> None:
    layer, keys = AdaptedLayer(nn.Linear(2, 2)), set()
    for _ in range(20):  # memory that one leaves is the next one's
        layer.put("style", LowRank(torch.zeros(1, 2), torch.zeros(2, 1), 1.0), 1.0)
        keys.add(layer_key(layer))
        layer.take_off("style")
    assert len(keys) == 20
