from pathlib import Path

import pytest

from fewer.core.errors import ConfigError, FileError
from fewer.core.progress import SilentProgress
from fewer.recommend.command import TrainRequest, with_recbole_config
from fewer.recommend.data.recbole_config import read_recbole_config

TEXT = """
model: GRU4Rec
USER_ID_FIELD: user_id
MAX_ITEM_LIST_LENGTH: 20
user_inter_num_interval: "[5,inf)"
item_inter_num_interval: "(5,inf)"
loss_type: CE
learning_rate: 0.002
stopping_step: 7
worker: 3
eval_args: {split: {LS: valid_and_test}, order: TO, mode: full, group_by: user}
"""


def written(tmp_path: Path, text: str = TEXT) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_known_keys_are_taken_and_the_others_named(tmp_path: Path) -> None:
    config = read_recbole_config(written(tmp_path))
    assert config.values == {
        "user_column": "user_id", "length": 20, "learning_rate": 0.002, "patience": 7, "user_minimum": 5,
        "item_minimum": 6, "method": "gru4rec", "loss": "cross-entropy",
    }  # fmt: skip
    assert len(config.notes) == 1 and config.notes[0].endswith("nothing here: worker")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eval_args: {split: {RS: [0.8, 0.1, 0.1]}}", "not offered"),
        ("eval_args: {mode: uni100}", "all items are ranked"),
        ("eval_args: {mode: {valid: full, test: uni100}}", "all items are ranked"),
        ("eval_args: {order: RO}", "by time"),
        ("valid_metric: MRR@10", "NDCG@10 stops"),
        ("train_neg_sample_args: {distribution: uniform}", "--loss decides"),
    ],
)
def test_another_protocol_is_said(tmp_path: Path, text: str, said: str) -> None:
    assert said in read_recbole_config(written(tmp_path, text)).notes[0]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("model: NARM", ConfigError, "allowed: SASRec"),
        ("loss_type: TOP1", ConfigError, "allowed: CE, BPR"),
        ("user_inter_num_interval: '[5,9]'", ConfigError, "inf"),
        ("- a", FileError, "no settings"),
        ("a: [", FileError, "no YAML"),
        ("!!python/object:os.system {}", FileError, "no YAML"),
    ],
)
def test_what_we_lack_is_refused(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_recbole_config(written(tmp_path, text))


def test_given_options_win_and_values_are_checked(tmp_path: Path) -> None:
    asked = TrainRequest(data=Path("x"), output=Path("y"), length=9)
    made = with_recbole_config(asked, written(tmp_path), SilentProgress())
    assert (made.length, made.patience, made.method, made.epochs) == (9, 7, "gru4rec", 200)
    with pytest.raises(ConfigError, match="dim"):
        with_recbole_config(asked, written(tmp_path, "hidden_size: -4"), SilentProgress())
