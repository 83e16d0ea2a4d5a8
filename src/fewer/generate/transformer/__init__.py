"""The linear diffusion transformer of Sana, its parts, its published shapes and its files."""

from fewer.generate.transformer.formats import load_transformer, save_transformer
from fewer.generate.transformer.initialise import initialise
from fewer.generate.transformer.params import PUBLISHED, SanaParams, published
from fewer.generate.transformer.prepared_text import PreparedText
from fewer.generate.transformer.sana import SanaTransformer

__all__ = [
    "PUBLISHED",
    "PreparedText",
    "SanaParams",
    "SanaTransformer",
    "initialise",
    "load_transformer",
    "published",
    "save_transformer",
]
