"""Which form of a transformer's training step a GPU takes: the quickest that gives the same gradients here.

All blocks as one function with its own backward pass (`whole_blocks`) is quickest. It is used after its
velocities and gradients on a few pictures of the first batch, on this very machine, have come as near to
those in fp32 as the modules' own in bf16 do; otherwise each block is compiled, as ever.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewer.generate.sampling.schedule import TRAINING_LEVELS
from fewer.generate.training.flow import FlowBatch
from fewer.generate.transformer.block_tensors import fits_whole
from fewer.generate.transformer.sana import SanaTransformer

logger = logging.getLogger(__name__)

PICTURES = 16
"""On so many the two forms are compared."""
SLACK = (3.0, 0.1, 1e-3)
"""How far from fp32's the gradient of a parameter may be: so many times as far as the modules' in bf16, and
so much of its own length, and of all gradients' length, more."""


def make_quick(
    transformer: SanaTransformer, batch: FlowBatch, dtype: torch.dtype, compiled: bool = True
) -> None:
    """Puts a transformer on a GPU into its quickest form for training with batches like this one.

    Without `compiled` it stays as it is where the whole form does not serve.
    """
    side = transformer.params.patch_size
    tokens = batch.latents.shape[2] * batch.latents.shape[3] // side**2
    fits = fits_whole(transformer.transformer_blocks, tokens, batch.text.shape[1])
    transformer.whole = (
        fits
        and dtype == torch.bfloat16
        and not transformer.recompute_blocks
        and _agrees(transformer, batch, dtype)
    )
    if compiled and not transformer.whole:
        transformer.fuse_attention(is_plain(transformer))
        for block in transformer.transformer_blocks:
            block.compile(dynamic=False)


def _agrees(transformer: SanaTransformer, batch: FlowBatch, dtype: torch.dtype) -> bool:
    """Whether velocities and gradients are as near to those in fp32 as the modules' own in bf16."""
    few = batch.share(0, -(-len(batch.latents) // PICTURES))
    last = transformer.proj_out.weight
    started = last.detach().clone()  # zeros at a fresh start: no gradient would come past them
    draw = torch.Generator().manual_seed(0)
    try:
        last.data.add_((torch.randn(last.shape, generator=draw) / last.shape[1] ** 0.5).to(last))
        # A fixed direction instead of the loss, whose gradient is next to nothing in a trained model.
        along = torch.randn(few.noise.shape, generator=draw).to(few.noise)
        exact = _reached(transformer, few, along, torch.float32)
        plain = _reached(transformer, few, along, dtype)
        transformer.whole = True
        ours = _reached(transformer, few, along, dtype)
    except Exception as error:  # a Triton that cannot compile it, whose errors are of no kind of Python's
        logger.warning("the quick training step cannot be used here: %s", str(error)[:300])
        return False
    finally:
        transformer.whole = False
        last.data.copy_(started)
    whole = float(torch.stack([tensor.norm() for tensor in exact[1:]]).norm())
    for a, b, c in zip(ours, plain, exact, strict=True):
        off, usual, length = (float(tensor.norm()) for tensor in (a - c, b - c, c))
        if not off <= SLACK[0] * usual + SLACK[1] * length + SLACK[2] * whole:
            where = (
                f"off by {off:.3g} (otherwise {usual:.3g}) of {length:.3g} in a tensor of {tuple(c.shape)}"
            )
            logger.warning("the quick training step is %s and is not used", where)
            return False
    return True


def _reached(
    transformer: SanaTransformer, batch: FlowBatch, along: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The velocities, and the gradients of all parameters if theirs are `along`."""
    moving = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    with precision(dtype, batch.latents.device):
        noisy = torch.lerp(batch.latents, batch.noise, batch.levels[:, None, None, None])
        timestep = torch.floor(batch.levels * TRAINING_LEVELS)
        velocity = transformer(noisy, timestep, batch.text, batch.text_mask).float()
    found = torch.autograd.grad((velocity * along).mean(), moving, materialize_grads=True)
    return [velocity.detach(), *(gradient.float() for gradient in found)]


def is_plain(transformer: SanaTransformer) -> bool:
    """Whether the training kernels fit: nothing is attached, and heads are of a size that they take."""
    dim = transformer.params.head_dim
    plain = all(type(block.ff.conv_inverted) is nn.Conv2d for block in transformer.transformer_blocks)
    return plain and dim >= 16 and dim & (dim - 1) == 0


@contextmanager
def precision(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Products in `dtype`, weights as they are."""
    with warnings.catch_warnings(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        # RMS norms see bf16 tokens and fp32 weights, and say so at every call.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
