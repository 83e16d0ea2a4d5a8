import torch

from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.automatic import explain, plan_on_this_machine, time_of_step, work_of
from fewer.parallel.group import Group
from fewer.parallel.plan import Link, ParallelPlan, Work
from fewer.parallel.simulated import run_simulated


def test_all_ranks_choose_alike_leave_nothing_open_and_say_why(toy: SanaTransformer) -> None:
    def rank_main(group: Group) -> tuple[ParallelPlan, str]:
        return plan_on_this_machine(ParallelPlan(devices=2), toy, group, (16, 8), 5, guided=True)

    (first, why), (second, _) = run_simulated(2, rank_main)
    assert first == second and first.mode == "sync"
    assert first.guidance in ("split", "batched") and first.border in ("tokens", "hidden")
    for word in ("predicted", "one device", "ms a step", "GB/s", "us a small sum"):
        assert word in why


def test_what_was_asked_for_is_kept(toy: SanaTransformer) -> None:
    asked = ParallelPlan(devices=2, mode="displaced", guidance="batched", border="tokens")

    def rank_main(group: Group) -> ParallelPlan:
        return plan_on_this_machine(asked, toy, group, (16, 8), 5, guided=True)[0]

    assert run_simulated(2, rank_main) == [asked, asked]


def test_being_slower_than_one_device_is_said() -> None:
    work = Work(step_seconds=1e-3, layers=20, exact_bytes=1e6, linear_attention=True)
    slow, fast = (Link(latency_seconds=seconds, bytes_per_second=100e9) for seconds in (1e-2, 1e-6))
    plan = ParallelPlan(devices=2, mode="sync", guidance="batched")
    assert "--devices 1" in explain(plan, work, slow, False, "")
    assert "--devices 1" not in explain(plan, work, fast, False, "")


def test_the_bytes_are_those_of_the_formula_and_the_time_is_positive(toy: SanaTransformer) -> None:
    work = work_of(toy.params, 1.0, (16, 8), 4, 4)
    assert work.exact_bytes == 4 * (2 * 3 / 4 * 2 * 32 * 33 * 4 + 2 * 8 * 64 * 4)
    assert time_of_step(toy, (16, 8), 5) > 0
    assert torch.equal(toy.transformer_blocks[0].norm1(torch.ones(1, 1, 64)), torch.zeros(1, 1, 64))
    assert len(toy.transformer_blocks) == 4
