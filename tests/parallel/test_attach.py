import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.engine import accelerate
from fewer.generate.lora import AdaptedLayer, LowRank, attach, detach, linear_shape
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.attach import parallelize, structural_copy
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.test_sana import error, sample


def test_a_structural_copy_shares_tensors_and_nothing_else() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    copied = structural_copy(module)
    assert [id(t) for t in copied.parameters()] == [id(t) for t in module.parameters()]
    assert [id(t) for t in copied.buffers()] == [id(t) for t in module.buffers()]
    copied[0] = torch.nn.Identity()
    assert isinstance(module[0], torch.nn.Linear)


def test_unknown_models_and_wrong_counts_are_refused() -> None:
    linear = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="Linear cannot be spread"):
        run_simulated(2, lambda group: parallelize(linear, ParallelPlan(devices=2), group))
    with pytest.raises(ConfigError, match="for 3 devices, the group has 2"):
        run_simulated(2, lambda group: parallelize(linear, ParallelPlan(devices=3), group))


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_adapters_put_on_bands_draw_the_same_picture(fused: bool, toy: SanaTransformer) -> None:
    generator, adapter = torch.Generator().manual_seed(1), {}
    for path, layer in toy.named_modules():
        shape = linear_shape(layer)
        if shape is not None:  # every layer, as a few-step edition has it
            down, up = (torch.randn(*of, generator=generator) for of in ((2, shape[1]), (shape[0], 2)))
            adapter[path] = LowRank(down / shape[1] ** 0.5, up / 3, 2.0)
    plain = sample(toy, 2)
    expected = sample(attach(toy, adapter, name="few"), 2)
    detach(toy)
    assert error(plain, expected) > 1e-3
    model = accelerate(toy, graphs=False) if fused else toy

    def rank_main(group: Group) -> torch.Tensor:
        parallel = parallelize(model, ParallelPlan(devices=2, mode="sync"), group)
        return sample(attach(parallel, adapter, name="few"), 2)

    for result in run_simulated(2, rank_main):
        assert error(result, expected) <= 1e-5
    # Nothing of it has reached the model that was spread, nor the one that was accelerated.
    assert torch.equal(sample(toy, 2), plain)
    assert not any(isinstance(module, AdaptedLayer) for tree in (model, toy) for module in tree.modules())


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_one_device_gives_the_bits_of_the_plain_model(fused: bool, toy: SanaTransformer) -> None:
    model = accelerate(toy, graphs=False) if fused else toy
    expected = sample(model, 3)
    plan = ParallelPlan(devices=1)
    assert torch.equal(
        run_simulated(1, lambda group: sample(parallelize(model, plan, group), 3))[0], expected
    )


@torch.no_grad()
def test_a_spread_model_is_not_spread_again(toy: SanaTransformer) -> None:
    plan = ParallelPlan(devices=1)
    with pytest.raises(ConfigError, match="spread over devices already"):
        run_simulated(1, lambda group: parallelize(parallelize(toy, plan, group), plan, group))


@torch.no_grad()
def test_what_layers_have_cached_is_shared_and_what_graphs_have_captured_is_not(toy: SanaTransformer) -> None:
    fused = accelerate(toy, graphs=True)
    sample(fused, 1)
    fused.cache = {"phases": (1, torch.ones(3))}  # pyright: ignore
    copied = structural_copy(fused)
    assert copied.cache["phases"][1] is fused.cache["phases"][1]  # pyright: ignore
    assert len(fused.graphs) == 1 and len(copied.graphs) == 0  # pyright: ignore
    assert copied.graphs.function.__self__ is copied  # pyright: ignore
