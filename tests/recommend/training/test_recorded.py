from dataclasses import replace

import pytest
import torch

from fewer.core.device import isolated_randomness, seeded
from fewer.recommend.data.splits import Split
from fewer.recommend.methods import MethodName, Sizes, build_network
from fewer.recommend.training.loop import TrainingPlan, _Run
from fewer.recommend.training.recorded import RecordedSteps

SIZES = Sizes(length=11, dim=8, layers=1, candidates=(2,), dropout=0.0, hidden_channel=8, hidden_sequence=8)
PLAN = TrainingPlan(batch_size=50, sequence_batch_size=16, learning_rate=5e-3)


def run_of(method: MethodName, split: Split, plan: TrainingPlan = PLAN) -> _Run:
    with isolated_randomness(0):
        network = build_network(method, SIZES, split.interactions.item_count).train()
    return _Run(network, split, plan, SIZES.length)


def recorded(run: _Run) -> RecordedSteps:
    return RecordedSteps(run.network, run.optimizer, run.prefixes.to(torch.device("cpu")), run.items)


@pytest.mark.parametrize("method", ["automlp", "sasrec", "gru4rec", "fmlp-rec"])
def test_an_epoch_learns_what_the_plain_loop_learns(split: Split, method: MethodName) -> None:
    plain, other = run_of(method, split), run_of(method, split)
    other.recorded = recorded(other)
    for number in range(2):  # the second epoch's loss shows what the first one taught
        loss, count = plain._learn(number, seeded(0, number))
        padded_loss, padded_count = other._learn(number, seeded(0, number))
        assert count == padded_count
        assert padded_loss == pytest.approx(loss, rel=1e-5)


def test_widths_are_few_and_never_beyond_the_length(split: Split) -> None:
    steps = recorded(run_of("automlp", split))
    assert {steps._padded(width) for width in range(12)} == {8, 11}
    assert steps.epoch([], []) == (0.0, 0)


def test_a_cpu_run_records_nothing(split: Split) -> None:
    assert run_of("automlp", split).recorded is None
    assert run_of("automlp", split, replace(PLAN, graphs=False)).recorded is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["automlp", "sasrec", "gru4rec"])
def test_recorded_steps_learn_like_eager_ones(split: Split, method: MethodName) -> None:
    losses = []
    for graphs in (True, False):
        run = run_of(method, split)
        run = _Run(run.network.cuda(), split, replace(PLAN, graphs=graphs), SIZES.length)
        losses.append([run._learn(number, seeded(0, number))[0] for number in range(4)])
        if run.recorded is not None:
            assert run.recorded._graphs and not run.recorded._gave_up
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]
