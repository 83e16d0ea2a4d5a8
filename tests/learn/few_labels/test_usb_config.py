from pathlib import Path

import pytest

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.few_labels.usb_config import read_usb_config

PUBLISHED = """
algorithm: instant
save_dir: ./saved_models/classic_cv
save_name: instant_cifar10_40_0
resume: False
num_train_iter: 1048576
num_labels: 40
batch_size: 64
uratio: 7
ulb_loss_ratio: 1.0   # weight
hard_label: True
T: 0.5
ema_p: 0.999
ema_m: 0.999
p_cutoff: 0.9
img_size: 32
crop_ratio: 0.875
lr: 0.03
momentum: 0.9
weight_decay: 5e-4
net: wrn_28_2
estimation: class
scale: 5
warm_up_it: 10240
seed: 0
dist_url: "tcp://127.0.0.1:10001"
gpu: None
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_published_run_file_becomes_a_plan(tmp_path: Path) -> None:
    run = read_usb_config(written(tmp_path, PUBLISHED))
    plan = validate(SemiSupervisedPlan, run.values)
    assert (plan.method, plan.network, plan.steps, plan.batch, plan.ratio) == (
        "instant", "wrn-28-2", 2**20, 64, 7,
    )  # fmt: skip
    assert (plan.rate, plan.weight_decay, plan.cutoff, plan.ema, plan.running) == (
        0.03,
        5e-4,
        0.9,
        0.999,
        0.999,
    )
    assert plan.warm_up * plan.steps == 10_240
    assert (plan.estimation, plan.transition_scale, plan.threshold_temperature) == ("class", 5.0, 0.5)
    assert plan.posterior == "flattened"  # as released, although ours looks at another view
    assert (run.labels, run.image_size, run.unknown) == (40, 32, ())


def test_the_released_code_trains_one_matrix_where_the_file_says_nothing(tmp_path: Path) -> None:
    run = read_usb_config(written(tmp_path, "algorithm: instant\n"))
    assert run.values["estimation"] == "class"


def test_keys_without_a_meaning_here_are_named(tmp_path: Path) -> None:
    run = read_usb_config(written(tmp_path, "algorithm: flexmatch\nsurprise: 1\nanother: x\n"))
    assert run.unknown == ("another", "surprise")
    assert run.values == {"method": "flexmatch"}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("algorithm: vat\n", ConfigError, "allowed: fixmatch"),
        ("net: vit_small_patch2_32\n", ConfigError, "allowed: wrn_28_2"),
        ("hard_label: False\n", ConfigError, "hard_label is False; allowed: True"),
        ("num_labels: -4\n", ConfigError, "num_labels"),
        ("algorithm: instant\nnum_train_iter: 10\nwarm_up_it: 11\n", ConfigError, "warm_up_it is 11"),
        ("a:\n  b: 1\n", FileError, "line 2"),
        ("- a\n", FileError, "line 1"),
        ("lr: 1\nlr: 2\n", FileError, "line 2"),
        ("!!python/object:os.system [x]\n", FileError, "line 1"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, text: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        read_usb_config(written(tmp_path, text))


def test_files_that_are_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not there"):
        read_usb_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="no text file"):
        read_usb_config(tmp_path / "b.yaml")
