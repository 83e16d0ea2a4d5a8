"""What displaced attention keeps is what was said beforehand."""

import pytest
import torch

from fewer.core.errors import CapacityError
from fewer.parallel import memory
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.kept import kept_bytes, kept_widths, unet_tokens
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session
from fewer.parallel.simulated import run_simulated
from tests.parallel.test_conditional import network, three_steps
from tests.parallel.test_for_diffusers import MODELS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LATE = ParallelPlan(devices=2, mode="displaced", warmup_steps=0)


def gathered_bytes(session: Session) -> int:
    return sum(memory.pending.wait().nbytes for key, memory in session.memories.items() if key[1] == "gather")


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_diffusers_models_keep_what_was_said(name: str) -> None:
    model, start, call = MODELS[name]()
    tokens = {
        "unet": unet_tokens(2, 16, 6), "pixart": lambda _: 10 // 2 * 8 // 2, "flux": lambda _: 15
    }[name]  # fmt: skip

    def rank_main(group: Group) -> tuple[int, dict[str, int]]:
        parallel = parallelize(model, LATE, group)
        call(parallel, start, 900.0)
        return gathered_bytes(parallel.band_session), kept_widths(parallel)

    taken, widths = run_simulated(2, rank_main)[1]
    largest = max(tokens(layer) * width * 4 for layer, width in widths.items())
    assert taken > 0
    assert kept_bytes(widths, tokens, 1, 4, static=False) == taken + 2 * largest
    assert kept_bytes(widths, tokens, 1, 4, static=True) == 2 * taken + 2 * largest


@torch.no_grad()
def test_a_dit_without_room_is_refused_by_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("dit", False)

    def rank_main(group: Group, plan: ParallelPlan = LATE) -> int:
        parallel = parallelize(model, plan, group)
        three_steps(parallel)
        return gathered_bytes(parallel.session)

    assert run_simulated(2, rank_main)[0] > 0
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(CapacityError, match="displaced attention keeps"):
        run_simulated(2, rank_main)
    exact = ParallelPlan(devices=2, mode="sync")
    assert run_simulated(2, lambda group: rank_main(group, exact)) == [0, 0]
