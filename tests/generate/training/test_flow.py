"""The flow loss against hand-made cases, and its independence of the number of processes."""

import pytest
import torch

from fewer.generate.training.flow import FlowBatch, draw_flow, flow_loss


def batch_of(count: int, shift: float = 1.0) -> FlowBatch:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 4, 3, 5, generator=generator)
    return draw_flow(latents, torch.randn(count, 6, 8), torch.ones(count, 6), shift, generator)


def test_the_true_velocity_has_no_loss_and_zero_has_that_of_the_target() -> None:
    batch = batch_of(5)
    truth = batch.noise - batch.latents
    assert float(flow_loss(lambda *_: truth, batch)) == 0.0
    nothing = flow_loss(lambda x, *_: torch.zeros_like(x), batch)
    assert float(nothing) == pytest.approx(float(truth.square().mean()))


def test_the_network_sees_mixed_latents_and_whole_times() -> None:
    batch = batch_of(7, shift=3.0)
    seen = {}

    def network(latents, timestep, text, mask):
        seen.update(latents=latents, timestep=timestep)
        return torch.zeros_like(latents)

    flow_loss(network, batch)
    level = batch.levels[:, None, None, None]
    assert torch.allclose(seen["latents"], batch.latents + level * (batch.noise - batch.latents), atol=1e-6)
    assert torch.equal(seen["timestep"], seen["timestep"].round())
    assert ((1000 * batch.levels - seen["timestep"]) >= 0).all() and (
        1000 * batch.levels - seen["timestep"] < 1
    ).all()


@pytest.mark.parametrize("shift,median", [(1.0, 0.5), (3.0, 0.75), (6.0, 0.857)])
def test_shifted_levels_have_the_analytic_median(shift: float, median: float) -> None:
    latents = torch.zeros(20_000, 1, 1, 1)
    text = torch.zeros(20_000, 1, 1)
    drawn = draw_flow(latents, text, text[..., 0], shift, torch.Generator().manual_seed(0))
    assert float(drawn.levels.median()) == pytest.approx(median, abs=0.01)


@pytest.mark.parametrize("count,ranks", [(8, 2), (5, 2), (7, 3), (1, 2)])
def test_the_mean_over_ranks_is_the_loss_of_the_whole(count: int, ranks: int) -> None:
    batch = batch_of(count)
    network = torch.nn.Conv2d(4, 4, 1).requires_grad_(False)

    def velocity(latents, timestep, text, mask):
        return network(latents)

    whole = float(flow_loss(velocity, batch))
    parts = [float(flow_loss(velocity, batch.share(rank, ranks))) for rank in range(ranks)]
    assert sum(parts) / ranks == pytest.approx(whole, rel=1e-5)
