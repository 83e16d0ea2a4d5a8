"""Every choice of a quantization run in one frozen dataclass."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How hard to look for smoothing scales and low-rank branches. The defaults are the reference's."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    smooth: bool = True
    """Search the smoothing scales (needs calibration); off leaves them at 1."""
    grid: Annotated[int, Field(ge=2, le=40)] = 20
    """Steps of the search: 2 n - 1 candidates, 39 by default, 19 for the fast preset."""
    refine_rounds: Annotated[int, Field(ge=1, le=1000)] = 100
    """Most rounds of refining the branch against the rounded residual; stops earlier when it no longer helps.
    """
    gptq: bool = False
    """Round with error feedback along the inputs' correlations (needs many calibration rows)."""
    svd: Literal["auto", "exact", "randomized"] = "auto"
    """SVD of the final factors; auto is exact up to 256 channels. The search always uses the randomised one.
    """
    unsigned: bool = True
    """After GELU feed h + 11/64 to unsigned 4-bit activations (int4 only)."""
    evaluate: Literal["block", "layer"] = "block"
    """What the search compares: the attention block of q, k and v where the model's roles name it, or the
    layer.
    """
    rows: Annotated[int, Field(ge=1, le=65536)] = 4096
    """Most calibration rows kept per layer."""
    search_rows: Annotated[int, Field(ge=1, le=65536)] = 65536
    """Most of them that the smoothing search compares candidates on; refinement uses all."""
    sample_mebibytes: Annotated[int, Field(ge=1, le=65536)] = 64
    """Memory for all calibration rows together; more passes over the calibration data if they do not fit."""
    branch_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the branch, bias and scales; auto is the weight's own, bf16 for the scales of fp32
    weights.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampled rows and of the randomised SVD."""

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The 16-bit format that scales are rounded to."""
        chosen = self.storage_dtype(weight_dtype)
        return chosen if chosen in (torch.bfloat16, torch.float16) else torch.bfloat16

    def storage_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The format in which low-rank factors, smoothing scales and bias are kept; fp32 for fp64 weights."""
        names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        own = torch.float32 if weight_dtype == torch.float64 else weight_dtype
        return names.get(self.branch_dtype, own)


FAST = Recipe(grid=10, refine_rounds=5, svd="randomized", rows=512, search_rows=128)
"""Many times quicker, a few per cent more error: 19 candidates on 128 rows, then 5 rounds on 512."""
