"""A lane trains one run after another without a trace of the one before."""

from dataclasses import replace

import torch

from fewer.learn import invariant
from fewer.learn.domains.images import Domains
from fewer.learn.domains.lane import STRETCH, Lane, Shared
from fewer.learn.domains.picture_table import PictureTable
from fewer.learn.domains.plan import InvariantPlan

PLAN = InvariantPlan(steps=45, batch=3, network="small-cnn", rate=0.01, device="cpu", seed=3)


def test_a_lane_goes_on_to_the_next_evaluation(domains: Domains) -> None:
    lane = Lane("any", domains, PictureTable(domains, torch.device("cpu")))
    lane.load(7, ["c"], replace(PLAN, evaluate_every=30), Shared())
    steps = []
    while not lane.ended:
        steps.append(lane.go_on())
    assert steps == [STRETCH, 10, 15]
    assert [record["step"] for record in lane.run.records] == [30.0, 45.0]
    assert lane.number == 7


def test_the_second_run_knows_nothing_of_the_first(domains: Domains) -> None:
    lane, shared = Lane("any", domains, PictureTable(domains, torch.device("cpu"))), Shared()
    results = []
    for target, plan in (("a", replace(PLAN, mode="extended", seed=5)), ("b", PLAN), ("b", PLAN)):
        lane.load(0, [target], plan, shared)
        while not lane.ended:
            lane.go_on()
        results.append(lane.result())
    alone = invariant(domains, "b", plan=PLAN)
    for one in results[1:]:
        assert one.records == alone.records
        assert all(torch.equal(one.masks[name], mask) for name, mask in alone.masks.items())
    assert len(shared.draws) == 2
    assert results[1].model.network is not results[2].model.network
