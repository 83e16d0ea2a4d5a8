"""Other people's 4-bit and 8-bit weights, put into a model's chosen layers so that they stand beside ours.

Each function changes the named linear layers and 1x1 convolutions of a model and returns what made them: the
library where it runs on this machine, otherwise an exact reference of its arithmetic, said so by name.
Run: python benchmarks/quantize_peers.py compares each reference with the installed library, bit for bit.
"""
# bench: cpu, 1 min: --output benchmarks/results/quantize_peers.json

import argparse
from pathlib import Path

import torch
from torch import nn

from fewer.core.files import write_json
from fewer.core.modules import set_module

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64


@torch.no_grad()
def nf4_weights(model: nn.Module, names: list[str]) -> str:
    """NF4 with blocks of 64 (QLoRA, arXiv 2305.14314, appendix E); activations stay in 16 bits."""
    try:
        import bitsandbytes
        from bitsandbytes import functional

        maker = f"bitsandbytes {bitsandbytes.__version__}"
    except ImportError:
        functional, maker = None, "exact reference of bitsandbytes' NF4"
    for name in names:
        weight = model.get_submodule(name).weight
        if functional is None:
            weight.copy_(nf4_reference(weight))
            continue
        packed, state = functional.quantize_4bit(
            weight.float().flatten(1).contiguous(), quant_type="nf4", blocksize=BLOCK
        )
        weight.copy_(functional.dequantize_4bit(packed, state).reshape(weight.shape))
    return maker


def nf4_reference(weight: torch.Tensor) -> torch.Tensor:
    """The same arithmetic in plain torch, for any device."""
    table = torch.tensor(NF4, device=weight.device)
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    index = torch.bucketize(blocks / scale.clamp_min(1e-30), (table[1:] + table[:-1]) / 2)
    return (table[index] * scale).flatten()[: len(flat)].reshape(weight.shape).to(weight.dtype)


@torch.no_grad()
def torchao_int4(model: nn.Module, names: list[str]) -> str:
    """torchao's 4-bit weight-only layers; groups are the largest of 128, 64, 32, 16 that divides a width."""
    try:
        import torchao
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    except ImportError:
        for name in names:
            weight = model.get_submodule(name).weight
            weight.copy_(int4_reference(weight.flatten(1)).reshape(weight.shape))
        return "exact reference of torchao's int4 weights"
    for name in names:
        linear = _as_linear(model, name)
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group_of(linear.weight)))
        quantize_(linear, config)
    return f"torchao {torchao.__version__} IntxWeightOnlyConfig(int4)"


def group_of(weight: torch.Tensor) -> int:
    """Input channels that share a scale."""
    return next(size for size in (128, 64, 32, 16) if weight.shape[1] % size == 0)


def int4_reference(weight: torch.Tensor) -> torch.Tensor:
    """torchao's symmetric 4-bit grid -8 .. 7, its scale max / 7.5."""
    groups = weight.unflatten(1, (-1, group_of(weight)))
    scale = groups.abs().amax(dim=2) / 7.5
    scale = scale.clamp_min(torch.finfo(torch.float32).eps)
    scale = scale.to(weight.dtype)[:, :, None]
    codes = torch.round(groups * (1.0 / scale)).clamp(-8, 7)
    return (codes * scale).flatten(1)


@torch.no_grad()
def torchao_fp8(model: nn.Module, names: list[str]) -> str:
    """torchao's dynamic fp8 activations and weights, a scale per row; plain arithmetic without a kernel."""
    try:
        import torchao
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
        probe = nn.Linear(32, 32, dtype=torch.bfloat16, device=next(model.parameters()).device)
        quantize_(probe, config)
        probe(torch.randn(4, 32, dtype=torch.bfloat16, device=probe.weight.device))
    except Exception:  # not installed, or whatever it says where it has no kernel
        for name in names:
            set_module(model, name, Fp8Linear(model.get_submodule(name)))
        return "exact reference of torchao's fp8, a scale per row"
    for name in names:
        quantize_(_as_linear(model, name), config)
    return f"torchao {torchao.__version__} Float8DynamicActivationFloat8Weight, a scale per row"


class Fp8Linear(nn.Module):
    """e4m3 weight with a scale per output, e4m3 activations with a scale per row, fp32 sums."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.channels_first = isinstance(original, nn.Conv2d)
        self.weight = nn.Parameter(_fp8_rows(original.weight.flatten(1)), requires_grad=False)
        self.bias = original.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        moved = inputs.movedim(1, -1) if self.channels_first else inputs
        outputs = _fp8_rows(moved).float() @ self.weight.float().mT
        outputs = (outputs if self.bias is None else outputs + self.bias.float()).to(inputs.dtype)
        return outputs.movedim(-1, 1) if self.channels_first else outputs


def _fp8_rows(values: torch.Tensor) -> torch.Tensor:
    scale = (values.float().abs().amax(dim=-1, keepdim=True) / 448).clamp_min(1e-12)
    codes = (values.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.float() * scale


class ChannelsLast(nn.Module):
    """A 1x1 convolution as the linear layer that it is."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.linear = nn.Linear(
            convolution.in_channels, convolution.out_channels, bias=convolution.bias is not None
        ).to(convolution.weight)
        self.linear.weight.data.copy_(convolution.weight.flatten(1))
        if convolution.bias is not None:
            self.linear.bias.data.copy_(convolution.bias)

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs.movedim(1, -1)).movedim(-1, 1)


def _as_linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name, a convolution having been replaced by one."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Conv2d):
        wrapper = ChannelsLast(layer)
        set_module(model, name, wrapper)
        layer = wrapper.linear
    assert isinstance(layer, nn.Linear)
    return layer


def main() -> None:
    """Weights that the references and the libraries make of the same layers; "equal" is bit for bit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_peers.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: dict[str, object] = {}
    for out, dim in ((64, 64), (1152, 384), (384, 960), (5, 192)):
        weight = torch.randn(out, dim) * torch.rand(dim).exp()
        for name, make, reference in (
            ("NF4", nf4_weights, nf4_reference),
            ("int4", torchao_int4, int4_reference),
        ):
            model = nn.Sequential(nn.Linear(dim, out, bias=False))
            model[0].weight.data.copy_(weight)
            maker = make(model, ["0"])
            made = model[0].weight
            found = (
                made.dequantize()
                if hasattr(made, "dequantize") and type(made.data) is not torch.Tensor
                else made
            )
            expected = reference(weight)
            rows[f"{name} {out} x {dim}"] = {
                "made_by": maker,
                "equal": bool(torch.equal(found.float(), expected.float())),
                "largest_difference": (found.float() - expected.float()).abs().max().item(),
            }
    write_json(options.output, {"torch": torch.__version__, "layers": rows})
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
