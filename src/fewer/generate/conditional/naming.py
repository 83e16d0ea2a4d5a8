"""Names of a condition-aware network's tensors in files: static ones as if nothing had been added, generators
as `can.<target>.…` where blocks share one, `<feed-forward>.can.…` beside each depthwise convolution."""

from collections.abc import Mapping

from torch import Tensor

from fewer.generate.conditional.condition import ConditionAware


def generator_names(layers: Mapping[str, list[str]]) -> dict[str, str]:
    """Key of each generator -> the prefix of its tensors in a file, for the layers that each serves."""
    result = {}
    for key, names in layers.items():
        if len(names) > 1 or key in ("patch_embed", "head", "attn_out", "qkv"):
            result[key] = f"can.{key}"
        elif key.startswith("dwconv"):
            result[key] = f"{names[0].rpartition('.')[0]}.can"
        else:
            result[key] = f"{names[0]}.can"
    return result


def file_tensors(model: ConditionAware) -> dict[str, Tensor]:
    """All parameters and buffers under the names they have in files."""
    tensors = {name.replace(".static.", "."): tensor for name, tensor in model.base.state_dict().items()}
    for key, prefix in generator_names(model.layers).items():
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in model.can[key].state_dict().items()}
    return tensors | {f"can.source.{name}": t for name, t in model.source.state_dict().items()}
