import pytest
import torch
from torch import nn

from fewer.core.errors import DataError
from fewer.quantize.calibrate import Reservoir, observe, plan_passes
from fewer.quantize.lottery import lottery
from fewer.quantize.recipe import Recipe
from fewer.quantize.roles import Group


def reservoir_of(limit: int, seed: int = 0, name: str = "a") -> Reservoir:
    return Reservoir(name, lottery(limit, torch.Generator().manual_seed(seed)))


def test_a_reservoir_keeps_every_row_equally_often_whatever_the_batches() -> None:
    counts = torch.zeros(60)
    for seed in range(200):
        reservoir = reservoir_of(15, seed)
        for batch in torch.arange(60.0)[:, None].split([1, 5, 30, 24]):
            reservoir.add(batch)
        kept = reservoir.samples().rows[:, 0].long()
        assert len(set(kept.tolist())) == 15
        counts[kept] += 1
    # each row is kept with probability 1/4: 50 of 200 times, standard deviation 6.1
    assert counts.min() > 25 and counts.max() < 75


def test_the_peak_counts_all_rows_not_only_the_kept_ones() -> None:
    reservoir, rows = reservoir_of(2), torch.randn(100, 3)
    reservoir.add(rows[:50])
    reservoir.add(rows[50:])
    reservoir.add(rows[:0])
    kept = reservoir.samples()
    assert torch.equal(kept.peak, rows.abs().amax(dim=0)) and len(kept.rows) == 2
    assert all((row == rows).all(dim=1).any() for row in kept.rows)
    assert reservoir.samples() is None, "the rows are handed over, not kept twice"


def test_fewer_rows_than_the_limit_are_all_kept_and_their_order_is_random() -> None:
    reservoir = reservoir_of(100)
    reservoir.add(torch.arange(40.0)[:, None])
    kept = reservoir.samples().rows[:, 0].tolist()
    assert sorted(kept) == list(range(40)) and kept != sorted(kept)


def test_nan_inputs_name_the_layer() -> None:
    with pytest.raises(DataError, match=r"'blocks\.0\.q'"):
        reservoir_of(4, name="blocks.0.q").add(torch.tensor([[1.0, float("inf")]]))


def test_observing_leaves_no_hooks_and_records_blocks_within_the_budget(
    tiny: tuple[nn.Module, torch.Tensor],
) -> None:
    model, inputs = tiny
    group = Group("g", (("blocks.0.q_proj", "blocks.0.k_proj"),), block="blocks.0")
    seen = observe(model, [group], lambda: model(inputs), Recipe(), rows=30, budget=2**20)
    rows = seen.samples["blocks.0.q_proj"].rows
    assert rows.shape == (30, 64) and set(seen.samples) == {"blocks.0.q_proj"}
    assert len(seen.calls["blocks.0"]) == 1 and torch.equal(
        seen.calls["blocks.0"][0].output, model.blocks[0](model.embed(inputs))
    )
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    nothing = observe(model, [group], lambda: model(inputs), Recipe(), rows=30, budget=10)
    assert nothing.calls["blocks.0"] == []


def test_hooks_are_gone_when_the_calibration_fails(tiny: tuple[nn.Module, torch.Tensor]) -> None:
    model, _ = tiny

    def fail() -> None:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        observe(model, [Group("g", (("blocks.0.q_proj",),))], fail, Recipe(), rows=3, budget=10)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_passes_cover_every_group_once_within_the_budget_last_ones_first() -> None:
    groups = [Group(str(index), ((str(index),),)) for index in range(10)]
    widths = {str(index): 1024 for index in range(10)}
    passes, rows = plan_passes(groups, widths, Recipe(sample_mebibytes=8), itemsize=4)
    assert rows == 512 and sorted(int(g.key) for chunk in passes for g in chunk) == list(range(10))
    assert all(len(chunk) * 1024 * 4 * rows <= 8 * 2**20 for chunk in passes) and passes[0][0].key == "9"
    one, many = plan_passes(groups, widths, Recipe(), itemsize=4)
    assert len(one) == 1 and 512 <= many <= 4096


def test_calls_of_different_number_formats_fill_one_sample() -> None:
    """Under autocast one layer may read fp32 and bf16 by turns."""
    reservoir, rows = reservoir_of(8), torch.randn(6, 3)
    reservoir.add(rows[:3])
    reservoir.add(rows[3:].bfloat16())
    kept = reservoir.samples().rows
    assert kept.dtype == torch.float32 and len(kept) == 6
    assert all((row == kept).all(dim=1).any() for row in rows[3:].bfloat16().float())
