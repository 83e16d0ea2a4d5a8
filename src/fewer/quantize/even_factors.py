"""Adapters (LoRA) in four bits a weight, beside a network that was packaged the same way.

Only the product of the two factors counts, so they are first turned into the pair in which noise costs
evenly: for second moments H of the layer's inputs and importance o of its outputs, the rows of the down
factor read with energy one each and apart from one another (A H Aᵀ = 1), and those of the up factor are the
singular directions of sqrt(o) B A sqrt(H). What is left of each factor's importance is then known exactly.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewer.core.errors import DataError, FileError
from fewer.generate.lora import lora_tensors
from fewer.generate.lora_file import LowRank
from fewer.quantize.importance import Importance
from fewer.quantize.package import BITS, packed


def package_adapter(
    adapter: Mapping[str, LowRank], known: Importance, bits: float = BITS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file that `read_lora` reads; `known` is of the network that it adapts.

    Raises `FileError` for a layer that the network has not, `DataError` for factors that are not finite.
    """
    turned: dict[str, LowRank] = {}
    matters = Importance()
    for layer, pair in adapter.items():
        moments, noise = known.moments.get(layer), known.noise.get(f"{layer}.weight")
        if moments is None or noise is None or (len(noise), len(moments)) != _sides(pair):
            raise FileError(f"the adapter changes {layer!r}, which this network has not, or of another shape")
        energy = moments.diagonal().sum().clamp_min(1e-30)
        outputs = noise / energy  # per unit of squared error of an output
        turned[layer] = even(pair, moments, outputs)
        down, up = turned[layer].down.float(), turned[layer].up.float()
        name, strength = f"transformer.{layer}.lora", pair.strength**2
        shared = strength * outputs @ up.square()
        matters.noise[f"{name}_A.weight"] = shared * energy
        matters.noise[f"{name}_B.weight"] = strength * outputs * len(down)
        matters.moments[f"{name}_A"] = moments
        matters.rows_read[f"{name}_A"] = known.rows_read[layer]
    tensors, metadata = lora_tensors(turned)
    return packed(tensors, matters, bits), metadata


def even(pair: LowRank, moments: Tensor, outputs: Tensor) -> LowRank:
    """The same product from factors of fp32 in which noise costs evenly."""
    down, up = pair.down.to(moments.device).double(), pair.up.to(moments.device).double()
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise DataError("the adapter has NaN or Inf; train it again")
    damped = moments.double() + 1e-3 * moments.diagonal().mean().clamp_min(1e-30) * torch.eye(
        len(moments)
    ).to(moments)
    weight = outputs.double().clamp_min(1e-3 * outputs.double().mean().clamp_min(1e-30)).sqrt()
    root = torch.linalg.cholesky(damped)
    outer, inner = torch.linalg.qr(weight[:, None] * up), torch.linalg.qr(root.mT @ down.mT)
    left, values, right = torch.linalg.svd(outer.R @ inner.R.mT)
    new_up = (outer.Q @ left * values) / weight[:, None]
    new_down = torch.linalg.solve_triangular(root.mT, inner.Q @ right.mT, upper=True).mT
    return LowRank(new_down.float(), new_up.float(), pair.alpha)


def _sides(pair: LowRank) -> tuple[int, int]:
    return pair.up.shape[0], pair.down.shape[1]
