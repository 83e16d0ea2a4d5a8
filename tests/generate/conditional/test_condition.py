"""Condition-aware networks: the properties of section 7 of the method's acceptance list."""

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.generate.conditional.condition import (
    MergedSchedule,
    ModelCondition,
    condition_aware,
)
from fewer.generate.conditional.for_sana import condition_sana
from fewer.generate.conditional.targets import ConditionPlan
from tests.generate.conditional.conftest import SHAPES, randomise, tiny, tiny_sana, upgraded

ALL = ("patch_embed", "dwconv", "attn_out", "head", "qkv")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["split", "joined", "fused"])
@torch.no_grad()
def test_zero_generators_leave_the_network_bit_for_bit(shape: str, form: str, batch: tuple) -> None:
    plain = tiny(shape)(*batch)
    assert plain.abs().max() > 0.1
    changed = upgraded(shape, trained=False, form=form, targets=ALL)(*batch)
    if form == "joined":  # another order of summation, though of equal weights
        assert (changed - plain).abs().max() < 1e-5 * plain.abs().max()
    else:
        assert torch.equal(changed, plain)


@torch.no_grad()
def test_zero_generators_leave_sana_bit_for_bit() -> None:
    latents, text = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 6)
    times, mask = torch.tensor([10.0, 900.0]), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    plain = tiny_sana()(latents, times, text, mask)
    model = condition_sana(tiny_sana(), ConditionPlan(rank=2))
    assert torch.equal(model(latents, times, text, mask), plain)
    assert set(model.layers) == {"patch_embed", "dwconv_0", "dwconv_1", "attn_out"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 7])
@torch.no_grad()
def test_a_batch_equals_merged_networks_one_by_one(shape: str, count: int, batch: tuple) -> None:
    model = upgraded(shape, targets=ALL)
    latents, times, labels = (part[:count] for part in batch)
    together = model(latents, times, labels)
    static = model.static_twin()(latents, times, labels)
    assert (together - static).abs().max() > 1e-2  # the condition does something
    for i in range(count):
        one = model.merge(model.embed(times[i : i + 1], labels[i : i + 1]))
        apart = one(latents[i : i + 1], times[i : i + 1], labels[i : i + 1])
        assert (together[i] - apart[0]).abs().max() <= 1e-5 * max(1, float(together.abs().max()))


