"""A vision transformer from a local folder in transformers' format; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.core.tensors import tensor_header

if TYPE_CHECKING:
    from fewer.learn.networks import NetworkPlan


class VisionTransformer(nn.Module):
    """transformers' ViT; pictures are resized to its size and grey ones repeated to three channels."""

    def __init__(self, config: dict[str, object], classes: int) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        settings = ViTConfig.from_dict({k: v for k, v in config.items() if k != "auto_map"})
        self.side = int(settings.image_size)
        self.body = ViTModel(settings, add_pooling_layer=False)
        self.classifier = nn.Linear(settings.hidden_size, classes)
        self.config = config

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return self.body(pixel_values=images).last_hidden_state[:, 0]

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))


def load_vision_transformer(plan: NetworkPlan, folder: str | None) -> VisionTransformer:
    """The body's weights from `folder`; the classifier is new. Raises `ConfigError`, `FileError`."""
    if folder is None:
        raise ConfigError(
            "network 'vit' needs a folder with config.json and model.safetensors (--network-folder)"
        )
    config = read_json(Path(folder) / "config.json")
    if config.get("model_type") != "vit":
        raise ConfigError(f"{Path(folder).name}: model_type is {config.get('model_type')!r}, 'vit' is needed")
    tensor_header(Path(folder) / "model.safetensors")  # refuses a damaged or hostile file first
    from transformers import ViTModel

    body, report = ViTModel.from_pretrained(  # pyright: ignore
        folder, add_pooling_layer=False, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:
        first = min(report["missing_keys"])
        raise FileError(
            f"{Path(folder).name}: {len(report['missing_keys'])} tensors are missing, first {first!r}"
        )
    network = VisionTransformer(config, plan.classes)
    network.body.load_state_dict(body.state_dict())
    return network
