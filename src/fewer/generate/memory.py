"""How much memory drawing takes beyond the weights, said before any is taken."""

from typing import TYPE_CHECKING

from fewer.core.device import require_memory
from fewer.generate.request import GenerateRequest
from fewer.generate.transformer.params import SanaParams

if TYPE_CHECKING:
    from fewer.generate.pipeline import TextToImage

_WIDTHS_AT_ONCE = 6
"""Beside the feed-forward's hidden tensors a block holds at most: the stream, its norm, q, k, v and a sum."""


def activation_bytes(params: SanaParams, tokens: int, samples: int, itemsize: int) -> int:
    """Bytes that one evaluation needs for its activations.

    The feed-forward decides: twice its hidden width before the depthwise convolution, as much after it, and
    the gated half (specs of the Mix-FFN: arXiv 2410.10629, section 2.2).
    """
    widths = _WIDTHS_AT_ONCE + 5 * params.mlp_ratio
    return int(samples * tokens * params.width * widths * itemsize)


def step_bytes(pipe: "TextToImage", request: GenerateRequest, together: int = 1) -> int:
    """Bytes that one evaluation of the transformer needs for its activations, of `together` pictures."""
    params = pipe.transformer.params
    rows, columns = pipe.grid(request)
    tokens = (rows // params.patch_size) * (columns // params.patch_size)
    few = params.guidance_embeds or request.edition == "few-steps"  # guidance is built in
    guided = not few and (request.guidance or pipe.settings.guidance) > 1
    samples = together * (2 if guided else 1)
    return activation_bytes(params, tokens, samples, pipe.transformer.proj_out.weight.element_size())


def require_room(pipe: "TextToImage", request: GenerateRequest, together: int = 1) -> None:
    """Raises `CapacityError` when a step would not fit. Decoding cuts itself into tiles where it must."""
    device = pipe.transformer.proj_out.weight.device
    advice = "try a smaller size, or fewer pictures at once"
    require_memory(step_bytes(pipe, request, together), device, advice)
