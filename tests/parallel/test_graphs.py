"""Graphs are captured on GPUs only; their bookkeeping runs here as plain calls."""

import torch

from fewer.parallel.attach import parallelize
from fewer.parallel.graphs import GraphedSteps
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.test_for_diffusers import three_steps, unet


@torch.no_grad()
def test_a_displaced_unet_with_memories_in_fixed_places_gives_the_same_picture_twice() -> None:
    model, start, call = unet()
    plan = ParallelPlan(devices=2, mode="displaced", warmup_steps=0)

    def rank_main(group: Group) -> tuple[torch.Tensor, ...]:
        moving = three_steps(parallelize(model, plan, group), start, call)
        graphed = GraphedSteps(parallelize(model, plan, group), lambda m, x, t: call(m, x, t))

        def at(_: object, x: torch.Tensor, time: float) -> torch.Tensor:
            return graphed(x, torch.tensor([time]))

        return moving, three_steps(graphed.model, start, at), three_steps(graphed.model, start, at)

    moving, fixed, again = run_simulated(2, rank_main)[0]
    assert torch.allclose(fixed, moving, atol=1e-6)
    assert torch.equal(fixed, again)
