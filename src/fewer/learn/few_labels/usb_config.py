"""Run files of the field's benchmark code (USB, microsoft/Semi-supervised-learning) as plans of ours.

They are flat YAML, a key and a plain value a line; nothing else of YAML is read. Every key is either taken
over, known to be of no effect here (paths, logging, launchers), or named as unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewer.core.errors import ConfigError, FileError

Value = str | int | float | bool | None

LARGEST = 1_000_000  # bytes
METHODS = {
    "fixmatch": "fixmatch",
    "flexmatch": "flexmatch",
    "freematch": "freematch",
    "softmatch": "softmatch",
    "adamatch": "adamatch",
    "uda": "uda",
    "mixmatch": "mixmatch",
    "pseudolabel": "pseudo-label",
    "supervised": "labels-only",
    "fullysupervised": "labels-only",
    "instant": "instant",
}
NETWORKS = {"wrn_28_2": "wrn-28-2", "wrn_28_8": "wrn-28-8", "resnet18": "resnet-18"}
PLAIN = {
    "batch_size": "batch",
    "uratio": "ratio",
    "ulb_loss_ratio": "unlabelled_weight",
    "p_cutoff": "cutoff",
    "ema_p": "running",
    "ema_m": "ema",
    "lr": "rate",
    "weight_decay": "weight_decay",
    "num_train_iter": "steps",
    "seed": "seed",
    "estimation": "estimation",
    "scale": "transition_scale",
}
FIXED: dict[str, tuple[Value, ...]] = {
    "hard_label": (True,),
    "crop_ratio": (0.875,),
    "momentum": (0.9,),
    "optim": ("SGD",),
    "layer_decay": (1.0,),
}
"""Keys that have one value here."""
# fmt: off
WITHOUT_EFFECT = frozenset({
    "save_dir", "save_name", "resume", "load_path", "overwrite", "use_tensorboard", "use_wandb", "use_aim",
    "epoch", "num_log_iter", "num_eval_iter", "num_warmup_iter", "data_dir", "dataset", "num_classes",
    "num_workers", "multiprocessing_distributed", "dist_url", "dist_backend", "world_size", "rank", "gpu",
    "amp", "clip", "clip_grad", "use_cat", "train_sampler", "ulb_num_labels", "eval_batch_size",
    "lb_imb_ratio", "ulb_imb_ratio", "imb_algorithm", "net_from_name", "use_pretrain", "pretrain_path",
    "thresh_warmup", "include_lb_to_ulb", "use_quantity_sampler", "ent_loss_ratio", "use_quantile",
    "clip_thresh", "dist_align", "dist_uniform", "per_class", "n_sigma", "c", "mixup_alpha",
    "mixup_manifold", "unsup_warm_up", "algorithm", "num_labels", "net", "img_size", "T", "warm_up_it",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class UsbRun:
    """What such a file asks for."""

    values: dict[str, Value]
    """Fields of `SemiSupervisedPlan`."""
    labels: int | None
    """Labelled images in all, spread evenly over the classes."""
    image_size: int | None
    unknown: tuple[str, ...]
    """Keys that mean nothing here."""


def read_usb_config(path: Path) -> UsbRun:
    """Raises `FileError` for what is no flat YAML, `ConfigError` for a method, network or value that is not
    here."""
    found = _flat(path)
    values: dict[str, Value] = {PLAIN[key]: value for key, value in found.items() if key in PLAIN}
    method = str(found.get("algorithm", "fixmatch")).lower()
    if method not in METHODS:
        raise ConfigError(f"{path.name}: algorithm {method!r} is not here; allowed: {', '.join(METHODS)}")
    values["method"] = METHODS[method]
    if "net" in found:
        network = str(found["net"]).lower()
        if network not in NETWORKS:
            raise ConfigError(f"{path.name}: net {network!r} is not here; allowed: {', '.join(NETWORKS)}")
        values["network"] = NETWORKS[network]
    for key, allowed in FIXED.items():
        if key in found and found[key] not in allowed:
            raise ConfigError(f"{path.name}: {key} is {found[key]}; allowed: {allowed[0]}")
    if method == "instant":
        steps, warm_up = found.get("num_train_iter", 2**20), found.get("warm_up_it", 10_240)
        if not isinstance(steps, int) or not isinstance(warm_up, int) or not 0 <= warm_up <= steps:
            raise ConfigError(f"{path.name}: warm_up_it is {warm_up}; allowed: 0 .. num_train_iter ({steps})")
        values["warm_up"] = warm_up / steps
        # The released code's defaults, not ours.
        values.setdefault("estimation", "class")
        values["posterior"] = "flattened"
        if "T" in found:
            values["threshold_temperature"] = found["T"]
    known = PLAIN.keys() | FIXED.keys() | WITHOUT_EFFECT
    unknown = tuple(sorted(key for key in found if key not in known))
    return UsbRun(values, _count(path, found, "num_labels"), _count(path, found, "img_size"), unknown)


def _count(path: Path, found: dict[str, Value], key: str) -> int | None:
    value = found.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{path.name}: {key} is {value!r}; allowed: a whole number from 1 up")
    return value


def _flat(path: Path) -> dict[str, Value]:
    if not path.exists():
        raise FileError(f"{path.name!r} is not there; check the path", missing=True)
    if path.stat().st_size > LARGEST:
        raise FileError(
            f"{path.name!r} has {path.stat().st_size:,} bytes; a run file has at most {LARGEST:,}"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name!r} is no text file ({error.reason})") from error
    found: dict[str, Value] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split(" #")[0].rstrip()
        if not text.strip() or text.lstrip().startswith("#") or text == "---":
            continue
        key, colon, value = text.partition(":")
        if not colon or key != key.strip() or not key.replace("_", "").isalnum() or key in found:
            raise FileError(
                f"{path.name!r} line {number}: {line.strip()[:60]!r} is no `key: value`, or repeats a key"
            )
        found[key] = _value(value.strip())
    return found


def _value(text: str) -> Value:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    words: dict[str, Value] = {"true": True, "false": False, "null": None, "none": None, "~": None, "": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
