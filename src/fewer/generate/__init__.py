"""Text or class to image: the public names, each imported on first use."""

from importlib import import_module

_NAMES = {
    "ConditionPlan": "fewer.generate.conditional",
    "DCAutoencoder": "fewer.generate.autoencoder",
    "DCAutoencoderConfig": "fewer.generate.autoencoder",
    "GenerateRequest": "fewer.generate.request",
    "Picture": "fewer.generate.picture",
    "PromptEncoder": "fewer.generate.text",
    "SanaParams": "fewer.generate.transformer",
    "SanaTransformer": "fewer.generate.transformer",
    "TextToImage": "fewer.generate.pipeline",
    "adapter": "fewer.generate.conditional",
    "condition_aware": "fewer.generate.conditional",
    "sample": "fewer.generate.sampling",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module 'fewer.generate' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)
