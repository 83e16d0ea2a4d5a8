"""Cold items: a vector from features alone, and new rows in a trained model without retraining.

Trained item vectors are regressed on the items' features (ridge, closed form); a new item gets the vector
that its features predict, and competes with all others at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core.device import isolated_randomness
from fewer.core.errors import ConfigError
from fewer.recommend.data.features import ItemFeatures, bag, pad_lists
from fewer.recommend.methods import build_network
from fewer.recommend.recommender import Recommender

RIDGE = 1.0  # in units of items: a word seen once is half believed


def feature_vectors(
    features: ItemFeatures,
    vectors: Float[Tensor, "items_and_padding dim"],
    rows: Sequence[Sequence[Sequence[int]]],
    trained: Tensor | None = None,
) -> Float[Tensor, "new dim"]:
    """Predicted vectors of new items; `rows[i][f]` are the token numbers of item i's feature f.

    `trained` (a mask over items) says whose vectors may teach; default all.
    """
    known, target = features.bags()[1:], vectors[1:].float().cpu()
    if trained is not None:
        known, target = known[trained], target[trained]
    mean = target.mean(0)
    gram = known.T @ known + RIDGE * torch.eye(known.shape[1])
    weights = torch.linalg.solve(gram, known.T @ (target - mean))
    new = torch.cat(
        [
            bag(pad_lists([row[f] for row in rows]), len(vocabulary))
            for f, vocabulary in enumerate(features.vocabularies)
        ],
        dim=1,
    )
    return mean + new @ weights


def add_items(
    recommender: Recommender, items: Mapping[str, Mapping[str, Sequence[str]]] | Sequence[str]
) -> Recommender:
    """A recommender that also knows `items` (id -> feature name -> words, or bare ids).

    Vectors come from the features where the model has any, else they are the mean of all vectors, which
    ranks the item as an average one. Raises `ConfigError` for an id that is known already.
    """
    described = items if isinstance(items, Mapping) else {one: {} for one in items}
    double = [one for one in described if one in set(recommender.item_ids)]
    if double:
        raise ConfigError(f"items {double[:5]} are in the model already")
    if not described:
        return recommender
    vectors, features = recommender.vectors().cpu(), recommender.features
    if features is None:
        new = vectors[1:].mean(0).expand(len(described), -1)
    else:
        rows = [features.encode(words)[0] for words in described.values()]
        new = feature_vectors(features, vectors, rows)
        features = _with_rows(features, rows)
    return grow(recommender, list(described), new, features)


def described_items(
    features: Mapping[str, Mapping[str, Sequence[str]]],
) -> dict[str, dict[str, Sequence[str]]]:
    """A table read feature by feature (feature -> id -> words) as items (id -> feature -> words)."""
    items: dict[str, dict[str, Sequence[str]]] = {}
    for name, by_item in features.items():
        for item, words in by_item.items():
            items.setdefault(item, {})[name] = words
    return items


def grow(
    recommender: Recommender,
    ids: list[str],
    vectors: Float[Tensor, "new dim"],
    features: ItemFeatures | None,
) -> Recommender:
    """The same network with rows for `ids` appended to the item table."""
    items = recommender.item_count
    device = recommender.vectors().device
    with isolated_randomness(0):
        network = build_network(recommender.method, recommender.sizes, items + len(ids), features)
    state = dict(recommender.network.state_dict())
    table = state["item_embedding.weight"]
    # BERT4Rec's mask token lies behind the items and stays there
    state["item_embedding.weight"] = torch.cat([table[: items + 1], vectors.to(table), table[items + 1 :]])
    network.load_state_dict(state)
    return replace(
        recommender,
        network=network.to(device).eval(),
        item_ids=[*recommender.item_ids, *ids],
        popularity=torch.cat([recommender.popularity, torch.zeros(len(ids))]),
        features=features,
        _numbers={},
        _index=None,
    )


def _with_rows(features: ItemFeatures, rows: list[list[list[int]]]) -> ItemFeatures:
    tables = []
    for f, tokens in enumerate(features.tokens):
        added = pad_lists([row[f] for row in rows])
        width = max(tokens.shape[1], added.shape[1])
        padded = [torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (tokens, added)]
        tables.append(torch.cat(padded))
    return ItemFeatures(names=features.names, tokens=tuple(tables), vocabularies=features.vocabularies)