@pytest.mark.parametrize("shape", ["dit tokens", "cat adaln"])
def test_gradients_are_those_of_a_loop(shape: str, batch: tuple) -> None:
    """Of inputs, static weights and generators, against one sample at a time."""
    model = upgraded(shape)
    latents, times, labels = batch
    latents = latents.requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    together = torch.autograd.grad(
        model(latents, times, labels).square().sum(), [latents, *parameters], allow_unused=True
    )
    loop = sum(
        model(latents[i : i + 1], times[i : i + 1], labels[i : i + 1]).square().sum() for i in range(7)
    )
    apart = torch.autograd.grad(loop, [latents, *parameters], allow_unused=True)
    for one, other in zip(together, apart, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7


@pytest.mark.parametrize("form", ["split", "joined", "fused"])
@pytest.mark.parametrize("shape", ["dit adaln", "u-vit", "cat tokens"])
@torch.no_grad()
def test_nothing_leaks_between_samples(shape: str, form: str, batch: tuple) -> None:
    """Another condition, even a NaN one, in sample 3 leaves the other samples bit-identical."""
    model = upgraded(shape, form=form)
    latents, times, labels = batch
    condition = model.embed(times, labels)
    others = [0, 1, 2, 4, 5, 6]
    results = []
    for row in (condition[3], condition[3] * -2, torch.full_like(condition[3], torch.nan)):
        changed = condition.clone()
        changed[3] = row
        with model.bound(changed):
            results.append(model.base(latents, times, labels))
    assert not torch.equal(results[0][3], results[1][3]) and results[2][3].isnan().all()
    for result in results[1:]:
        assert torch.equal(result[others], results[0][others])


@torch.no_grad()
def test_a_merged_schedule_is_a_plain_module_for_each_step(batch: tuple) -> None:
    model = upgraded("cat tokens")
    latents, times, labels = batch
    schedule = MergedSchedule(model, model.embed(times, labels))
    before = model(latents, times, labels)
    for i in (2, 6, 0, 2):
        plain = schedule.at(i)
        assert not any("Condition" in type(module).__name__ for module in plain.modules())
        apart = plain(latents[i : i + 1], times[i : i + 1], labels[i : i + 1])
        assert (apart[0] - before[i]).abs().max() < 1e-5 * max(1, float(before.abs().max()))
    assert len(schedule) == 7
    assert torch.equal(model(latents, times, labels), before)  # the model itself was not touched


@torch.no_grad()
def test_the_shared_matrix_is_one_and_convolutions_have_their_own() -> None:
    model = upgraded("u-vit")
    assert len(model.layers["attn_out"]) == 3
    assert {key for key in model.can if key.startswith("dwconv")} == {"dwconv_0", "dwconv_1", "dwconv_2"}
    condition = torch.randn(2, 16)
    with model.bound(condition):
        additions = [model.layer(name).addition for name in model.layers["attn_out"]]
    assert additions[0] is additions[1] is additions[2]
    assert model.layer(model.layers["attn_out"][0]).addition is None


@torch.no_grad()
def test_kernel_selection_is_a_mixture(batch: tuple) -> None:
    model = upgraded("dit tokens", kind="aks", targets=("dwconv",))
    bank = model.can["dwconv_0"]
    weights = bank(torch.randn(3, 16)).flatten(1)
    low, high = bank.kernels.min(0).values, bank.kernels.max(0).values
    assert bool(((weights >= low - 1e-6) & (weights <= high + 1e-6)).all())
    assert torch.equal(upgraded("dit tokens", False, kind="aks")(*batch), tiny("dit tokens")(*batch))


def test_a_quantized_linear_layer_takes_the_split_form() -> None:
    class Quantized(nn.Module):
        in_features, out_features = 4, 3

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features[..., :3].round()

    base = nn.Sequential()
    base.add_module("attn", nn.Sequential())
    base.attn.add_module("attn", nn.Sequential())
    base.attn.attn.add_module("proj", Quantized())
    model = condition_aware(base, ConditionPlan(targets=("attn_out",), rank=2), ModelCondition(), 6)
    randomise(model.can)
    features, condition = torch.randn(2, 5, 4), torch.randn(2, 6)
    with model.bound(condition):
        result = model.base(features)
    dynamic = torch.einsum("boi,bni->bno", model.can["attn_out"](condition), features)
    assert torch.allclose(result, features[..., :3].round() + dynamic, atol=1e-5)
    with pytest.raises(ConfigError, match="no plain weight"):
        model.merge(condition[:1])


@torch.no_grad()
def test_wrong_input_is_told(batch: tuple) -> None:
    latents, times, labels = batch
    model = upgraded("dit tokens")
    with pytest.raises(ConfigError, match="one condition a sample"), model.bound(torch.randn(3, 16)):
        model.base(latents, times, labels)
    with pytest.raises(ConfigError, match="rank was 0"):
        upgraded("dit tokens", rank=0)
    with pytest.raises(ConfigError, match="class 6 is out of range"):
        model(latents, times, labels + 1)
    with pytest.raises(ConfigError, match="class -1 is out of range"):
        model(latents, times, labels - 1)
    with pytest.raises(ConfigError, match="merged network has one"):
        model.merge(model.embed(times, labels))
    with pytest.raises(ConfigError, match="no targets"):
        upgraded("dit tokens", targets=())
    with pytest.raises(ConfigError, match="no layer for target"):
        condition_aware(nn.Linear(3, 3), ConditionPlan(), ModelCondition(), 8)
