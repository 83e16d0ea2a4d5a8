"""Acceptance A1, A3, A4 of the method, on simulated ranks."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated


def inputs(height: int = 16, width: int = 8, dtype: torch.dtype = torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, height, width, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 5, 24, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    return latents.to(dtype), text.to(dtype), mask


def sample(model: SanaTransformer, steps: int = 20, guided: float = 3.0, **shape: int) -> torch.Tensor:
    """Flow-Euler with shift 3 and guidance, written out: the loop under test is the model."""
    latents, text, mask = inputs(dtype=model.proj_out.weight.dtype, **shape)
    prepared = model.prepare(text, mask)
    raw = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = 3 * raw / (1 + 2 * raw)
    for now, then in pairwise(sigmas):
        time = torch.full((2,), 1000 * float(now), dtype=latents.dtype)
        without, with_ = model.denoise(latents.repeat(2, 1, 1, 1), time, prepared).chunk(2)
        latents = latents + float(then - now) * (without + guided * (with_ - without))
    return latents


def on_ranks(model: SanaTransformer, plan: ParallelPlan, **options: int) -> list[torch.Tensor]:
    return run_simulated(plan.devices, lambda group: sample(parallelize(model, plan, group), **options))


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 8])
@torch.no_grad()
def test_sync_equals_one_device_on_every_rank(devices: int, toy: SanaTransformer) -> None:
    expected = sample(toy, steps=6)
    results = on_ranks(toy, ParallelPlan(devices=devices, mode="sync"), steps=6)
    assert max(error(result, expected) for result in results) <= (0.0 if devices == 1 else 1e-5)
    assert all(torch.equal(result, results[0]) for result in results)


@torch.no_grad()
def test_sync_is_exact_to_double_precision(toy: SanaTransformer) -> None:
    toy = toy.double()
    expected = sample(toy, steps=6)
    results = on_ranks(toy, ParallelPlan(devices=3, mode="sync"), steps=6)
    assert error(results[1], expected) <= 1e-12


@torch.no_grad()
def test_sync_in_bfloat16_stays_within_its_rounding(toy: SanaTransformer) -> None:
    toy = toy.bfloat16()
    assert (
        error(on_ranks(toy, ParallelPlan(devices=2, mode="sync"), steps=4)[0], sample(toy, steps=4)) <= 2e-2
    )


@pytest.mark.parametrize(("height", "width", "axis"), [(5, 4, "auto"), (4, 11, "auto"), (6, 6, "columns")])
@torch.no_grad()
def test_ragged_and_wide_images(height: int, width: int, axis: str, toy: SanaTransformer) -> None:
    plan = ParallelPlan(devices=3, mode="sync", axis=axis)
    expected = sample(toy, steps=3, height=height, width=width)
    assert error(on_ranks(toy, plan, steps=3, height=height, width=width)[2], expected) <= 1e-5


@torch.no_grad()
def test_positions_are_those_of_the_whole_image(toy: SanaTransformer) -> None:
    positioned = SanaTransformer(replace(toy.params, interpolation_scale=1.0)).eval()
    positioned.load_state_dict(toy.state_dict())
    expected = sample(positioned, steps=3)
    assert error(expected, sample(toy, steps=3)) > 1e-3
    for axis in ("rows", "columns"):
        plan = ParallelPlan(devices=3, mode="sync", axis=axis)
        assert error(on_ranks(positioned, plan, steps=3)[1], expected) <= 1e-5


@pytest.mark.parametrize("devices", [2, 4, 6])
@torch.no_grad()
def test_guidance_halves_may_live_apart(devices: int, toy: SanaTransformer) -> None:
    plan = ParallelPlan(devices=devices, mode="sync", guidance="split")
    results = on_ranks(toy, plan, steps=4)
    assert max(error(result, sample(toy, steps=4)) for result in results) <= 1e-5


@torch.no_grad()
def test_names_and_tensors_are_the_originals(toy: SanaTransformer) -> None:
    before = {name: id(tensor) for name, tensor in toy.named_parameters()}

    def rank_main(group: Group) -> None:
        model = parallelize(toy, ParallelPlan(devices=2, mode="sync"), group)
        assert {name: id(tensor) for name, tensor in model.named_parameters()} == before

    run_simulated(2, rank_main)
    assert (
        type(toy) is SanaTransformer and type(toy.transformer_blocks[0].attn1).__name__ == "LinearAttention"
    )


@torch.no_grad()
def test_full_warm_up_equals_sync_bit_for_bit(toy: SanaTransformer) -> None:
    sync = on_ranks(toy, ParallelPlan(devices=2, mode="sync"), steps=5)
    warm = on_ranks(toy, ParallelPlan(devices=2, mode="displaced", warmup_steps=4), steps=5)
    assert torch.equal(sync[0], warm[0])


@torch.no_grad()
def test_displaced_error_falls_with_warm_up_and_with_steps(toy: SanaTransformer) -> None:
    expected = {steps: sample(toy, steps=steps) for steps in (10, 20, 40)}

    def displaced(steps: int, warmup: int) -> float:
        plan = ParallelPlan(devices=2, mode="displaced", warmup_steps=warmup, state_rule="replace")
        return error(on_ranks(toy, plan, steps=steps)[0], expected[steps])

    by_warm_up = [displaced(20, warmup) for warmup in (0, 4, 12)]
    assert by_warm_up == sorted(by_warm_up, reverse=True) and by_warm_up[-1] > 0
    assert displaced(40, 4) < by_warm_up[1] < displaced(10, 4)


@torch.no_grad()
def test_displaced_beats_naive_by_the_margins_of_the_method(toy: SanaTransformer) -> None:
    expected = sample(toy)
    naive = error(on_ranks(toy, ParallelPlan(devices=2, mode="naive"))[0], expected)
    errors = {
        rule: error(on_ranks(toy, ParallelPlan(devices=2, mode="displaced", state_rule=rule))[0], expected)
        for rule in ("replace", "corrected")
    }
    assert naive / errors["replace"] >= 3
    assert naive / errors["corrected"] >= 6


@torch.no_grad()
def test_nothing_changes_nothing_is_stale(toy: SanaTransformer) -> None:
    latents, text, mask = inputs()
    prepared = toy.prepare(text, mask)
    expected = toy.denoise(latents.repeat(2, 1, 1, 1), torch.full((2,), 500.0), prepared)

    def rank_main(group: Group) -> list[torch.Tensor]:
        model = parallelize(toy, ParallelPlan(devices=2, mode="displaced", warmup_steps=0), group)
        return [
            model.denoise(latents.repeat(2, 1, 1, 1), torch.full((2,), 500.0), prepared) for _ in range(4)
        ]

    for result in run_simulated(2, rank_main)[1]:
        assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("first", [1000.0, 600.0])
@pytest.mark.parametrize("cancelled", [1, 3])
@torch.no_grad()
def test_a_picture_after_a_cancelled_one_starts_exact(
    cancelled: int, first: float, toy: SanaTransformer
) -> None:
    """Also at the same time, or at an earlier one: a picture made from a picture begins in between."""
    plan = ParallelPlan(devices=2, mode="displaced", warmup_steps=0)
    latents, text, mask = inputs()

    def rank_main(group: Group) -> tuple[torch.Tensor, ...]:
        def begun(model: SanaTransformer) -> torch.Tensor:
            pair = latents.repeat(2, 1, 1, 1)
            return model.denoise(pair, torch.full((2,), first), model.prepare(text, mask))

        model = parallelize(toy, plan, group)
        prepared = model.prepare(text, mask)
        for step in range(cancelled):
            model.denoise(torch.ones(2, 4, 16, 8), torch.full((2,), 1000.0 - step), prepared)
        return begun(model), begun(parallelize(toy, plan, group))

    for after, fresh in run_simulated(2, rank_main):
        assert torch.equal(after, fresh)


@torch.no_grad()
def test_a_new_image_starts_exact_again(toy: SanaTransformer) -> None:
    plan = ParallelPlan(devices=2, mode="displaced", warmup_steps=1)

    def rank_main(group: Group) -> bool:
        model = parallelize(toy, plan, group)
        first = sample(model, steps=6)
        return torch.equal(first, sample(model, steps=6))

    assert run_simulated(2, rank_main) == [True, True]


@pytest.mark.parametrize(("devices", "rank"), [(2, 0), (4, 1), (4, 3)])
@torch.no_grad()
def test_bytes_equal_the_formulas(devices: int, rank: int, toy: SanaTransformer) -> None:
    latents, text, mask = inputs()
    prepared = toy.prepare(text, mask)

    def rank_main(group: Group) -> tuple:
        model = parallelize(toy, ParallelPlan(devices=devices, mode="sync"), group)
        group.traffic.clear()
        model.denoise(latents.repeat(2, 1, 1, 1), torch.full((2,), 500.0), prepared)
        return group.traffic

    traffic = run_simulated(devices, rank_main)[rank]
    layers, heads, batch, width = 4, 2, 2, 64
    assert traffic.sum_bytes == pytest.approx(
        2 * (devices - 1) / devices * heads * 32 * 33 * 4 * layers * batch
    )
    neighbours = 1 if rank in (0, devices - 1) else 2
    assert traffic.neighbour_bytes == neighbours * 8 * width * 4 * layers * batch
    assert (traffic.sums, traffic.neighbours, traffic.gathers) == (layers, layers, 1)


@torch.no_grad()
def test_naive_exchanges_only_the_result(toy: SanaTransformer) -> None:
    latents, text, mask = inputs()

    def rank_main(group: Group) -> tuple[int, int]:
        model = parallelize(toy, ParallelPlan(devices=2, mode="naive"), group)
        group.traffic.clear()
        model(latents.repeat(2, 1, 1, 1), torch.full((2,), 500.0), text, mask)
        return group.traffic.collectives, group.traffic.gathers

    assert run_simulated(2, rank_main) == [(1, 1), (1, 1)]


def test_more_devices_than_rows_are_refused(toy: SanaTransformer) -> None:
    from fewer.core.errors import ConfigError

    with pytest.raises(ConfigError, match="at most 4 devices"):
        on_ranks(toy, ParallelPlan(devices=5, mode="sync"), steps=1, height=4, width=2)
