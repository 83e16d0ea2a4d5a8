"""A small transformer to 4 bits, saved, loaded again, and given a LoRA that leaves no trace."""

import tempfile
from pathlib import Path

import torch

from fewer.generate.transformer import SanaParams, SanaTransformer
from fewer.quantize import FAST, attach, detach, load_model, quantize
from fewer.quantize.checkpoint import checkpoint_of, save_quantized
from fewer.quantize.models import open_model


def main() -> None:
    torch.manual_seed(0)
    params = SanaParams(
        in_channels=4, out_channels=4, heads=4, head_dim=32, depth=1, cross_heads=4, cross_head_dim=32,
        caption_channels=16, sample_size=8,
    )  # fmt: skip
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 16), torch.ones(2, 5))
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        SanaTransformer(params).save(folder / "sixteen")
        opened = open_model(str(folder / "sixteen"), torch.float32, torch.device("cpu"))
        model = opened.module
        exact = model(*inputs)
        quantize(model, format="h8", rank=8, calibrate=lambda: model(*inputs), recipe=FAST)
        print(f"relative error of the output: {((model(*inputs) - exact).norm() / exact.norm()).item():.4f}")
        worst = max(model.quantization_reports, key=lambda report: report.error)
        print(f"worst of {len(model.quantization_reports)} layers: {worst.name} with {worst.error:.4f}")

        save_quantized(checkpoint_of(model, opened.config), folder / "four")
        again = load_model(folder / "four")
        assert torch.equal(again(*inputs), model(*inputs))

        lora = {
            "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, 128) / 8,
            "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(128, 2) / 8,
        }
        plain = again(*inputs)
        attach(again, lora, "style", strength=0.8)
        print(f"the LoRA changes the output by {(again(*inputs) - plain).norm().item():.4f}")
        detach(again, "style")
        assert torch.equal(again(*inputs), plain)


if __name__ == "__main__":
    main()
