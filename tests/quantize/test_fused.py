import pytest
import torch

from fewer.kernels.linear_attention import linear_attention
from fewer.kernels.norms import modulated_norm
from fewer.kernels.scratch import WeightScratch
from fewer.quantize.formats import FORMATS, encode_weight
from fewer.quantize.fused import FusedH8, fuse, fusion_key, joined_branch
from fewer.quantize.layer import QuantizedLayer
from fewer.quantize.linear import Adapter, QuantizedLinear


def layer(out: int, dim: int = 128, rank: int = 4, name: str = "h8", **changes: object) -> QuantizedLinear:
    codes, scales = encode_weight(torch.randn(out, dim), FORMATS[name])
    values = {
        "format": name, "shape": (out, dim), "codes": codes, "scales": scales, "bias": torch.randn(out),
        "down": torch.randn(rank, dim) / dim**0.5, "up": torch.randn(out, rank),
    }  # fmt: skip
    return QuantizedLinear(QuantizedLayer(**(values | changes)))


def product(layers: list[QuantizedLinear], keep: bool = False) -> FusedH8:
    fused = fuse(layers, WeightScratch(), torch.float32, keep=keep)
    assert fused is not None
    return fused


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dim", [64, 123, 192])
def test_it_is_the_layer_with_everything_around_it(dim: int, keep: bool) -> None:
    torch.manual_seed(0)
    linear = layer(37, dim, smooth=torch.rand(dim) + 0.5)
    batch, tokens = 2, 5
    rows, shift, scale = torch.randn(batch * tokens, dim), torch.randn(batch, dim), torch.randn(batch, dim)
    gate, update = torch.randn(batch, dim), torch.randn(batch * tokens, dim)
    wanted = (rows.view(batch, tokens, dim) + gate[:, None] * update.view(batch, tokens, dim)).flatten(0, 1)
    normed = modulated_norm(wanted.view(batch, tokens, dim), shift, scale)
    expected = torch.nn.functional.silu(linear(normed)).flatten(0, 1)
    fused = product([linear], keep)
    found, total = fused(rows, shift=shift, scale=scale, silu=True, gate=gate, update=update)
    assert (found - expected).norm() < 2e-3 * expected.norm() and (total - wanted).abs().max() < 1e-6
    alone, same = fused(rows)
    assert (alone - linear(rows)).norm() < 1e-5 * linear(rows).norm() and torch.equal(same, rows)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dim", [64, 123])
def test_decoded_to_sixteen_bits_it_is_the_layer_without_quantized_rows(dim: int, keep: bool) -> None:
    torch.manual_seed(0)
    linear = layer(37, dim, smooth=torch.rand(dim) + 0.5)
    rows, update, gate = torch.randn(10, dim), torch.randn(10, dim), torch.randn(2, dim)
    wanted = rows + gate.repeat_interleave(5, 0) * update
    expected = torch.nn.functional.silu(linear(wanted))
    fused = FusedH8([linear], WeightScratch(), torch.float32, keep=keep, int8=False)
    found, total = fused(rows, update=update, gate=gate, silu=True)
    assert (total - wanted).abs().max() < 1e-6
    assert (found - expected).norm() < 2e-2 * expected.norm()  # the rounding of rows that `linear` does
    weight = linear.codes.new_empty(0).float() if fused.kept is None else fused.kept
    assert weight.dtype == torch.float32


@pytest.mark.parametrize("shared", [True, False])
def test_layers_joined_give_what_they_gave_alone(shared: bool) -> None:
    torch.manual_seed(0)
    common = {"down": torch.randn(4, 128)} if shared else {}
    layers = [layer(5, **common), layer(64, bias=None, **common), layer(1, rank=4, **common)]
    rows = torch.randn(7, 128)
    alone = torch.cat([one(rows) for one in layers], dim=1)
    fused = product(layers)
    assert (
        fused.down is not None
        and fused.down.shape[0] == 16
        and int(fused.down.any(1).sum()) == (4 if shared else 12)
    )
    assert (fused(rows)[0] - alone).norm() < 1e-5 * alone.norm()
    assert torch.equal(torch.cat([one(rows) for one in layers], dim=1), alone)
    assert len({one.codes.untyped_storage().data_ptr() for one in layers}) == 1


def test_one_layer_without_a_branch_beside_one_with() -> None:
    torch.manual_seed(0)
    layers = [layer(5), layer(6, down=None, up=None), layer(7)]
    rows = torch.randn(3, 128)
    alone = torch.cat([one(rows) for one in layers], dim=1)
    assert (product(layers)(rows)[0] - alone).norm() < 1e-5 * alone.norm()
    assert joined_branch([layers[1]]) == (None, None)


def test_what_does_not_fit_is_left_to_the_plain_layer() -> None:
    pairs = [
        [layer(5, name="int4")],
        [layer(5), layer(5, dim=64)],
        [layer(5), layer(5, smooth=torch.ones(128))],
        [layer(5, smooth=torch.full((128,), 2.0)), layer(5, smooth=torch.ones(128))],
    ]
    assert all(fuse(pair, WeightScratch(), torch.float32) is None for pair in pairs)


