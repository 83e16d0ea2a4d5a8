import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError
from fewer.parallel.plan import Link, ParallelPlan, Work, choose_plan, step_seconds

WORK = Work(step_seconds=0.010, layers=20, exact_bytes=6e6, linear_attention=True)
FAST = Link(latency_seconds=15e-6, bytes_per_second=300e9)


def test_two_devices_with_guidance_split_it() -> None:
    plan = choose_plan(ParallelPlan(devices=2), WORK, FAST, guided=True)
    assert (plan.guidance, plan.bands, plan.mode) == ("split", 1, "sync")


def test_without_guidance_the_picture_is_cut() -> None:
    plan = choose_plan(ParallelPlan(devices=2), WORK, FAST, guided=False)
    assert (plan.guidance, plan.bands) == ("batched", 2)


def test_odd_counts_cannot_split_guidance() -> None:
    assert choose_plan(ParallelPlan(devices=3), WORK, FAST, guided=True).guidance == "batched"
    with pytest.raises(ConfigError, match="even number of devices, not 3"):
        ParallelPlan(devices=3, guidance="split").check()


def test_softmax_models_are_displaced_unless_told_otherwise() -> None:
    softmax = Work(step_seconds=0.01, layers=20, exact_bytes=1e9, linear_attention=False)
    assert choose_plan(ParallelPlan(devices=2), softmax, FAST, guided=False).mode == "displaced"
    assert choose_plan(ParallelPlan(devices=2, mode="sync"), softmax, FAST, guided=False).mode == "sync"


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("latency", [1e-6, 1e-3])
def test_what_is_chosen_is_never_predicted_slower_than_the_other(devices: int, latency: float) -> None:
    link = Link(latency_seconds=latency, bytes_per_second=20e9)
    chosen = choose_plan(ParallelPlan(devices=devices, mode="sync"), WORK, link, guided=True)
    for guidance in ("split", "batched"):
        other = ParallelPlan(devices=devices, mode="sync", guidance=guidance)
        assert step_seconds(chosen, WORK, link, True) <= step_seconds(other, WORK, link, True)


def test_the_cost_model_is_the_documented_one() -> None:
    plan = ParallelPlan(devices=2, mode="sync", guidance="batched")
    expected = 2 * 0.010 / 2 + 15e-6 + 40 * 15e-6 + 2 * 6e6 / 300e9
    assert step_seconds(plan, WORK, FAST, guided=True) == pytest.approx(expected)


def test_plans_explain_themselves_and_refuse_nonsense() -> None:
    assert "exact" in ParallelPlan(devices=2, mode="sync").explain()
    assert "5 exact steps" in ParallelPlan(devices=2, mode="displaced").explain()
    assert "seams" in ParallelPlan(devices=2, mode="naive").explain()
    with pytest.raises(ConfigError, match="devices was 0"):
        validate(ParallelPlan, {"devices": 0})


def test_displaced_with_nothing_but_warm_up_becomes_exact_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    plan = ParallelPlan(devices=2, mode="displaced", warmup_steps=4)
    assert plan.for_steps(6) is plan and not caplog.records
    assert plan.for_steps(5).mode == "sync"
    assert "5 steps are all warm-up" in caplog.text


def test_border_rows_travel_widened_where_the_link_is_faster_than_reading_weights_again() -> None:
    work = Work(
        step_seconds=0.1, layers=20, exact_bytes=9e6, linear_attention=True, row_bytes=143e3,
        widening_bytes=50e6,
    )  # fmt: skip
    plan = ParallelPlan(devices=2)
    for rate, border in ((300e9, "hidden"), (1e9, "tokens")):
        link = Link(latency_seconds=1e-5, bytes_per_second=rate)
        assert choose_plan(plan, work, link, guided=False).border == border
