"""`accelerate`: a network of ours becomes the same network run by the engine.

Kernels do the work on any device: on a CPU they are their own references, so there the result can be checked
but is not faster. On a GPU without Triton nothing is changed.
"""

import importlib.util
import logging
from typing import Literal, TypeVar

import torch
from torch import nn

from fewer.core.device import available_memory
from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.transformer.sana import SanaTransformer

logger = logging.getLogger(__name__)

Precision = Literal["unchanged", "bf16", "svdquant"]
M = TypeVar("M", bound=nn.Module)


@torch.inference_mode(False)
def accelerate(
    module: M,
    precision: Precision = "unchanged",
    *,
    graphs: bool | None = None,
    keep_expanded: bool | None = None,
    fold_branch: bool = False,
) -> M:
    """The module through fused kernels, with the same tensors, names and (up to rounding) results.

    Takes a `SanaTransformer` (16 bits, or quantized by `fewer.quantize`) or a `DCAutoencoder`. Anything else,
    and anything already accelerated or spread over devices, comes back as it is. "bf16" converts the module
    in place first; "svdquant" insists that it holds 4-bit layers. `graphs`: None captures steps in CUDA
    graphs on a GPU. `keep_expanded` keeps 4-bit weights expanded in memory (8 bits, small layers 16), which
    saves up to a fifth of a step; None does so on a GPU where it takes less than an eighth of free memory.
    `fold_branch` makes the low-rank branch part of the 8-bit weights: faster again, about a tenth more error.
    Training still works: with gradients the plain forward runs.

    Raises `ConfigError` for "svdquant" or `fold_branch` without 4-bit layers.
    """
    quantized = any(hasattr(layer, "fuse") for layer in module.modules())
    if fold_branch and not quantized:
        raise ConfigError(
            "there is no branch to fold: the model has no layers in 4 bits; take one of `fewer quantize`, or "
            "leave the branch kept"
        )
    if precision == "svdquant" and not quantized:
        raise ConfigError(
            "precision svdquant needs a model with layers in 4 bits, and this one has none; quantize it "
            "first (fewer.quantize.quantize, or `fewer quantize`), or take bf16"
        )
    if precision == "bf16":
        module = module.to(torch.bfloat16)
    first = next(module.parameters(), None)
    if first is not None and first.is_cuda and importlib.util.find_spec("triton") is None:
        logger.warning("Triton is not installed, so the engine stays off; pip install triton")
        return module
    if type(module) is SanaTransformer:
        from fewer.generate.engine.sana import FusedSana

        keep = _room_to_keep(module) if keep_expanded is None else keep_expanded
        return FusedSana.around(  # pyright: ignore
            module, keep_expanded=keep, graphed=graphs, fold_branch=fold_branch
        )
    if type(module) is DCAutoencoder:
        from fewer.generate.engine.autoencoder import fuse_autoencoder

        return fuse_autoencoder(module)  # pyright: ignore[reportReturnType]
    return module


def _room_to_keep(module: nn.Module) -> bool:
    """Whether the GPU has plenty of memory for expanded weights, at two bytes each."""
    layers = [layer for layer in module.modules() if hasattr(layer, "fuse")]
    tensors = [tensor for layer in layers for tensor in layer.buffers()]
    if not tensors or not tensors[0].is_cuda:
        return False
    needed = sum(2 * layer.in_features * layer.out_features for layer in layers)  # pyright: ignore
    return bool(8 * needed < available_memory(tensors[0].device))
