"""A quantized FLUX in our folder becomes Nunchaku's single file and comes back the same."""

import tempfile
from pathlib import Path

import torch

from fewer.quantize import Recipe, convert, quantize
from fewer.quantize.checkpoint import checkpoint_of, load_quantized, save_quantized


def main() -> None:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, pooled_projection_dim=48, axes_dims_rope=(8, 12, 12),
    ).to(torch.bfloat16)  # fmt: skip
    config = {"_class_name": "FluxTransformer2DModel"} | {
        key: value for key, value in dict(model.config).items() if not key.startswith("_")
    }
    quantize(model, "int4", 16, recipe=Recipe(refine_rounds=1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_quantized(checkpoint_of(model, config), folder / "ours")
        for dialect in ("nunchaku", "nunchaku-legacy", "nunchaku-lite", "cache-dit", "deepcompressor"):
            result = convert(folder / "ours", folder / dialect, dialect)
            print(f"{dialect}: {result['bytes']:,} bytes")
        back = convert(next((folder / "nunchaku").iterdir()), folder / "back", "fewer")
        first, second = load_quantized(folder / "ours"), load_quantized(folder / "back")
        name = "transformer_blocks.0.attn.to_q"
        assert torch.equal(first.layers[name].codes, second.layers[name].codes)
        print(f"and back from {back['from']}: {len(second.layers)} layers")


if __name__ == "__main__":
    main()
