"""A text encoder of two layers with random weights, a tiny autoencoder and tiny encoded sets."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fewer.generate.autoencoder import DCAutoencoder, DCAutoencoderConfig
from fewer.generate.text.prompt import PromptEncoder
from fewer.generate.training.encoded import EncodedSet, TextTable


class LetterTokenizer:
    """One token a letter."""

    bos_token_id = 1
    eos_token_id = 2
    pad_token_id = 2

    def encode(self, text: str) -> list[int]:
        return [3 + ord(letter) % 60 for letter in text]


@pytest.fixture
def letters() -> PromptEncoder:
    """A language model of one layer that reads letters, 12 channels wide."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return PromptEncoder(LlamaModel(config), LetterTokenizer(), length=24, instruction=None)


@pytest.fixture
def small_autoencoder() -> DCAutoencoder:
    """4 times smaller a side, 4 channels."""
    torch.manual_seed(0)
    config = DCAutoencoderConfig(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    )
    return DCAutoencoder(config).eval()


@pytest.fixture
def encoded() -> Callable[..., EncodedSet]:
    """A set of random latents with one or two captions each; `shapes` gives each picture's latent size."""

    def build(shapes: list[tuple[int, int]], channels: int = 4, text_dim: int = 12) -> EncodedSet:
        generator = torch.Generator().manual_seed(7)
        latents = [torch.randn(channels, *shape, generator=generator) for shape in shapes]
        rows = 2 * len(shapes) + 1
        mask = torch.arange(5)[None] < 1 + torch.arange(rows)[:, None] % 5
        text = TextTable(torch.randn(rows, 5, text_dim, generator=generator).to(torch.bfloat16), mask)
        captions = [(2 * index + 1, 2 * index + 2) for index in range(len(shapes))]
        weights = [np.array([0.25, 0.75])] * len(shapes)
        return EncodedSet(latents, captions, weights, text, empty=0)

    return build
