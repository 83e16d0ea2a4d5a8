"""Runs side by side end as each of them does alone."""

from dataclasses import replace

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.learn import invariant
from fewer.learn.domains.images import Domains
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.run import InvariantResult
from fewer.learn.domains.side_by_side import Wanted, can_share, invariant_side_by_side

PLAN = InvariantPlan(steps=24, batch=4, network="mlp", rate=0.01, device="cpu", seed=3, augment=True)
RUNS = [
    Wanted("c", replace(PLAN, method="none")),
    Wanted("a", replace(PLAN, mode="extended")),
    Wanted("c", replace(PLAN, mode="tmllab", steps=16, network="group-cnn")),  # of another shape
    Wanted("c", replace(PLAN, base="vrex", method="rigl", seed=4)),
    Wanted("b", replace(PLAN, base="irm", method="none", penalty=3.0, penalty_from=9)),
    Wanted("b", replace(PLAN, score="covariance", evaluate_every=7)),
    Wanted("c", replace(PLAN, density=0.3, first_mask="fisher", base="group-dro")),
    Wanted("c", replace(PLAN, average=0.8)),
    Wanted("b", replace(PLAN, average=0.8, method="none")),
    Wanted("a", replace(PLAN, records="brief", evaluate_every=12)),
]


@pytest.fixture(scope="module")
def one_after_the_other(domains: Domains) -> list[InvariantResult]:
    return [invariant(domains, run.target, plan=run.plan) for run in RUNS]


@pytest.mark.parametrize("lanes", [1, 3])
def test_side_by_side_is_one_after_the_other(
    domains: Domains, one_after_the_other: list[InvariantResult], lanes: int
) -> None:
    found = dict(invariant_side_by_side(domains, RUNS, lanes))
    assert sorted(found) == list(range(len(RUNS)))
    for number, (run, alone) in enumerate(zip(RUNS, one_after_the_other, strict=True)):
        theirs = found[number].model.network.state_dict()
        for name, value in alone.model.network.state_dict().items():
            assert torch.equal(value, theirs[name]), (number, name)
        assert all(torch.equal(alone.masks[name], found[number].masks[name]) for name in alone.masks)
        assert alone.records == found[number].records
        assert alone.figures == found[number].figures
        assert alone.updates == found[number].updates
        assert alone.layers == found[number].layers
        assert found[number].target == run.target


def test_what_cannot_be_shared_is_refused(domains: Domains) -> None:
    plan = replace(PLAN, base="sam")
    assert not can_share(plan)
    with pytest.raises(ConfigError, match="'sam' cannot be trained side by side; allowed: erm"):
        list(invariant_side_by_side(domains, [Wanted("c", plan)]))


def test_a_loss_that_is_not_finite_stops(domains: Domains) -> None:
    plan = replace(PLAN, base="vrex", penalty=1e300)
    with pytest.raises(DataError, match=r"the loss is \w+ at step \d+"):
        list(invariant_side_by_side(domains, [Wanted("c", plan)]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_recorded_steps_train_what_called_ones_train(domains: Domains) -> None:
    """Three lanes replay graphs that were recorded for other runs."""
    plans = [replace(run.plan, device="cuda", dtype="fp32", network="group-cnn") for run in RUNS]
    runs = [replace(run, plan=plan) for run, plan in zip(RUNS, plans, strict=True)]
    found = dict(invariant_side_by_side(domains, runs, 3))
    for number, run in enumerate(runs):
        alone = invariant(domains, run.target, plan=run.plan)
        ours = found[number].model.network.state_dict()
        for name, value in alone.model.network.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=2e-2, atol=2e-3, msg=f"{number} {name}")
        assert [u["step"] for u in alone.updates] == [u["step"] for u in found[number].updates]
