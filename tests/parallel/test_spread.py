import torch

from fewer.generate.transformer.attention import KeysValues
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from fewer.parallel.spread import Spread

TOY = SanaParams(heads=1, head_dim=16, depth=1, cross_heads=1, cross_head_dim=16, caption_channels=8)


def test_halves_and_bands_are_taken_and_joined_in_order() -> None:
    latents = torch.arange(2 * 1 * 4 * 3.0).view(2, 1, 4, 3)
    times = torch.tensor([1.0, 2.0])
    text = PreparedText((KeysValues(torch.arange(2.0).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)),), None)

    def rank_main(group: Group) -> tuple:
        spread = Spread(ParallelPlan(devices=4, mode="sync", guidance="split"), group, TOY)
        own, time, own_text, _ = spread.own_half(latents, times, text, None)
        spread.begin(own, time)
        band = spread.own_band(own)
        whole = spread.join_halves(spread.join_bands(band), 2)
        return (
            own_text.blocks[0].keys.item(),
            time.item(),
            band.flatten()[0].item(),
            torch.equal(whole, latents),
        )

    assert run_simulated(4, rank_main) == [
        (0.0, 1.0, 0.0, True), (0.0, 1.0, 6.0, True), (1.0, 2.0, 12.0, True), (1.0, 2.0, 18.0, True),
    ]  # fmt: skip


def test_without_a_pair_of_samples_everybody_does_all() -> None:
    def rank_main(group: Group) -> bool:
        spread = Spread(ParallelPlan(devices=2, mode="sync", guidance="split"), group, TOY)
        latents, times = torch.zeros(1, 1, 2, 2), torch.zeros(1)
        text = PreparedText((KeysValues(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)),), None)
        return spread.own_half(latents, times, text, None)[0] is latents

    assert run_simulated(2, rank_main) == [True, True]
