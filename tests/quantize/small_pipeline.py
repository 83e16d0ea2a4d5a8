"""The small parts of a text-to-image folder that is packaged, and unpackaged again."""

from pathlib import Path

from fewer.generate.autoencoder.config import DCAutoencoderConfig

AUTOENCODER = DCAutoencoderConfig(
    latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(8, 8, 16),
    decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 1, 1),
    decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), ()),
    decoder_qkv_multiscales=((), (), ()),
)  # fmt: skip
ADAPTER = Path("adapters") / "few-steps" / "pytorch_lora_weights.safetensors"
