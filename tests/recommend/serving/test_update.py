import numpy as np
import pytest
import torch

from fewer.core.errors import DataError
from fewer.core.progress import SilentProgress
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.fitting import FitSettings, fit
from fewer.recommend.methods import Sizes
from fewer.recommend.recommender import Recommender
from fewer.recommend.serving.cold import add_items, described_items
from fewer.recommend.serving.update import UpdatePlan, _split, _without_known, join_logs, update
from fewer.recommend.training.loop import TrainingPlan

PLAN = TrainingPlan(epochs=6, patience=6, batch_size=32, learning_rate=1e-2)


class Heard(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def news() -> Interactions:
    """New users who alternate between an old item and two new ones."""
    users = np.repeat(np.arange(500, 540), 6)
    return Interactions.build(users, ["3", "new-a", "new-b"] * 80)


def test_new_behaviour_is_learned_with_figures_on_both_sides(
    trained: Recommender, planted: Interactions
) -> None:
    before = trained.vectors().clone()
    changed = update(trained, news(), planted, UpdatePlan(training=PLAN))
    assert (changed.new_items, changed.new_interactions) == (2, 240)
    assert changed.after["new"]["ndcg_at_10"] > changed.before["new"]["ndcg_at_10"] + 0.2
    assert changed.after["old"]["ndcg_at_10"] > 0.6  # replay keeps the old rule
    assert "new-b" in changed.recommender.suggest([["3", "new-a"]], 2)[0].items
    assert torch.equal(trained.vectors(), before) and trained.item_count == 20  # the old model is untouched


def test_only_new_items_move_when_asked(trained: Recommender, planted: Interactions) -> None:
    changed = update(trained, news(), planted, UpdatePlan(training=PLAN, only_new_items=True))
    state, old = changed.recommender.network.state_dict(), trained.network.state_dict()
    for name, tensor in old.items():
        assert torch.equal(state[name][: len(tensor)], tensor), name
    assert changed.after["new"]["ndcg_at_10"] >= changed.before["new"]["ndcg_at_10"]
    assert all(p.requires_grad for p in changed.recommender.network.parameters())


def test_described_items_begin_where_their_features_say(planted: Interactions) -> None:
    colours = {name: [str(int(name) % 2)] for name in planted.item_ids}
    features = ItemFeatures.build(planted.item_ids, {"colour": colours})
    sizes = Sizes(length=5, dim=8, layers=1, candidates=(2,), hidden_channel=8)
    training = TrainingPlan(epochs=1, batch_size=128)
    made = fit(planted, FitSettings(sizes=sizes, training=training, features=features))
    described = described_items({"colour": {"new-a": ["1"], "later": ["0"]}})
    still = UpdatePlan(training=TrainingPlan(epochs=0))
    changed = update(made, news(), planted, still, described=described)
    assert changed.new_items == 3 and set(changed.recommender.item_ids[-3:]) == {"new-a", "new-b", "later"}
    expected = add_items(made, {"new-a": {"colour": ["1"]}, "new-b": {}, "later": {"colour": ["0"]}})
    torch.testing.assert_close(changed.recommender.vectors(), expected.vectors())


def test_returning_users_keep_their_history() -> None:
    old = Interactions.build(["u", "v", "u"], ["a", "b", "b"], [1, 1, 2])
    new = Interactions.build(["u", "w"], ["c", "a"], [9, 9])
    joined, is_new = join_logs(["a", "b", "c"], old, new)
    histories = {name: joined.history(u).tolist() for u, name in enumerate(joined.user_ids)}
    assert histories == {"u": [1, 2, 3], "v": [2], "w": [1]}
    assert joined.items[is_new].tolist() == [3, 1]


def test_what_is_asked_is_not_learned_where_the_logs_overlap_in_time() -> None:
    """u's last interaction is of the old log: it is asked, so it may not be replayed."""
    old = Interactions.build(["u"] * 3, ["a", "b", "c"], [1, 2, 9])
    new = Interactions.build(["u"] * 3, ["d", "e", "f"], [3, 4, 5])
    joined, is_new = join_logs(list("abcdef"), old, new)
    split, _ = _split(joined, is_new, UpdatePlan(replay=100.0))
    asked = {*split.test.tolist(), *split.validation.tolist()}
    assert asked == {4, 5} and joined.items[5] == 3 and not asked & {*split.train.tolist()}


def test_a_new_log_may_hold_the_old_one() -> None:
    """Also with other numbers of users and items, a time that differs, and a repeat at another time."""
    old = Interactions.build(["u", "v", "u"], ["a", "b", "b"], [1, 1, 2])
    new = Interactions.build(
        ["w", "v", "u", "u", "u", "v"], ["a", "b", "b", "a", "a", "c"], [1, 1, 2.5, 1, 3, 1]
    )
    progress = Heard()
    left = _without_known(new, old, progress)
    rows = zip(left.user_codes, left.items, left.times, strict=True)
    assert {(left.user_ids[u], left.item_ids[i - 1], t) for u, i, t in rows} == {
        ("w", "a", 1), ("u", "b", 2.5), ("u", "a", 3), ("v", "c", 1)
    }  # fmt: skip
    assert progress.said == ["2 of 6 new interactions stand in the old log too: taken once"]
    with pytest.raises(DataError, match="holds all of the new"):
        _without_known(old, old, progress)
    untimed = Interactions.build(["u"], ["a"])
    assert _without_known(untimed, old, progress) is untimed and _without_known(new, None, progress) is new


def test_one_new_item_without_a_history_teaches_nothing(trained: Recommender) -> None:
    with pytest.raises(DataError, match="--replay"):
        update(trained, Interactions.build(["u"], ["3"]))
