from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.device import isolated_randomness
from fewer.core.errors import DataError
from fewer.core.progress import SilentProgress
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.splits import Split, leave_last_out
from fewer.recommend.methods import MethodName, Sizes, build_network
from fewer.recommend.training import loop
from fewer.recommend.training.loop import TrainingPlan, cloze_mask, train_network

SIZES = Sizes(length=5, dim=8, layers=1, candidates=(2,), hidden_channel=8, hidden_sequence=8)
PLAN = TrainingPlan(epochs=4, batch_size=64, sequence_batch_size=16, learning_rate=5e-3)


def trained(split: Split, plan: TrainingPlan, method: MethodName = "automlp", **options: object) -> tuple:
    with isolated_randomness(0):
        network = build_network(method, SIZES, split.interactions.item_count)
    return network, train_network(network, split, plan, length=5, **options)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ["automlp", "sasrec", "bert4rec"])
def test_stopped_and_resumed_equals_uninterrupted(split: Split, tmp_path: Path, method: MethodName) -> None:
    whole, result = trained(split, PLAN, method)
    trained(split, replace(PLAN, epochs=2), method, folder=tmp_path)
    again, resumed = trained(split, PLAN, method, folder=tmp_path, resume=True)
    assert same(whole, again)
    assert [e["loss"] for e in result.path] == [e["loss"] for e in resumed.path]
    assert [e["ndcg_at_10"] for e in result.path] == [e["ndcg_at_10"] for e in resumed.path]


def test_neither_test_items_nor_later_ones_reach_the_training(split: Split) -> None:
    items = split.interactions.items.copy()
    items[split.test] = 1
    changed = leave_last_out(replace(split.interactions, items=items))
    for method in ("automlp", "gru4rec", "bert4rec"):
        one, first = trained(split, PLAN, method)
        other, second = trained(changed, PLAN, method)
        assert [e["loss"] for e in first.path] == [e["loss"] for e in second.path]
        assert same(one, other)


def test_the_best_epoch_stays_and_patience_stops(split: Split) -> None:
    plan = replace(PLAN, epochs=60, patience=3, learning_rate=3e-2)
    _, result = trained(split, plan, "sasrec")
    curve = [e["ndcg_at_10"] for e in result.path]
    assert result.stopped == "early" and len(curve) == result.best_epoch + 3
    assert max(curve) == curve[result.best_epoch - 1] == result.best_ndcg


def test_pairs_per_epoch_and_time_limit(split: Split) -> None:
    _, result = trained(split, replace(PLAN, epochs=2, pairs_per_epoch=50))
    assert [e["pairs"] for e in result.path] == [50, 50]
    _, result = trained(split, replace(PLAN, epochs=50, cpu_seconds=1e-6))
    assert result.stopped == "time" and len(result.path) == 1


def test_without_questions_all_epochs_run(planted: Interactions) -> None:
    _, result = trained(leave_last_out(planted, everything=True), replace(PLAN, epochs=3))
    assert len(result.path) == 3 and "ndcg_at_10" not in result.path[0]


def test_a_loss_that_is_no_number_stops(split: Split) -> None:
    with pytest.raises(DataError, match="smaller --learning-rate"):
        trained(split, replace(PLAN, learning_rate=1e30))
    with pytest.raises(DataError, match="nothing to learn"):
        trained(leave_last_out(Interactions.build([1, 2], ["a", "b"])), PLAN)


def test_too_many_items_switch_to_sampled_softmax_aloud(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listener(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(loop, "FULL_SOFTMAX_LIMIT", 10)
    _, result = trained(split, replace(PLAN, epochs=1, negatives=5), progress=Listener())
    assert "switched to sampled softmax" in said[0] and result.path[0]["loss"] > 0


def test_a_cloze_hides_real_items_only_and_at_least_one() -> None:
    items = torch.tensor([[0, 0, 1], [2, 3, 4]]).repeat(50, 1)
    hidden = cloze_mask(items, torch.Generator().manual_seed(0))
    assert hidden.any(1).all() and not (hidden & (items == 0)).any()
    assert 0.15 < float(hidden[1::2].float().mean()) < 0.45
