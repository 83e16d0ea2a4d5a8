"""A start from which autoencoders learn sooner: every block adds nothing at first, so the network is linear.

What remains are the changes of resolution with their shortcuts, and the latent projections: such a chain
finds in a few steps what linear projections can keep, and the blocks learn from there what lies beyond.
"""

from torch import nn

from fewer.generate.autoencoder.blocks import GLUMBConv, LinearAttention, ResBlock
from fewer.generate.autoencoder.dc_ae import DCAutoencoder


def start_quietly(model: DCAutoencoder) -> DCAutoencoder:
    """Sets the weight of the last norm of every branch to zero, in place (as is usual in residual networks:
    Goyal et al. 2017, section 5.1)."""
    for module in model.modules():
        if isinstance(module, ResBlock | GLUMBConv):
            nn.init.zeros_(module.norm.weight)  # pyright: ignore[reportArgumentType]
        if isinstance(module, LinearAttention):
            nn.init.zeros_(module.norm_out.weight)  # pyright: ignore[reportArgumentType]
    return model
