"""Item features (category, brand, tags): read from a table, one vector table each, lists mean-pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.core.errors import ConfigError, FileError

MAX_TOKENS = 64  # per item and feature: more than that is a text, not a feature


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFeatures:
    """Tokens of every item, feature by feature."""

    names: tuple[str, ...]
    tokens: tuple[Int[Tensor, "items_and_padding _"], ...]
    """Per feature: token numbers 1.., 0 = none; row 0 (padding) is all 0."""
    vocabularies: tuple[tuple[str, ...], ...]
    """Per feature: token number i is entry i - 1."""

    @staticmethod
    def build(item_ids: Sequence[str], columns: Mapping[str, Mapping[str, Sequence[str]]]) -> "ItemFeatures":
        """`columns[feature][item id]` is a list of tokens; items without an entry have none."""
        if not columns:
            raise ConfigError("no features: at least one feature column is needed")
        tokens, vocabularies = [], []
        for by_item in columns.values():
            numbers: dict[str, int] = {}
            lists = [
                [numbers.setdefault(word, len(numbers) + 1) for word in by_item.get(item, ())][:MAX_TOKENS]
                for item in item_ids
            ]
            tokens.append(pad_lists([[], *lists]))
            vocabularies.append(tuple(numbers))
        return ItemFeatures(names=tuple(columns), tokens=tuple(tokens), vocabularies=tuple(vocabularies))

    def encode(self, columns: Mapping[str, Sequence[str]]) -> tuple[list[list[int]], int]:
        """One new item's tokens by feature name -> (numbers per feature, how many words are unknown)."""
        unknown = 0
        rows: list[list[int]] = []
        for name, vocabulary in zip(self.names, self.vocabularies, strict=True):
            words = list(columns.get(name, ()))
            known = {word: i + 1 for i, word in enumerate(vocabulary)}
            rows.append([known[word] for word in words if word in known])
            unknown += len(words) - len(rows[-1])
        return rows, unknown

    def bags(self) -> Float[Tensor, "items_and_padding words"]:
        """Every item as its mean-pooled indicator vector over all features' words."""
        return torch.cat([bag(t, len(v)) for t, v in zip(self.tokens, self.vocabularies, strict=True)], dim=1)


def bag(tokens: Int[Tensor, "items width"], words: int) -> Float[Tensor, "items words"]:
    """Shares of each word among an item's tokens; zero for an item without any."""
    counts = torch.zeros(len(tokens), words + 1)
    counts.scatter_add_(1, tokens, torch.ones(tokens.shape))
    counts = counts[:, 1:]
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def pad_lists(lists: Sequence[Sequence[int]]) -> Int[Tensor, "items width"]:
    """Ragged lists as a table, 0 on the right."""
    width = max(1, max(map(len, lists), default=1))
    return torch.tensor([[*one, *[0] * (width - len(one))] for one in lists], dtype=torch.long).reshape(
        -1, width
    )


class FeatureTable(nn.Module):
    """Item numbers -> one vector per feature, the mean of the feature's token vectors."""

    def __init__(self, features: ItemFeatures, dim: int) -> None:
        super().__init__()
        self.count = len(features.names)
        self.words = nn.ModuleList(
            nn.Embedding(len(v) + 1, dim, padding_idx=0) for v in features.vocabularies
        )
        for i, tokens in enumerate(features.tokens):
            self.register_buffer(f"tokens_{i}", tokens, persistent=False)

    def forward(self, items: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length features dim"]:
        streams = []
        for i, table in enumerate(self.words):
            tokens = self.get_buffer(f"tokens_{i}")[items]
            real = (tokens > 0).sum(-1, keepdim=True).clamp(min=1)
            streams.append(table(tokens).sum(-2) / real)
        return torch.stack(streams, dim=2)


def read_features(path: Path | str, names: Sequence[str] = ()) -> dict[str, dict[str, list[str]]]:
    """`features[name][item id]` from `.csv .tsv .item .parquet .jsonl`: item column first found by its name.

    Token lists are separated by spaces (RecBole's `token_seq`) in text files, by `|` anywhere. Without
    `names` every other column is a feature. Raises `FileError` naming file, line and column.
    """
    from fewer.recommend.data.reading import table_columns

    path = Path(path)
    columns, item_column = table_columns(path)
    plain = {name.split(":", 1)[0]: name for name in columns}
    chosen = list(names) or [name for name, full in plain.items() if full != item_column]
    missing = [name for name in chosen if name not in plain]
    if missing or not chosen:
        raise FileError(f"{path.name}: no feature column {missing or ''}; the header has {', '.join(plain)}")
    items = [str(one) for one in columns[item_column]]
    result: dict[str, dict[str, list[str]]] = {}
    for name in chosen:
        listed = plain[name].endswith("_seq")
        result[name] = {
            item: _tokens(cell, listed) for item, cell in zip(items, columns[plain[name]], strict=True)
        }
    return result


def _tokens(cell: object, listed: bool) -> list[str]:
    if cell is None:
        return []
    if isinstance(cell, list | tuple):
        return [str(one) for one in cell]
    text = str(cell).strip()
    return [word for word in (text.split() if listed else text.split("|")) if word]
