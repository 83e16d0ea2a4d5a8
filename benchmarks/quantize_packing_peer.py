"""Our packed layers against cache-dit's packer, tensor by tensor (pip install --no-deps cache-dit==1.5.3).

Only its packing file is loaded, so nothing of its GPU code is needed.
Run: python benchmarks/quantize_packing_peer.py
--packing PATH names the file where the package is not installed.
"""
# bench: by hand: needs the peer, cache-dit

import argparse
import importlib.util
import json
from pathlib import Path

import torch

from fewer.quantize.engine_layer import pack_layer
from fewer.quantize.formats import FORMATS, decode_weight, encode_weight
from fewer.quantize.layer import QuantizedLayer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packing", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize_packing_peer.json"))
    arguments = parser.parse_args()
    peer = load(arguments.packing)
    torch.manual_seed(0)
    equal: dict[str, bool] = {}
    for form, out, dim, rank in [("int4", 256, 384, 32), ("int4", 130, 192, 16), ("nvfp4", 256, 384, 32)]:
        layer, raw = sample(peer, form, out, dim, rank)
        theirs = peer.adapt_svdq_module_state_dict(
            raw, in_features=dim, out_features=out, rank=rank, precision=form, torch_dtype=torch.bfloat16,
            device="cpu", has_bias=True,
        )  # fmt: skip
        ours = pack_layer(layer, "layer")
        for name, tensor in theirs.items():
            same = tensor.shape == ours[name].shape and torch.equal(tensor.float(), ours[name].float())
            equal[f"{form} {out}x{dim} r{rank} {name}"] = bool(same)
    result = {"peer": "cache-dit 1.5.3", "equal": equal, "all_equal": all(equal.values())}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"tensors": len(equal), "all_equal": result["all_equal"]}))


def sample(peer, form: str, out: int, dim: int, rank: int) -> tuple[QuantizedLayer, dict[str, torch.Tensor]]:
    codes, scales = encode_weight(torch.randn(out, dim), FORMATS[form])
    residual = decode_weight(codes, scales, FORMATS[form], dim)
    smooth = (torch.rand(dim) + 0.5).bfloat16()
    up, down, bias = (torch.randn(size).bfloat16() for size in ((out, rank), (rank, dim), (out,)))
    layer = QuantizedLayer(
        format=form,  # pyright: ignore
        shape=(out, dim),
        codes=codes,
        scales=scales,
        smooth=smooth,
        down=(down.double() / smooth.double()).bfloat16(),
        up=up,
        bias=bias,
    )
    groups = scales.group.float().bfloat16().view(out, 1, -1, 1)
    choices = {"scale": groups}
    if form == "nvfp4":
        assert scales.channel is not None
        choices = {
            "scale": scales.channel.bfloat16().view(out, 1, 1, 1),
            "subscale": groups,
            "float_point": True,
        }
    raw = peer.export_raw_svdq_w4a4_state_dict(
        residual.bfloat16(), bias=bias, smooth=smooth, lora=(down, up), **choices
    )
    return layer, raw


def load(path: Path | None):
    if path is None:
        found = importlib.util.find_spec("cache_dit")
        assert found is not None and found.origin is not None, "cache-dit is not installed"
        path = Path(found.origin).parent / "quantization" / "svdquant" / "packing.py"
    spec = importlib.util.spec_from_file_location("peer_packing", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
