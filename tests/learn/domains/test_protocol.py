"""DomainBed's rules by hand-made records."""

import pytest
import torch

from fewer.core.errors import DataError
from fewer.learn.domains.images import Domains
from fewer.learn.domains.plan import InvariantPlan, mask_policy
from fewer.learn.domains.protocol import (
    best_record,
    drawn_plan,
    reported_accuracy,
    run_score,
    source_validation,
    split_domain,
)


def record(
    step: float, outs: tuple[float, ...], ins: tuple[float, ...] = (0.9, 0.9, 0.9)
) -> dict[str, float]:
    values = {f"env{k}_out_acc": float(v) for k, v in enumerate(outs)} | {
        f"env{k}_in_acc": float(v) for k, v in enumerate(ins)
    }
    return {"step": float(step), "loss": 0.1, **values}


# Domain 2 is the target: the middle checkpoint validates best, the first is best on the target.
RUN = [
    record(1, (0.5, 0.7, 0.9), (0, 0, 0.91)),
    record(2, (0.8, 0.6, 0.4), (0, 0, 0.41)),
    record(3, (0.6, 0.7, 0.5), (0, 0, 0.51)),
]


def test_training_domain_selection_never_sees_the_target() -> None:
    assert best_record(RUN, [2], "training-domain")["step"] == 2
    assert run_score(RUN, 2, "training-domain") == pytest.approx(0.7)
    assert reported_accuracy(RUN[1], 2) == 0.41
    assert reported_accuracy({**RUN[1], "env2_new_acc": 0.3}, 2) == 0.3


def test_a_masked_run_is_chosen_among_its_masked_checkpoints() -> None:
    warm = [{**RUN[1], "masked": 0.0}, {**RUN[2], "masked": 1.0}]
    assert best_record(warm, [2], "training-domain")["step"] == 3
    assert best_record(warm[:1], [2], "training-domain")["step"] == 2  # there is no other


def test_the_oracle_takes_the_last_checkpoint() -> None:
    assert best_record(RUN, [2], "oracle")["step"] == 3
    assert run_score(RUN, 2, "oracle") == 0.5


def test_leave_one_out_picks_run_and_step_by_the_sources_left_out() -> None:
    """DomainBed: at each step the mean "in" accuracy on the domain left out; the best step counts."""
    without_0 = [record(1, (0.2, 0.9, 0.0), (0.4, 0, 0)), record(2, (1.0, 0.1, 0.0), (1.0, 0, 0))]
    without_1 = [record(1, (0.9, 0.6, 0.0), (0, 0.8, 0)), record(2, (0.9, 0.4, 0.0), (0, 0.5, 0))]
    inner = {0: without_0, 1: without_1}
    assert run_score(RUN, 2, "leave-one-out", inner) == pytest.approx((1.0 + 0.5) / 2)
    assert best_record(RUN, [2], "leave-one-out", inner)["step"] == 2
    # A step that one of the runs did not evaluate cannot be picked.
    cut = {0: without_0, 1: without_1[:1]}
    assert run_score(RUN, 2, "leave-one-out", cut) == pytest.approx((0.4 + 0.8) / 2)
    with pytest.raises(DataError, match="leave out"):
        run_score(RUN, 2, "leave-one-out")
    with pytest.raises(DataError, match="other steps"):
        run_score(RUN, 2, "leave-one-out", {0: [record(9, (0, 0, 0), (0, 0, 0))], 1: without_1})


def test_source_validation_needs_a_source() -> None:
    assert source_validation(RUN[0], [0, 2]) == 0.7
    with pytest.raises(DataError):
        source_validation(RUN[0], [0, 1, 2])
    with pytest.raises(DataError):
        best_record([], [0], "oracle")


@pytest.mark.parametrize("holdout", [0.2, 0.5])
def test_splits_are_disjoint_seeded_and_whole(holdout: float, domains: Domains) -> None:
    inside, outside = split_domain(domains, 0, holdout, seed=1)
    assert sorted(torch.cat([inside, outside]).tolist()) == list(range(30))
    assert len(outside) == int(holdout * 30)
    assert torch.equal(split_domain(domains, 0, holdout, 1)[0], inside)
    assert not torch.equal(split_domain(domains, 0, holdout, 2)[0], inside)
    assert not torch.equal(split_domain(domains, 1, holdout, 1)[0], inside)
    with pytest.raises(DataError, match="leaves one part empty"):
        split_domain(domains, 0, 0.01, 1)


def test_objects_are_held_out_in_all_domains_and_unseen_ones_in_none(domains: Domains) -> None:
    objects, unseen = torch.arange(30) // 2, torch.arange(30) >= 26
    with_objects = Domains(domains.names, domains.images, objects=(objects,) * 3, unseen=(unseen,) * 3)
    splits = [split_domain(with_objects, env, 0.2, 4) for env in range(3)]
    for inside, outside in splits:
        assert not set(objects[inside].tolist()) & set(objects[outside].tolist())
        assert not unseen[torch.cat([inside, outside])].any()
        assert torch.equal(outside, splits[0][1])


def test_draws_are_streams_by_name() -> None:
    plan = InvariantPlan(method="evil")
    assert drawn_plan(plan, 0) is plan
    one, again, two = drawn_plan(plan, 1), drawn_plan(plan, 1), drawn_plan(plan, 2)
    assert one == again
    assert one.rate != two.rate
    # A name's stream does not depend on which others are drawn.
    assert drawn_plan(InvariantPlan(method="none"), 1).rate == one.rate
    assert drawn_plan(InvariantPlan(method="none"), 1).density == plan.density
    for draw in range(1, 30):
        drawn = drawn_plan(plan, draw)
        assert 0.1 <= drawn.density <= 0.9
        assert 0.05 <= drawn.alpha <= 0.4
        assert drawn_plan(InvariantPlan(base="irm"), draw).penalty is not None


@pytest.mark.parametrize(("steps", "mode"), [(5001, "faithful"), (40, "faithful"), (300, "extended")])
def test_every_draw_of_a_mask_can_run_and_lies_in_the_published_ranges(steps: int, mode: str) -> None:
    plan = InvariantPlan(method="evil", steps=steps, mode=mode)  # pyright: ignore
    draws = [drawn_plan(plan, draw) for draw in range(1, 60)]
    for one in draws:
        mask_policy(one)
        assert 0.019 <= (one.delta or 0) / steps <= 0.11
        assert 0.1 <= one.density <= 0.9 and 0.05 <= one.alpha <= 0.4
    if steps == 5001:
        assert {one.delta for one in draws} == {100, 200, 300, 400, 500}
        assert {one.accumulation for one in draws} == {1, 5, 10, 15, 20}
    masks = {None} if mode == "extended" else {"random", "sensitivity", "fisher"}
    assert {one.first_mask for one in draws} == masks
