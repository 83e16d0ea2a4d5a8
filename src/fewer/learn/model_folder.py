"""A trained classifier as a folder: `model.safetensors`, `config.json`, `README.md` (the card).

The config is data that somebody else may have written: it is validated, and the tensors it implies are
compared with the weight file's header before any memory is taken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from fewer.core.config import validate
from fewer.core.device import pick_device, pick_dtype
from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_json, write_bytes, write_json
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.learn.data import LabelledImages
from fewer.learn.evaluate import Figures, evaluate_probabilities
from fewer.learn.networks import NetworkPlan, build_network
from fewer.learn.picture_files import Fit, fit_of

KIND = "fewer-classifier"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderConfig:
    """`config.json`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    kind: str
    version: Annotated[int, Field(ge=1, le=1)] = 1
    network: NetworkPlan
    class_names: Annotated[tuple[str, ...], Field(min_length=2, max_length=100_000)]
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    deviation: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=3)]
    network_config: dict[str, object] | None = None
    """Architecture of a `vit`."""
    training: dict[str, object] = field(default_factory=dict)
    """How it was trained: every setting, for people and for repeating the run."""
    figures: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainedClassifier:
    """A network with what it needs to answer for pictures: normalisation and class names."""

    network: nn.Module
    plan: NetworkPlan
    class_names: tuple[str, ...]
    mean: Float[Tensor, " channels"]
    deviation: Float[Tensor, " channels"]
    training: dict[str, object] = field(default_factory=dict)
    figures: dict[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    """In which answers are reckoned (16 bits: under autocast); not stored."""

    @property
    def fit(self) -> Fit:
        """How pictures of another size came to the model's in training."""
        return fit_of(self.training)

    def normalise(
        self, images: UInt8[Tensor, "n height width channels"]
    ) -> Float[Tensor, "n channels height width"]:
        """What the network sees, on the network's device."""
        device = next(self.network.parameters()).device
        pixels = images.to(device).permute(0, 3, 1, 2).float() / 255.0
        return (pixels - self.mean.to(device)[:, None, None]) / self.deviation.to(device)[:, None, None]

    @torch.no_grad()
    def predict(
        self, images: UInt8[Tensor, "n height width channels"], batch: int = 256
    ) -> Float[Tensor, "n classes"]:
        """Probabilities on the CPU; rows sum to 1. Raises `DataError` for pictures of another size."""
        wanted = (self.plan.height, self.plan.width, self.plan.channels)
        if tuple(images.shape[1:]) != wanted:
            raise DataError(
                f"pictures are {tuple(images.shape[1:])} (height, width, channels), the model needs {wanted}"
            )
        was_training = self.network.training
        self.network.eval()
        device = next(self.network.parameters()).device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            outputs = [self.network(self.normalise(part)).float() for part in images.split(batch)]
        parts = [one.softmax(1).cpu() for one in outputs]
        self.network.train(was_training)
        return torch.cat(parts) if parts else torch.zeros(0, len(self.class_names))

    def evaluate(self, data: LabelledImages) -> Figures:
        """Figures on the labelled pictures of `data`; classes are matched by name.

        Raises `DataError` when `data` has a class that the model does not know.
        """
        data = data.labelled()
        labels = self.labels_of(data)
        return evaluate_probabilities(self.predict(data.images), labels)

    def labels_of(self, data: LabelledImages) -> Int64[Tensor, " n"]:
        """The labels of labelled pictures in the model's order of classes. Raises `DataError`."""
        if data.class_names == self.class_names:
            return data.labels
        unknown = [name for name in data.class_names if name not in self.class_names]
        if unknown:
            raise DataError(
                f"class {unknown[0]!r} is unknown to the model; it knows {list(self.class_names)[:10]}"
            )
        return torch.tensor([self.class_names.index(name) for name in data.class_names])[data.labels]

    def save(self, folder: Path | str) -> None:
        """Writes the three files, each whole or not at all."""
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.network.state_dict(), {"kind": KIND})
        config = FolderConfig(
            kind=KIND,
            network=self.plan,
            class_names=self.class_names,
            mean=tuple(self.mean.tolist()),
            deviation=tuple(self.deviation.tolist()),
            network_config=getattr(self.network, "config", None),
            training=self.training,
            figures=self.figures,
        )
        write_json(folder / "config.json", asdict(config))
        write_bytes(folder / "README.md", _card(config).encode())

    @staticmethod
    def load(folder: Path | str, device: str = "cpu", dtype: str = "fp32") -> TrainedClassifier:
        """`folder` is a model's, or that of a run with one in `model/`; `dtype` is that of the answers.

        Raises `FileError` when a file is missing or does not fit, `ConfigError` for a bad config."""
        folder = Path(folder)
        if not (folder / "config.json").exists() and (folder / "model" / "config.json").exists():
            folder = folder / "model"
        raw = read_json(folder / "config.json")
        if raw.get("kind") != KIND:
            raise FileError(f"{folder.name}: kind is {str(raw.get('kind'))[:40]!r}, {KIND!r} is needed")
        config = validate(FolderConfig, raw)
        plan = config.network
        if len(config.class_names) != plan.classes:
            raise ConfigError(
                f"{folder.name}: {len(config.class_names)} class names for {plan.classes} classes"
            )
        if len(config.mean) != plan.channels or len(config.deviation) != plan.channels:
            raise ConfigError(f"{folder.name}: mean and deviation need {plan.channels} numbers each")
        _check_header(folder / "model.safetensors", config)
        network = _empty_network(config).to_empty(device="cpu")
        network.load_state_dict(read_tensors(folder / "model.safetensors"))
        return TrainedClassifier(
            network.to(pick_device(device)).eval(),
            plan,
            config.class_names,
            torch.tensor(config.mean),
            torch.tensor(config.deviation),
            config.training,
            config.figures,
            pick_dtype(dtype, pick_device(device)),
        )


