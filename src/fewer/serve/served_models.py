"""What the server was given to serve, told apart when it starts: each model has one kind of work."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fewer.core.errors import FileError
from fewer.core.files import read_json
from fewer.serve.answers import ApiError

Kind = Literal["pictures", "classes", "autoencoder", "classifier", "recommender"]
_DRAWS: tuple[Kind, ...] = ("pictures", "classes")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A folder and what it is for."""

    folder: str = "default"
    kind: Kind = "pictures"
    classes: tuple[str, ...] = ()
    """What a model of kind `classes` draws."""


@dataclass(frozen=True, slots=True)
class Served:
    """Models and adapters by the names under which clients ask for them."""

    models: Mapping[str, ServedModel] = field(default_factory=lambda: {"default": ServedModel()})
    loras: Mapping[str, str] = field(default_factory=dict)
    seeds: Iterator[int] | None = None
    """For requests that name none; chance decides if this is absent."""

    def seed(self) -> int:
        """For a request that names none."""
        return secrets.randbelow(2**31) if self.seeds is None else next(self.seeds)

    def known(self, name: str, *kinds: Kind) -> ServedModel:
        """The model of that name. Raises `ApiError`: 404 for none, 400 for one that is none of `kinds`."""
        model = self.models.get(name)
        if model is None:
            served = ", ".join(self.models)
            raise ApiError(404, f"model {name!r} is not served; served: {served}", "model", "model_not_found")
        if kinds and model.kind not in kinds:
            able = ", ".join(other for other, one in self.models.items() if one.kind in kinds) or "none"
            text = f"model {name!r} is of kind {model.kind}, which cannot do this; served and able: {able}"
            raise ApiError(400, text, "model", "wrong_kind_of_model")
        return model

    def drawing(self, name: str) -> ServedModel:
        """As `known`, for a model that draws."""
        return self.known(name, *_DRAWS)

    def known_lora(self, text: str) -> str:
        """NAME[:STRENGTH], checked. Raises `ApiError` 400."""
        name, _, strength = text.partition(":")
        try:
            good = not strength or -100 <= float(strength) <= 100
        except ValueError:
            good = False
        if name not in self.loras or not good:
            served = ", ".join(self.loras) or "none"
            raise ApiError(400, f"lora is NAME or NAME:STRENGTH, not {text!r}; served: {served}", "lora")
        return text

    def options(self) -> dict[str, object]:
        """For the workers."""
        return {
            "models": {name: model.folder for name, model in self.models.items()},
            "classes": [name for name, model in self.models.items() if model.kind == "classes"],
            "loras": dict(self.loras),
        }


def look_at(folder: str, name: str) -> ServedModel:
    """What the folder holds ("default": the built-in model). Raises `FileError` for what cannot be served."""
    if folder == "default":
        return ServedModel()
    path = Path(folder)
    if not path.exists():
        raise FileError(f"model {name!r}: {folder!r} is not there", missing=True)
    if (path / "model_index.json").is_file():
        return ServedModel(folder)
    configs = [one for one in (path / "config.json", path / "model" / "config.json") if one.is_file()]
    facts = read_json(configs[0]) if configs else {}
    kind: Kind | None = None
    if facts.get("kind") == "fewer-classifier":
        kind = "classifier"
    elif facts.get("_class_name") == "FewerClassConditional":
        return ServedModel(folder, "classes", tuple(map(str, facts.get("class_names", ()))))
    elif facts.get("_class_name") == "AutoencoderDC":
        kind = "autoencoder"
    elif (path / "items.json").is_file():
        kind = "recommender"
    elif "quantization_config" in facts and (path / "pipeline.json").is_file():
        kind = "pictures"
    if kind is None:
        raise FileError(
            f"model {name!r}: {path.name!r} holds nothing that is served; wanted is a folder with "
            "model_index.json, or one that fewer train, quantize, learn or recommend wrote"
        )
    return ServedModel(folder, kind)
