import logging

import numpy as np
import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split
from fewer.recommend.evaluate import evaluate, metrics_from_ranks, rank_targets


class Table:
    """Scores looked up by the last item: arbitrary but fixed."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def scores(self, histories: torch.Tensor) -> torch.Tensor:
        return self.table[histories[:, -1]].clone()


def random_table(values: int | None = None) -> Table:
    generator = torch.Generator().manual_seed(0)
    if values:
        return Table(torch.randint(0, values, (21, 21), generator=generator).float())
    return Table(torch.rand(21, 21, generator=generator))


def brute_force(scorer: Table, split: Split, k: int, exclude: bool) -> dict[str, float]:
    """One question at a time, every order of ties counted."""
    items, starts = split.interactions.items, split.history_starts
    hr = ndcg = mrr = 0.0
    for position in split.test:
        history, target = items[starts[position] : position], int(items[position])
        scores = scorer.table[int(history[-1])].double().numpy().copy()
        rivals = [i for i in range(1, 21) if i != target and not (exclude and i in history)]
        above = sum(scores[i] > scores[target] for i in rivals)
        equal = sum(scores[i] == scores[target] for i in rivals)
        ranks = [above + place for place in range(1, equal + 2)]
        hr += np.mean([r <= k for r in ranks])
        ndcg += np.mean([(r <= k) / np.log2(r + 1) for r in ranks])
        mrr += np.mean([(r <= k) / r for r in ranks])
    count = len(split.test)
    return {f"hr_at_{k}": hr / count, f"ndcg_at_{k}": ndcg / count, f"mrr_at_{k}": mrr / count}


@pytest.mark.parametrize("length", [50, 3])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("ties", [None, 3])
def test_metrics_equal_brute_force(split: Split, length: int, exclude: bool, ties: int | None) -> None:
    scorer = random_table(ties)
    got = evaluate(scorer, Prefixes(split, length), split.test, (1, 5), exclude_seen=exclude, batch_size=7)
    for k in (1, 5):
        for name, value in brute_force(scorer, split, k, exclude).items():
            assert abs(got[name] - value) < 1e-9, name


def test_a_constant_scorer_gets_k_over_v_and_not_one(split: Split) -> None:
    got = evaluate(Table(torch.zeros(21, 21)), Prefixes(split, 5), split.test, (4, 20, 99))
    assert abs(got["hr_at_4"] - 4 / 20) < 1e-12 and abs(got["hr_at_20"] - 1) < 1e-12
    assert got["mean_rank"] == 10.5 and abs(got["hr_at_99"] - 1) < 1e-12


def test_a_perfect_scorer_gets_one(split: Split) -> None:
    prefixes = Prefixes(split, 5)

    class Oracle:
        def scores(self, histories: torch.Tensor) -> torch.Tensor:
            targets = dict(zip(map(tuple, self.known), self.answers, strict=True))
            out = torch.zeros(len(histories), 21)
            for row, history in enumerate(histories.tolist()):
                out[row, targets[tuple(history)]] = 1
            return out

    oracle = Oracle()
    batch = prefixes.gather(torch.from_numpy(split.test))
    oracle.known, oracle.answers = batch.histories.tolist(), batch.targets.tolist()
    got = evaluate(oracle, prefixes, split.test, (1,))
    assert got["hr_at_1"] > 0.9  # a history that occurs twice has two answers


def test_sampled_metrics_warn_and_are_larger(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    prefixes = Prefixes(split, 5)
    with caplog.at_level(logging.WARNING):
        sampled = evaluate(random_table(), prefixes, split.test, (5,), sampled_negatives=9)
    assert "wrongly" in caplog.text
    assert sampled["hr_at_5"] > evaluate(random_table(), prefixes, split.test, (5,))["hr_at_5"]


def test_nothing_to_ask_and_senseless_k(split: Split) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(random_table(), Prefixes(split, 5), split.test[:0])
    ranks = rank_targets(random_table(), Prefixes(split, 5), split.test)
    with pytest.raises(ConfigError, match="at least 1"):
        metrics_from_ranks(ranks, (0,))


def test_a_batch_of_one_question_is_a_batch(split: Split) -> None:
    scorer, prefixes = random_table(3), Prefixes(split, 50)
    whole = rank_targets(scorer, prefixes, split.test)
    for size in (1, len(split.test) - 1):  # one question a batch; one question left over
        parts = rank_targets(scorer, prefixes, split.test, batch_size=size)
        assert (parts.higher == whole.higher).all() and (parts.tied == whole.tied).all()
    assert metrics_from_ranks(rank_targets(scorer, prefixes, split.test[:1]))["users"] == 1


def test_scores_that_are_no_numbers_have_no_rank(split: Split) -> None:
    for broken in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="smaller --learning-rate"):
            evaluate(Table(torch.full((21, 21), broken)), Prefixes(split, 5), split.test)
