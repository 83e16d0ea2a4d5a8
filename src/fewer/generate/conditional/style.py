"""A style on a text-to-image transformer: a CAN adapter of `fewer train style`, merged at a strength."""

import torch

from fewer.core.errors import ConfigError
from fewer.core.modules import find_modules
from fewer.generate.conditional.adapter import NamedCondition, load_adapter
from fewer.generate.lora import parse_lora
from fewer.generate.transformer.sana import SanaTransformer


@torch.no_grad()
def wear_style(transformer: SanaTransformer, text: str) -> SanaTransformer:
    """The transformer with the style of FILE[:SCALE] in its weights: an ordinary one, of the same cost.

    It must be as it was loaded, in fp32: the file knows the hash of its base. Raises `FileError` for another
    base or a file that is no style, `ConfigError` for a damaged strength or a file of several styles.
    """
    path, scale = parse_lora(text)
    model = load_adapter(transformer, path)
    source = model.source
    assert isinstance(source, NamedCondition)
    if len(source.names) > 1:
        raise ConfigError(
            f"{path.name!r} holds several styles ({', '.join(source.names)}); "
            f"merge one in Python: conditional.load_adapter(...).merge(...)"
        )
    plain = model.static_twin()
    styled = model.merge(model.embed(torch.zeros(1, dtype=torch.long)))
    assert isinstance(styled, SanaTransformer)
    changed = {name for names in model.layers.values() for name in names}
    for name, layer in find_modules(styled, lambda name, _: name in changed):
        before = plain.get_submodule(name).weight
        layer.weight.copy_(before + scale * (layer.weight - before))  # pyright: ignore
    return styled
