import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.lora import LowRank, attach, set_scale
from fewer.parallel.agreement import Agreement, check_agreement, fingerprint
from fewer.parallel.group import Group
from fewer.parallel.simulated import SimulatedGroup, _Board, run_simulated
from tests.parallel import ranks


def test_agreeing_ranks_pass() -> None:
    module = torch.nn.Linear(2, 2)
    assert run_simulated(3, lambda group: check_agreement(group, {"size": 64}, module)) == [None] * 3


def test_the_odd_rank_and_its_fact_are_named() -> None:
    heard = []

    def rank_main(group: Group) -> None:
        try:
            check_agreement(group, {"height": 64 + 32 * (group.rank == 2), "width": 64})
        except ConfigError as error:
            heard.append(str(error))
            raise

    with pytest.raises(ConfigError):
        run_simulated(3, rank_main)
    assert heard and all("height is 64, but rank 2 has 96" in text for text in heard)
    assert "width" not in heard[0]


@pytest.mark.parametrize(
    ("main", "said"), [(ranks.different_weights, "weights"), (ranks.different_plans, "plan")]
)
def test_models_and_plans_must_be_equal(main: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_simulated(2, main)


def test_a_fingerprint_sees_values_and_layout() -> None:
    module = torch.nn.Linear(3, 2)
    before = fingerprint(module)
    assert fingerprint(module) == before
    with torch.no_grad():
        module.weight[0, 0] += 1
    after = fingerprint(module)
    assert after["tensors"] == before["tensors"] and after["weights"] != before["weights"]
    assert fingerprint(module.half())["tensors"] != before["tensors"]


def test_a_fingerprint_sees_rows_that_changed_places_and_adapters() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    before = fingerprint(module)
    with torch.no_grad():
        module[0].weight.copy_(module[0].weight.flip(0).clone())
    assert fingerprint(module)["weights"] != before["weights"]
    adapter = LowRank(torch.ones(1, 3), torch.ones(2, 1), 1.0)
    attach(module, {"0": adapter}, name="a", scale=1.0)
    weak = fingerprint(module)
    set_scale(module, "a", 0.5)
    assert fingerprint(module)["adapters"] != weak["adapters"]


def test_every_new_request_is_compared_and_a_running_one_is_not() -> None:
    asked = []

    class Counting(SimulatedGroup):
        def gather_object(self, value: object) -> list[object]:
            asked.append(value)
            return [value, value]

    agreement = Agreement(Counting(_Board(1, 1.0), 0, 2))
    requests = [(8, 900.0), (8, 500.0), (8, 100.0), (8, 900.0), (9, 500.0)]
    new = [agreement.check({"rows": rows}, time) for rows, time in requests]
    assert new == [True, False, False, True, True] and len(asked) == 3
