import torch

from fewer.parallel.group import Group
from fewer.parallel.halves import halved, with_output
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated


def test_each_rank_takes_its_half_of_everything_that_counts_samples() -> None:
    given = {
        "x": torch.arange(4.0), "pair": (torch.arange(8.0).view(4, 2), 3), "img_ids": torch.zeros(4, 3),
        "time": torch.tensor(1.0), "inner": {"text": torch.arange(4.0)}, "other": torch.zeros(5),
    }  # fmt: skip

    def rank_main(group: Group) -> tuple:
        _, halves = halved(ParallelPlan(devices=2, guidance="split"), group)
        assert halves is not None
        return halves.take(given, 4), halves.join(halves.take(given["x"], 4)), halves.splits(3)

    for rank, (taken, joined, odd) in enumerate(run_simulated(2, rank_main)):
        own = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(taken["x"], given["x"][own]) and torch.equal(
            taken["inner"]["text"], given["x"][own]
        )
        assert torch.equal(taken["pair"][0], given["pair"][0][own]) and taken["pair"][1] == 3
        assert all(taken[name] is given[name] for name in ("img_ids", "time", "other"))
        assert torch.equal(joined, given["x"]) and not odd


def test_without_a_split_all_ranks_share_one_picture() -> None:
    def rank_main(group: Group) -> bool:
        patches, halves = halved(ParallelPlan(devices=2, guidance="batched"), group)
        return patches is group and halves is None

    assert run_simulated(2, rank_main) == [True, True]


def test_an_output_stays_of_its_kind() -> None:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    first, second = torch.zeros(1), torch.ones(1)
    assert with_output((first, 3), second) == (second, 3)
    kept = with_output(Transformer2DModelOutput(sample=first), second)
    assert isinstance(kept, Transformer2DModelOutput) and kept.sample is second