def test_the_key_changes_with_an_adapters_strength() -> None:
    linear = layer(5)
    linear.adapters["a"] = Adapter(torch.zeros(2, 128), torch.zeros(5, 2), 1.0)
    before = fusion_key(linear)
    assert linear.fusion_key() == before
    linear.adapters["a"] = Adapter(torch.zeros(2, 128), torch.zeros(5, 2), 0.5)
    assert fusion_key(linear) != before


def test_no_rows() -> None:
    assert product([layer(5)])(torch.zeros(0, 128))[0].shape == (0, 5)


@pytest.mark.parametrize("int8", [True, False])
def test_layers_that_know_their_order_give_what_they_gave_alone(int8: bool) -> None:
    torch.manual_seed(0)
    scratch, linears = WeightScratch(), [layer(128), layer(128), layer(37)]
    rows, alone = torch.randn(5, 128), []
    products = [FusedH8([one], scratch, torch.float32, keep=False, int8=int8) for one in linears]
    hidden = rows
    for product_ in products:
        hidden, _ = product_(hidden)
        alone.append(hidden)
    products[0].following, products[1].following = products[1], products[2]
    for _ in range(2):
        hidden = rows
        for product_, expected in zip(products, alone, strict=True):
            hidden, _ = product_(hidden)
            assert torch.equal(hidden, expected)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dim", [64, 123])
def test_a_folded_branch_is_nearly_the_layer(dim: int, keep: bool) -> None:
    torch.manual_seed(0)
    linear = layer(37, dim, smooth=torch.rand(dim) + 0.5)
    rows, update, gate = torch.randn(10, dim), torch.randn(10, dim), torch.randn(2, dim)
    wanted = rows + gate.repeat_interleave(5, 0) * update
    expected = torch.nn.functional.silu(linear(wanted))
    fused = fuse([linear], WeightScratch(), torch.float32, keep=keep, fold=True)
    assert fused is not None and fused.folded is not None and fused.down is None and fused.up is None
    found, total = fused(rows, update=update, gate=gate, silu=True)
    assert (total - wanted).abs().max() < 1e-6
    assert (found - expected).norm() < 2e-2 * expected.norm()


def test_folded_layers_of_equal_smoothing_share_quantized_rows() -> None:
    torch.manual_seed(0)
    smooth, scratch = torch.rand(128) + 0.5, WeightScratch()
    first, second = (layer(out, smooth=smooth) for out in (37, 64))
    rows = torch.randn(7, 128)
    products = [fuse([one], scratch, torch.float32, fold=True) for one in (first, second)]
    assert products[0] is not None and products[1] is not None
    alone = [product_(rows)[0] for product_ in products if product_ is not None]
    quantized, total = products[0].read(rows)
    assert torch.equal(total, rows)
    assert torch.equal(products[0].multiply(quantized, torch.float32), alone[0])
    assert torch.equal(products[1].multiply(quantized, torch.float32), alone[1])


def test_without_a_branch_there_is_nothing_to_fold() -> None:
    torch.manual_seed(0)
    linear = layer(37, down=None, up=None)
    fused = fuse([linear], WeightScratch(), torch.float32, fold=True)
    rows = torch.randn(5, 128)
    assert fused is not None and fused.folded is None
    assert torch.equal(fused(rows)[0], product([linear])(rows)[0])


def test_attention_behind_queries_keys_and_values_is_theirs() -> None:
    torch.manual_seed(0)
    smooth = torch.rand(128) + 0.5
    parts = [layer(64, smooth=smooth) for _ in range(3)]
    product_ = fuse(parts, WeightScratch(), torch.float32, keep=True, fold=True)
    assert product_ is not None
    attended = product_.for_attention(heads=2)
    assert attended is not None and attended.fits(torch.zeros(10, 128), 2)
    rows, update = torch.randn(10, 128), torch.randn(10, 128)
    shift, scale = torch.randn(2, 128), torch.randn(2, 128)
    found, total = attended(rows, 2, update=update, shift=shift, scale=scale)
    joint, wanted = product_(rows, update=update, shift=shift, scale=scale)
    query, key, value = joint.view(2, 5, 3, 2, 32).unbind(2)
    expected = linear_attention(query, key, value).flatten(2).flatten(0, 1)
    assert torch.equal(total, wanted)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_attention_is_a_product_of_its_own_where_weights_are_not_kept_or_a_branch_is_beside_them() -> None:
    torch.manual_seed(0)
    parts = [layer(64) for _ in range(3)]
    for ways in ({"keep": False, "fold": True}, {"keep": True, "fold": False}):
        product_ = fuse(parts, WeightScratch(), torch.float32, **ways)
        assert product_ is not None and product_.for_attention(heads=2) is None
    kept = fuse(parts, WeightScratch(), torch.float32, keep=True, fold=True)
    assert kept is not None
    assert kept.for_attention(heads=1) is None and kept.for_attention(heads=4) is None


def test_the_key_never_returns_when_one_adapter_follows_another() -> None:
    linear, keys = layer(5), []
    for _ in range(20):  # memory that one leaves is the next one's
        linear.adapters["a"] = Adapter(torch.zeros(2, 128), torch.zeros(5, 2), 1.0)
        keys.append(fusion_key(linear))
        del linear.adapters["a"]
    assert len(set(keys)) == 20
