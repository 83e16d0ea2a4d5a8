"""The engine's Sana on bands: the same picture as one device, with and without the bookkeeping of graphs."""

import pytest
import torch

from fewer.generate.engine import accelerate
from fewer.generate.transformer.sana import SanaTransformer
from fewer.kernels.depthwise import depthwise_gated
from fewer.kernels.linear_attention import linear_attention_apply, linear_attention_state
from fewer.parallel.attach import parallelize
from fewer.parallel.fused_sana import ParallelFusedSana
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.test_sana import error, inputs, sample

PLAN = ParallelPlan(devices=3, mode="sync")


def on_ranks(model: SanaTransformer, graphs: bool, steps: int = 3, **plan: object) -> list[torch.Tensor]:
    chosen = ParallelPlan(**plan)  # pyright: ignore[reportArgumentType]
    fused = accelerate(model, graphs=graphs)

    def rank_main(group: Group) -> torch.Tensor:
        parallel = parallelize(fused, chosen, group)
        assert isinstance(parallel, ParallelFusedSana)
        sample(parallel, steps)  # a first picture leaves nothing behind that a second one could see
        return sample(parallel, steps)

    return run_simulated(chosen.devices, rank_main)


@pytest.mark.parametrize(
    ("devices", "guidance", "graphs", "border"),
    [(2, "batched", True, "tokens"), (3, "batched", False, "hidden"), (4, "split", True, "hidden")],
)
@torch.no_grad()
def test_fused_bands_equal_one_plain_device(
    devices: int, guidance: str, graphs: bool, border: str, toy: SanaTransformer
) -> None:
    expected = sample(toy, 3)
    results = on_ranks(toy, graphs, devices=devices, mode="sync", guidance=guidance, border=border)
    assert max(error(result, expected) for result in results) <= 1e-5
    assert all(torch.equal(result, results[0]) for result in results)


class ByCollectives:
    """Stands for `PeerExchange`, whose kernels need GPUs; notes the turns of its layers."""

    def __init__(self, group: Group, fits: bool) -> None:
        self.group, self.fits, self.turns = group, fits, []

    def fits_state(self, key: torch.Tensor, longest: int) -> bool:
        return self.fits and longest >= key.shape[1]

    def fits_rows(self, numbers: int, dtype: torch.dtype) -> bool:
        return self.fits and numbers > 0

    def book_state(self, *facts: object) -> None: ...

    def book_rows(self, *facts: object) -> None: ...

    def attend(self, query, key, value, longest: int, turn: int) -> torch.Tensor:
        self.turns.append(turn)
        return linear_attention_apply(query, self.group.start_sum(linear_attention_state(key, value)).wait())

    def depthwise(self, features, weight, bias, turn: int) -> torch.Tensor:
        self.turns.append(turn)
        rows = self.group.start_neighbours(features[:, :1], features[:, -1:]).wait()
        parts = [part for part in (rows[0], features, rows[1]) if part is not None]
        mixed = depthwise_gated(torch.cat(parts, dim=1), weight, bias)
        return mixed.narrow(1, 0 if rows[0] is None else 1, features.shape[1])


@pytest.mark.parametrize("fits", [True, False])
@torch.no_grad()
def test_blocks_may_exchange_by_themselves(fits: bool, toy: SanaTransformer) -> None:
    expected, fused = sample(toy, 2), accelerate(toy, graphs=False)

    def rank_main(group: Group) -> tuple[torch.Tensor, list[int]]:
        exchange, parallel = ByCollectives(group, fits), parallelize(fused, PLAN, group)
        for block in parallel.transformer_blocks:
            block._exchange = lambda: exchange
        return sample(parallel, 2), exchange.turns

    for result, turns in run_simulated(3, rank_main):
        assert error(result, expected) <= 1e-5
        assert turns == [layer % 2 for layer in range(toy.params.depth) for _ in range(2)] * 2 * fits


@torch.no_grad()
def test_displaced_is_the_same_with_memories_in_fixed_places(toy: SanaTransformer) -> None:
    plan = {"devices": 2, "mode": "displaced", "warmup_steps": 1}
    expected = sample(toy, 5)
    moving, fixed = (on_ranks(toy, graphs, 5, **plan)[1] for graphs in (False, True))
    assert torch.equal(moving, fixed)
    assert 0 < error(moving, expected) < 0.1


@torch.no_grad()
def test_another_size_on_a_live_model_is_planned_anew(toy: SanaTransformer) -> None:
    fused = accelerate(toy, graphs=True)
    sizes = [(16, 8), (5, 6), (4, 11), (16, 8)]

    def rank_main(group: Group) -> list[torch.Tensor]:
        parallel = parallelize(fused, ParallelPlan(devices=2, mode="displaced", warmup_steps=9), group)
        return [sample(parallel, 2, height=height, width=width) for height, width in sizes]

    for result, (height, width) in zip(run_simulated(2, rank_main)[0], sizes, strict=True):
        assert error(result, sample(toy, 2, height=height, width=width)) <= 1e-5


@pytest.mark.parametrize("border", ["tokens", "hidden"])
@pytest.mark.parametrize(("height", "width"), [(3, 2), (4, 3), (4, 5)])
@torch.no_grad()
def test_bands_of_one_row_or_column(height: int, width: int, border: str, toy: SanaTransformer) -> None:
    fused = accelerate(toy, graphs=False)
    expected = sample(toy, 2, height=height, width=width)
    plan = ParallelPlan(devices=3, mode="sync", border=border)  # pyright: ignore[reportArgumentType]

    def rank_main(group: Group) -> torch.Tensor:
        return sample(parallelize(fused, plan, group), 2, height=height, width=width)

    assert error(run_simulated(3, rank_main)[1], expected) <= 1e-5


@torch.no_grad()
def test_ranks_that_were_asked_for_different_sizes_are_refused(toy: SanaTransformer) -> None:
    from fewer.core.errors import ConfigError

    fused = accelerate(toy, graphs=False)

    def rank_main(group: Group) -> None:
        parallel = parallelize(fused, ParallelPlan(devices=2, mode="sync"), group)
        latents, text, mask = inputs(height=16 + 2 * group.rank)
        prepared = parallel.prepare(text, mask)
        parallel.denoise(latents.repeat(2, 1, 1, 1), torch.full((2,), 500.0), prepared)

    with pytest.raises(ConfigError, match=r"latents is .*, but rank 1 has"):
        run_simulated(2, rank_main)
