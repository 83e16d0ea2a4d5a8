"""Incremental update: go on learning from new interactions, with replay of old ones, and say what it did.

New items get rows (from their features, or as average items), users who come back keep their history, and the
figures before and after are measured on new targets as well as on old ones, so that forgetting shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch.utils.hooks import RemovableHandle

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.splits import Split
from fewer.recommend.evaluate import evaluate
from fewer.recommend.methods import own_loss
from fewer.recommend.recommender import Recommender
from fewer.recommend.serving.cold import add_items
from fewer.recommend.training.encoders import NetworkScorer
from fewer.recommend.training.loop import TrainingPlan, train_network


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlan:
    """How an update learns."""

    training: TrainingPlan = field(
        default_factory=lambda: TrainingPlan(epochs=5, patience=2, learning_rate=3e-4)
    )
    replay: Annotated[float, Field(ge=0)] = 1.0
    """Old training pairs per new one."""
    only_new_items: bool = False
    """Train nothing but the vectors of items the model did not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The updated recommender and what changed. Full-ranking figures on the same targets before and after."""

    recommender: Recommender
    new_items: int
    new_interactions: int
    before: dict[str, dict[str, float | int]]
    after: dict[str, dict[str, float | int]]


def update(
    recommender: Recommender,
    new: Interactions,
    old: Interactions | None = None,
    plan: UpdatePlan | None = None,
    progress: Progress | None = None,
    described: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> Update:
    """Learns `new` on top. `old` (the earlier log) gives returning users their history and is replayed.
    `described` (id -> feature -> words) gives unknown items a vector from their features to begin with.

    Where both logs have times, what stands in both is taken once: a new log may hold the old one. Raises
    `DataError` when nothing else is left, or no user of `new` has two items in all.
    """
    plan, progress = plan or UpdatePlan(), progress or SilentProgress()
    new = _without_known(new, old, progress)
    known = set(recommender.item_ids)
    described = described or {}
    unknown = dict.fromkeys(one for one in (*new.item_ids, *described) if one not in known)
    fresh = {one: described.get(one, {}) for one in unknown}
    grown = add_items(recommender, fresh)
    joined, is_new = join_logs(grown.item_ids, old, new)
    split, old_targets = _split(joined, is_new, plan)
    questions = {"new": split.test, "old": old_targets}
    before = _figures(grown, split, questions)
    training = replace(plan.training, loss=own_loss(grown.method, plan.training.loss))
    hook = _freeze_known(grown, len(known)) if plan.only_new_items else None
    train_network(grown.network, split, training, length=grown.sizes.length, progress=progress)
    if hook is not None:
        hook.remove()
        grown.network.requires_grad_(True)
    counts = np.bincount(joined.items[is_new], minlength=grown.item_count + 1)
    grown.popularity = grown.popularity + torch.from_numpy(counts).float()
    after = _figures(grown, split, questions)
    grown.network.eval()
    grown.report = {**recommender.report, "update": {"before": before, "after": after, "plan": asdict(plan)}}
    return Update(
        recommender=grown, new_items=len(fresh), new_interactions=len(new), before=before, after=after
    )


def _without_known(new: Interactions, old: Interactions | None, progress: Progress) -> Interactions:
    """`new` without the interactions (user, item, time) that `old` holds: they would stand twice in every
    history. Raises `DataError` when none is left."""
    if old is None or new.times is None or old.times is None:
        return new
    users = {name: number for number, name in enumerate(old.user_ids)}
    items = {name: number for number, name in enumerate(old.item_ids, start=1)}
    user_of = np.array([users.get(name, -1) for name in new.user_ids])
    item_of = np.array([0, *[items.get(name, 0) for name in new.item_ids]])
    size = len(items) + 1
    # who and what as the real part, when as the imaginary one; no old row has user -1 or item 0
    asked = user_of[new.user_codes] * size + item_of[new.items] + 1j * new.times
    known = np.isin(asked, old.user_codes * size + old.items + 1j * old.times)
    if not known.any():
        return new
    if known.all():
        raise DataError("nothing to learn: the old log holds all of the new interactions already")
    progress.say(f"{int(known.sum())} of {len(new)} new interactions stand in the old log too: taken once")
    return new.select(~known)


def join_logs(
    item_ids: list[str], old: Interactions | None, new: Interactions
) -> tuple[Interactions, np.ndarray]:
    """Both logs as one in the model's item numbers, and which interactions are new.

    Old items that the model does not know are dropped; without times in both, new rows follow the old ones.
    """
    numbers = {name: i + 1 for i, name in enumerate(item_ids)}
    users: dict[str, int] = {}
    parts = []
    for log in (old, new) if old is not None else (new,):
        user_map = np.array([users.setdefault(name, len(users)) for name in log.user_ids])
        item_map = np.array([0, *[numbers.get(name, 0) for name in log.item_ids]])
        items = item_map[log.items]
        times = np.zeros(len(items)) if log.times is None else log.times
        keep = items > 0
        parts.append(
            (user_map[log.user_codes][keep], items[keep], times[keep], np.full(keep.sum(), log is new))
        )
    codes, items, times, is_new = (np.concatenate(column) for column in zip(*parts, strict=True))
    timed = all(log is None or log.times is not None for log in (old, new))
    order = np.lexsort((times, codes)) if timed else np.argsort(codes, kind="stable")
    joined = Interactions.from_codes(
        codes[order], list(users), items[order], item_ids, times[order] if timed else None
    )
    return joined, is_new[order]


def _split(joined: Interactions, is_new: np.ndarray, plan: UpdatePlan) -> tuple[Split, np.ndarray]:
    """New interactions: each user's last tests, the one before validates, the rest trains with replay."""
    starts, ends = joined.offsets[:-1], joined.offsets[1:]
    users = joined.user_codes
    fresh = np.bincount(users, weights=is_new, minlength=joined.user_count).astype(int)
    asked = (fresh >= 1) & (ends - starts >= 2)
    if not asked.any():
        raise DataError(
            "nothing to learn: no user of the new interactions has two items; give --replay the old log"
        )
    tested = np.zeros(len(joined), dtype=bool)
    tested[ends[asked & (fresh >= 2)] - 1] = True
    validated = np.zeros(len(joined), dtype=bool)
    validated[ends[asked & (fresh >= 3) & (ends - starts >= 3)] - 2] = True
    first = np.zeros(len(joined), dtype=bool)
    first[starts[ends > starts]] = True
    held_back = tested | validated
    new_train = np.flatnonzero(is_new & ~first & ~held_back)
    # where the logs overlap in time, a user's last interaction may be an old one
    old_train = np.flatnonzero(~is_new & ~first & ~held_back)
    count = min(len(old_train), round(plan.replay * max(len(new_train), 1)))
    order = torch.randperm(len(old_train), generator=seeded(plan.training.seed, 6))[:count].numpy()
    train = np.sort(np.concatenate([new_train, old_train[order]]))
    if len(train) == 0:
        train = np.flatnonzero(is_new & ~first)
        tested[:] = validated[:] = False
    learnable = starts.copy()
    chosen = np.unique(users[train])
    learnable[chosen] = ends[chosen] - np.bincount(
        users, weights=tested | validated, minlength=joined.user_count
    )[chosen].astype(int)
    still = ends[(fresh == 0) & (ends - starts >= 2)] - 1
    split = Split(
        interactions=joined,
        train=train,
        validation=np.flatnonzero(validated),
        test=np.flatnonzero(tested),
        learnable=learnable,
    )
    return split, still


def _figures(
    recommender: Recommender, split: Split, questions: dict[str, np.ndarray]
) -> dict[str, dict[str, float | int]]:
    scorer = NetworkScorer(recommender.network, recommender.item_count)
    prefixes = Prefixes(split, recommender.sizes.length)
    return {
        name: evaluate(scorer, prefixes, positions, (10,))
        for name, positions in questions.items()
        if len(positions)
    }


def _freeze_known(recommender: Recommender, known: int) -> RemovableHandle:
    """Only rows beyond the known items keep a gradient, until the returned hook is removed."""
    for name, parameter in recommender.network.named_parameters():
        parameter.requires_grad_(name == "item_embedding.weight")
    table = recommender.network.get_submodule("item_embedding").weight
    moving = torch.zeros(len(table), 1, device=table.device)
    moving[known + 1 : recommender.item_count + 1] = 1
    return table.register_hook(lambda gradient: gradient * moving)