def _empty_network(config: FolderConfig) -> nn.Module:
    """The network without memory (device "meta")."""
    with torch.device("meta"):
        if config.network.name != "vit":
            return build_network(config.network)
        from fewer.learn.vision_transformer import VisionTransformer

        if config.network_config is None:
            raise ConfigError("config.json of a 'vit' needs network_config")
        return VisionTransformer(config.network_config, config.network.classes)


def _check_header(path: Path, config: FolderConfig) -> None:
    infos, _ = tensor_header(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in _empty_network(config).state_dict().items()}
    for name, shape in wanted.items():
        if name not in infos:
            raise FileError(f"{path.name}: tensor {name!r} is missing for a {config.network.name}")
        if infos[name].shape != shape:
            raise FileError(
                f"{path.name}: {name!r} has shape {infos[name].shape}, config.json implies {shape}"
            )
    extra = set(infos) - set(wanted)
    if extra:
        raise FileError(
            f"{path.name}: tensor {min(extra)[:80]!r} belongs to no part of a {config.network.name}"
        )


def _card(config: FolderConfig) -> str:
    """A model card in Markdown: what it is, what it was trained on, what was measured."""
    plan = config.network
    lines = [
        f"# {plan.name} for {plan.classes} classes",
        "",
        f"Pictures: {plan.height} x {plan.width} pixels, {plan.channels} channel(s). "
        "Load with `fewer learn predict` or `fewer.learn.TrainedClassifier.load(folder)`.",
        "",
        "Classes: "
        + ", ".join(map(_short, config.class_names[:50]))
        + (" …" if len(config.class_names) > 50 else ""),
    ]
    for title, facts in (("Measured", config.figures), ("Training", config.training)):
        if facts:
            lines += ["", f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {_short(value)} |" for name, value in facts.items()]
    lines += ["", "Not a medical device. Figures hold for data like those it was measured on."]
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    text = text if len(text) <= 160 else text[:157] + "..."
    return text.replace("|", "/").replace("\n", " ").replace("<", "&lt;")
