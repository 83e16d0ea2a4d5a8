"""RecBole's YAML settings, for those who come from it: what we have takes their values, the rest is named.

RecBole's own defaults bite (random split, MRR@10, right padding), so only keys that the file sets count, and
what cannot be done as asked (a random split, sampled evaluation) is said and never silently replaced.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_bytes

MAX_BYTES = 2**20
PLAIN = {
    "USER_ID_FIELD": "user_column", "ITEM_ID_FIELD": "item_column", "TIME_FIELD": "time_column",
    "MAX_ITEM_LIST_LENGTH": "length", "hidden_size": "dim", "embedding_size": "dim", "n_layers": "layers",
    "num_layers": "layers", "hidden_dropout_prob": "dropout", "dropout_prob": "dropout", "epochs": "epochs",
    "train_batch_size": "batch_size", "learning_rate": "learning_rate", "stopping_step": "patience",
    "seed": "seed",
}  # fmt: skip
INTERVALS = {"user_inter_num_interval": "user_minimum", "item_inter_num_interval": "item_minimum"}
LOSSES = {"CE": "cross-entropy", "BPR": "bpr"}
MODELS = {
    "SASRec": "sasrec", "GRU4Rec": "gru4rec", "BERT4Rec": "bert4rec", "FMLPRec": "fmlp-rec",
    "FMLPRecModel": "fmlp-rec", "MLP4Rec": "mlp4rec", "AutoMLP": "automlp",
}  # fmt: skip
SAME_HERE = {
    "eval_args",
    "metrics",
    "topk",
    "valid_metric",
    "repeatable",
    "load_col",
    "train_neg_sample_args",
}
"""Keys whose wish is examined below, or that describe what always happens here."""


@dataclass(frozen=True, slots=True)
class RecBoleConfig:
    """What such a file asks for."""

    values: dict[str, object]
    """Fields of the training request."""
    notes: tuple[str, ...]
    """What is done otherwise or not at all, in sentences."""


def read_recbole_config(path: Path | str) -> RecBoleConfig:
    """Raises `FileError` for what is no YAML mapping, `ConfigError` for a model, loss or interval we lack."""
    path = Path(path)
    found = _mapping(path)
    values: dict[str, object] = {PLAIN[key]: value for key, value in found.items() if key in PLAIN}
    for key, name in INTERVALS.items():
        if found.get(key) is not None:
            values[name] = _minimum(path, key, found[key])
    for key, name, table in (("model", "method", MODELS), ("loss_type", "loss", LOSSES)):
        if key in found:
            asked = str(found[key])
            if asked not in table:
                raise ConfigError(f"{path.name}: {key} {asked!r} is not here; allowed: {', '.join(table)}")
            values[name] = table[asked]
    known = PLAIN.keys() | INTERVALS.keys() | SAME_HERE | {"model", "loss_type"}
    ignored = [key for key in found if key not in known]
    notes = _protocol_notes(path, found)
    if ignored:
        notes.append(f"{path.name}: these keys mean nothing here: {', '.join(map(str, ignored))}")
    return RecBoleConfig(values, tuple(notes))


def _protocol_notes(path: Path, found: Mapping[str, object]) -> list[str]:
    arguments = found.get("eval_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    notes = []
    split = arguments.get("split")
    if isinstance(split, Mapping) and "LS" not in split:
        notes.append(f"{path.name}: split {dict(split)} is not offered; each user's last items are held out")
    if str(arguments.get("order", "TO")) != "TO":
        notes.append(f"{path.name}: order {arguments['order']} is not offered; interactions go by time")
    mode = arguments.get("mode", "full")
    mode = mode.get("test", "full") if isinstance(mode, Mapping) else mode
    if mode != "full":
        notes.append(f"{path.name}: evaluation mode {mode} is not used; all items are ranked")
    if found.get("valid_metric", "NDCG@10") != "NDCG@10":
        notes.append(f"{path.name}: valid_metric {found['valid_metric']} is not used; NDCG@10 stops training")
    if found.get("train_neg_sample_args") and found.get("loss_type") != "BPR":
        notes.append(f"{path.name}: train_neg_sample_args are not used; --loss decides about negatives")
    return notes


def _minimum(path: Path, key: str, text: object) -> int:
    """The lower end of '[5,inf)'; an upper end is refused, for it would be dropped silently."""
    match = re.fullmatch(r"\s*([\[(])\s*(\d+)\s*,\s*(inf|\d+)\s*[\])]\s*", str(text))
    if match is None or not math.isinf(float(match[3])):
        raise ConfigError(f"{path.name}: {key} is {text!r}; allowed: '[N,inf)' or '(N,inf)'")
    return int(match[2]) + (match[1] == "(")


def _mapping(path: Path) -> Mapping[str, object]:
    import yaml

    try:
        found = yaml.safe_load(read_bytes(path, MAX_BYTES).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileError(f"{path.name}: no YAML: {str(error).splitlines()[0][:120]}") from error
    if not isinstance(found, Mapping):
        raise FileError(f"{path.name}: no settings; `key: value` lines are expected")
    return found
