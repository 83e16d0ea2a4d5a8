"""Our class-conditional networks on bands, with and without generated weights."""

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.generate.conditional.build import build
from fewer.generate.conditional.for_sana import ConditionedSana, condition_sana
from fewer.generate.conditional.params import ClassConditionalParams
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.conftest import randomise
from tests.parallel.test_sana import error, inputs


def network(architecture: str, can: bool) -> nn.Module:
    params = ClassConditionalParams(
        architecture=architecture, size=12, patch=2, channels=3, classes=4, width=16, depth=3, heads=2,
        depthwise=True,
    )  # fmt: skip
    model = build(params, ConditionPlan(rank=4, zero_init=False) if can else None, 0).eval()
    return randomise(model.requires_grad_(False), size=0.2)


def three_steps(model: nn.Module) -> torch.Tensor:
    latents = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for time in (900.0, 500.0, 100.0):
        latents = latents - 0.1 * model(latents, torch.full((2,), time), torch.tensor([1, 4]))
    return latents


@pytest.mark.parametrize("architecture", ["dit", "u-vit", "cat"])
@pytest.mark.parametrize(("can", "devices"), [(False, 3), (True, 2), (True, 4)])
@torch.no_grad()
def test_sync_equals_one_device(architecture: str, can: bool, devices: int) -> None:
    model = network(architecture, can)
    expected, names = three_steps(model), set(model.state_dict())

    def rank_main(group: Group) -> torch.Tensor:
        parallel = parallelize(model, ParallelPlan(devices=devices, mode="sync"), group)
        assert {name for name, _ in parallel.named_parameters()} <= names
        return three_steps(parallel)

    for result in run_simulated(devices, rank_main):
        assert error(result, expected) <= 1e-5


@pytest.mark.parametrize("architecture", ["dit", "cat"])
@torch.no_grad()
def test_displaced_is_closer_than_naive_and_full_warm_up_is_sync(architecture: str) -> None:
    model = network(architecture, False)
    expected = three_steps(model)

    def on_two(**plan: object) -> torch.Tensor:
        chosen = ParallelPlan(devices=2, **plan)  # pyright: ignore[reportArgumentType]
        return run_simulated(2, lambda group: three_steps(parallelize(model, chosen, group)))[1]

    sync = on_two(mode="sync")
    assert torch.equal(sync, on_two(mode="displaced", warmup_steps=2))
    displaced, naive = on_two(mode="displaced", warmup_steps=0), on_two(mode="naive")
    assert 0 < error(displaced, expected) < error(naive, expected)


@torch.no_grad()
def test_a_condition_aware_sana_is_exact_and_refuses_halves(toy: SanaTransformer) -> None:
    model = ConditionedSana(condition_sana(toy, ConditionPlan(rank=4, zero_init=False))).eval()
    randomise(model.network.can, size=0.1)
    latents, text, mask = inputs()
    batch, times = latents.repeat(2, 1, 1, 1), torch.full((2,), 300.0)
    expected = model(batch, times, text, mask)

    def rank_main(group: Group, guidance: str = "batched") -> torch.Tensor:
        plan = ParallelPlan(devices=2, mode="sync", guidance=guidance)  # pyright: ignore[reportArgumentType]
        parallel = parallelize(model, plan, group)
        prepared = parallel.prepare(text, mask)
        return parallel.denoise(batch, times, prepared)

    assert error(run_simulated(2, rank_main)[0], expected) <= 1e-5
    with pytest.raises(ConfigError, match="guidance=batched"):
        run_simulated(2, lambda group: rank_main(group, "split"))


@pytest.mark.parametrize("architecture", ["dit", "u-vit", "cat"])
@torch.no_grad()
def test_halves_of_guidance_equal_one_device(architecture: str) -> None:
    model = network(architecture, False)
    expected = three_steps(model)

    def rank_main(group: Group) -> torch.Tensor:
        return three_steps(parallelize(model, ParallelPlan(devices=4, guidance="split", mode="sync"), group))

    for result in run_simulated(4, rank_main):
        assert error(result, expected) <= 1e-5


@torch.no_grad()
def test_a_picture_of_another_class_starts_exact_after_a_cancelled_one() -> None:
    """Made from a picture it begins in the middle of the times, below where the cancelled one stopped."""
    model, plan = network("dit", False), ParallelPlan(devices=2, mode="displaced", warmup_steps=0)
    latents = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    def rank_main(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        def begun(parallel: nn.Module) -> torch.Tensor:
            return parallel(latents, torch.full((2,), 400.0), torch.tensor([2, 4]))

        parallel = parallelize(model, plan, group)
        for time in (900.0, 700.0):
            parallel(torch.ones(2, 3, 12, 12), torch.full((2,), time), torch.tensor([1, 4]))
        return begun(parallel), begun(parallelize(model, plan, group))

    for after, fresh in run_simulated(2, rank_main):
        assert torch.equal(after, fresh)
