"""DC-AE: architecture, files, exact tiling, training. Public names, each imported on first use."""

import importlib

_WHERE = {
    "DCAutoencoder": "dc_ae",
    "DCAutoencoderConfig": "config",
    "published_config": "published",
    "published_names": "published",
    "ReconstructionWeights": "losses",
    "reconstruction_loss": "losses",
}
__all__ = tuple(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"fewer.generate.autoencoder has no {name!r}")
    return getattr(importlib.import_module(f"fewer.generate.autoencoder.{_WHERE[name]}"), name)
