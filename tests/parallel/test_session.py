import pytest
import torch

from fewer.parallel.bands import cut
from fewer.parallel.group import Done, Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Memory, Session
from fewer.parallel.simulated import SimulatedGroup, run_simulated


def session_of(group: Group, **plan: object) -> Session:
    return Session(group, ParallelPlan(devices=group.size, **plan))


def test_steps_count_up_and_a_later_time_or_another_size_begins_anew() -> None:
    def rank_main(group: SimulatedGroup) -> list[int]:
        session, bands = session_of(group, mode="displaced"), cut(8, 2)
        counted = []
        for time, now in [
            (9.0, bands),
            (5.0, bands),
            (5.0, bands),
            (9.5, bands),
            (4.0, cut(6, 2)),
            (3.0, cut(6, 2)),
        ]:
            session.begin_step(time, now, 2)
            counted.append(session.step)
        return counted

    assert run_simulated(2, rank_main)[0] == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize(("mode", "counted"), [("displaced", [0, 0, 1, 2]), ("sync", [0, 1, 2, 3])])
def test_the_first_time_once_more_is_the_next_picture(mode: str, counted: list[int]) -> None:
    """What was cancelled behind its first step; nothing is stale without displacement."""

    def rank_main(group: SimulatedGroup) -> list[int]:
        session, steps = session_of(group, mode=mode), []
        for time in (9.0, 9.0, 5.0, 5.0):
            session.begin_step(time, cut(8, 2), 2)
            steps.append(session.step)
        return steps

    assert run_simulated(2, rank_main)[0] == counted


def test_another_text_begins_a_new_image_whatever_the_time_says() -> None:
    """The same text may come as a copy, or as a part that is cut out anew at each step."""

    def rank_main(group: SimulatedGroup) -> list[int]:
        session, steps, both = session_of(group, mode="displaced"), [], torch.arange(6.0).view(2, 3)
        for text in (both[:1], both[:1], both[:1].clone(), both[1:], both[1:], both, None):
            session.begin_step(5.0 - len(steps), cut(8, 2), 2, about=text)
            steps.append(session.step)
        return steps

    assert run_simulated(2, rank_main)[0] == [0, 1, 2, 0, 1, 0, 1]


def test_the_first_step_and_the_warm_up_are_exact() -> None:
    def rank_main(group: SimulatedGroup) -> list[bool]:
        session = session_of(group, mode="displaced", warmup_steps=2)
        exact = []
        for time in (5.0, 4.0, 3.0, 2.0):
            session.begin_step(time, cut(4, 2), 2)
            exact.append(session.exact)
        return exact

    assert run_simulated(2, rank_main)[0] == [True, True, True, False]


def displaced_state(rule: str, before: list, own_before: list, own: list) -> torch.Tensor:
    def rank_main(group: SimulatedGroup) -> torch.Tensor:
        session = session_of(group, mode="displaced", warmup_steps=0, state_rule=rule)
        for time in (2.0, 1.0):
            session.begin_step(time, cut(4, 2), 2)
        session.memories["a", "state"] = Memory(Done(torch.tensor(before)), torch.tensor(own_before))
        return session.start_state("a", torch.tensor(own)).wait()

    return run_simulated(2, rank_main)[0]


def test_the_rules_for_a_stale_sum_give_the_hand_computed_values() -> None:
    before, own_before, own = [[10.0, 8.0]], [[4.0, 3.0]], [[5.0, 4.0]]
    assert displaced_state("replace", before, own_before, own).tolist() == [[11.0, 9.0]]
    assert displaced_state("corrected", before, own_before, own).tolist() == [[12.0, 10.0]]
    assert displaced_state("frozen", before, own_before, own).tolist() == [[11.0, 9.0]]


def test_correcting_pays_where_the_bands_move_together_and_costs_where_each_goes_its_own_way() -> None:
    generator = torch.Generator().manual_seed(0)

    def errors(together: float, apart: float) -> tuple[float, float]:
        """Of `replace` and of `corrected`: root of the mean square, for two bands of many sums."""
        steps = together + apart * torch.randn(2, 1, 10_000, generator=generator)
        before = torch.full((1, 10_000), 1e3)
        found = (
            displaced_state(rule, (2 * before).tolist(), before.tolist(), (before + steps[0]).tolist())
            for rule in ("replace", "corrected")
        )
        truth = 2 * before + steps.sum(0)
        first, second = (float((state - truth).square().mean().sqrt()) for state in found)
        return first, second

    for together, apart in ((1.0, 0.2), (0.2, 1.0)):
        expected = ((together**2 + apart**2) ** 0.5, 2**0.5 * apart)  # of N = 2 bands
        assert errors(together, apart) == pytest.approx(expected, rel=0.05)


def test_keys_whose_normaliser_would_not_stay_positive_are_replaced() -> None:
    before, own_before, own = [[10.0, 3.0], [1.0, 9.0]], [[4.0, 3.0], [0.0, 1.0]], [[5.0, 1.0], [0.0, 2.0]]
    # First key: corrected normaliser 3 + 2 (1 - 3) = -1, so its row is the replaced one.
    assert displaced_state("corrected", before, own_before, own).tolist() == [[11.0, 1.0], [1.0, 11.0]]


def test_stale_rows_are_those_of_the_step_before() -> None:
    def rank_main(group: SimulatedGroup) -> list:
        session = session_of(group, mode="displaced", warmup_steps=0, halo="stale")
        got = []
        for step, time in enumerate((3.0, 2.0, 1.0)):
            session.begin_step(time, cut(4, 2), 2)
            rows = torch.full((1, 1, 2, 1), float(10 * group.rank + step))
            before, after = session.start_rows("c", rows, 1).wait()
            got.append(float(next(side for side in (before, after) if side is not None)))
        return got

    assert run_simulated(2, rank_main) == [[10.0, 10.0, 11.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("static", [False, True])
def test_a_picture_that_is_cut_short_leaves_nothing_on_its_way(static: bool) -> None:
    def rank_main(group: SimulatedGroup) -> tuple[bool, int, list]:
        session = session_of(group, mode="displaced", warmup_steps=0)
        session.static = static
        for time in (3.0, 2.0):
            session.begin_step(time, cut(4, 2), 2)
            session.start_state("a", torch.ones(1, 2)).wait()
            session.start_rows("a", torch.ones(1, 1, 2, 1), 1).wait()
            if time == 3.0:
                session.end_step()  # the second step is left in its middle, exchanges in their buckets
        session.begin_step(9.0, cut(4, 2), 2)
        drained = not session.sums and not session.rows and not session.fresh
        return drained, session.step, session.start_state("a", torch.full((1, 2), 3.0)).wait().tolist()

    assert run_simulated(2, rank_main) == [(True, 0, [[6.0, 6.0]])] * 2
